"""The lm-evaluation-harness over our runtimes: told how to get it where it is missing, run on a local task where it is."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from longrope.checkpoint import Checkpoint
from tests.common import run_cli

installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed (pip install lm_eval)")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two local tasks of three documents: one of choices, one of generated answers."""
    data = tmp_path / "data.jsonl"
    lines = [{"question": f"The pass key is {k}. The pass key is", "answer": f" {k}"} for k in (27, 48, 93)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    choices = 'doc_to_choice: [" 27", " 48", " 93"]\nmetric_list: [{metric: acc}]'
    written = "generation_kwargs: {until: ['\\n'], max_gen_toks: 3}\nmetric_list: [{metric: exact_match}]"
    for name, kind, more in (("told", "multiple_choice", choices), ("written", "generate_until", written)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=f"longrope_{name}", data=data, kind=kind, more=more))
    return tmp_path


def test_without_the_harness_it_says_how_to_get_it(pico: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = run_cli("eval", pico.path, "--lm-eval", "ruler")
    assert done.code == 3
    assert "pip install lm_eval" in done.err


@installed
def test_the_default_model_on_local_tasks(tasks: Path) -> None:
    ask = ("--lm-eval", "longrope_told,longrope_written", "--lm-eval-include", tasks, "--threads", 1)
    done = run_cli("eval", "default", *ask, "--json", tasks / "out.json")
    assert done.code == 0, done.err
    found = json.loads((tasks / "out.json").read_text())["lm_eval"]
    assert found["results"]["longrope_told"]["acc,none"] == 1.0
    assert "exact_match,none" in found["results"]["longrope_written"]
    assert found["shortened"] == 0
    assert "longrope_told" in done.out


@installed
def test_a_task_it_does_not_know_is_bad_input(pico: Checkpoint) -> None:
    done = run_cli("eval", pico.path, "--lm-eval", "no_such_task")
    assert done.code == 2
    assert "no_such_task" in done.err
