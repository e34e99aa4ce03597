"""A stranger's folder whose files are the user's: nothing of them reaches an artifact, by link, hard link or content."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from longrope.checkpoint import Checkpoint
from longrope.companion_files import checked_companion
from longrope.errors import InputError
from tests.common import PICO_BUDGET, run_cli

SECRET = "hf_secret_of_the_user"
KEY = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----\n"
NAMES = (
    *("special_tokens_map.json", "chat_template.jinja", "generation_config.json", "merges.txt", "vocab.txt"),
    *("tokenizer.model", "LICENSE", "added_tokens.json", "additional_chat_templates/tools.jinja"),
    *("model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer_config.json"),
)


@pytest.fixture
def model(pico: Checkpoint, tmp_path: Path) -> Path:
    return shutil.copytree(pico.path, tmp_path / "model")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    file = tmp_path / "id_rsa"
    file.write_text(KEY)
    file.chmod(0o600)
    return file


def put(model: Path, name: str) -> Path:
    file = model / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    return file


def exports(model: Path, factors: Path, out: Path) -> list[tuple[int, str]]:
    """Exit code and last line of a conversion to each format; whatever was written is searched for the secret."""
    found = []
    for name in ("hf", "gguf", "onnx"):
        target = out / name
        done = run_cli("convert", model, "--to", name, "--factors", factors, "-o", target)
        found.append((done.code, done.lines[-1] if done.lines else ""))
        for file in [target, *target.rglob("*")]:
            assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    return found


def test_links_lead_nowhere_else(model: Path, private: Path, factors_file: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        copy = shutil.copytree(model, tmp_path / f"model{number}")
        put(copy, name).symlink_to(private)
        (code, line), *_ = exports(copy, factors_file, tmp_path / f"out{number}")
        assert code == 2, name
        assert "is a link to a file outside of the model's folder; refused" in line, (name, line)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc/self/environ")
def test_the_environment_stays_here(
    model: Path, factors_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    put(model, "special_tokens_map.json").symlink_to("/proc/self/environ")
    (code, line), *_ = exports(model, factors_file, tmp_path)
    assert (code, "special_tokens_map.json is a link" in line) == (2, True)


def test_hard_links_to_private_files(model: Path, private: Path, factors_file: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        copy = shutil.copytree(model, tmp_path / f"model{number}")
        os.link(private, put(copy, name))
        (code, line), *_ = exports(copy, factors_file, tmp_path / f"out{number}")
        assert code == 2, (name, line)


# What each kind of file must not be: the same key, readable by all, so that its content alone gives it away.
LOOKS_LIKE = {
    "special_tokens_map.json": KEY,
    "generation_config.json": '["a list"]',
    "chat_template.jinja": KEY,
    "additional_chat_templates/tools.jinja": "{{ messages ) }}",
    "merges.txt": KEY,
    "vocab.txt": "one\ntwo\none\n",
    "tokenizer.model": KEY,
    "spiece.model": b"\x0a\xff\xff\x03" + KEY.encode(),
    "LICENSE": f"PATH=/bin\0HF_TOKEN={SECRET}\0",
    "NOTICE.pdf": KEY,
    "SYSTEM_PROMPT.txt": b"\xff\xfe",
}


def test_a_file_is_what_its_name_says(model: Path) -> None:
    for name, content in LOOKS_LIKE.items():
        put(model, name).write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(InputError, match=Path(name).name):
            checked_companion(model, name)


SOUND = {
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "merges.txt": "#version: 0.2\na b\nĠ t\n",
    "vocab.txt": "[PAD]\n[UNK]\nword\n",
    "tokenizer.model": "IQ== 0\nIg== 1\n",
    "spiece.model": b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "LICENSE": "Apache License\n\f Version 2.0 – naïve\n",
    "NOTICE.pdf": "%PDF-1.7\n",
}


def test_sound_files_pass(model: Path, tmp_path: Path) -> None:
    for name, content in SOUND.items():
        put(model, name).write_bytes(content.encode() if isinstance(content, str) else content)
        assert checked_companion(model, name) == model / name
    own = model / "LICENSE.txt"
    own.symlink_to("LICENSE")
    assert checked_companion(model, own.name) == own


# -- what is meant to be published


def test_results_name_no_folder_of_this_machine(
    pico: Checkpoint, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    room = tmp_path_factory.mktemp("home-of-somebody")
    model, run = shutil.copytree(pico.path, room / "model"), room / "run"
    extended = ("extend", model, "--target-length", 256, "-o", run, "--text", texts, *PICO_BUDGET.split())
    assert run_cli(*extended).code == 0
    results = {name: room / f"{name}.json" for name in ("validate", "eval", "inspect")}
    measured = ("--text", texts, "--windows", 64, "--threads", 1)
    (gguf,) = (run / "gguf").glob("*.gguf")
    run_cli("validate", gguf, "--reference", model, *measured, "--json", results["validate"])
    run_cli("eval", run / "onnx", *measured, "--json", results["eval"])
    run_cli("inspect", run / "hf", "--json", results["inspect"])
    private = [run / "run.json", *(run / "journal").rglob("*")]  # what --resume compares the next call with
    meant_for_others = [file for file in run.rglob("*") if file.is_file() and file not in private]
    assert len(meant_for_others) > 8
    for file in (*meant_for_others, *results.values()):
        assert b"home-of-somebody" not in file.read_bytes(), file
    assert json.loads(results["validate"].read_text())["artifact"] == gguf.name
