"""The action, the GitLab job, the example workflow and the pre-commit hook: linted, and what they run is run here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
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
# Where `make pipelines-check` puts it.
ACTIONLINT = REPOSITORY / "build" / "actionlint"
# A repository of what lies in a folder.
GIT = "git init -q . && git add -A && git -c user.name=x -c user.email=x@x commit -qm x && git tag v1"


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


def inputs(room: Path, **given: str) -> dict[str, str]:
    """The variables of the action's main step, with the defaults of the inputs that are not given."""
    defaults = {name.upper(): about.get("default", "") for name, about in read(ACTION)["inputs"].items()}
    made = {name: defaults.get(name, "") for name in step("Validate")["env"]}
    files = {"GITHUB_OUTPUT": str(room / "output.txt"), "GITHUB_STEP_SUMMARY": str(room / "summary.md")}
    assert set(given) < set(made)
    return {**made, "REPORTS": str(room / "my reports"), **files, **given}


def run_action(room: Path, **given: str) -> subprocess.CompletedProcess[str]:
    script = step("Validate")["run"]
    return run_script(room, "bash --noprofile --norc -eo pipefail -c", script, **inputs(room, **given))


def test_the_action_validates_and_reports(room: Path, pico: Checkpoint, factors_file: Path) -> None:
    fixed = {"REFERENCE": str(pico.path), "TEXT": "books/0.txt\nbooks/1.txt\n", "WINDOWS": str(WINDOW)}
    done = run_action(room, ARTIFACT="my model", **fixed)
    assert done.returncode == 0, done.stderr
    reports = room / "my reports"
    assert (room / "output.txt").read_text() == f"reports={reports}\n"
    assert {path.name for path in reports.iterdir()} == {"validation.json", "junit.xml", "comment.md"}
    assert "::warning title=factors.unverified (my model)::" in done.stdout
    assert (room / "summary.md").read_text(encoding="utf-8").startswith("## ✅ The artifact passes")

    (room / "policy.yaml").write_text("fail_if_not_run: ['hf.parity.medium.*']\n")
    shutil.copy(reports / "validation.json", room / "earlier.json")
    shutil.copytree(room / "my model", room / "again")
    rest = {"BASELINE": "earlier.json", "POLICY": "policy.yaml", "EFFORT": "quick", "BUDGET": "5m", "EXPLAIN": "true"}
    done = run_action(room, ARTIFACT="my model\nagain\n", FACTORS=str(factors_file), **fixed, **rest)
    assert done.returncode == 1, done.stderr
    entries = json.loads((reports / "validation.json").read_text())["artifacts"]
    assert [entry["artifact"] for entry in entries] == ["my model", "again"]
    for entry in entries:
        assert entry["policy"] == "policy.yaml"
        assert [check["id"] for check in entry["checks"] if check["status"] == "fail"] == ["hf.parity.medium.*"]
        ids = {check["id"] for check in entry["checks"]}
        assert f"hf.baseline.short.{WINDOW}" in ids  # BASELINE
        assert not any(".crossing." in id for id in ids)  # EFFORT
        assert "factors.unverified" not in ids  # FACTORS
        assert entry["explanation"] is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [({"EFFORT": "fast"}, "expected quick, default or thorough"), ({"EXPLAIN": "yes"}, "expected true or false")],
)
def test_the_action_refuses_words_that_it_does_not_know(room: Path, given: dict[str, str], said: str) -> None:
    done = run_action(room, ARTIFACT="my model", REFERENCE="x", TEXT="books", **given)
    assert (done.returncode, said in done.stderr) == (2, True)


def test_the_action_builds_the_wheel_once_and_installs_from_it(tmp_path: Path) -> None:
    """pip is a stand-in that writes down what it is asked, and makes the wheel."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        '#!/bin/sh\necho "$*" >> asked.txt\nif [ "$3" = wheel ]; then : > "$6/llama_cpp_python-0.whl"; fi\n'
    )
    python.chmod(0o755)
    for _ in range(2):
        variables = {"HOME": str(tmp_path), "PACKAGE": "/our package"}
        done = run_script(tmp_path, "bash -eo pipefail -c", step("Install longrope-export")["run"], **variables)
        assert done.returncode == 0, done.stderr
    asked = [line.split()[:3] for line in (tmp_path / "asked.txt").read_text().splitlines()]
    assert [words[2] for words in asked] == ["wheel", "install", "install"]
    assert (tmp_path / "asked.txt").read_text().count("/our package[all]\n") == 2


def test_the_gitlab_job_validates_and_reports(room: Path, pico: Checkpoint, factors_file: Path) -> None:
    job = read(GITLAB)[".longrope-export-validate"]
    variables = {
        **job["variables"],
        "ARTIFACT": "my model",
        "REFERENCE": str(pico.path),
        "TEXT": "books/0.txt",
        "FACTORS": str(factors_file),
        "EFFORT": "quick",
        "BUDGET": "5m",
        "POLICY": "quantized",
    }
    assert set(variables) == set(job["variables"])
    done = run_script(room, "sh -ec", "\n".join(job["script"]), **variables)
    assert done.returncode == 0, done.stderr
    assert all((room / path).is_file() for path in job["artifacts"]["paths"])
    assert json.loads((room / "validation.json").read_text())["policy"] == "quantized"
    (suite,) = junitparser.JUnitXml.fromfile(str(room / job["artifacts"]["reports"]["junit"]))
    assert (suite.name, suite.failures) == ("my model", 0)


# -- linted


def test_action_workflow_and_job_hold_to_the_schemas_of_their_services() -> None:
    kinds = {"github-actions": ACTION, "github-workflows": WORKFLOW, "gitlab-ci": GITLAB}
    for kind, path in kinds.items():
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{kind}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def scripts() -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Shell, script and variables of every step."""
    job = read(GITLAB)[".longrope-export-validate"]
    yield "sh", "\n".join((*job["before_script"], *job["script"])), job["variables"]
    for each in read(ACTION)["runs"]["steps"]:
        if "run" in each:
            yield each["shell"], each["run"], each["env"]
    for job in read(WORKFLOW)["jobs"].values():
        for each in job["steps"]:
            if "run" in each:
                yield "bash", each["run"], each.get("env", {})


@pytest.mark.parametrize(("shell", "script", "variables"), list(scripts()), ids=lambda value: "")
def test_shellcheck_finds_nothing_in_the_scripts(shell: str, script: str, variables: Mapping[str, str]) -> None:
    # A release of Debian without the wheel's program has it on the way to programs.
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program
    given = "".join(f"export {name}=\n" for name in variables)
    done = subprocess.run(
        [program, "-s", shell, "-"], input=given + script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# Lints the workflows of a list on standard input; its argument is the folder of the package.
LINT = """
const read = require("fs").readFileSync(0, "utf8");
require(process.argv[1]).createLinter().then(lint => {
  const found = JSON.parse(read).map(text => lint(text, "workflow.yml").map(each => `${each.line}: ${each.message}`));
  console.log(JSON.stringify(found));
});
"""


@pytest.mark.skipif(
    not (ACTIONLINT.is_dir() and shutil.which("node")), reason="make pipelines-check fetches actionlint"
)
def test_actionlint_finds_nothing_in_the_workflow_nor_in_the_steps_of_the_action() -> None:
    """actionlint reads workflows alone: the action's steps become those of a workflow with the same inputs."""
    action = read(ACTION)
    called = {name: {**about, "type": "string"} for name, about in action["inputs"].items()}
    job = {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"]}
    steps = yaml.safe_dump({"on": {"workflow_call": {"inputs": called}}, "jobs": {"action": job}}, width=10_000)
    texts = [WORKFLOW.read_text(encoding="utf-8"), steps, steps.replace("inputs.budget", "inputs.bugdet")]
    command = ["node", "-e", LINT, str(ACTIONLINT)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    workflow, sound, broken = json.loads(done.stdout)
    assert (workflow, sound) == ([], [])
    assert 'property "bugdet" is not defined' in broken[0]


def test_the_hook_runs_in_a_repository_of_others(room: Path, pico: Checkpoint, factors_file: Path) -> None:
    """pre-commit clones a repository that has our hook, and runs it before a commit."""
    ours, theirs = room / "ours", room / "theirs"
    ours.mkdir()
    shutil.copy(HOOKS, ours)
    shutil.move(room / "my model", theirs / "model")
    arguments = ["model", "--reference", str(pico.path), "--factors", str(factors_file)]
    hook = {"id": "longrope-export-validate", "args": arguments}
    for place in (ours, theirs):
        run_script(place, "sh -ec", GIT, HOME=str(room))
    config = {"repos": [{"repo": str(ours), "rev": "v1", "hooks": [hook]}]}
    (theirs / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    program = Path(sys.executable).parent / "pre-commit"
    check = f"{shlex.quote(str(program))} validate-manifest ../ours/.pre-commit-hooks.yaml && "
    commit = f"{check}{shlex.quote(str(program))} run --all-files"
    paths = {"HOME": str(room), "PRE_COMMIT_HOME": str(room / "cache"), "PATH": f"{room / 'bin'}:{os.environ['PATH']}"}
    done = run_script(theirs, "sh -ec", commit, **paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout
    config_file = theirs / "model" / "config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "max_position_embeddings": 77}))
    done = run_script(theirs, "sh -ec", commit, **paths)
    assert done.returncode == 1
    assert "fail: hf.config.max_position_embeddings" in done.stdout


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
