"""Opening models: what is read without weights, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrope import checkpoint
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import FactorError, InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.factors import RescaleFactors
from longrope.hf_config import extended_config
from longrope.rope import attention_factor_formula
from longrope.weights import safetensors_header
from tests.common import TARGET, WINDOW, pico_checkpoint, pico_factors
from tests.folder_faults import Fault, cut, lose, on_bytes, overwrite, put


@pytest.fixture
def folder(pico: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the pico model to break."""
    return shutil.copytree(pico.path, tmp_path / "model")


def config(**changes: Any) -> Fault:
    return overwrite("config.json", **changes)


# -- facts


def test_facts_of_a_plain_model(pico: Checkpoint) -> None:
    assert (pico.window, pico.max_position_embeddings, pico.rope_theta) == (WINDOW, WINDOW, 10_000.0)
    assert (pico.head_dim, pico.rotary_dim, pico.vocab_size) == (16, 16, 384)
    assert pico.factors is None
    assert pico.encode("In 1847") == pico.tokenizer.encode("In 1847").ids


def test_facts_of_an_extended_model(folder: Path) -> None:
    plain = open_checkpoint(folder)
    factors = plain.bind(pico_factors())
    (folder / "config.json").write_text(json.dumps(extended_config(plain.config, factors)))
    extended = open_checkpoint(folder)
    assert (extended.window, extended.max_position_embeddings) == (WINDOW, TARGET)
    assert extended.factors is not None
    assert extended.factors.long_factor == factors.long_factor
    assert extended.factors.rotary_dim == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": None},
        {"head_dim": 32, "partial_rotary_factor": 0.5},
        {"head_dim": 64, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ],
)
def test_rotary_dim_follows_the_config(pico: Checkpoint, changes: dict[str, Any]) -> None:
    assert Checkpoint(pico.path, "changed", {**pico.config, **changes}).rotary_dim == 16


@pytest.mark.parametrize(
    "config", [{"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}, {"rope_scaling": {"rope_theta": 5e5}}]
)
def test_theta_is_read_where_it_stands(pico: Checkpoint, config: dict[str, Any]) -> None:
    bare = {name: value for name, value in pico.config.items() if not name.startswith("rope")}
    assert Checkpoint(pico.path, "changed", {**bare, **config}).rope_theta == 5e5


def test_the_fingerprint_shows_any_change(folder: Path) -> None:
    def fingerprint() -> str:
        return open_checkpoint(folder).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    config(rms_norm_eps=1e-4)(folder)
    changed_config = fingerprint()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert len({before, changed_config, fingerprint()}) == 3


def test_the_fingerprint_shows_weights_far_from_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters in the last layers leave the first weights of a file as they were."""
    monkeypatch.setattr(checkpoint, "FIRST_WEIGHTS", 64)
    monkeypatch.setattr(checkpoint, "SAMPLE_EVERY", 1024)
    before = open_checkpoint(folder).fingerprint
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 1024 * 1024] ^= 1
    file.write_bytes(data)
    assert open_checkpoint(folder).fingerprint != before


# -- folders that are refused


def make_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def make_index(weight_map: Any) -> Fault:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return write


def extend_by(data: bytes) -> Fault:
    return on_bytes("model.safetensors", lambda content: content + data)


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


BROKEN: dict[str, tuple[Fault, type[LongRopeError], str]] = {
    "no config": (lose("config.json"), InputError, "found no config.json"),
    "config cut off": (cut("config.json", 100), InputError, "config.json is not valid JSON"),
    "config not UTF-8": (put("config.json", b"\xff\xfe{}"), InputError, "config.json is not valid JSON"),
    "config is a list": (put("config.json", b"[]"), InputError, r"expected an object, got \[\]"),
    "no weights": (lose("model.safetensors"), InputError, "found neither"),
    "pickle weights": (make_pickle, InputError, r"only pickle weights \(pytorch_model.bin\), which can run code"),
    "index outside": (make_index({"a": "../model.safetensors"}), InputError, "lies outside the folder; refused"),
    "index absolute": (make_index({"a": "/etc/passwd"}), InputError, "lies outside the folder; refused"),
    "index of nothing": (make_index({"a": "model-1.safetensors"}), InputError, "no such file, but the index names it"),
    "index of numbers": (make_index({"a": 1}), InputError, "weight_map.a: expected a string, got 1"),
    "index is a list": (make_index([1, 2]), InputError, "weight_map: expected an object"),
    "index is empty": (make_index({}), InputError, "expected a weight_map"),
    "index not JSON": (put("model.safetensors.index.json", b"{"), InputError, "index.json is not valid JSON"),
    "weights empty": (put("model.safetensors", b""), InputError, "truncated or not safetensors"),
    "header cut off": (cut("model.safetensors", 100), InputError, "truncated or not safetensors"),
    "data cut off": (cut("model.safetensors", -10_000), InputError, r"truncated or damaged: expected \d+ bytes, got"),
    "data too long": (extend_by(b"\0" * 8), InputError, r"truncated or damaged: expected \d+ bytes, got"),
    "header not JSON": (put("model.safetensors", header(b"not json")), InputError, "its header is not valid JSON"),
    "header a list": (put("model.safetensors", header(b"[]")), InputError, "its header: expected an object"),
    "header without offsets": (
        put("model.safetensors", header(b'{"a":{}}')),
        InputError,
        "its header: a.dtype: expected a type",
    ),
    "offsets are text": (
        put("model.safetensors", header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":["a","b"]}}')),
        InputError,
        "a.data_offsets: expected two offsets",
    ),
    "header of 2**63 bytes": (put("model.safetensors", b"\xff" * 16), InputError, "truncated or not safetensors"),
    "no vocabulary": (config(vocab_size=None), InputError, "config.json has no vocab_size"),
    "no window": (config(max_position_embeddings=None), InputError, "config.json has no max_position_embeddings"),
    "window as text": (config(max_position_embeddings="64"), InputError, "expected a whole number above 0, got '64'"),
    "no heads": (
        config(head_dim=None, num_attention_heads=0),
        InputError,
        "expected a whole number from 1 to 1048576, got 0",
    ),
    "unknown type": (config(model_type="llamma"), UnsupportedError, r"'llamma' is not supported; did you mean llama\?"),
    "no type": (config(model_type=None), UnsupportedError, "model type None is not supported; expected one of"),
    "sliding window": (
        config(model_type="qwen2", use_sliding_window=True, max_window_layers=1, sliding_window=32),
        UnsupportedError,
        r"layers from 1 on of this qwen2 model attend to the last 32 tokens only \(sliding_window\)",
    ),
    "factors of another model": (
        config(
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            }
        ),
        InputError,
        "short_factor: expected 8 numbers, got 4",
    ),
}


def facts_of(folder: Path) -> tuple[object, ...]:
    checkpoint = open_checkpoint(folder)
    return checkpoint.vocab_size, checkpoint.window, checkpoint.rotary_dim, checkpoint.factors


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_by_name(folder: Path, name: str) -> None:
    breaking, error, message = BROKEN[name]
    breaking(folder)
    with pytest.raises(error, match=message):
        facts_of(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": WINDOW},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False},
        {"model_type": "llama", "sliding_window": 32},
    ],
)
def test_a_sliding_window_that_cuts_nothing_is_accepted(folder: Path, changes: dict[str, Any]) -> None:
    config(**changes)(folder)
    assert open_checkpoint(folder).model_type == changes["model_type"]


# -- factors on a RoPE that its publisher rescaled


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LISTS = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i / 4 for i in range(8)]}


def with_rope(folder: Path, **parameters: Any) -> Checkpoint:
    config(rope_parameters={"rope_theta": 1e4, **parameters}, rope_scaling=None)(folder)
    return open_checkpoint(folder)


def relative(**changes: Any) -> RescaleFactors:
    return pico_factors(**{"original_max_position_embeddings": None, **changes})


def test_factors_become_products_with_the_base_and_are_not_multiplied_again(folder: Path, tmp_path: Path) -> None:
    checkpoint, given = with_rope(folder, **YARN), relative()
    bound = checkpoint.bind(given)
    expected = np.multiply(given.long_factor, checkpoint.base.long_factor)
    assert np.array_equal(bound.long_factor, expected)
    assert (bound.original, bound.target, bound.base) == (WINDOW, TARGET, checkpoint.base)
    formula = attention_factor_formula(TARGET / WINDOW, WINDOW)
    assert bound.effective_attention_factor == checkpoint.base.attention_factor * formula > 1.3
    assert checkpoint.bind(bound) == bound
    bound.save(tmp_path / "factors.json")
    assert checkpoint.bind(RescaleFactors.load(tmp_path / "factors.json")) == bound


def test_a_given_attention_factor_is_put_on_the_bases_own(folder: Path) -> None:
    checkpoint = with_rope(folder, **YARN)
    bound = checkpoint.bind(relative(attention_factor=1.25))
    assert bound.effective_attention_factor == 1.25 * checkpoint.base.attention_factor


def test_factors_that_hold_another_base_are_refused(folder: Path) -> None:
    bound = with_rope(folder, **YARN).bind(relative())
    other = with_rope(folder, **{**YARN, "factor": 2.0})
    with pytest.raises(FactorError, match="were made on RoPE of type 'yarn'"):
        other.bind(bound)


def test_a_plain_model_s_factors_say_nothing_of_a_base(folder: Path) -> None:
    assert "base" not in open_checkpoint(folder).bind(pico_factors()).to_json()


def test_a_longrope_model_is_extended_from_where_its_lists_reach(folder: Path) -> None:
    """Both sets are multiplied, each by its own, and switch where they did; attention is the formula's from end to end."""
    checkpoint = with_rope(folder, rope_type="longrope", **LISTS, original_max_position_embeddings=16)
    assert (checkpoint.window, checkpoint.base.window) == (16, WINDOW)
    given = relative()
    bound = checkpoint.bind(given)
    assert (bound.original, bound.target) == (16, TARGET)
    assert np.array_equal(bound.short_factor, np.multiply(given.short_factor, LISTS["short_factor"]))
    assert np.array_equal(bound.long_factor, np.multiply(given.long_factor, LISTS["long_factor"]))
    assert bound.effective_attention_factor == pytest.approx(attention_factor_formula(TARGET / 16, 16), rel=1e-12)


def test_factors_of_the_extension_that_a_model_has_had_are_taken_as_they_are(folder: Path) -> None:
    checkpoint = with_rope(folder, rope_type="longrope", **LISTS, original_max_position_embeddings=16)
    same = RescaleFactors(
        LISTS["short_factor"], LISTS["long_factor"], original_max_position_embeddings=16, target_length=WINDOW
    )
    assert checkpoint.bind(same) == replace(checkpoint.factors, method="given")
    before = replace(same, target_length=TARGET)
    assert checkpoint.bind(before).long_factor == tuple(LISTS["long_factor"])


def test_a_window_that_the_short_set_serves_alone_starts_from_it(folder: Path) -> None:
    """MiniCPM3: original_max_position_embeddings is the released window."""
    base = with_rope(folder, rope_type="longrope", **LISTS, original_max_position_embeddings=WINDOW).base
    assert base.long_factor == base.short_factor == tuple(LISTS["short_factor"])


def test_start_tokens_on_a_rescaled_rope_are_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="use n_hat 0"):
        with_rope(folder, **YARN).bind(relative(n_hat=4))


# -- another window than the released one

RESCALED = {
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"factor": 4.0},
    "longrope": {**LISTS, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("kind", RESCALED)
def test_the_window_before_a_rescaling_brings_back_plain_rope(folder: Path, tmp_path: Path, kind: str) -> None:
    """What is bound there says so, and means the same to the model as it was released, in every field of config.json."""
    released = with_rope(folder, rope_type=kind, **RESCALED[kind])
    checkpoint = released.from_original(16)
    assert (checkpoint.window, checkpoint.base.is_plain, checkpoint.fingerprint != released.fingerprint) == (
        16,
        True,
        True,
    )
    given = relative()
    bound = checkpoint.bind(given)
    assert (bound.original, bound.long_factor, bound.base) == (16, given.long_factor, checkpoint.base)
    assert bound.effective_attention_factor == attention_factor_formula(TARGET / 16, 16)
    bound.save(tmp_path / "factors.json")
    loaded = RescaleFactors.load(tmp_path / "factors.json")
    assert released.bind(loaded) == checkpoint.bind(loaded) == bound
    assert extended_config(released.config, bound) == extended_config(checkpoint.config, bound)
    assert extended_config(released.config, bound)["original_max_position_embeddings"] == 16


def test_a_window_that_config_json_overstates_keeps_the_released_rope(folder: Path) -> None:
    released = with_rope(folder, **YARN)
    checkpoint = released.from_original(32)
    assert (checkpoint.window, checkpoint.base.long_factor) == (32, released.base.long_factor)
    bound = checkpoint.bind(relative())
    assert bound.original == 32
    assert np.array_equal(bound.long_factor, np.multiply(relative().long_factor, released.base.long_factor))
    assert released.bind(bound) == bound
    assert released.from_original(WINDOW) is released


def test_a_plain_model_is_extended_from_fewer_tokens(folder: Path) -> None:
    checkpoint = open_checkpoint(folder).from_original(32)
    bound = checkpoint.bind(relative())
    assert (bound.original, open_checkpoint(folder).bind(bound)) == (32, bound)


def test_start_tokens_are_possible_once_a_rescaling_is_taken_out(folder: Path) -> None:
    checkpoint = with_rope(folder, **YARN).from_original(16)
    assert checkpoint.bind(relative(n_hat=4)).n_hat == 4


@pytest.mark.parametrize(
    ("parameters", "window", "words"),
    [
        ({}, WINDOW + 1, f"expected 2 to {WINDOW} tokens"),
        ({}, 1, f"expected 2 to {WINDOW} tokens"),
        ({"rope_type": "longrope", **RESCALED["longrope"]}, 32, "put on a window of 16; expected one of these"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 16}, 32, "write 4 there"),
        ({**YARN, "llama_4_scaling_beta": 0.1}, 16, "released window of 64 tokens"),
    ],
)
def test_windows_that_a_model_cannot_be_extended_from(
    folder: Path, parameters: dict[str, Any], window: int, words: str
) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        with_rope(folder, **parameters).from_original(window)


def test_factors_from_another_window_than_asked_for_are_refused(folder: Path) -> None:
    released = with_rope(folder, **YARN)
    with pytest.raises(FactorError, match=r"extend .* from 64 tokens, and 16 was asked for"):
        released.from_original(16).bind(released.bind(relative()))
    longer = replace(released.base, window=2 * WINDOW)
    with pytest.raises(FactorError, match="belong to another model"):
        released.bind(replace(relative(target=4 * WINDOW), base=longer))


# -- tokenizers


def test_a_tokenizer_that_cuts_or_pads_reads_whole_documents(folder: Path) -> None:
    plain = open_checkpoint(folder).tokenizer
    text = "It is a truth universally acknowledged " * 20
    for configure in (lambda t: t.enable_truncation(max_length=16), lambda t: t.enable_padding(length=4096)):
        fresh = open_checkpoint(folder).tokenizer
        configure(fresh)
        fresh.save(str(folder / "tokenizer.json"))
        assert open_checkpoint(folder).encode(text) == plain.encode(text).ids


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no tokenizer.json"), (b"{}", "the tokenizers library does not read it")]
)
def test_an_unknown_tokenizer_is_not_expressible(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(UnsupportedError, match=message):
        _ = open_checkpoint(folder).tokenizer


# -- names


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "nowhere/", "../nowhere/at-all", "model.gguf"])
def test_a_path_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such file or folder"):
        open_checkpoint(name)


@pytest.mark.parametrize("name", ["model.bin", "model"])
def test_a_file_of_no_known_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a Hugging Face folder or a \.gguf file, got a"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@main", "nobody/nothing@refs/pr/1"])
def test_a_hub_id_without_a_hub_lacks_the_network(name: str) -> None:
    """HF_HUB_OFFLINE is set for all tests: the Hub's library answers as it does without a network."""
    with pytest.raises(MissingRequirementError, match=rf"{name}: not a folder here, and the Hub cannot be reached"):
        open_checkpoint(name)


def test_a_sound_header_is_returned_without_metadata(pico: Checkpoint) -> None:
    entries = safetensors_header(pico.path / "model.safetensors")
    assert entries["model.norm.weight"]["shape"] == [64]
    assert "__metadata__" not in entries


@pytest.mark.parametrize(
    ("ends", "told"), [(383, []), (384, [384]), ([2, 999, 384], [999, 384]), (None, []), (-1, []), ([], [])]
)
def test_an_end_beyond_the_vocabulary_is_said(ends: Any, told: list[int], tmp_path: Path) -> None:
    checkpoint = pico_checkpoint(tmp_path / "model", eos_token_id=ends)
    said = [oddity for oddity in checkpoint.oddities() if "eos_token_id" in oddity]
    assert [oddity.split()[1] for oddity in said] == [str(end) for end in told]
    assert all("beyond the vocabulary of 384 tokens" in oddity for oddity in said)
