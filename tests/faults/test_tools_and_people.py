"""What public tools and people do to artifacts: each is caught by the check that names it, or harmless, with the reason.

No fault here is one of the catalogues beside it (`tests/onnx_faults.py`, `tests/gguf_files.py`,
`tests/faults/test_missed_before.py`, `tests/faults/test_broken_artifacts.py`). One model, one artifact of each format;
every fault is put into a copy, and the plan's own static checks look at it.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from converters import registry
from converters.base import Check, PlannedExport
from converters.gguf.container import TensorInfo, Value, array, f32, flag, text, u32
from converters.gguf.native import gguf
from longrope.checkpoint import open_checkpoint
from tests.common import pico_factors, pico_folder, pico_tokenizer, plan_in_float32, write_every_format
from tests.folder_faults import (
    Fault,
    both,
    change_json,
    config,
    copied,
    edit,
    half,
    in_pairs,
    in_two_files,
    lose,
    on_bytes,
    pointer,
    put,
    rope,
    tokenizer,
    weights,
)
from tests.gguf_files import LONG, SHORT, Tensors, Values, edit_list, holding, in_file, set_key, swap
from tests.gguf_files import Fault as GgufFault
from tests.gguf_files import edit as edit_tensor
from tests.onnx_faults import initializer, node, on_graph, set_initializer, set_locations

ORIGINAL, TARGET = 256, 512
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "{% for message in messages %}\n<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
Json = dict[str, Any]


@dataclass(frozen=True)
class Harmless:
    """No check may fail.

    Args:
        why: it changes nothing that an engine computes.
    """

    why: str


@dataclass(frozen=True)
class Warned:
    """A check warns, and none fails: what is stored is right, its use may not be."""

    id: str


Verdict = str | Harmless | Warned
Catalogue = dict[str, tuple[Fault, Verdict]]


@dataclass(frozen=True)
class Studio:
    artifacts: Mapping[str, Path]
    plans: Mapping[str, PlannedExport]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A model in two files with everything that can be lost, and its sound artifacts."""
    room = tmp_path_factory.mktemp("studio")
    folder = pico_folder(room / "model", "mistral", max_position_embeddings=ORIGINAL, sliding_window=None)
    in_two_files(folder)
    edit("tokenizer_config.json", model_max_length=ORIGINAL)(folder)
    edit("generation_config.json", eos_token_id=[0, 5])(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokens = pico_tokenizer(380)
    tokens.add_special_tokens(["<|system|>", "<|end|>"])
    tokens.add_tokens(["<think>", "</think>"])
    tokens.normalizer = normalizers.NFC()
    tokens.save(str(folder / "tokenizer.json"))
    tokens.model.save(str(folder))  # vocab.json and merges.txt
    model = open_checkpoint(folder)
    factors = model.bind(pico_factors(target=TARGET, original_max_position_embeddings=ORIGINAL))
    artifacts = write_every_format(model, factors, room)
    plans = {name: plan_in_float32(name, model, factors) for name in artifacts}
    return Studio(artifacts, plans)


# -- tools for a folder's weights and settings

LAYER = "model.layers.{}.{}.weight"
UP, Q, K = (LAYER.format(1, name) for name in ("mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj"))
NORMS = [LAYER.format(0, name) for name in ("input_layernorm", "post_attention_layernorm")]


def change(name: str, to: Callable[[Any], Any]) -> Fault:
    return weights(lambda tensors: tensors.update({name: to(tensors[name])}))


def exchange(one: str, other: str) -> Callable[[Json], None]:
    def act(tensors: Json) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return act


def reorder_layers(tensors: Json) -> None:
    for name in [name for name in tensors if ".layers.0." in name]:
        exchange(name, name.replace(".layers.0.", ".layers.1."))(tensors)


def with_prefix(prefix: str) -> Callable[[Json], None]:
    def act(tensors: Json) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return act


def cast(dtype: Any) -> Fault:
    return weights(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))


def own_loss(tensors: Json) -> None:
    """A LoRA adapter merged into one layer."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(tensors[UP].shape[0], 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    tensors[UP] = tensors[UP] + 1e-3 * low


def swap_files(folder: Path) -> None:
    (folder / FIRST).rename(folder / "between")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "between").rename(folder / SECOND)


def one_file_beside(folder: Path) -> None:
    """A download of an older revision, which was saved in one file."""
    from safetensors.torch import load_file, save_file

    tensors = {**load_file(folder / FIRST), **load_file(folder / SECOND)}
    tensors[UP] = tensors[UP] + 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_metadata(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in (FIRST, SECOND):
        save_file(load_file(folder / name), folder / name)


def at_random(words: Any, seed: int = 1) -> list[Any]:
    return [words[place] for place in np.random.default_rng(seed).permutation(len(words))]


def bpe(**changes: Any) -> Fault:
    """Settings or parts of the BPE model, or of the whole tokenizer.json."""

    def act(data: Json) -> None:
        for name, value in changes.items():
            (data["model"] if name in data["model"] else data)[name] = value

    return change_json("tokenizer.json", act)


def shuffle_merges(data: Json) -> None:
    data["model"]["merges"] = at_random(data["model"]["merges"])


def renumber_tokens(data: Json) -> None:
    """Two added tokens change places."""
    one, other = data["added_tokens"][-2:]
    one["content"], other["content"] = other["content"], one["content"]


def rename_token(data: Json) -> None:
    """The vocabulary of another revision: one token is spelled otherwise."""
    vocabulary = data["model"]["vocab"]
    word = next(word for word in reversed(vocabulary) if word not in str(data["model"]["merges"]))
    vocabulary["Zebra"] = vocabulary.pop(word)


def flags(**changes: Any) -> Fault:
    return change_json("tokenizer.json", lambda data: [token.update(changes) for token in data["added_tokens"]])


RENUMBERED = {f"{number}": {"content": f"<extra_{number}>", "special": True} for number in range(2)}
PEFT = {"peft_type": "LORA", "base_model_name_or_path": "someone/model", "r": 4, "target_modules": ["up_proj"]}
WIDE = [1.5] * 64

# -- folders of Hugging Face and ONNX: what lies beside the weights

COMPANIONS: Catalogue = {
    # edited by hand
    "config.json with CRLF": (on_bytes("config.json", lambda c: c.replace(b"\n", b"\r\n")), Harmless("white space")),
    "a comment in config.json": (on_bytes("config.json", lambda c: c.replace(b"{", b"{ // longer\n", 1)), "@config"),
    "a comma too many in config.json": (on_bytes("config.json", lambda c: c.rstrip()[:-1] + b",}"), "@config"),
    "config.json in UTF-16": (on_bytes("config.json", lambda c: c.decode().encode("utf-16")), "@config"),
    "config.json of another tool's pointer": (pointer("config.json"), "@config"),
    "a window that looks back 128 tokens": (config(sliding_window=128), "config.fields"),
    "layers that slide": (config(layer_types=["sliding_attention"] * 2, sliding_window=64), "config.fields"),
    "half of each head rotated": (config(partial_rotary_factor=0.5), "config.fields"),
    "another head size": (config(head_dim=32), "config.fields"),
    "another activation": (config(hidden_act="gelu"), "config.fields"),
    "another model type": (config(model_type="llama", architectures=["LlamaForCausalLM"]), "config.fields"),
    "bos and eos exchanged": (config(bos_token_id=5, eos_token_id=1), "config.fields"),
    "a quantization that is not there": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "config.fields",
    ),
    "fp8 scales announced and lost": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        "config.fields",
    ),
    "every head with keys of its own": (config(num_key_value_heads=4), "config.fields"),
    "dropout in config.json": (config(attention_dropout=0.1), Harmless("dropout is training's alone")),
    "no cache by default": (config(use_cache=False), Harmless("slower, the same numbers")),
    "another version of transformers": (config(transformers_version="4.38.0"), Harmless("who saved it")),
    "a path of somebody's": (config(_name_or_path="/data/models/m"), Harmless("where it was; publish looks for such")),
    "unsloth was here": (config(unsloth_fixed=True, unsloth_version="2026.1"), Harmless("who saved it")),
    "padding named": (config(pad_token_id=0), Harmless("padding is masked; the source named none")),
    "another spread of weights at the start": (config(initializer_range=0.5), Harmless("for training from nothing")),
    # tokenizer
    "a tokenizer's pointer": (pointer("tokenizer.json"), "tokenizer"),
    "tokenizer.json with CRLF": (
        on_bytes("tokenizer.json", lambda c: c.replace(b"\n", b"\r\n")),
        Harmless("white space of JSON"),
    ),
    "merges shuffled": (change_json("tokenizer.json", shuffle_merges), "tokenizer"),
    "special tokens renumbered": (change_json("tokenizer.json", renumber_tokens), "tokenizer"),
    "a token of another revision": (change_json("tokenizer.json", rename_token), "tokenizer"),
    "added tokens eat spaces": (flags(lstrip=True), "tokenizer"),
    "added tokens are whole words": (flags(single_word=True), "tokenizer"),
    "added tokens are normalized": (flags(normalized=True), "tokenizer"),
    "end of text is no special token": (flags(special=False), "tokenizer"),
    "merges left out at random": (bpe(dropout=0.1), "tokenizer"),
    "merges ignored": (bpe(ignore_merges=True), "tokenizer"),
    "texts cut at 128 tokens": (
        tokenizer(lambda loaded: loaded.enable_truncation(128)),
        "tokenizer",
    ),
    "texts padded": (tokenizer(lambda loaded: loaded.enable_padding(length=64)), "tokenizer"),
    "letters no longer composed": (tokenizer(lambda loaded: setattr(loaded, "normalizer", None)), "tokenizer"),
    "letters composed to others": (
        tokenizer(lambda loaded: setattr(loaded, "normalizer", normalizers.NFKC())),
        "tokenizer",
    ),
    "spaces stripped": (tokenizer(lambda loaded: setattr(loaded, "normalizer", normalizers.Strip())), "tokenizer"),
    "a space before every text": (
        tokenizer(lambda loaded: setattr(loaded, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
        "tokenizer",
    ),
    "text split at white space": (
        tokenizer(lambda loaded: setattr(loaded, "pre_tokenizer", pre_tokenizers.WhitespaceSplit())),
        "tokenizer",
    ),
    "text comes back in pieces": (
        tokenizer(lambda loaded: setattr(loaded, "decoder", decoders.WordPiece())),
        "tokenizer",
    ),
    "text begins with end of text": (
        tokenizer(
            lambda loaded: setattr(
                loaded,
                "post_processor",
                processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]),
            )
        ),
        "tokenizer",
    ),
    "a tokenizer without merges": (
        tokenizer(lambda t: setattr(t, "model", models.WordLevel(t.get_vocab()))),
        "tokenizer",
    ),
    "a token added on top": (tokenizer(lambda loaded: loaded.add_tokens([AddedToken("<new>")])), "tokenizer"),
    "merges.txt of another revision": (
        on_bytes("merges.txt", lambda content: b"\n".join(content.split(b"\n")[:-9]) + b"\n"),
        "tokenizer.files",
    ),
    "vocab.json of another revision": (
        change_json("vocab.json", lambda data: data.update(Zebra=data.pop(next(reversed(data))))),
        "tokenizer.files",
    ),
    "merges.txt with CRLF": (on_bytes("merges.txt", lambda c: c.replace(b"\n", b"\r\n")), "tokenizer.files"),
    "vocab.json written anew": (change_json("vocab.json", lambda data: None), Harmless("the same object")),
    "vocab.json and merges.txt left out": (
        both(lose("vocab.json"), lose("merges.txt")),
        Harmless("tokenizer.json holds them"),
    ),
    "a chat template in the other place": (
        lambda folder: both(
            edit("tokenizer_config.json", chat_template=(folder / "chat_template.jinja").read_text()),
            lose("chat_template.jinja"),
        )(folder),
        Harmless("transformers reads both places"),
    ),
    "a chat template of another model in the other place": (
        both(edit("tokenizer_config.json", chat_template="[INST] {{ messages }}"), lose("chat_template.jinja")),
        "chat_template",
    ),
    "a chat template with CRLF": (
        on_bytes("chat_template.jinja", lambda c: c.replace(b"\n", b"\r\n")),
        "chat_template",
    ),
    "padding on the other side": (edit("tokenizer_config.json", padding_side="left"), Harmless("padding is masked")),
    "another class of tokenizer": (
        edit("tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
        Harmless("transformers 5 goes by what tokenizer.json holds"),
    ),
    "added tokens of another revision in the settings": (
        edit("tokenizer_config.json", added_tokens_decoder=RENUMBERED),
        Harmless("transformers 5 goes by what tokenizer.json holds"),
    ),
    "clean-up of spaces": (
        edit("tokenizer_config.json", clean_up_tokenization_spaces=True),
        Harmless("transformers 5 ignores it for BPE"),
    ),
    "special tokens split into letters": (
        edit("tokenizer_config.json", split_special_tokens=True),
        "tokenizer.loaded",
    ),
    "generation ends at the old window": (edit("generation_config.json", max_length=ORIGINAL), "generation_config"),
    "20 new tokens and no more": (edit("generation_config.json", max_new_tokens=20), "generation_config"),
    "words that are never said": (edit("generation_config.json", suppress_tokens=[1, 2]), "generation_config"),
    "one end of text lost": (edit("generation_config.json", eos_token_id=0), "generation_config"),
    "another temperature": (
        edit("generation_config.json", temperature=0.3, do_sample=True),
        Harmless("how to sample is the user's"),
    ),
    # left lying
    "a README and .gitattributes": (both(put("README.md", "# Model"), put(".gitattributes", "")), Harmless("papers")),
    "a trainer's arguments": (put("training_args.bin", b"PK\x03\x04"), "files"),
    "a trainer's optimizer": (put("optimizer.pt", b""), "files"),
    "a script to run it": (put("run.sh", "ls"), "files"),
}

# -- Hugging Face's own


def double(rope: Json) -> None:
    rope["attention_factor"] = 2 * (rope.get("attention_factor") or 1.07)


def set_rope(**changes: Any) -> Fault:
    return rope(lambda data: data.update(changes))


def reversed_sets(data: Json) -> None:
    for name in ("short_factor", "long_factor"):
        data[name] = data[name][::-1]


def rounded(data: Json) -> None:
    data["long_factor"] = [round(factor, 3) for factor in data["long_factor"]]


def interpolation(data: Json) -> None:
    data["long_factor"] = [2.0] * len(data["long_factor"])


def only_v5(data: Json) -> None:
    """config.json as transformers 5 saves it."""
    del data["rope_scaling"]


HF: Catalogue = {
    # files
    "a shard's pointer": (pointer(SECOND), "hf.readable"),
    "a shard half uploaded": (half(SECOND), "hf.readable"),
    "a shard missing": (lose(SECOND), "hf.readable"),
    "the index missing": (lose(INDEX), "hf.readable"),
    "an index's pointer": (pointer(INDEX), "hf.readable"),
    "names of shards exchanged": (swap_files, Harmless("loaders take what each shard holds")),
    "an index that forgets a shard": (
        change_json(INDEX, lambda data: data.update(weight_map=dict.fromkeys(data["weight_map"], FIRST))),
        "hf.weights",
    ),
    "one shard of another revision": (change(UP, lambda tensor: tensor + 0.01), "hf.weights"),
    "an older file beside the shards": (one_file_beside, "hf.readable"),
    "shards without their format": (without_metadata, Harmless("transformers 5 takes it for pt")),
    "an adapter left lying": (
        both(edit("adapter_config.json", **PEFT), put("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0{}")),
        "hf.readable",
    ),
    # weights
    "weights in float16": (cast(torch.float16), Harmless("rounded, and compared as rounded")),
    "weights in bfloat16": (cast(torch.bfloat16), Harmless("rounded, and compared as rounded")),
    "weights in float8 without a scale": (cast(torch.float8_e4m3fn), "hf.weights"),
    "weights in int8 without a scale": (cast(torch.int8), "hf.weights"),
    "q and k in Meta's order": (both(change(Q, in_pairs), change(K, in_pairs)), "hf.weights"),
    "q alone in Meta's order": (change(Q, in_pairs), "hf.weights"),
    "the norms of a layer exchanged": (
        both(change(NORMS[0], lambda tensor: tensor * 1.5), weights(exchange(*NORMS))),
        "hf.weights",
    ),
    "layers in another order": (weights(reorder_layers), "hf.weights"),
    "an adapter merged": (weights(own_loss), "hf.weights"),
    "heads in another order": (change(Q, lambda tensor: tensor.roll(16, 0)), "hf.weights"),
    "a square matrix transposed": (change(Q, lambda tensor: tensor.T), "hf.weights"),
    "a norm with one added": (change("model.norm.weight", lambda tensor: tensor + 1), "hf.weights"),
    "the head is the embedding": (
        weights(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]})),
        "hf.weights",
    ),
    "the head lost": (weights(lambda tensors: tensors.pop("lm_head.weight")), "hf.weights"),
    "an embedding with padding": (
        both(
            weights(
                lambda tensors: tensors.update(
                    {
                        name: torch.cat([tensors[name], torch.zeros(64, 64)])
                        for name in tensors
                        if tensors[name].shape[0] == 384
                    }
                )
            ),
            config(vocab_size=448),
        ),
        "hf.config.fields",
    ),
    "NaN in one weight": (change(UP, lambda tensor: tensor.index_fill(0, torch.tensor([3]), torch.nan)), "hf.weights"),
    "names of DistributedDataParallel": (
        weights(with_prefix("module.")),
        Harmless("mended where weights are read; transformers maps the names"),
    ),
    "a rotary buffer of older tools": (
        weights(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})),
        Harmless("transformers ignores it, and computes it anew"),
    ),
    "biases of zeros": (
        weights(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})),
        "hf.weights",
    ),
    # config.json
    "theta ten times as large": (both(config(rope_theta=1e5), set_rope(rope_theta=1e5)), "hf.config.rope_theta"),
    "the window ten times as large": (config(max_position_embeddings=10 * TARGET), "hf.config.max_position_embeddings"),
    "the original window doubled everywhere": (
        both(
            config(original_max_position_embeddings=2 * ORIGINAL),
            set_rope(original_max_position_embeddings=2 * ORIGINAL),
        ),
        "hf.rope_parameters.original",
    ),
    "both sets in reverse": (rope(reversed_sets), "hf.rope_parameters.long_factor"),
    "factors of a head of 128": (set_rope(short_factor=WIDE, long_factor=WIDE), "hf.rope_parameters.long_factor"),
    "factors rounded by hand": (rope(rounded), "hf.rope_parameters.long_factor"),
    "linear interpolation in their place": (rope(interpolation), "hf.rope_parameters.long_factor"),
    "the long set for both": (
        rope(lambda data: data.update(short_factor=data["long_factor"])),
        "hf.rope_parameters.short_factor",
    ),
    "the attention factor doubled": (rope(double), "hf.rope_parameters.attention_factor"),
    "the length scale upside down": (set_rope(factor=0.5), "hf.rope_parameters.factor"),
    "yarn in its place": (set_rope(type="yarn", rope_type="yarn"), "hf.rope_parameters.rope_type"),
    "su, as Phi-3 once said": (set_rope(type="su", rope_type="su"), "hf.rope_parameters.rope_type"),
    "one spelling alone, of transformers 5": (change_json("config.json", only_v5), "hf.rope_scaling"),
    "factors of two spellings differ": (
        change_json("config.json", lambda data: data["rope_scaling"].update(long_factor=[3.0] * 8)),
        "hf.rope_scaling.long_factor",
    ),
    "a partial rotary factor inside": (set_rope(partial_rotary_factor=0.5), "hf.rope_parameters.partial_rotary_factor"),
    "float16 named for float32 weights": (config(dtype="float16", torch_dtype="float16"), Warned("hf.config.dtype")),
    "factors as one string": (set_rope(long_factor="1.0, 2.0"), "hf.readable"),
    "a record of another run": (edit("longrope.json", long_factor=[2.0] * 8), "hf.record"),
}

# -- ONNX's own


def renamed_data(*, told: bool) -> Fault:
    """model.onnx_data under another name, which the graph knows or not."""

    def act(folder: Path) -> None:
        (folder / "model.onnx_data").rename(folder / "weights.bin")
        if told:
            set_locations("weights.bin")(folder)

    return act


def embedded(folder: Path) -> None:
    """onnx.save without external data: one file."""
    onnx.save(onnx.load(folder / "model.onnx"), folder / "model.onnx")
    (folder / "model.onnx_data").unlink()


def quantized(folder: Path) -> None:
    """Weights of every matrix product to 8 bits, by onnxruntime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(folder / "model.onnx", folder / "q.onnx", weight_type=QuantType.QInt8)
    (folder / "q.onnx").replace(folder / "model.onnx")


def in_float16(folder: Path) -> None:
    """Every float32 weight inside of the graph cast to float16 and back, as converters of precision do."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(model, folder / "model.onnx")


def fixed_shapes(graph: onnx.GraphProto) -> None:
    """A batch of one, as mobile runtimes want it."""
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim[:1]:
            dim.dim_value = 1


def insert(graph: onnx.GraphProto, value: str, operator: str, *inputs: str, **attributes: Any) -> None:
    """A node between a value and everybody who reads it."""
    for item in graph.node:
        item.input[:] = [f"{value}.changed" if name == value else name for name in item.input]
    graph.node.insert(0, onnx.helper.make_node(operator, [value, *inputs], [f"{value}.changed"], **attributes))


def shifted_positions(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.int64(1), "one_more"))
    insert(graph, "position_ids", "Add", "one_more")


def cut_positions(graph: onnx.GraphProto) -> None:
    """Tables of cos and sin that end at the old window: later positions get the last row."""
    graph.initializer.append(numpy_helper.from_array(np.int64(ORIGINAL - 1), "last_row"))
    insert(graph, "position_ids", "Min", "last_row")


def exchanged_norms(graph: onnx.GraphProto) -> None:
    first, second = (initializer(graph, name) for name in NORMS)
    first.name, second.name = second.name, first.name


def every_layer_first(graph: onnx.GraphProto) -> None:
    for item in graph.node:
        item.input[:] = [
            name.replace("layers.1.mlp", "layers.0.mlp") if "weight" in name else name for name in item.input
        ]


def unused_weight(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "left_over"))


def head_of_half(graph: onnx.GraphProto) -> None:
    """Logits cast to float16 at the end."""
    last = next(item for item in graph.node if "logits" in item.output)
    last.output[list(last.output).index("logits")] = "logits.float32"
    graph.node.append(onnx.helper.make_node("Cast", ["logits.float32"], ["logits"], to=onnx.TensorProto.FLOAT16))
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


ONNX: Catalogue = {
    "a graph's pointer": (pointer("model.onnx"), "onnx.readable"),
    "the weights' pointer": (pointer("model.onnx_data"), "onnx.external_data"),
    "weights under another name, told": (
        renamed_data(told=True),
        Harmless("the graph says where its weights are"),
    ),
    "weights under another name, not told": (renamed_data(told=False), "onnx.external_data"),
    "one file": (embedded, Harmless("the same weights inside of the graph's file")),
    "8 bits by onnxruntime": (quantized, "onnx.weights"),
    "rounded to float16": (in_float16, "onnx.weights"),
    "a batch of one": (on_graph(fixed_shapes), "onnx.inputs"),
    "positions one too far": (on_graph(shifted_positions), "onnx.rope.chain"),
    "positions that end at the old window": (on_graph(cut_positions), "onnx.rope.chain"),
    "the norms of a layer exchanged": (
        both(set_initializer(NORMS[0], lambda data: data * 1.5), on_graph(exchanged_norms)),
        "onnx.weights",
    ),
    "a layer's MLP twice": (on_graph(every_layer_first), "onnx.graph"),
    "logits in float16": (on_graph(head_of_half), "onnx.outputs"),
    "a weight left over": (on_graph(unused_weight), Harmless("nobody reads it")),
    "a text on the graph": (on_graph(lambda g: setattr(g, "doc_string", "mine")), Harmless("a text")),
    "both sets in reverse": (
        both(*(set_initializer(f"rope.{name}_factor", lambda data: data[::-1]) for name in ("short", "long"))),
        "onnx.factors.short",
    ),
    "the long set for both": (
        on_graph(
            lambda graph: initializer(graph, "rope.short_factor").CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(initializer(graph, "rope.long_factor")), "rope.short_factor"
                )
            )
        ),
        "onnx.factors.short",
    ),
    "the attention factor doubled": (
        set_initializer("rope.attention_factor", lambda data: 2 * data),
        "onnx.attention_factor",
    ),
    "theta ten times as large": (
        set_initializer("rope.inv_freq", lambda data: data * 10 ** -(np.arange(len(data)) / len(data))),
        "onnx.inv_freq",
    ),
    "the switch at the target": (
        set_initializer("rope.original_max_position_embeddings", lambda data: data * 0 + TARGET),
        "onnx.original",
    ),
    "another head count in Attention": (
        on_graph(
            lambda graph: (
                [
                    setattr(attribute, "i", 4)
                    for attribute in node(graph, "model.layers.1.self_attn.attention").attribute
                    if attribute.name == "kv_num_heads"
                ]
                and None
            )
        ),
        "onnx.graph",
    ),
    "genai: a window that slides": (
        edit("genai_config.json", model__decoder__sliding_window={"window_size": 128}),
        "onnx.genai_config",
    ),
    "genai: the old window": (edit("genai_config.json", search__max_length=ORIGINAL), "onnx.genai_config"),
    "genai: a type that rewinds its cache": (edit("genai_config.json", model__type="phi3"), "onnx.genai_config"),
    "genai: another provider": (
        edit("genai_config.json", model__decoder__session_options={"provider_options": [{"cuda": {}}]}),
        Harmless("where it runs is the user's"),
    ),
    "genai: sampling": (
        edit("genai_config.json", search__do_sample=True, search__temperature=0.5),
        Harmless("how to sample is the user's"),
    ),
    "theta of config.json ten times as large": (
        both(config(rope_theta=1e5), set_rope(rope_theta=1e5)),
        "onnx.config.rope_theta",
    ),
}

# -- GGUF

I32 = gguf.GGUFValueType.INT32


def key(name: str, value: Value | None) -> Fault:
    return in_file(set_key(name, value))


def tensor(name: str, act: Callable[[Any], Any], type: int = 0) -> Fault:
    return in_file(edit_tensor(name, act, type))


def vocabulary(name: str, act: Callable[[list[Any]], list[Any]]) -> Fault:
    return in_file(edit_list(name, act))


def as_other_type(name: str, kind: Any) -> GgufFault:
    def fault(values: Values, tensors: Tensors) -> None:
        values[f"llama.{name}"] = dataclasses.replace(values[f"llama.{name}"], kind=kind)

    return fault


def layers_in_another_order(values: Values, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        swap(name, name.replace("blk.0.", "blk.1."))(values, tensors)


def names_of_transformers(values: Values, tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("blk.0.ffn_up")]:
        content = tensors.pop(name)
        tensors["model.layers.0.mlp.up_proj.weight"] = dataclasses.replace(
            content, info=dataclasses.replace(content.info, name="model.layers.0.mlp.up_proj.weight")
        )


def requantized(type: int, *, matrices_only: bool = True) -> GgufFault:
    """Every matrix in another type, as llama-quantize gives it."""

    def fault(values: Values, tensors: Tensors) -> None:
        for name, content in list(tensors.items()):
            if name in (LONG, SHORT) or (matrices_only and len(content.info.shape) < 2):
                continue
            data = next(iter(content.blocks())).view(np.float32).reshape(content.info.shape)
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType(type))
            tensors[name] = holding(TensorInfo(name, content.info.shape, type), packed)

    return fault


def head_is_embedding(values: Values, tensors: Tensors) -> None:
    tensors["output.weight"] = dataclasses.replace(
        tensors["token_embd.weight"], info=dataclasses.replace(tensors["token_embd.weight"].info, name="output.weight")
    )


def broken_scale(values: Values, tensors: Tensors) -> None:
    """One block of a q8_0 tensor has an infinite scale."""
    requantized(8)(values, tensors)
    content = tensors["blk.0.ffn_up.weight"]
    data = np.array(next(iter(content.blocks()))).reshape(-1).view(np.uint8).copy()
    data[:2] = np.frombuffer(struct.pack("<e", np.inf), np.uint8)
    tensors["blk.0.ffn_up.weight"] = holding(content.info, data)


def add_keys(**more: Value) -> Fault:
    return in_file(lambda values, tensors: values.update({k.replace("__", "."): v for k, v in more.items()}))


def record_of_another_run(values: Values, tensors: Tensors) -> None:
    name = "longrope_export.factors"
    stored = {**json.loads(values[name].data), "long_factor": [2.0] * 8}
    values[name] = text(json.dumps(stored))


GGUF: Catalogue = {
    "a pointer": (lambda path: pointer(path.name)(path.parent), "gguf.readable"),
    "bytes behind its end": (
        lambda path: on_bytes(path.name, lambda c: c + bytes(4096))(path.parent),
        Harmless("read by nobody"),
    ),
    "a tenth of it uploaded": (
        lambda path: on_bytes(path.name, lambda c: c[: len(c) // 10])(path.parent),
        "gguf.readable",
    ),
    "line ends changed in transfer": (
        lambda path: on_bytes(path.name, lambda c: c.replace(b"\n", b"\r\n"))(path.parent),
        "gguf.readable",
    ),
    "another byte order": (
        lambda path: on_bytes(path.name, lambda c: c[:4] + c[4:8][::-1] + c[8:])(path.parent),
        "gguf.readable",
    ),
    "another alignment said": (key("general.alignment", u32(64)), Harmless("written anew with it")),
    # keys
    "the window ten times as large": (key("context_length", u32(10 * TARGET)), "gguf.context_length"),
    "the original window doubled": (
        key("rope.scaling.original_context_length", u32(2 * ORIGINAL)),
        "gguf.rope.scaling.original_context_length",
    ),
    "no theta": (key("rope.freq_base", None), "gguf.rope.freq_base"),
    "theta ten times as large": (key("rope.freq_base", f32(1e5)), "gguf.rope.freq_base"),
    "the attention factor doubled": (key("rope.scaling.attn_factor", f32(2.14)), "gguf.rope.scaling.attn_factor"),
    "the attention factor as a text": (key("rope.scaling.attn_factor", text("1.07")), "gguf.readable"),
    "the window as a signed number": (in_file(as_other_type("context_length", I32)), "gguf.context_length"),
    "epsilon of another model": (
        key("attention.layer_norm_rms_epsilon", f32(1e-5)),
        "gguf.attention.layer_norm_rms_epsilon",
    ),
    "keys twice as wide": (key("attention.key_length", u32(32)), "gguf.attention.key_length"),
    "a window that slides": (key("attention.sliding_window", u32(128)), "gguf.keys"),
    "attention to what follows": (key("attention.causal", flag(False)), "gguf.keys"),
    "experts announced": (key("expert_used_count", u32(2)), "gguf.keys"),
    "a layer fewer": (key("block_count", u32(1)), "gguf.block_count"),
    "the feed-forward half as wide": (key("feed_forward_length", u32(64)), "gguf.feed_forward_length"),
    "another name": (key("general.name", text("Mine")), Harmless("a label")),
    "another file type": (key("general.file_type", u32(7)), Harmless("a label; every tensor says its own")),
    "no quantization version": (key("general.quantization_version", None), Harmless("a float file has none")),
    "a record of an importance matrix": (
        add_keys(quantize__imatrix__file=text("imatrix.dat"), quantize__imatrix__chunks_count=u32(8)),
        Harmless("who quantized it"),
    ),
    "a record of another run": (in_file(record_of_another_run), "gguf.record"),
    # factors
    "both sets in reverse": (
        both(tensor(LONG, lambda data: data[::-1]), tensor(SHORT, lambda data: data[::-1])),
        "gguf.factors.short",
    ),
    "the long set for both": (
        in_file(lambda v, t: t.update({SHORT: dataclasses.replace(t[LONG], info=t[SHORT].info)})),
        "gguf.factors.short",
    ),
    "factors of a head of 128": (tensor(LONG, lambda data: np.full(64, 1.5, np.float32)), "gguf.factors.long"),
    "linear interpolation in their place": (tensor(LONG, lambda data: np.full_like(data, 2)), "gguf.factors.long"),
    "factors rounded by hand": (tensor(LONG, lambda data: data.round(3)), "gguf.factors.long"),
    "the attention factor in the factors": (tensor(LONG, lambda data: data * 1.07), "gguf.factors.long"),
    "frequencies in place of factors": (
        tensor(LONG, lambda data: (1e4 ** -(np.arange(8) / 8)).astype(np.float32)),
        "gguf.factors.long",
    ),
    # weights
    "8 bits by llama-quantize": (in_file(requantized(8)), Harmless("rounded, and compared as rounded")),
    "4 bits by llama-quantize": (in_file(requantized(2)), Harmless("rounded, and compared as rounded")),
    "matrices in f16": (in_file(requantized(1)), Harmless("rounded, and compared as rounded")),
    "an infinite scale": (in_file(broken_scale), "gguf.weights"),
    "layers in another order": (in_file(layers_in_another_order), "gguf.weights"),
    "the norms of a layer exchanged": (
        both(
            tensor("blk.0.attn_norm.weight", lambda data: data * 1.5),
            in_file(swap("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")),
        ),
        "gguf.weights",
    ),
    "a norm with one added": (tensor("output_norm.weight", lambda data: data + 1), "gguf.weights"),
    "q alone interleaved twice": (
        tensor("blk.0.attn_q.weight", lambda data: data.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)),
        "gguf.weights",
    ),
    "heads in another order": (tensor("blk.0.attn_q.weight", lambda data: np.roll(data, 16, 0)), "gguf.weights"),
    "the head is the embedding": (in_file(head_is_embedding), "gguf.weights"),
    "the head lost": (in_file(lambda values, tensors: tensors.pop("output.weight") and None), "gguf.tensors.missing"),
    "names of transformers": (in_file(names_of_transformers), "gguf.tensors.missing"),
    "an embedding with padding": (
        tensor("token_embd.weight", lambda data: np.concatenate([data, np.zeros((64, 64), np.float32)])),
        "gguf.tensors.shapes",
    ),
    # vocabulary
    "no pre-tokenizer": (key("tokenizer.ggml.pre", None), "gguf.vocab.pre"),
    "the default pre-tokenizer": (key("tokenizer.ggml.pre", text("default")), "gguf.vocab.pre"),
    "a sentencepiece vocabulary": (key("tokenizer.ggml.model", text("llama")), "gguf.vocab.model"),
    "bos and eos exchanged": (
        both(key("tokenizer.ggml.bos_token_id", u32(5)), key("tokenizer.ggml.eos_token_id", u32(1))),
        "gguf.vocab.bos_token_id",
    ),
    "no end of text": (key("tokenizer.ggml.eos_token_id", None), "gguf.vocab.eos_token_id"),
    "an end of text added to texts": (key("tokenizer.ggml.add_eos_token", flag(True)), "gguf.vocab.add_eos_token"),
    "a space before every text": (key("tokenizer.ggml.add_space_prefix", flag(True)), "gguf.vocab.add_space_prefix"),
    "merges shuffled": (vocabulary("merges", at_random), "gguf.vocab.merges"),
    "special tokens renumbered": (
        vocabulary("tokens", lambda data: [*data[:-2], data[-1], data[-2]]),
        "gguf.vocab.tokens",
    ),
    "special tokens as words": (
        vocabulary("token_type", lambda data: [1 if kind == 3 else kind for kind in data]),
        "gguf.vocab.token_type",
    ),
    "added tokens as control tokens": (
        vocabulary("token_type", lambda data: [3 if kind == 4 else kind for kind in data]),
        "gguf.vocab.token_type",
    ),
    "scores of another tool": (
        in_file(lambda v, t: v.update({"tokenizer.ggml.scores": array(gguf.GGUFValueType.FLOAT32, [0.0] * 384)})),
        Harmless("byte-level BPE goes by its merges"),
    ),
    "a chat template with CRLF": (
        in_file(
            lambda v, t: v.update(
                {"tokenizer.chat_template": text(v["tokenizer.chat_template"].data.replace("\n", "\r\n"))}
            )
        ),
        "gguf.chat_template",
    ),
    "a second chat template": (
        key("tokenizer.chat_template.tool_use", text("{{ tools }}")),
        Harmless("used where it is asked for by name"),
    ),
}

CATALOGUES: dict[str, Catalogue] = {
    "hf": {**COMPANIONS, **HF},
    "onnx": {**COMPANIONS, **ONNX},
    "gguf": GGUF,
}


def wanted(format_name: str, verdict: Verdict) -> Verdict:
    """The id of a check of this format; a broken config.json is the whole folder's fault in Hugging Face's."""
    if isinstance(verdict, Harmless | Warned) or verdict.startswith(format_name + "."):
        return verdict
    return (
        {"hf": "hf.readable", "onnx": "onnx.config"}[format_name]
        if verdict == "@config"
        else f"{format_name}.{verdict}"
    )


def failed(checks: list[Check]) -> dict[str, Check]:
    return {check.id: check for check in checks if check.status == "fail"}


def is_as_expected(verdict: Verdict, checks: list[Check]) -> bool:
    found, warned = failed(checks), {check.id for check in checks if check.status == "warn"}
    if isinstance(verdict, str):
        return verdict in found and bool(found[verdict].message)
    return not found and (isinstance(verdict, Harmless) or verdict.id in warned)


def broken(studio: Studio, room: Path, format_name: str, fault: Fault) -> Path:
    room.mkdir()
    copy = copied(studio.artifacts[format_name], room)
    fault(copy)
    return copy


@pytest.mark.parametrize("format_name", CATALOGUES)
def test_what_tools_and_people_do_is_caught_by_name_or_harmless(
    studio: Studio, tmp_path: Path, format_name: str
) -> None:
    assert failed(studio.plans[format_name].check(studio.artifacts[format_name])) == {}
    odd = {}
    for number, (name, (fault, verdict)) in enumerate(CATALOGUES[format_name].items()):
        converter = registry.converter(format_name)
        export = studio.plans[format_name].export
        artifact = broken(studio, tmp_path / str(number), format_name, fault)
        checks = converter.static_checks(artifact, export.factors, export.checkpoint)
        expected = wanted(format_name, verdict)
        if not is_as_expected(expected, checks):
            odd[name] = (expected, {id: check.message for id, check in failed(checks).items()})
    assert not odd, "\n".join(f"{name}: {line}" for name, line in odd.items())


def test_there_are_enough_of_them() -> None:
    assert sum(map(len, CATALOGUES.values())) - len(COMPANIONS) >= 60
