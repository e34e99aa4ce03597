"""What `doctor` says: commands that mend, versions that ran, a device with a tiny model, a block for bug reports."""

from __future__ import annotations

import getpass
import json
import re
import socket
import sys
from pathlib import Path

import pytest

from longrope_export import device_path
from longrope_export.commands.doctor import Finding, version_findings
from longrope_export.tested_versions import TESTED, minimum, newer_than_tested
from tests.common import REPOSITORY, run_cli


def test_versions_that_this_environment_has_were_tested() -> None:
    installed = dict(line.split("==") for line in (REPOSITORY / "requirements-ci.txt").read_text().split())
    known = {name: number for name, number in installed.items() if name in TESTED}
    assert set(known) == set(TESTED) - {"python", "llama-cpp-python"}  # which CI builds from the Makefile's own line
    (finding,) = version_findings(known)
    assert (finding.what, finding.state) == ("versions", "ok")


def test_what_design_says_ran_is_in_the_table() -> None:
    page = (REPOSITORY / "DESIGN.md").read_text(encoding="utf-8").split("## What ran where")[1]
    for name, words in (("python", "Python"), ("torch", "torch"), ("transformers", "transformers")):
        said = set(re.findall(rf"\b{words} (\d+\.\d+(?:\.\d+)?)", page))
        assert said == set(TESTED[name]), name


@pytest.mark.parametrize(
    ("name", "installed", "state", "command"),
    [
        ("torch", "2.5.1+cu124", "broken", "pip install --upgrade 'torch>=2.6'"),
        ("transformers", "4.57.6", "broken", "pip install --upgrade 'transformers>=5.0'"),
        ("transformers", "6.0.0.dev0", "untested", ""),
        ("onnxruntime", "1.27.0", "broken", "pip install --upgrade 'onnxruntime>=1.28'"),
        ("torch", "2.14.1+cu130", "ok", ""),
        ("torch", "a build of ours", "untested", ""),
    ],
)
def test_versions_outside_of_the_table(name: str, installed: str, state: str, command: str) -> None:
    (finding,) = version_findings({name: installed})
    assert (finding.state, finding.command) == (state, command)
    assert finding.required == (state == "broken" and name != "onnxruntime")


def test_a_package_that_nobody_asks_for_has_no_bounds() -> None:
    assert minimum("nobodys", "0.1") == ""
    assert not newer_than_tested("nobodys", "99")


def test_commands_stand_below_the_table_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding("torch", "ok", "2.13"),
        Finding("extra onnx", "missing", "No module named 'onnx'", command="pip install 'longrope-export[onnx]'"),
        Finding("extra more", "missing", "No module named 'onnx_ir'", command="pip install 'longrope-export[onnx]'"),
    ]
    monkeypatch.setattr("longrope_export.commands.doctor.examine", lambda: findings)
    lines = run_cli("doctor").out.splitlines()
    assert lines.count("  pip install 'longrope-export[onnx]'   # extra onnx, extra more") == 1
    assert "To mend:" in lines
    assert "not in order: extra onnx: missing, extra more: missing" in lines


def test_an_extra_that_is_not_there_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """None in `sys.modules` is a module that cannot be found."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    found = {each["what"]: each for each in json.loads(run_cli("doctor", "--json", "-").out)}
    missing = found["extra gguf"]
    assert (missing["state"], missing["command"]) == ("missing", "pip install 'longrope-export[gguf]'")
    assert missing["detail"] == "llama-cpp-python is not installed; for GGUF files; `inspect` needs gguf alone"
    assert re.fullmatch(r"sentencepiece \d.*", found["extra sentencepiece"]["detail"])


def test_the_block_for_a_bug_report_gives_nobody_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.chdir(tmp_path)
    done = run_cli("doctor")
    assert done.code == 0, done.err
    block = done.out.split("```")[1]
    assert "torch " in block
    assert all(len(line) <= 80 for line in block.splitlines())
    assert "longrope-export 0." in block
    for private in (socket.gethostname(), getpass.getuser(), str(tmp_path), str(Path.home()), secret):
        assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", block), private
    assert not re.search(r"(?<!\w)/\w", block), "an absolute path"


def test_a_device_with_a_tiny_model() -> None:
    """The same code that a GPU gets, on the CPU: every precision with every attention, or why not."""
    found = {each.what: each for each in device_path.device_path("cpu")}
    assert len(found) == 8
    for what, each in found.items():
        assert each.right, (what, each.detail)
        assert ("KL" in each.detail) == ("flash" not in what)


def test_a_device_that_computes_something_else_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_path, "LIMITS", dict.fromkeys(device_path.LIMITS, -1.0))
    assert any(not each.right for each in device_path.device_path("cpu"))


def test_a_device_that_is_not_there_does_not_end_the_command() -> None:
    found = list(device_path.device_path("meta"))  # a device that holds no numbers
    assert all("does not run" in each.detail for each in found if "flash" not in each.what)
