"""Models as strangers publish them: a fault is one line with a way out, in every format alike, or mended with a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from converters.conversion import convert
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError, LongRopeError
from longrope.factors import BoundFactors
from longrope.hub import hub_name
from longrope.loading import announced_weights, require_loadable
from longrope.modeling import build_model
from tests.common import pico_folder, run_cli
from tests.folder_faults import Fault, both, overwrite, pointer, put, write_shards
from tests.rooms import (
    CONVERT,
    EXTEND,
    SEARCH,
    VALIDATE,
    Case,
    arguments,
    config,
    listing,
    refused,
)

Tensors = dict[str, torch.Tensor]
FORMATS = ("hf", "gguf", "onnx")
FINETUNE = "finetune MODEL --factors FACTORS --text TEXT -o OUT --steps 1 --threads 1"
EVAL = "eval HF --text TEXT --windows 64 --threads 1"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def to(format_name: str) -> str:
    return CONVERT.replace("--to hf", f"--to {format_name}")


def weights(change: Callable[[Tensors], Tensors], folder: str = "model") -> Fault:
    """Writes a model's weights again, changed."""

    def write(room: Path) -> None:
        file = room / folder / WEIGHTS
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)

    return write


def without(*names: str) -> Fault:
    return weights(lambda tensors: {name: value for name, value in tensors.items() if name not in names})


def added(name: str, tensor: torch.Tensor) -> Fault:
    return weights(lambda tensors: {**tensors, name: tensor})


def wrapped(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def norms_of_keys(room: Path) -> None:
    """What Qwen 3 has, and Llama has not."""
    names = (f"model.layers.{layer}.self_attn.{part}_norm.weight" for layer in range(2) for part in "qk")
    weights(lambda tensors: {**tensors, **{name: torch.ones(16) for name in names}})(room)


def with_biases(module: str) -> Fault:
    """A bias in every layer that config.json does not announce."""
    width = {"self_attn.q_proj": 64, "mlp.up_proj": 128}[module]
    biases = {f"model.layers.{layer}.{module}.bias": torch.ones(width) for layer in range(2)}
    return weights(lambda tensors: {**tensors, **biases})


def packed(tensors: Tensors) -> Tensors:
    """As GPTQ packs them: integers, scales and zeros for each matrix of a layer."""
    found: Tensors = {}
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if "_proj" in name:
            rows, columns = value.shape
            found[f"{module}.qweight"] = torch.ones(columns // 8, rows, dtype=torch.int32)
            found[f"{module}.qzeros"] = torch.ones(1, rows // 8, dtype=torch.int32)
            found[f"{module}.scales"] = torch.ones(1, rows, dtype=torch.float16)
        else:
            found[name] = value.half()
    return found


def as_integers(tensors: Tensors) -> Tensors:
    """As bitsandbytes packs them in 8 bits."""
    found = {name: value.to(torch.int8) if "_proj" in name else value.half() for name, value in tensors.items()}
    return found | {name.replace("weight", "SCB"): torch.ones(1) for name in tensors if "_proj" in name}


def as_fp8(tensors: Tensors) -> Tensors:
    found = {name: value.to(torch.float8_e4m3fn) if "_proj" in name else value for name, value in tensors.items()}
    return found | {f"{name}_scale_inv": torch.ones(1, 1) for name in tensors if "_proj" in name}


def as_mlx(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, value in tensors.items():
        if value.ndim == 1:
            found[name] = value.half()
            continue
        found[name] = torch.ones(value.shape[0], value.shape[1] // 8, dtype=torch.uint32)
        found |= {name.replace("weight", part): torch.ones(value.shape[0], 1).half() for part in ("scales", "biases")}
    return found


QUANTIZATIONS: dict[str, Fault] = {
    "awq": both(weights(packed), config(quantization_config={"quant_method": "awq", "bits": 4})),
    "bitsandbytes": both(weights(as_integers), config(quantization_config={"load_in_8bit": True})),
    "compressed-tensors": both(weights(as_fp8), config(quantization_config={"quant_method": "compressed-tensors"})),
    "fp8": both(weights(as_fp8), config(quantization_config={"quant_method": "fp8"})),
    "F8_E4M3": weights(as_fp8),
    "mlx": both(weights(as_mlx), config(quantization={"group_size": 64, "bits": 4})),
}


def quantized(method: str = "gptq") -> Fault:
    return both(weights(packed), config(quantization_config={"quant_method": method, "bits": 4, "group_size": -1}))


def shards_beside(change: Callable[[Tensors], Tensors], *, whole: bool = True, index: bool = True) -> Fault:
    """Two complete shards beside, or in place of, the whole file."""

    def write(room: Path) -> None:
        folder = room / "model"
        write_shards(change(load_file(folder / WEIGHTS)), folder)
        if not whole:
            (folder / WEIGHTS).unlink()
        if not index:
            (folder / INDEX).unlink()

    return write


def doubled(tensors: Tensors) -> Tensors:
    return {name: 2 * value for name, value in tensors.items()}


def renamed(name: str) -> Fault:
    return lambda room: (room / "model" / WEIGHTS).rename(room / "model" / name)


def adapter(room: Path) -> None:
    shutil.rmtree(room / "model")
    (room / "model").mkdir()
    (room / "model/adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')


def deeper(room: Path) -> None:
    """Checkpoints of a training, one folder each."""
    (room / "model").rename(room / "checkpoint-10")
    (room / "model").mkdir()
    (room / "checkpoint-10").rename(room / "model" / "checkpoint-10")


def settings(**changes: object) -> Fault:
    """Other fields in tokenizer_config.json."""
    return overwrite("model/tokenizer_config.json", **changes)


def link(name: str) -> Fault:
    """A file of the model that is a link to something of the user's."""

    def write(room: Path) -> None:
        (room / "private").write_text('{"token": "secret"}')
        (room / "model" / name).unlink(missing_ok=True)
        (room / "model" / name).symlink_to(room / "private")

    return write


def beyond_the_rows(room: Path) -> None:
    """The tokenizer has a token for which the models have no row, and the text uses it."""
    for folder in ("model", "hf"):
        file = room / folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.add_tokens(["<beyond>"])
        tokenizer.save(str(file))
    text = room / "text.txt"
    text.write_text("<beyond> " + text.read_text("utf-8"), "utf-8")


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
BEYOND, BIASES = "holds the token '<beyond>' (384)", "Set attention_bias to true in config.json"
DIFFERENT = "hold different weights; transformers would load model.safetensors"
QUANTIZED = "its weights are quantized (gptq); take the original model"
LEFTOVER = config(quantization_config={"quant_method": "gptq", "bits": 4})
REMOVE = "remove quantization_config from config.json"

CASES: dict[str, Case] = {
    # JSON of others
    "config nested too deep": Case(CONVERT, 2, "config.json is nested too deep", put("model/config.json", DEEP)),
    "config with a number of 5,000 digits": Case(
        CONVERT, 2, "config.json is not valid JSON", put("model/config.json", '{"vocab_size": ' + "1" * 5000 + "}")
    ),
    "config with a key twice": Case(
        CONVERT, 2, "key 'a' is there twice", put("model/config.json", '{"a": 1, "b": 2, "a": 3}')
    ),
    "config with half a surrogate pair": Case(
        CONVERT, 2, "config.json is not valid JSON", put("model/config.json", r'{"a": "\ud800"}')
    ),
    "config that git left behind": Case(CONVERT, 2, "fetch it with `git lfs pull`", pointer("model/config.json")),
    "index nested too deep": Case(
        CONVERT, 2, "is nested too deep", both(put(f"model/{INDEX}", DEEP), renamed("model-00001-of-00001.safetensors"))
    ),
    "tokenizer_config that is a list": Case(
        CONVERT, 2, "tokenizer_config.json: expected an object, got []", put("model/tokenizer_config.json", "[]")
    ),
    "generation_config that is none": Case(
        CONVERT, 2, "generation_config.json is not valid JSON", put("model/generation_config.json", "{")
    ),
    "a number as a string": Case(
        SEARCH,
        2,
        "config.json: num_hidden_layers: expected a whole number from 1 to 10000, got '2'",
        config(num_hidden_layers="2"),
    ),
    "a number as a string, to onnx": Case(
        to("onnx"),
        2,
        "config.json: rms_norm_eps: expected a finite number above 0, got '1e-5'",
        config(rms_norm_eps="1e-5"),
    ),
    "NaN where a number must be finite": Case(
        CONVERT,
        2,
        "config.json: rms_norm_eps: expected a finite number above 0, got nan",
        config(rms_norm_eps=float("nan")),
    ),
    "a theta of infinity": Case(CONVERT, 2, "rope_theta: expected a finite number above 0", config(rope_theta=1e999)),
    "a billion layers beyond any size": Case(
        CONVERT, 2, "hidden_size: expected a whole number", config(hidden_size=1 << 60)
    ),
    "a billion layers": Case(
        CONVERT,
        2,
        "num_hidden_layers: expected a whole number from 1 to 10000, got 1000000000",
        config(num_hidden_layers=10**9),
    ),
    "more layers than weights": Case(
        CONVERT,
        2,
        "num_hidden_layers: expected as many layers as there are weights of, got 9999",
        config(num_hidden_layers=9999),
    ),
    "rope_scaling that is no object": Case(
        EXTEND, 2, "config.json: rope_scaling: expected an object, got ['linear']", config(rope_scaling=["linear"])
    ),
    "a factor as a string": Case(
        SEARCH,
        2,
        "config.json: rope_scaling: factor: expected a finite number above 0, got '4'",
        config(rope_scaling={"rope_type": "linear", "factor": "4"}),
    ),
    "padding without a row": Case(
        EXTEND, 2, "pad_token_id: expected a token id below vocab_size = 384, got 384", config(pad_token_id=384)
    ),
    "a value transformers does not take": Case(
        SEARCH, 2, "config.json: transformers does not read it", config(pretraining_tp="a lot")
    ),
    **{
        f"a setting of training that transformers does not take: {name}": Case(
            CONVERT, 2, f"config.json: {name}: expected", config(**{name: value})
        )
        for name, value in (
            ("attention_dropout", "0"),
            ("initializer_range", "x"),
            ("use_cache", "yes"),
            ("dtype", "x"),
        )
    },
    "a rope_type that is none, to search": Case(
        SEARCH,
        4,
        "rope_type 'ntk': expected one of default, linear",
        config(rope_parameters=None, rope_scaling={"rope_type": "ntk", "factor": 4.0}),
    ),
    "a rope_type without its factor, to eval": Case(
        EVAL.replace("HF", "MODEL"),
        2,
        "the rotary parameters have no factor",
        config(rope_parameters=None, rope_scaling={"rope_type": "linear"}),
    ),
    "a chat template that is none": Case(
        CONVERT, 2, "model/tokenizer_config.json: chat_template: expected a string", settings(chat_template=3)
    ),
    "a token that is none, to onnx": Case(
        CONVERT.replace("--to hf", "--to onnx"),
        2,
        "model/tokenizer_config.json: bos_token: expected a string",
        settings(bos_token=3),
    ),
    **{
        f"sampling with {name} = {value!r}, to gguf": Case(
            to("gguf"),
            2,
            f"generation_config.json: {name}: expected a",
            put("model/generation_config.json", json.dumps({name: value})),
        )
        for name, value in (("temperature", "0.7"), ("top_k", 1 << 40), ("top_p", 1e300))
    },
    "factors nested too deep": Case(CONVERT, 2, "factors.json is nested too deep", put("factors.json", DEEP)),
    "factors with a number of 5,000 digits": Case(
        CONVERT, 2, "factors.json is not valid JSON", put("factors.json", '{"n_hat": ' + "1" * 5000 + "}")
    ),
    "a text with half a surrogate pair": Case(
        SEARCH.replace("TEXT", "ROOM/t.jsonl"),
        2,
        "line 1 is not valid JSON",
        put("t.jsonl", r'{"text": "\ud800"}'),
    ),
    "a text nested too deep": Case(
        SEARCH.replace("TEXT", "ROOM/t.jsonl"), 2, "line 1 is nested too deep", put("t.jsonl", DEEP)
    ),
    # which weights they are
    **{f"two sets of weights, to {name}": Case(to(name), 2, DIFFERENT, shards_beside(doubled)) for name in FORMATS},
    "two sets of weights to search": Case(SEARCH, 2, DIFFERENT, shards_beside(doubled)),
    "shards without an index": Case(
        CONVERT,
        2,
        "expected model.safetensors.index.json beside the shards",
        shards_beside(dict, whole=False, index=False),
    ),
    "consolidated weights only": Case(
        CONVERT,
        2,
        "only consolidated.safetensors, in the layout of the model's maker",
        renamed("consolidated.safetensors"),
    ),
    "weights under another name": Case(
        CONVERT, 2, "but model.fp16.safetensors; if that is the whole model, call it", renamed("model.fp16.safetensors")
    ),
    "a GGUF file in the folder": Case(CONVERT, 2, "give the path of the GGUF file itself", renamed("model.gguf")),
    "weights of MLX": Case(CONVERT, 2, "but weights.npz, which MLX wrote", renamed("weights.npz")),
    "a folder of checkpoints": Case(CONVERT, 2, "but in its folder checkpoint-10; give that one", deeper),
    "a file of the folder": Case(
        CONVERT.replace("MODEL", "MODEL/config.json"), 2, "got a .json file; give its folder, "
    ),
    "an ONNX graph only": Case(CONVERT, 2, "only an ONNX graph (model.onnx)", renamed("model.onnx")),
    "an adapter to inspect": Case("inspect MODEL", 2, "holds an adapter for 'org/base', not a model", adapter),
    "an adapter beside a model": Case(
        SEARCH,
        2,
        "holds an adapter for 'org/b' beside the weights",
        put("model/adapter_config.json", '{"base_model_name_or_path": "org/b"}'),
    ),
    "an adapter": Case(EXTEND, 2, "holds an adapter for 'org/base', not a model; merge it first", adapter),
    **{
        f"a {name} that git left behind": Case(f"inspect ROOM/{name}", 2, "is a Git LFS pointer", pointer(name))
        for name in ("model.gguf", "model.onnx")
    },
    "weights that git left behind": Case(CONVERT, 2, "is a Git LFS pointer", pointer(f"model/{WEIGHTS}")),
    # that they are the model's
    "a head missing, to hf": Case(CONVERT, 2, "start the output head at random", without("lm_head.weight")),
    "a head missing, to gguf": Case(to("gguf"), 2, "output.weight is missing", without("lm_head.weight")),
    "a head missing, to onnx": Case(to("onnx"), 2, "weight lm_head.weight is missing", without("lm_head.weight")),
    "a layer missing": Case(
        CONVERT,
        2,
        "1 weights are missing, the first is model.layers.1.mlp.up_proj",
        without("model.layers.1.mlp.up_proj.weight"),
    ),
    **{
        f"biases that nobody announced, to {name}": Case(
            to(name), 2, BIASES, both(with_biases("self_attn.q_proj"), config(bias=True))
        )
        for name in FORMATS
    },
    "biases that nobody announced, to search": Case(SEARCH, 2, BIASES, with_biases("self_attn.q_proj")),
    "biases that nobody announced, to extend": Case(EXTEND, 2, BIASES, with_biases("self_attn.q_proj")),
    "biases that nobody announced, to validate": Case(VALIDATE, 2, BIASES, with_biases("self_attn.q_proj")),
    **{
        f"a bias of {name}, to {format_name}": Case(
            to(format_name), 2, "would ignore them", added(name, torch.ones(64 if "norm" in name else 384))
        )
        for name in ("lm_head.bias", "model.norm.bias", "model.layers.0.input_layernorm.bias")
        for format_name in FORMATS
    },
    **{
        f"norms that nobody announced, to {name}": Case(
            to(name), 2, "the first is model.layers.0.self_attn.k_norm.weight", norms_of_keys
        )
        for name in FORMATS
    },
    **{
        f"names of another program, to {name}": Case(
            to(name), 2, "have other names than the model's, the first is llm.lm_head.weight", weights(wrapped("llm."))
        )
        for name in FORMATS
    },
    "a head of another shape": Case(
        CONVERT,
        2,
        "the first is lm_head.weight: expected [384, 64], got [380, 64]",
        weights(lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"][:380]}),
    ),
    "a value head, to finetune": Case(
        FINETUNE, 2, "Remove them before training, which would lose them", added("v_head.weight", torch.ones(1, 64))
    ),
    "a value head, to gguf": Case(
        to("gguf"), 4, "Remove it if the model works without it", added("v_head.weight", torch.ones(1, 64))
    ),
    "biases of the MLP": Case(CONVERT, 2, "Set mlp_bias to true in config.json", with_biases("mlp.up_proj")),
    "biases announced and not there": Case(
        to("gguf"), 2, "the first is model.layers.0.self_attn.k_proj.bias", config(attention_bias=True)
    ),
    # quantized
    **{
        f"quantized, {command.split()[0]}{suffix}": Case(command, 4, QUANTIZED, quantized())
        for suffix, command in (
            ("", EXTEND),
            ("", SEARCH),
            ("", VALIDATE),
            (" to gguf", to("gguf")),
            (" to onnx", to("onnx")),
            (" to bf16", f"{CONVERT} --outtype bf16"),
        )
    },
    **{
        f"quantized, {command.split()[0]}": Case(command, 4, QUANTIZED, quantized())
        for command in (FINETUNE, EVAL.replace("HF", "MODEL"))
    },
    **{
        f"quantized by {method}, {command.split()[0]}": Case(command, 4, f"quantized ({method})", breaking)
        for command in (CONVERT + " --outtype bf16", FINETUNE, SEARCH)
        for method, breaking in QUANTIZATIONS.items()
    },
    **{
        f"integers that nobody announced, to {name}": Case(
            to(name), 4, "its weights are quantized (I8)", weights(as_integers)
        )
        for name in FORMATS
    },
    "quantization_config that says nothing": Case(CONVERT, 2, REMOVE, config(quantization_config={})),
    "quantization_config that is none": Case(
        CONVERT, 2, "quantization_config: expected an object, got 'fp8'", config(quantization_config="fp8")
    ),
    "quantized by a method that can be undone": Case(
        SEARCH, 4, "quantized (fp8); dequantize it first (transformers: from_pretrained(FOLDER, quant", quantized("fp8")
    ),
    **{
        f"a leftover of quantization, {command.split()[0]} {name}": Case(command, 2, REMOVE, LEFTOVER)
        for name, command in (
            *(("", command) for command in (EXTEND, SEARCH, VALIDATE, FINETUNE, EVAL.replace("HF", "MODEL"))),
            *((name, to(name)) for name in FORMATS),
        )
    },
    # texts
    "a token without a row, to extend": Case(EXTEND, 2, BEYOND, beyond_the_rows),
    "a token without a row, to validate": Case(VALIDATE, 2, BEYOND, beyond_the_rows),
    "a token without a row, to eval": Case(EVAL, 2, BEYOND, beyond_the_rows),
    # links
    **{
        f"a {name} that is a link, to {format_name}": Case(
            to(format_name), 2, f"{name} is a link to a file outside of the model's folder", link(name)
        )
        for format_name, name in (
            ("hf", "chat_template.jinja"),
            ("hf", "special_tokens_map.json"),
            ("hf", "LICENSE"),
            ("hf", "tokenizer.json"),
            ("hf", "config.json"),
            ("gguf", "chat_template.jinja"),
            ("gguf", "README.md"),
            ("onnx", "chat_template.jinja"),
        )
    },
    # names
    "a page of the Hub": Case(
        CONVERT.replace("MODEL", "https://huggingface.co/some/model"), 3, "some/model: not a folder here, and the Hub"
    ),
    "a Hub id with a slash": Case(CONVERT.replace("MODEL", "some/model/"), 3, "some/model: not a folder here"),
    "a model of Ollama's": Case(
        CONVERT.replace("MODEL", "llama3.2:3b"), 2, "`ollama show NAME --modelfile` says where"
    ),
    "a file of a repository": Case(CONVERT.replace("MODEL", "org/name/x.gguf"), 2, "hf download ORG/NAME FILE"),
    "a page of somewhere else": Case("inspect https://example.com/model.gguf", 2, "Download it, and give its path"),
    "the length that a model reaches already": Case(
        EXTEND.replace("MODEL", "HF"), 2, "--original 64 begins where it was extended from"
    ),
    "no tokenizer of any kind": Case(
        CONVERT,
        4,
        "take a repository of this model that has tokenizer.json",
        lambda room: (room / "model/tokenizer.json").unlink(),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_other_peoples_models_are_refused_in_one_line(room: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    refused(room, CASES[name])


# -- what is mended, or right as it is


def converted(room: Path, format_name: str, out: str = "out") -> list[str]:
    """What a conversion that ends well says."""
    done = run_cli(*arguments(room, to(format_name).replace("OUT", f"ROOM/{out}")))
    assert done.code == 0, done.err
    return done.lines


def contents(path: Path, format_name: str) -> Mapping[str, bytes]:
    """The weights of an artifact."""
    if format_name == "gguf":
        return {"": path.read_bytes()}
    if format_name == "onnx":
        return {"": (path / "model.onnx_data").read_bytes()}
    with safe_open(path / WEIGHTS, "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def in_layers(tensors: Tensors) -> Tensors:
    """As torch.compile of each layer leaves them."""
    return {name.replace("self_attn.", "_orig_mod.self_attn."): value for name, value in tensors.items()}


@pytest.mark.parametrize("format_name", FORMATS)
def test_names_that_training_tools_leave_are_mended(room: Path, format_name: str) -> None:
    converted(room, format_name, "plain")
    expected = contents(room / "plain", format_name)
    prefixes = ("_orig_mod.", "module._orig_mod.", "base_model.model.", "_forward_module.", "model.")
    for kind, change in enumerate((*map(wrapped, prefixes), in_layers)):
        again = shutil.copytree(room, room.parent / f"again-{kind}")
        weights(change)(again)
        lines = converted(again, format_name)
        assert any(line.startswith("Warning: ") and "weights have other names" in line for line in lines), lines
        assert contents(again / "out", format_name) == expected


@pytest.mark.parametrize("format_name", FORMATS)
def test_of_two_names_of_one_tensor_the_files_may_have_either(room: Path, format_name: str) -> None:
    """Of tied embeddings, safetensors' `save_model` keeps the head's name."""
    config(tie_word_embeddings=True)(room)
    without("lm_head.weight")(room)
    converted(room, format_name, "plain")
    weights(lambda tensors: {name.replace("model.embed_tokens", "lm_head"): tensors[name] for name in tensors})(room)
    converted(room, format_name)
    assert contents(room / "out", format_name) == contents(room / "plain", format_name)


def test_what_transformers_leaves_out_is_said(room: Path) -> None:
    """A value head, layers beyond those that config.json counts, a head that is called otherwise."""
    layer = {"model.layers.2.mlp.up_proj.weight": torch.ones(128, 64)}
    heads = {"v_head.weight": torch.ones(1, 64)}, {"output.weight": torch.ones(384, 64)}
    for number, extra in enumerate((layer, *heads)):
        again = shutil.copytree(room, room.parent / f"again-{number}")
        weights(lambda tensors, extra=extra: {**tensors, **extra})(again)
        said = f"the first is {next(iter(extra))}; transformers leaves them out"
        assert any(said in line for line in converted(again, "hf"))
        done = run_cli(*arguments(again, SEARCH.replace("OUT", "ROOM/found.json")))
        assert (done.code, said in done.err) == (0, True), done.err


def test_a_mended_model_is_trained_as_itself(room: Path) -> None:
    """The trained folder has the names of transformers' model, whatever the source's files called them."""
    names = set(load_file(room / "model" / WEIGHTS))
    for change in (wrapped("module."), in_layers):
        again = shutil.copytree(room, room.parent / change.__qualname__.replace("<", "").replace(">", ""))
        weights(change)(again)
        done = run_cli(*arguments(again, FINETUNE))
        assert done.code == 0, done.err
        assert set(load_file(again / "out" / WEIGHTS)) == names


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_model_saved_without_its_head_is_the_same_model(room: Path, format_name: str) -> None:
    """What the base class of transformers saves: no `model.`, and the head is the embedding."""
    both(config(tie_word_embeddings=True), without("lm_head.weight"))(room)
    converted(room, format_name, "plain")
    weights(lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()})(room)
    converted(room, format_name)
    assert contents(room / "out", format_name) == contents(room / "plain", format_name)


def test_a_mended_model_is_searched_as_itself(room: Path, pico: Checkpoint) -> None:
    weights(wrapped("module."))(room)
    ours, theirs = build_model(open_checkpoint(room / "model")).state_dict(), build_model(pico).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_two_weights_of_one_name_are_refused(room: Path) -> None:
    weights(lambda tensors: {**tensors, "module.lm_head.weight": tensors["lm_head.weight"] + 1})(room)
    with pytest.raises(InputError, match=r"would both be called 'lm_head\.weight'"):
        _ = open_checkpoint(room / "model").weight_names


@pytest.mark.parametrize(
    "breaking",
    [
        shards_beside(dict),
        shards_beside(dict, whole=False),
        both(shards_beside(doubled), lambda room: (room / "model/model-00002-of-00002.safetensors").unlink()),
    ],
    ids=["identical", "shards alone", "partial"],
)
def test_one_set_of_weights_is_taken_as_transformers_does(room: Path, pico: Checkpoint, breaking: Fault) -> None:
    breaking(room)
    converted(room, "hf")
    ours, theirs = build_model(open_checkpoint(room / "out")).state_dict(), build_model(pico).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert (room / "out" / INDEX).exists() == (len(open_checkpoint(room / "out").weight_files) > 1)


@pytest.mark.parametrize("format_name", FORMATS)
def test_float64_weights_are_weights(room: Path, format_name: str) -> None:
    converted(room, format_name, "plain")
    weights(lambda tensors: {name: value.double() for name, value in tensors.items()})(room)
    converted(room, format_name)
    if format_name != "hf":  # whose weights stay as they are
        assert contents(room / "out", format_name) == contents(room / "plain", format_name)


def test_a_tied_model_with_a_head_of_its_own_keeps_both(room: Path) -> None:
    """What transformers loads from the folder is what it loaded before."""
    config(tie_word_embeddings=True)(room)
    converted(room, "hf")
    model = build_model(open_checkpoint(room / "out"))
    source = load_file(room / "model" / WEIGHTS)
    assert torch.equal(model.get_output_embeddings().weight, source["lm_head.weight"])


def test_packed_weights_are_copied_with_a_word(room: Path) -> None:
    quantized()(room)
    lines = converted(room, "hf")
    assert any("quantized (gptq): copied as they are and not run here" in line for line in lines), lines
    assert (room / "out" / WEIGHTS).read_bytes() == (room / "model" / WEIGHTS).read_bytes()
    assert json.loads((room / "out/config.json").read_text())["quantization_config"]["quant_method"] == "gptq"


def test_packed_weights_are_compared_with_the_model_too(room: Path) -> None:
    quantized()(room)
    without("model.norm.weight")(room)
    with pytest.raises(InputError, match=r"are missing, the first is model\.norm\.weight"):
        require_loadable(open_checkpoint(room / "model"))


def test_attention_factors_of_each_set_do_not_vanish_in_silence(room: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config(
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters=None,
        rope_scaling={"type": "longrope", **factors, "short_mscale": 1.1, "long_mscale": 1.2},
    )(room)
    done = run_cli(*arguments(room, "convert MODEL --to hf -o OUT"))
    assert done.code == 0, done.err
    assert "short_mscale and long_mscale, which transformers ignores" in done.err


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: 3\n---\n", "README.md: license: expected words, got 3"),
        ("---\nmodel_name: [x]\n---\n", "README.md: name: expected words, got ['x']"),
        ("---\nmodel_creator: 7\n---\n", "README.md: author: expected words, got 7"),
        ("---\ntags: [a, b\nlicense: }\n---\n# Pico\n", "README.md: while parsing"),
        ("---\ntags: [llama, 3]\n---\n# Pico\n", "README.md: tags: expected words, got 3"),
        ("# Modèle", "README.md: 'utf-8' codec can't decode byte 0xe8"),
    ],
    ids=["a licence", "names", "an author", "broken", "a number among its tags", "in Latin-1"],
)
def test_a_broken_model_card_is_left_out_with_a_word(room: Path, card: str, said: str) -> None:
    (room / "model" / "README.md").write_text(card, encoding="latin-1")
    lines = converted(room, "gguf")
    assert any("the model card cannot be read" in line and said in line for line in lines), lines


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_first_name_of_longrope_is_known_everywhere(room: Path, format_name: str) -> None:
    config(
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters=None,
        rope_scaling={"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    )(room)
    done = run_cli(*arguments(room, f"convert MODEL --to {format_name} -o OUT"))
    assert done.code == 0, done.err
    build_model(open_checkpoint(room / "model"))


def test_texts_are_found_whatever_the_case_of_their_names(room: Path) -> None:
    (room / "books").mkdir()
    (room / "text.txt").rename(room / "books" / "BOOK.TXT")
    done = run_cli(*arguments(room, EVAL.replace("TEXT", "ROOM/books")))
    assert done.code == 0, done.err


def test_an_onnx_folder_whose_model_lies_deeper(room: Path) -> None:
    converted(room, "onnx")
    (room / "out" / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx_data"):
        (room / "out" / name).rename(room / "out" / "onnx" / name)
    for command in ("inspect OUT", EVAL.replace("HF", "OUT"), VALIDATE.replace("HF", "OUT").replace("--json OUT", "")):
        done = run_cli(*arguments(room, command))
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("https://huggingface.co/org/name/tree/main", "org/name@main"),
        ("https://huggingface.co/org/name/blob/main/config.json", "org/name"),
        ("hf.co/org/name", "org/name"),
        ("org/name/", "org/name"),
        ("org/name@v1", "org/name@v1"),
        ("a/b/c", "a/b/c"),
        ("https://example.com/org/name", "https://example.com/org/name"),
    ],
)
def test_names_as_people_copy_them(given: str, name: str) -> None:
    assert hub_name(given) == name


# -- what comes along


def test_what_users_need_comes_along_and_nothing_else(room: Path) -> None:
    wanted = {
        "LICENSE": "mine",
        "USE_POLICY.md": "be good",
        "NOTICE.txt": "note",
        "additional_chat_templates/tool_use.jinja": "{{ messages }}",
        "preprocessor_config.json": "{}",
    }
    others = {
        "LICENSE.py": "raise SystemExit",
        "modeling_pico.py": "raise SystemExit",
        "pytorch_model.bin": "pickle",
        "training_args.bin": "pickle",
        "optimizer.safetensors": "state",
        "README.md": "card",
        "checkpoint-10/model.safetensors": "old",
        ".cache/x.json": "{}",
    }
    for name, content in {**wanted, **others}.items():
        (room / "model" / name).parent.mkdir(exist_ok=True)
        (room / "model" / name).write_text(content)
    for format_name, expected in (("hf", set(wanted)), ("onnx", set(wanted) - {"preprocessor_config.json"})):
        converted(room, format_name, format_name + "-out")
        there = set(listing(room / f"{format_name}-out"))
        assert expected <= there
        assert not there & set(others)


def test_links_within_the_hubs_cache_are_followed(pico: Checkpoint, dual: BoundFactors, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in pico.path.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    convert(open_checkpoint(snapshot), tmp_path / "out", to="hf", factors=dual)
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (blobs / "tokenizer.json").read_bytes()


# -- names and shapes that are known without transformers


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("mistral", {"head_dim": 32, "sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"attention_bias": True}),
        ("granite", {}),
        ("gemma", {}),
        ("smollm3", {}),
        ("seed_oss", {}),
        ("seed_oss", {"attention_out_bias": True}),
    ],
)
def test_the_weights_known_by_heart_are_transformers_own(
    tmp_path: Path, model_type: str, changes: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(pico_folder(tmp_path / "model", model_type, **changes))
    theirs = {name: tuple(tensor.shape) for name, tensor in build_model(checkpoint).state_dict().items()}
    assert announced_weights(checkpoint) == theirs


# -- tokenizers


def test_a_tokenizer_is_made_of_vocabulary_and_merges(room: Path, pico: Checkpoint) -> None:
    """GPT-2's files; digits are not split one by one then, so that words are compared."""
    folder = room / "model"
    pico.tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    made = open_checkpoint(folder)
    assert made.encode_plain("the small ship had not slept") == pico.encode_plain("the small ship had not slept")
    assert not (folder / "tokenizer.json").exists()
    converted(room, "hf")
    assert open_checkpoint(room / "out").encode("storm") == made.encode("storm")


def test_a_tokenizer_whose_class_is_not_known_is_not_guessed(room: Path, pico: Checkpoint) -> None:
    folder = room / "model"
    pico.tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(LongRopeError, match=r"none can be made of vocab\.json and merges\.txt"):
        _ = open_checkpoint(folder).tokenizer


def sentencepiece_model(folder: Path, text: Path) -> None:
    """A tokenizer.model of the Llama 2 kind in place of tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=384,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=1 << 20,
        minloglevel=3,
    )
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_tokenizer_is_made_of_a_sentencepiece_model(room: Path, format_name: str) -> None:
    folder = room / "model"
    sentencepiece_model(folder, room / "text.txt")
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("In 1847 there were 36 houses;", "naïve 日本語 🙂", "a  b\nc", " first", "  "):
        assert open_checkpoint(folder).encode(text) == [1, *theirs.encode(text)]
    converted(room, format_name)
    if format_name != "gguf":
        assert open_checkpoint(folder).encode("ship") == Checkpoint(room / "out", "out", {"vocab_size": 384}).encode(
            "ship"
        )
    else:
        done = run_cli(*arguments(room, VALIDATE.replace("HF", "OUT").replace("--json OUT", "")))
        assert done.code == 0, done.err


def test_a_tokenizer_model_that_is_none_is_refused_with_a_way_out(room: Path) -> None:
    (room / "model/tokenizer.json").unlink()
    (room / "model/tokenizer.model").write_bytes(b"\x00nonsense")
    with pytest.raises(LongRopeError, match=r"none can be made of tokenizer\.model .* take a repository") as caught:
        _ = open_checkpoint(room / "model").tokenizer
    assert caught.value.exit_code == 4
