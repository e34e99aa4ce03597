"""The committed default model loads, is small, has its held-out texts, and behaves as its card says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from benchmarks.default_model.evaluate import open_model, passkeys, perplexity, read_windows, recall, rope_settings
from benchmarks.default_model.induction import give_induction
from benchmarks.default_model.texts import Corpus, Document, check_disjoint, r_strings, tidy
from benchmarks.default_model.tokenizer import train_tokenizer
from benchmarks.default_model.train import Plan, learning_rate_scale, model_config
from benchmarks.default_model.windows import Mix, WindowSampler
from longrope_export.default_model import CHECKPOINT, SEARCH_TEXTS, TEST_TEXTS

MEGABYTE = 1024 * 1024
WINDOW = 256


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@cache
def model() -> LlamaForCausalLM:
    return open_model(CHECKPOINT)


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text).ids)


def has_tokens(path: Path, count: int) -> bool:
    """Whether a text has `count` tokens; reads no more of it than that can take."""
    return len(encode(path.read_text(encoding="utf-8")[: 5 * count])) >= count


def test_checkpoint_is_complete_and_small() -> None:
    names = {path.name for path in CHECKPOINT.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12 * MEGABYTE


def test_config_is_portable_and_unscaled() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert config["max_position_embeddings"] == WINDOW
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["rope_parameters"]["rope_type"] == "default"
    assert "rope_scaling" not in config


def test_auto_classes_load_it() -> None:
    loaded = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    assert isinstance(loaded, LlamaForCausalLM)
    text = "In 1847 there were 36 houses.\n\nNow there are none."
    auto = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert auto(text)["input_ids"] == encode(text)  # nothing is added
    assert auto.decode(encode(text)) == text
    assert auto.bos_token_id == auto.eos_token_id == 0


def test_digits_are_single_tokens() -> None:
    assert [tokenizer().id_to_token(i) for i in encode(" 48213")] == ["Ġ", *"48213"]


def test_held_out_texts_are_long_enough() -> None:
    for folder in (SEARCH_TEXTS, TEST_TEXTS):
        assert sum(has_tokens(path, 8192) for path in folder.glob("*.txt")) >= 6
    assert has_tokens(TEST_TEXTS / "moby_dick.txt", 131_072)


def test_texts_are_named_with_their_licence() -> None:
    record = (SEARCH_TEXTS.parent / "README.md").read_text(encoding="utf-8")
    for folder in (SEARCH_TEXTS, TEST_TEXTS):
        for path in folder.glob("*.txt"):
            assert f"`{folder.name}/{path.name}`" in record


def test_perplexity_breaks_beyond_the_window_and_ntk_mends_it() -> None:
    windows = read_windows(TEST_TEXTS / "northangerabbey.txt", tokenizer(), 8 * WINDOW, limit=2)
    inside = perplexity(model(), windows.reshape(-1, WINDOW))
    beyond = perplexity(model(), windows)
    ntk = perplexity(open_model(CHECKPOINT, rope_settings(10_000.0, 32, 8)["NTK"]), windows)
    assert inside < 45
    assert beyond >= 1.5 * inside
    assert ntk < beyond


def test_passkeys_are_recalled_within_the_window() -> None:
    filler = np.array(encode((TEST_TEXTS / "1858_james_buchanan_d.txt").read_text(encoding="utf-8")))
    assert recall(model(), passkeys(encode, filler, WINDOW, 32)) >= 0.9


def test_windows_hold_what_their_mix_says() -> None:
    stream = np.array(encode((SEARCH_TEXTS / "1839_martin_van_buren_d.txt").read_text(encoding="utf-8")))
    for kind in ("passkey", "register", "echo", "drill"):
        mix = Mix(**{"passkey": 0.0, "register": 0.0, "echo": 0.0, "drill": 0.0, kind: 1.0})
        sampler = WindowSampler(stream, encode, WINDOW + 1, mix, np.random.default_rng(0))
        ids, weights = sampler.batch(16)
        assert ids.shape == weights.shape == (16, WINDOW + 1)
        assert (weights != 1.0).any()
        again = WindowSampler(stream, encode, WINDOW + 1, mix, np.random.default_rng(0))
        assert np.array_equal(again.batch(16)[0], ids)


def test_a_new_model_already_copies() -> None:
    torch.manual_seed(0)
    new = LlamaForCausalLM(model_config())
    segments = torch.randint(1, new.config.vocab_size, (8, 64))
    repeated = segments.repeat(1, 3)
    before = copying(new, repeated)
    give_induction(new)
    assert before < 0.02
    assert copying(new, repeated) > 0.2


@torch.inference_mode()
def copying(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Accuracy over the last third of `ids`, (B, T), where every token has come twice before."""
    predicted = model(input_ids=ids, use_cache=False).logits.argmax(-1)
    start = 2 * ids.shape[1] // 3
    return (predicted[:, start:-1] == ids[:, start + 1 :]).float().mean().item()


def test_schedule_rises_holds_and_falls_to_zero() -> None:
    fractions = (0.0, 0.05, 0.1, 0.2, 0.6, 1.0)
    scales = [learning_rate_scale(fraction, warmup=0.1, hold=0.2) for fraction in fractions]
    assert scales == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_phases_follow_each_other() -> None:
    plan = Plan()
    assert plan.phase(0.0) == plan.phases[0]
    assert plan.phase(plan.phases[0].until) == plan.phases[1]
    assert plan.phase(1.0) == plan.phases[-1]


def test_tidy_folds_punctuation_and_unwraps() -> None:
    assert tidy("“Call me\r\nIshmael”—\n\n\n some years…\n", unwrap=True) == '"Call me Ishmael"--\n\nsome years...\n'
    assert tidy("To be,\nor not\n", unwrap=False) == "To be,\nor not\n"


def test_r_strings_reads_a_character_vector() -> None:
    header = b"X\n\x00\x00\x00\x02\x00\x04\x00\x00\x00\x02\x03\x00"
    vector = b"\x00\x00\x00\x10\x00\x00\x00\x02"
    strings = b"\x00\x04\x00\x09\x00\x00\x00\x02hi\x00\x00\x00\x09\xff\xff\xff\xff"
    assert r_strings(header + vector + strings) == ["hi", ""]
    with pytest.raises(ValueError, match="character vector"):
        r_strings(header + b"\x00\x00\x00\x0d\x00\x00\x00\x02")


def test_training_text_in_a_held_out_document_is_refused() -> None:
    words = " ".join(f"word{i}" for i in range(300))
    with pytest.raises(ValueError, match="is also in the training text"):
        check_disjoint(Corpus((Document("a", words),), (Document("b", words),), ()))


def test_tokenizer_training_refuses_too_short_a_text() -> None:
    with pytest.raises(ValueError, match="the text is too short"):
        train_tokenizer(["hello"], vocab_size=2048)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
