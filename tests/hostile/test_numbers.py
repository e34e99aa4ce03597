"""Numbers that a machine cannot count with: NaN among the weights, windows of one token, lengths beyond every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.weights import require_finite, safetensors_header
from tests.common import TARGET, WINDOW, Outcome, pico_factors, pico_folder

UP = "model.layers.1.mlp.up_proj.weight"
Cli = Callable[..., Outcome]


@pytest.mark.parametrize("format_name", ["hf", "gguf", "onnx"])
def test_weights_that_are_not_finite_are_refused_by_name(
    format_name: str, pico: Checkpoint, factors_file: Path, tmp_path: Path, cli: Cli
) -> None:
    model = pico_folder(tmp_path / "model")
    sound = load_file(model / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for value in (torch.nan, -torch.inf):
            tensors = {name: tensor.to(dtype) for name, tensor in sound.items()}
            tensors[UP][3, 5] = value
            save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
            done = cli("convert", model, "--factors", factors_file, "-o", tmp_path / "out", "--to", format_name)
            assert (done.code, f"{UP}: number {3 * 64 + 5} is NaN or infinite" in done.err) == (2, True), done.err
            assert not (tmp_path / "out").exists()


def test_a_sample_of_a_large_tensor_is_looked_at_from_its_first_number_to_its_last(tmp_path: Path) -> None:
    for place in (0, 999_999):
        tensor = torch.zeros(1_000_000)
        tensor[place] = torch.nan
        save_file({"a": tensor}, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match=f"number {place} is NaN or infinite"):
            require_finite(tmp_path / "a.safetensors", safetensors_header(tmp_path / "a.safetensors"))
    save_file({"a": torch.full((1000,), -3e38)}, tmp_path / "a.safetensors")
    require_finite(tmp_path / "a.safetensors", safetensors_header(tmp_path / "a.safetensors"))


def test_a_conversion_to_another_type_looks_at_every_number(tmp_path: Path, factors_file: Path, cli: Cli) -> None:
    model = pico_folder(tmp_path / "model", intermediate_size=4096)
    tensors = load_file(model / "model.safetensors")
    tensors[UP][2047, 33] = torch.inf  # between two parts of the sample
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    for to in ("gguf", "onnx"):
        done = cli(
            "convert", model, "--factors", factors_file, "-o", tmp_path / f"o.{to}", "--to", to, "--outtype", "f16"
        )
        assert (done.code, "is NaN or infinite" in done.err) == (2, True), done.err
    done = cli("convert", model, "--factors", factors_file, "-o", tmp_path / "o", "--to", "hf", "--outtype", "bf16")
    assert (done.code, f"{UP} holds NaN or infinity" in done.err) == (2, True), done.err


def test_windows_of_one_token_and_at_the_edges(pico: Checkpoint, texts: Path, cli: Cli) -> None:
    def evaluate(window: int) -> Outcome:
        return cli("eval", pico.path, "--text", texts, "--windows", window, "--windows-per-length", 1, "--threads", 1)

    done = evaluate(1)
    assert (done.code, "--windows 1: expected 2 tokens or more" in done.err) == (2, True), done.err
    for window in (2, WINDOW, WINDOW + 1, TARGET):
        assert evaluate(window).code == 0


def test_lengths_beyond_a_format(pico: Checkpoint, tmp_path: Path, cli: Cli) -> None:
    for target, codes in ((WINDOW + 1, (0, 0)), (10_000_000, (0, 0)), (1 << 33, (0, 4))):
        file, codes_found = tmp_path / f"{target}.json", []
        pico_factors(target=target).save(file)
        for to in ("hf", "gguf"):
            done = cli("convert", pico.path, "--factors", file, "-o", tmp_path / f"{target}.{to}", "--to", to)
            codes_found.append(done.code)
        assert tuple(codes_found) == codes, done.err
    assert "GGUF holds whole numbers from 0 to 4294967295" in done.err


def test_a_target_of_one_token_more(pico: Checkpoint, texts: Path, tmp_path: Path, cli: Cli) -> None:
    options = ("--text", texts, "--max-evals", 2, "--threads", 1, "-o", tmp_path / "f.json")
    assert cli("search", pico.path, "--target-length", WINDOW + 1, *options).code == 0
    done = cli("search", pico.path, "--target-length", 1 << 40, *options, "--overwrite")
    assert (done.code, "not enough memory" in done.err) == (3, True), done.err


def test_a_vocabulary_of_one(factors_file: Path, texts: Path, tmp_path: Path, cli: Cli) -> None:
    model = pico_folder(tmp_path / "model", vocab_size=1, tie_word_embeddings=True)
    one = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    one.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text("{}")
    measure = ("--text", texts, "--windows", WINDOW, "--windows-per-length", 1, "--threads", 1)
    for to, code in (("hf", 0), ("onnx", 0), ("gguf", 4)):
        done = cli("convert", model, "--factors", factors_file, "-o", tmp_path / to, "--to", to)
        assert done.code == code, done.err
        if not code:
            assert cli("validate", tmp_path / to, "--reference", model, *measure).code == 0
    done = cli("eval", model, *measure)
    assert (done.code, "1.000 at 64" in done.err) == (0, True), done.err


def test_token_ids_beyond_the_vocabulary(factors_file: Path, texts: Path, tmp_path: Path, cli: Cli) -> None:
    """A word of the texts is a token that the model has no row for, as where a padding token was added by hand."""
    model = pico_folder(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["captain"])
    tokenizer.save(str(model / "tokenizer.json"))
    search = ("search", model, "--target-length", TARGET, "-o", tmp_path / "f.json")
    for command in (("eval", model, "--windows", WINDOW), search):
        done = cli(*command, "--text", texts, "--threads", 1)
        assert (done.code, "the text holds the token 'captain' (384)" in done.err) == (2, True), done.err
    for to, code in (("hf", 0), ("onnx", 0), ("gguf", 2)):
        done = cli("convert", model, "--factors", factors_file, "-o", tmp_path / to, "--to", to)
        assert done.code == code, done.err


@pytest.mark.parametrize(
    ("dtype", "head", "said"),
    [
        (torch.bfloat16, 3e38, "the logits are NaN or infinite from position 0 of window 1 on"),
        (torch.float16, 6e4, "every logit is finite, and the text is as good as impossible"),
    ],
)
def test_logits_that_overflow_are_named_and_pass_no_threshold(
    dtype: torch.dtype, head: float, said: str, factors_file: Path, texts: Path, tmp_path: Path, cli: Cli
) -> None:
    """The weights are finite in their own type, and what they multiply to is not."""
    model = pico_folder(tmp_path / "model", dtype=str(dtype).removeprefix("torch."))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(model / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].sign() * head
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 100
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    measure = ("--text", texts, "--windows", WINDOW, "--windows-per-length", 1, "--threads", 1)
    done = cli("eval", model, *measure)
    assert (done.code, said in done.err) == (0, True), done.err
    assert cli("convert", model, "--factors", factors_file, "-o", tmp_path / "hf", "--to", "hf").code == 0
    done = cli("validate", tmp_path / "hf", "--reference", model, *measure)
    assert done.code == 1, done.err
    assert "fail: hf.parity.short.64" in done.out
    assert "non-finite" in done.out


@pytest.mark.parametrize("target", ["²", "0", "-1", "1e999", "9" * 5000, str(1 << 60), "12½"])
def test_a_target_that_is_no_length_is_refused(
    target: str, pico: Checkpoint, texts: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("search", pico.path, f"--target-length={target}", "-o", tmp_path / "f.json", "--text", texts)
    assert done.code == 2, done.err


def test_training_without_a_step_is_refused(
    pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("finetune", pico.path, "--factors", factors_file, "--text", texts, "-o", tmp_path / "o", "--steps", 0)
    assert (done.code, "--steps 0: expected 1 step or more" in done.err) == (2, True), done.err
