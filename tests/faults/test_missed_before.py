"""Faults that 0.1.0 let pass: what lies beside the weights, spellings beside the checked ones, batches, templates."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from tokenizers import Tokenizer, models, normalizers

from converters.base import PlannedExport
from converters.gguf.container import Value, text, u32
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors
from tests.common import pico_factors, pico_folder, pico_text, plan_in_float32, run_cli, write_every_format
from tests.folder_faults import Fault, config, copied, edit, half, lose, put, tokenizer
from tests.gguf_files import in_file, set_key
from tests.onnx_faults import mix_rows, unmask

ORIGINAL, TARGET = 256, 512
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Studio:
    model: Checkpoint
    factors: BoundFactors
    artifacts: Mapping[str, Path]
    plans: Mapping[str, PlannedExport]
    text: Path


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A model with everything that can be lost, and its sound artifacts."""
    room = tmp_path_factory.mktemp("studio")
    folder = pico_folder(room / "model", max_position_embeddings=ORIGINAL)
    edit("tokenizer_config.json", model_max_length=ORIGINAL, eos_token="<|endoftext|>")(folder)
    edit("generation_config.json", eos_token_id=[0, 5])(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    model = open_checkpoint(folder)
    factors = model.bind(pico_factors(target=TARGET, original_max_position_embeddings=ORIGINAL))
    artifacts = write_every_format(model, factors, room)
    plans = {name: plan_in_float32(name, model, factors) for name in artifacts}
    (room / "text.txt").write_text(pico_text(60), encoding="utf-8")
    return Studio(model, factors, artifacts, plans, room / "text.txt")


def lower_case(loaded: Tokenizer) -> None:
    loaded.normalizer = normalizers.Lowercase()


def lose_merges(count: int) -> Fault:
    def change(loaded: Tokenizer) -> None:
        model = json.loads(loaded.to_str())["model"]
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        loaded.model = models.BPE(vocab=model["vocab"], merges=merges[:-count])

    return tokenizer(change)


def key(name: str, value: Value | None) -> Fault:
    return in_file(set_key(name, value))


FOLDERS: dict[str, tuple[Fault, str]] = {
    "tokenizer lost": (lose("tokenizer.json"), "tokenizer"),
    "tokenizer cut": (half("tokenizer.json"), "tokenizer"),
    "tokenizer in lower case": (tokenizer(lower_case), "tokenizer"),
    "20 merges lost": (lose_merges(20), "tokenizer"),
    "one merge lost": (lose_merges(1), "tokenizer"),
    "another hidden size": (config(hidden_size=128), "config.fields"),
    "another number of layers": (config(num_hidden_layers=1), "config.fields"),
    "another vocabulary size": (config(vocab_size=385), "config.fields"),
    "another end of text": (config(eos_token_id=7), "config.fields"),
    "no end of text": (config(eos_token_id=None), "config.fields"),
    "embeddings tied": (config(tie_word_embeddings=True), "config.fields"),
    "another class": (config(architectures=["LlamaForSequenceClassification"]), "config.fields"),
    "another epsilon": (config(rms_norm_eps=1e-2), "config.fields"),
    "texts cut at the old window": (edit("tokenizer_config.json", model_max_length=ORIGINAL), "tokenizer_config"),
    "another end token": (edit("tokenizer_config.json", eos_token="<extra_1>"), "tokenizer_config"),
    "a start token added": (edit("tokenizer_config.json", add_bos_token=True), "tokenizer_config"),
    "tokenizer_config lost": (lose("tokenizer_config.json"), "tokenizer_config"),
    "chat template lost": (lose("chat_template.jinja"), "chat_template"),
    "another chat template": (put("chat_template.jinja", TEMPLATE + "{{ '' }}"), "chat_template"),
    "generation ends elsewhere": (edit("generation_config.json", eos_token_id=7), "generation_config"),
    "generation_config lost": (lose("generation_config.json"), "generation_config"),
    "code beside the weights": (put("modeling_llama.py", "print()"), "files"),
    "code named in config.json": (config(auto_map={"AutoModel": "modeling.Model"}), "files"),
    "a pickle beside the weights": (put("pytorch_model.bin", pickle.dumps({"a": 1})), "files"),
    "a pickle by name": (put("scheduler.pt", b""), "files"),
}
OWN: dict[str, dict[str, tuple[Fault, str]]] = {
    "hf": {
        "the older type is linear": (config(rope_scaling__type="linear"), "hf.rope_scaling.type"),
        "the older type is missing": (config(rope_scaling__type=None), "hf.rope_scaling.type"),
        "another theta, nested": (config(rope_parameters__rope_theta=5e5), "hf.rope_parameters.rope_theta"),
    },
    "onnx": {
        "genai_config lost": (lose("genai_config.json"), "onnx.genai_config"),
        "genai_config cut": (half("genai_config.json"), "onnx.genai_config"),
        "genai: another context": (
            edit("genai_config.json", model__context_length=ORIGINAL),
            "onnx.genai_config",
        ),
        "genai: another end of text": (edit("genai_config.json", model__eos_token_id=7), "onnx.genai_config"),
        "genai: another cache name": (
            edit("genai_config.json", model__decoder__inputs__past_key_names="past.%d.key"),
            "onnx.genai_config",
        ),
        "genai: another number of heads": (
            edit("genai_config.json", model__decoder__num_key_value_heads=4),
            "onnx.genai_config",
        ),
        "genai: another graph": (edit("genai_config.json", model__decoder__filename="other.onnx"), "onnx.genai_config"),
        "genai: one cache buffer": (
            edit("genai_config.json", search__past_present_share_buffer=True),
            "onnx.genai_config",
        ),
    },
    "gguf": {
        "chat template lost": (key("tokenizer.chat_template", None), "gguf.chat_template"),
        "another chat template": (key("tokenizer.chat_template", text("{{ messages }}")), "gguf.chat_template"),
        "a word ends a turn": (key("tokenizer.ggml.eot_token_id", u32(300)), "gguf.vocab.token_ids"),
        "a word ends a message": (key("tokenizer.ggml.eom_token_id", u32(301)), "gguf.vocab.token_ids"),
        "an id beyond the vocabulary": (key("tokenizer.ggml.eot_token_id", u32(9999)), "gguf.readable"),
        "an adapter by name": (key("general.type", text("adapter")), "gguf.general.type"),
    },
}


@pytest.mark.parametrize("name", ["hf", "onnx", "gguf"])
def test_faults_are_caught_by_the_check_meant_for_them(studio: Studio, tmp_path: Path, name: str) -> None:
    shared = {} if name == "gguf" else {fault: (act, f"{name}.{id}") for fault, (act, id) in FOLDERS.items()}
    sound = {check.id for check in studio.plans[name].check(studio.artifacts[name]) if check.status == "fail"}
    assert sound == set()
    for number, (fault, (act, id)) in enumerate({**shared, **OWN[name]}.items()):
        (tmp_path / str(number)).mkdir()
        broken = copied(studio.artifacts[name], tmp_path / str(number))
        act(broken)
        failed = {check.id: check for check in studio.plans[name].check(broken) if check.status == "fail"}
        assert id in failed, (fault, sorted(failed))
        assert failed[id].message, fault


def test_files_that_other_tools_saved_again_pass(studio: Studio, tmp_path: Path) -> None:
    """transformers saves a tokenizer in its own spelling, and leaves out files that it does not need."""
    from transformers import AutoConfig, AutoTokenizer

    copy = copied(studio.artifacts["hf"], tmp_path)
    loaded = AutoTokenizer.from_pretrained(copy)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / file).unlink()
    loaded.save_pretrained(copy)
    failed = [check for check in studio.plans["hf"].check(copy) if check.status == "fail"]
    assert failed == []
    AutoConfig.from_pretrained(copy).save_pretrained(copy)
    ids = {check.id for check in studio.plans["hf"].check(copy) if check.status == "fail"}
    assert not ids & {"hf.config.fields", "hf.files"}


# -- what only a run shows


def validated(studio: Studio, artifact: Path, *more: object) -> dict[str, Json]:
    amount = ("--windows", "256,512", "--windows-per-length", 1, "--threads", 1, "--json", "-")
    done = run_cli("validate", artifact, "--reference", studio.model.path, "--text", studio.text, *amount, *more)
    assert done.code in (0, 1), done.err
    return {check["id"]: check for check in json.loads(done.out)["checks"]}


@pytest.mark.parametrize("change", [unmask, mix_rows])
def test_a_graph_of_another_producer_is_run_on_a_batch(
    studio: Studio, tmp_path: Path, change: Callable[[onnx.GraphProto], None]
) -> None:
    broken = copied(studio.artifacts["onnx"], tmp_path)
    model = onnx.load(broken / "model.onnx", load_external_data=False)
    change(model.graph)
    model.producer_name = "another"
    onnx.save(model, broken / "model.onnx")
    found = validated(studio, broken, "--no-crossing")
    assert found["onnx.batch"]["status"] == "fail"
    assert found["onnx.graph"]["status"] == "fail"  # its metadata say that it was written here
    assert found["onnx.parity.short.256"]["status"] == "pass"


def test_the_given_texts_are_tokenized_too(studio: Studio) -> None:
    for name in ("hf", "onnx"):
        assert validated(studio, studio.artifacts[name], "--no-crossing")[f"{name}.tokenizer.texts"]["status"] == "pass"
