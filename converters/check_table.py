"""Every check: what it compares and the fault it catches. The one table; docs/checks.md is made of it.

A test session holds this table against every check that its tests see. Ids are stable; `*` stands for what varies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

# Formats whose checks are all in the table.
OURS = ("hf", "gguf", "onnx")


@dataclass(frozen=True)
class CheckRow:
    """A row of the table.

    Args:
        ids: of the checks, as patterns.
        compares: what is held against what.
        catches: the fault that makes it fail, and what that does to whoever runs the artifact.
    """

    ids: tuple[str, ...]
    compares: str
    catches: str


def _row(ids: str, compares: str, catches: str) -> CheckRow:
    return CheckRow(tuple(ids.split()), compares, catches)


_OF_CONFIG = "config.json against the configuration that an export of the reference has"
_ROPE = "rope_parameters and rope_scaling against the expected factors, each by itself"
_BESIDE = "the file beside the weights against the source's own"
_KEYS = "the key against the reference model's"
_TENSORS = "tensor infos against those that the reference gives"
_GRAPH = "the graph against the one that an export of the reference gives"

EVERY_FORMAT = (
    _row(
        "*.readable",
        "the artifact's headers against its own size",
        "no file, a truncated or damaged one, pickle weights, an adapter beside the weights; nothing else can be checked",
    ),
    _row(
        "*.factors",
        "factors in the artifact, in the reference and given ones",
        "none of the three has any: neither is an extended model",
    ),
    _row(
        "factors.unverified",
        "where the expected factors come from",
        "warns: from the artifact itself; give them, or an extended reference, to check them",
    ),
    _row(
        "factors.short_unverified",
        "the sets of the reference and of the artifact",
        "warns: the reference has one set, so that the artifact's short set is run as it is",
    ),
    _row(
        "*.loads",
        "the artifact opened and run to the end in its own runtime",
        "a file that the runtime refuses, that ends its process, or that takes more memory or time than its size explains",
    ),
    _row(
        "*.rope.precision",
        "the worst rotary angle at the target length, as the format's runtime computes it, against float64",
        "warns: float32 angles are more than 0.05 rad off",
    ),
    _row(
        "*.parity *.parity.*",
        "logits of the artifact's own runtime against the reference's, token by token, on the same windows",
        "another model in any way that shows: weights, frequencies, the wrong set at a length, attention, vocabulary",
    ),
    _row(
        "*.budget",
        "windows that were asked for against those that fit in the time (`--budget`, `--quick`)",
        "skipped, with what was left out or cut, where not everything fits; lengths left out whole are skipped checks, too",
    ),
    _row(
        "*.reference_dtype",
        "what the reference computes in against float32 (`--reference-dtype`)",
        "warns: the reference is rounded itself, and faults below that are not seen",
    ),
    _row(
        "*.batch",
        "two texts in one pass, the shorter one padded in front, against each alone",
        "padding that is attended to, or rows that reach into one another",
    ),
    _row(
        "*.same_model",
        "the model that transformers loads against the reference: settings, weights, frequencies, and the logits of a probe",
        "none: it passes where both are one computation, which is then run once for both",
    ),
    _row(
        "*.own_weights",
        "the artifact's rounded weights, put back under the reference's names",
        "skipped where they cannot be had: then the runtime's faults and the rounding's cost are judged together",
    ),
    _row(
        "*.rounding.*",
        "logits of the reference with the artifact's own weights against those with the original ones",
        "the weight type costs more than the policy allows",
    ),
    _row(
        "*.baseline.reference",
        "the model that this release is held to against that of the earlier result",
        "warns: another one, so that a change of KL is no change of the artifact",
    ),
    _row(
        "*.baseline.*",
        "perplexity and KL against an earlier result on the same windows, paired",
        "warns: worse than the earlier release beyond noise",
    ),
    _row(
        "*.record",
        "the factors that our exporter recorded against the artifact's own",
        "the record is another model's: importers and `inspect` are misled",
    ),
)
QUALITY = (
    _row(
        "quality.inside quality.inside.*",
        "perplexity and KL of the extended model against the original one inside the original window, paired by window",
        "warns: the extension costs more there than the policy allows, beyond noise",
    ),
    _row(
        "quality.beyond quality.beyond.*",
        "perplexity of the extended model beyond the original window against the original's, PI's, NTK's and YaRN's, paired "
        "by window",
        "warns: something that needs no search is better, beyond noise; or the extension brings nothing",
    ),
    _row(
        "quality.passkey quality.passkey.*",
        "share of passkeys that the extended model finds against the original's inside its window",
        "warns: fewer, beyond noise; skipped where the original finds none",
    ),
    _row(
        "quality.control quality.control.differs",
        "logits of the extended model against the original's beyond the original window",
        "the same: the factors are not applied, or rescale nothing, and every comparison with them is empty",
    ),
    _row(
        "quality.control.same",
        "logits of the extended model against those of a second pass",
        "others: the machine does not compute twice the same, and no difference can be trusted",
    ),
    _row(
        "quality.control.reference",
        "mean NLL of the extended model, by window, against that of the reference that artifacts are held to",
        "apart: one of both has other factors, so that parity or quality is about another model",
    ),
)
FOLDERS = (
    _row(
        "*.config.fields",
        _OF_CONFIG,
        "another size, number of layers or heads, vocabulary, epsilon, class, tied embeddings, BOS, EOS or padding token; a "
        "sliding window, a quantization or any other field that transformers takes for another value: engines build another "
        "network, or stop at another token",
    ),
    _row("*.config.rest", _OF_CONFIG, "of a multimodal model: another part than its text model was changed"),
    _row(
        "*.tokenizer",
        "token ids of texts with digits, scripts, white space, contractions and every special token, and the texts that they "
        "give back; vocabulary, merges, added tokens",
        "tokenizer.json lost or damaged; the same text gives other tokens, is cut or padded",
    ),
    _row(
        "*.tokenizer.files",
        "vocab.json, merges.txt and tokenizer.model beside tokenizer.json against the source's",
        "tools that read these split texts otherwise",
    ),
    _row(
        "*.tokenizer.loaded",
        "token ids and texts of the tokenizer as transformers loads it",
        "settings beside tokenizer.json make another tokenizer of it",
    ),
    _row("*.tokenizer.texts", "token ids of the given texts", "the same texts give other tokens"),
    _row(
        "*.tokenizer_config",
        _BESIDE,
        "other special tokens, tokens added around texts, or a length limit below the target, at which texts are cut",
    ),
    _row("*.chat_template", _BESIDE, "a template lost or changed: conversations are written for another model"),
    _row("*.generation_config", _BESIDE, "generation ends at other tokens or at another length, or never"),
    _row(
        "*.files",
        "names and first bytes of every file in the folder",
        "code or a pickle, which is code to whoever opens it; auto_map in config.json",
    ),
)
CONFIG = (
    _row(
        "*.config.dtype",
        _OF_CONFIG,
        "warns: engines compute in another type than the weights', and float16 ends at 65504",
    ),
    _row(
        "*.config.max_position_embeddings",
        _OF_CONFIG,
        "the window that a runtime allows is not the target: sequences are cut elsewhere",
    ),
    _row(
        "*.config.original_max_position_embeddings",
        _OF_CONFIG,
        "missing or wrong at the top level: the long set is never used, or from another length on",
    ),
    _row("*.config.rope_theta", _OF_CONFIG, "missing at the top level: readers of transformers 4 take 10000"),
    _row(
        "*.config.sliding_window",
        _OF_CONFIG,
        "of a model whose layers all slid: they look back over the last tokens only, and the longer window has no effect",
    ),
    _row(
        "*.rope_parameters *.rope_scaling",
        "both spellings of the rotary parameters",
        "one is missing: engines that read only that one run plain RoPE, without a message",
    ),
    _row("*.rope_*.rope_type", _ROPE, "not the expected rescaling: the factors are ignored"),
    _row("*.rope_*.type", _ROPE, "the older spelling of the type beside it says another, or is missing"),
    _row("*.rope_*.rope_theta", _ROPE, "another θ than at the top: every frequency is another"),
    _row("*.rope_*.original", _ROPE, "the switch between the sets, or the ramp of YaRN, lies at another length"),
    _row("*.rope_*.factor *.rope_*.attention_factor", _ROPE, "cos and sin are scaled by another number"),
    _row(
        "*.rope_*.short_factor *.rope_*.long_factor",
        _ROPE,
        "a missing, shortened, exchanged or changed list, with the first pair that differs",
    ),
    _row("*.rope_*.mscale *.rope_*.mscale_all_dim", _ROPE, "keys that some engines apply on top"),
    _row(
        "*.rope_*.beta_fast *.rope_*.beta_slow *.rope_*.truncate *.rope_*.attn_factor",
        _ROPE,
        "parameters of YaRN: another ramp or attention factor",
    ),
    _row("*.rope_*.partial_rotary_factor", _ROPE, "another share of each head is rotated"),
    _row(
        "*.rope_*.sliding_attention",
        "the rotary parameters of layers that slide against the source's",
        "these layers, which no extension changes, rotate otherwise",
    ),
    _row("*.rope_*.kept", "names of the source's other rotary parameters", "one is lost that the model computes with"),
)
HF = (
    _row(
        "hf.config",
        "the factors that our exporter recorded against config.json",
        "they belong to another model (`inspect` alone)",
    ),
    _row(
        "hf.weights",
        "every tensor's name, shape and numbers against the reference's, rounded to the artifact's type",
        "a tensor missing, added, reshaped or changed, or packed without a word how",
    ),
)
GGUF = (
    _row("gguf.arch", "general.architecture against the reference's", "llama.cpp builds another network"),
    _row("gguf.general.type", "the key against `model`", "tools take the file for an adapter or a vocabulary"),
    _row("gguf.context_length", _KEYS, "runtimes take the window that a user gets from it"),
    _row("gguf.rope.scaling.type", _KEYS, "without longrope llama.cpp does not load the factors"),
    _row(
        "gguf.rope.scaling.original_context_length",
        _KEYS,
        "llama.cpp chooses the set by it; without it the long set is never used",
    ),
    _row(
        "gguf.rope.scaling.attn_factor",
        _KEYS,
        "attention is too sharp or too flat at every length; perplexity may even fall",
    ),
    _row("gguf.rope.scaling.factor", _KEYS, "beside factors it is applied on top; of YaRN and linear: another scale"),
    _row(
        "gguf.rope.scaling.yarn_beta_fast gguf.rope.scaling.yarn_beta_slow",
        _KEYS,
        "the ramp of YaRN begins or ends at another pair",
    ),
    _row("gguf.rope.freq_base*", _KEYS, "every rotary frequency is wrong"),
    _row("gguf.rope.dimension_* gguf.rope.*", _KEYS, "other dimensions of a head are rotated"),
    _row(
        "gguf.attention.* gguf.block_count gguf.embedding_* gguf.feed_forward_length gguf.vocab_size gguf.*_count "
        "gguf.expert_* gguf.ssm.* gguf.*_scale gguf.*_softcapping gguf.use_parallel_residual gguf.xielu.*",
        _KEYS,
        "llama.cpp builds another network",
    ),
    _row(
        "gguf.keys",
        "the architecture's keys in the file against those that the model calls for",
        "a key that the reference does not have changes what is computed",
    ),
    _row(
        "gguf.factors.long gguf.factors.short",
        "each number against the expected factors, as float32",
        "missing, too few, exchanged, reversed, off by one bit",
    ),
    _row("gguf.factors.dtype", "the type of the factor tensors", "not float32: llama.cpp reads no other"),
    _row(
        "gguf.rope_freqs",
        "whether rope_freqs.weight is there",
        "one set that takes the place of both, or its absence where it is the only one",
    ),
    _row(
        "gguf.vocab gguf.vocab.model gguf.vocab.pre gguf.vocab.tokens gguf.vocab.token_type gguf.vocab.merges "
        "gguf.vocab.scores gguf.vocab.*_token_id gguf.vocab.add_* gguf.vocab.*",
        "each entry of the vocabulary against the reference's tokenizer",
        "text is split otherwise, or ends at another token; skipped where the tokenizer has no counterpart",
    ),
    _row(
        "gguf.vocab.token_ids",
        "ids of ends of turns and messages that the reference does not name, against the tokens' types",
        "llama.cpp takes ordinary text for the end of a turn",
    ),
    _row(
        "gguf.chat_template*",
        "each template against the reference's of that name",
        "conversations are written for another model",
    ),
    _row("gguf.tensors.missing", _TENSORS, "llama.cpp refuses the file"),
    _row("gguf.tensors.extra", _TENSORS, "tensors that the reference does not have; llama.cpp refuses most"),
    _row("gguf.tensors.shapes", _TENSORS, "another network"),
    _row(
        "gguf.weights",
        "every byte of float tensors, and 64 rows of each quantized one, against the reference's, rounded to their type; and "
        "whether all of a quantized tensor is too large or too small",
        "a weight that is not the reference's; rows of q and k that are not interleaved are named",
    ),
    _row(
        "gguf.patch.keys gguf.patch.tensors gguf.patch.data",
        "a patched or copied file against the one that it was made from",
        "something else than the factors was changed",
    ),
)
ONNX = (
    _row("onnx.opset", "the opset against 23 and 24", "onnxruntime runs Attention natively at these only"),
    _row("onnx.inputs onnx.outputs", _GRAPH, "a name, type or shape that runtimes do not find"),
    _row("onnx.cache", _GRAPH, "a layer reads or writes another layer's cache, or keys and values are swapped"),
    _row(
        "onnx.external_data",
        "the place of every weight against the files in the folder",
        "weights missing, truncated, of another length, or outside the folder (by path, absolute path or link)",
    ),
    _row(
        "onnx.factors.long onnx.factors.short",
        "initializers against the expected factors, exactly",
        "factors dropped, changed, rounded, or of another model",
    ),
    _row(
        "onnx.attention_factor onnx.n_hat onnx.original onnx.inv_freq",
        "initializers against the expected factors and the model's frequencies",
        "one of these numbers is missing or changed (inv_freq: another θ)",
    ),
    _row(
        "onnx.rope.chain",
        "cos and sin that the graph's own rotary part computes at 260 positions, against float64",
        "factors present but unused, one set baked in, float32 angles, n̂ ignored, the attention factor on one of both, "
        "tables swapped or taken from elsewhere",
    ),
    _row(
        "onnx.switch",
        "the set in use at L − 1, L, L + 1 and the target, and in a first chunk of each",
        "the wrong set at one of them: inverted, off by one, baked in, rope_total_length ignored",
    ),
    _row("onnx.metadata", "factors in the metadata against those in the graph", "importers and `inspect` are misled"),
    _row(
        "onnx.graph",
        "every node, in order, against the graph that an export of the reference gives",
        "a layer not rotated, pairs interleaved, another scale, epsilon or mask; skipped for graphs of other tools",
    ),
    _row(
        "onnx.weights",
        "every weight against the reference's, rounded to the artifact's type",
        "a weight missing, changed or exchanged",
    ),
    _row("onnx.config", "whether config.json can be read", "tools that load the folder need it"),
    _row(
        "onnx.genai_config",
        "genai_config.json against the one that an export of the reference has",
        "lost or damaged, or other sizes, names, tokens or lengths: onnxruntime-genai runs another model",
    ),
)
SECTIONS: Mapping[str, Sequence[CheckRow]] = {
    "Every format": EVERY_FORMAT,
    "The extension (`--quality`)": QUALITY,
    "Folders: what lies beside the weights": FOLDERS,
    "config.json of folders": CONFIG,
    "Hugging Face": HF,
    "GGUF": GGUF,
    "ONNX": ONNX,
}


def row_of(id: str) -> CheckRow | None:
    """The row of a check: that which names it, or else the first whose pattern fits."""
    rows = [row for section in SECTIONS.values() for row in section]
    exact = (row for row in rows if id in row.ids)
    return next(exact, None) or next((row for row in rows if any(fnmatchcase(id, each) for each in row.ids)), None)


def ids_of(formats: Iterable[str]) -> list[str]:
    """The ids of all rows, as patterns; those of every format for each of these formats."""
    rows = [id for section in SECTIONS.values() for row in section for id in row.ids]
    return [made for name in formats for id in rows for made in _of_format(id, name)]


def names_a_check(pattern: str, formats: Iterable[str]) -> bool:
    """Whether the id of a check may fit a pattern of a policy.

    Args:
        pattern: with wildcards; `*.` at its beginning stands for a format.
        formats: the known ones; of the checks that third parties' formats have beside the common ones nothing is known.
    """
    for name in formats:
        for mine in _of_format(pattern, name):
            if name not in OURS and _meet(mine, f"{name}.*"):
                return True
            if any(_meet(mine, id) for id in ids_of([name])):
                return True
    return False


def _of_format(pattern: str, format: str) -> list[str]:
    """A pattern, with a format in the place of a star before its first dot."""
    return [f"{format}{pattern[1:]}"] if pattern.startswith("*.") else [pattern]


def _meet(pattern: str, id: str) -> bool:
    """Whether a text fits both a pattern and the pattern of a row, whose stars reach to the next dot, the last one beyond."""
    pattern = re.sub(r"\[!?]?[^]]*]", "?", pattern)
    reached = {(0, 0)}
    seen: set[tuple[int, int]] = set()
    while reached:
        i, j = reached.pop()
        if (i, j) == (len(pattern), len(id)):
            return True
        seen.add((i, j))
        mine, theirs = pattern[i : i + 1], id[j : j + 1]
        steps = set()
        if mine == "*":
            steps |= {(i + 1, j), *([(i, j + 1)] if theirs else [])}
        if theirs == "*":
            steps |= {(i, j + 1), *([(i + 1, j)] if mine and (mine != "." or j == len(id) - 1) else [])}
        if mine and theirs and "*" not in (mine, theirs) and mine in (theirs, "?"):
            steps.add((i + 1, j + 1))
        reached |= steps - seen
    return False


def table_text() -> str:
    """docs/checks.md."""
    lines = [
        "# Every check, and the fault it catches",
        "",
        "`make schema` makes this page of `converters/check_table.py`, and the tests hold that against every check they see.",
        "`FORMAT` stands for `hf`, `gguf` or `onnx`, `…` for what varies. How the checks are made is on",
        "[validation.md](validation.md); reports for pipelines are on [ci.md](ci.md).",
    ]
    for title, rows in SECTIONS.items():
        lines += ["", f"## {title}", "", "| id | compares | catches |", "|---|---|---|"]
        lines += [f"| {_shown(row.ids)} | {row.compares} | {row.catches} |" for row in rows]
    return "\n".join(lines) + "\n"


def _shown(ids: Sequence[str]) -> str:
    return ", ".join(f"`{_readable(id)}`" for id in ids)


def _readable(id: str) -> str:
    """A pattern as a person reads it: a format in front, and dots for the rest."""
    start = "FORMAT." if id.startswith("*.") else ""
    return start + id.removeprefix("*.").replace("*", "…")
