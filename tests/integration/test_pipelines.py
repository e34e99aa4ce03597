"""The action, the GitLab job, the example workflow and the pre-commit hook: what they run is run here, or parsed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import junitparser
import pytest
import yaml

from longrope.checkpoint import Checkpoint
from longrope_export.cli import cli
from longrope_export.publish.subject import open_subject
from tests.common import REPOSITORY, WINDOW, run_cli

ACTION, HOOKS = REPOSITORY / "action.yml", REPOSITORY / ".pre-commit-hooks.yaml"
GITLAB, WORKFLOW = REPOSITORY / "docs" / "ci" / "gitlab.yml", REPOSITORY / "docs" / "ci" / "github.yml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def step(name: str) -> Mapping[str, Any]:
    """A step of the action."""
    found: Mapping[str, Any] = next(each for each in read(ACTION)["runs"]["steps"] if each.get("name") == name)
    return found


@pytest.fixture
def room(pico: Checkpoint, factors_file: Path, texts: Path, tmp_path: Path) -> Path:
    """A clean folder with an artifact under a name with a space, and `longrope-export` on the way to programs."""
    done = run_cli("convert", pico.path, "--to", "hf", "--factors", factors_file, "-o", tmp_path / "my model")
    assert done.code == 0, done.err
    (tmp_path / "books").symlink_to(texts)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "longrope-export"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m longrope_export "$@"\n')
    program.chmod(0o755)
    return tmp_path


def run_script(room: Path, shell: str, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = {"PATH": f"{room / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1", **variables}
    command = [*shlex.split(shell), script]
    return subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True, timeout=300)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours in the workflow and the hook."""
    for job in read(WORKFLOW)["jobs"].values():
        for each in job["steps"]:
            for line in each.get("run", "").splitlines():
                if line.startswith("longrope-export "):
                    yield each["name"], shlex.split(line)[1:]
    (hook,) = read(HOOKS)
    yield hook["id"], [*shlex.split(hook["entry"])[1:], "model.gguf", "--reference", "model"]


@pytest.mark.parametrize(
    ("name", "arguments"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_command_lines_are_what_the_option_parser_takes(name: str, arguments: list[str]) -> None:
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None
    command.make_context(name, arguments[1:])


def test_the_example_extends_validates_and_publishes() -> None:
    assert [arguments[0] for _, arguments in commands()] == ["extend", "validate", "publish", "validate"]
    assert read(WORKFLOW)["jobs"]["release"]["permissions"]["id-token"] == "write"


def test_the_action_validates_and_reports(room: Path, pico: Checkpoint) -> None:
    summary, output = room / "summary.md", room / "output.txt"
    variables = {
        "ARTIFACT": "my model",
        "REFERENCE": str(pico.path),
        "TEXT": "books/0.txt\nbooks/1.txt\n",
        "FACTORS": "",
        "WINDOWS": str(WINDOW),
        "REPORTS": str(room / "my reports"),
    }
    assert set(variables) == set(step("Validate")["env"])
    github = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    done = run_script(room, "bash -eo pipefail -c", step("Validate")["run"], **variables, **github)
    assert done.returncode == 0, done.stderr
    assert output.read_text() == f"reports={room / 'my reports'}\n"
    assert {path.name for path in (room / "my reports").iterdir()} == {"validation.json", "junit.xml", "comment.md"}
    assert "::warning title=factors.unverified (my model)::" in done.stdout
    assert summary.read_text(encoding="utf-8").startswith("## ✅ The artifact passes")


def test_the_gitlab_job_validates_and_reports(room: Path, pico: Checkpoint, factors_file: Path) -> None:
    job = read(GITLAB)[".longrope-export-validate"]
    variables = {
        "ARTIFACT": "my model",
        "REFERENCE": str(pico.path),
        "TEXT": "books/0.txt",
        "FACTORS": str(factors_file),
        "WINDOWS": "",
    }
    assert set(variables) < set(job["variables"])
    done = run_script(room, "sh -ec", "\n".join(job["script"]), **variables)
    assert done.returncode == 0, done.stderr
    assert all((room / path).is_file() for path in job["artifacts"]["paths"])
    (suite,) = junitparser.JUnitXml.fromfile(str(room / job["artifacts"]["reports"]["junit"]))
    assert (suite.name, suite.failures) == ("my model", 0)


def test_no_input_is_put_into_a_script() -> None:
    """GitHub would paste it in before bash reads the script: a name could hold a command."""
    scripts = [each["run"] for each in read(ACTION)["runs"]["steps"] if "run" in each]
    assert scripts
    assert not [script for script in scripts if "${{" in script]


def test_every_input_is_used_documented_and_on_the_page() -> None:
    text, page = ACTION.read_text(encoding="utf-8"), (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
    for name, about in read(ACTION)["inputs"].items():
        assert about["description"]
        assert f"inputs.{name} " in text
        assert f"`{name}`" in page
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(read(ACTION)["inputs"])


def test_one_version_of_llama_cpp_python_is_named_everywhere() -> None:
    places = (ACTION, GITLAB, REPOSITORY / "Makefile", REPOSITORY / "requirements-ci.txt")
    named = [re.findall(r"llama[-_]cpp[-_]python(?:==|-)(\d[\d.]*\d)", place.read_text()) for place in places]
    assert all(named)
    assert len({version for found in named for version in found}) == 1


def test_static_checks_run_nothing_and_are_no_proof(room: Path, pico: Checkpoint, factors_file: Path) -> None:
    artifact, result = room / "my model", room / "validation.json"
    fixed = ("validate", artifact, "--reference", pico.path, "--factors", factors_file, "--static")
    done = run_cli(*fixed, "--json", result)
    assert done.code == 0, done.err
    data = json.loads(result.read_text())
    assert data["windows"] == []
    assert {check["id"] for check in data["checks"] if check["status"] == "skip"} >= {"hf.parity"}
    assert {"hf.rope_parameters.long_factor", "hf.weights"} <= {check["id"] for check in data["checks"]}
    (exported,) = open_subject(artifact, validation=result).exported
    assert "only its static checks" in exported.fault
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    assert run_cli(*fixed).code == 1


@pytest.mark.parametrize("more", [("--static", "--text", "x.txt"), ("--static", "--windows", "64"), ()])
def test_texts_or_static_checks_but_not_both(more: tuple[str, ...], pico: Checkpoint) -> None:
    done = run_cli("validate", pico.path, "--reference", pico.path, *more)
    assert done.code == 2
    assert "--static" in done.err
