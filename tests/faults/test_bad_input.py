"""Bad input: one clear line on stderr, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longrope.factors import RescaleFactors
from tests.common import TARGET, cli_process, run_cli
from tests.folder_faults import Fault, cut, put
from tests.rooms import (
    CONVERT,
    EXTEND,
    SEARCH,
    VALIDATE,
    Case,
    arguments,
    assert_one_line,
    config,
    listing,
    refused,
)


def factors(num_pairs: int = 8, **changes: object) -> Fault:
    values: dict[str, object] = {
        "schema_version": 1,
        "short_factor": [1.0] * num_pairs,
        "long_factor": [2.0] * num_pairs,
    }
    return put("factors.json", json.dumps({**values, **changes}))


def unknown_tokenizer(room: Path) -> None:
    """Splits text in a way that no llama.cpp pre-tokenizer does."""
    file = room / "model" / "tokenizer.json"
    data = json.loads(file.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "[aeiou]+|[^aeiou]+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, byte_level]}
    file.write_text(json.dumps(data))


def keep_pickle_only(room: Path) -> None:
    (room / "model" / "model.safetensors").rename(room / "model" / "pytorch_model.bin")


CASES: dict[str, Case] = {
    # models
    "no such model": Case(CONVERT.replace("MODEL", "nowhere/at/all"), 2, "nowhere/at/all: no such file or folder"),
    "no such model to extend": Case(EXTEND.replace("MODEL", "./nowhere"), 2, "./nowhere: no such file or folder"),
    "a hub id without a network": Case(CONVERT.replace("MODEL", "some/model"), 3, "the Hub cannot be reached"),
    "truncated weights": Case(EXTEND, 2, "truncated or damaged", cut("model/model.safetensors", -1000)),
    "truncated weights to convert": Case(CONVERT, 2, "truncated or damaged", cut("model/model.safetensors", 5000)),
    "pickle weights": Case(CONVERT, 2, "only pickle weights", keep_pickle_only),
    "broken config": Case(CONVERT, 2, "config.json is not valid JSON", cut("model/config.json", 50)),
    "unsupported architecture": Case(EXTEND, 4, "'mamba' is not supported", config(model_type="mamba")),
    "another architecture's hint": Case(CONVERT, 4, "did you mean llama?", config(model_type="llamma")),
    "no tokenizer": Case(EXTEND, 4, "no tokenizer.json", lambda room: (room / "model/tokenizer.json").unlink()),
    "unknown tokenizer": Case(CONVERT.replace("hf", "gguf"), 4, "tokenizer", unknown_tokenizer),
    "unknown tokenizer, before the search": Case(EXTEND, 4, "tokenizer", unknown_tokenizer),
    "config beside other weights": Case(VALIDATE, 2, "have another shape", config(intermediate_size=96)),
    "truncated gguf as a model": Case(CONVERT.replace("MODEL", "GGUF"), 2, "model.gguf", cut("model.gguf", 3000)),
    "truncated gguf, data cut": Case(CONVERT.replace("MODEL", "GGUF"), 2, "model.gguf", cut("model.gguf", -4000)),
    "truncated gguf to inspect": Case("inspect GGUF", 2, "model.gguf", cut("model.gguf", -4000)),
    "empty gguf to inspect": Case("inspect GGUF", 2, "model.gguf", put("model.gguf", b"")),
    "truncated gguf to validate": Case(VALIDATE.replace("HF", "GGUF"), 2, "model.gguf", cut("model.gguf", -4000)),
    "truncated artifact to validate": Case(VALIDATE, 2, "truncated or damaged", cut("hf/model.safetensors", -1000)),
    "nothing to inspect": Case("inspect nowhere", 2, "nowhere: no such file or folder"),
    "a text is no artifact": Case("inspect TEXT", 2, "recognized by none"),
    # texts
    "no such text": Case(EXTEND.replace("TEXT", "nowhere.txt"), 2, "nowhere.txt: no such file"),
    "empty text": Case(EXTEND, 2, "expected text, found", put("text.txt", "")),
    "empty text to validate": Case(VALIDATE, 2, "expected text, found", put("text.txt", " \n")),
    "text shorter than the window": Case(
        EXTEND, 2, f"expected a document of at least {TARGET} tokens", put("text.txt", "Too short.")
    ),
    "text shorter, to search": Case(SEARCH, 2, "tokens; give longer texts", put("text.txt", "Too short.")),
    "text shorter, to validate": Case(VALIDATE, 2, "expected a document of at least 64", put("text.txt", "Too short.")),
    "text that is not UTF-8": Case(EXTEND, 2, "cannot be read as UTF-8", put("text.txt", b"\xff\xfe\x00")),
    "JSONL without the field": Case(
        SEARCH.replace("TEXT", "ROOM/t.jsonl"),
        2,
        "line 1: text: expected a string, found none",
        put("t.jsonl", "{}"),
    ),
    # lengths
    "target equal to the window": Case(
        EXTEND.replace(str(TARGET), "64"), 2, "expected more than the model's window of 64"
    ),
    "target below the window": Case(
        SEARCH.replace(str(TARGET), "32"), 2, "expected more than the model's window of 64"
    ),
    "window beyond the target": Case(f"{EXTEND} --windows 64,512", 2, f"expected 2 to the target length {TARGET}"),
    # factors
    "no such factors": Case(CONVERT.replace("FACTORS", "nowhere.json"), 2, "nowhere.json: no such file"),
    "factors are not JSON": Case(CONVERT, 2, "not valid JSON", put("factors.json", "1,2,3")),
    "factors of the wrong length": Case(CONVERT, 2, "expected 8 factors (rotary_dim 16", factors(7)),
    "sets of unequal length": Case(
        CONVERT, 2, "short_factor has 8 numbers and long_factor 9", factors(long_factor=[1.0] * 9)
    ),
    "factors that are not numbers": Case(
        CONVERT, 2, "long_factor[1]: expected a finite number", factors(2, long_factor=[1.0, "x"])
    ),
    "NaN among the factors": Case(
        CONVERT, 2, "expected a finite number above 0, got nan", factors(long_factor=[float("nan")] * 8)
    ),
    "a factor that is 0 in float32": Case(
        CONVERT, 2, "long_factor[1]: expected a number from 1.2e-38", factors(long_factor=[1.0, 1e-46] * 4)
    ),
    "a factor that is infinite in float32, to gguf": Case(
        CONVERT.replace("hf", "gguf"), 2, "float32's range, got 1e+39", factors(short_factor=[1e39] * 8)
    ),
    "factors for another window": Case(
        CONVERT, 2, "the model says 64", factors(original_max_position_embeddings=128, target_length=256)
    ),
    "factors without a target": Case(CONVERT, 2, "do not say target_length", factors()),
    "no factors for a plain model": Case("convert MODEL --to hf -o OUT", 2, "has no rescale factors; pass --factors"),
    "dual from a single set": Case(
        f"{CONVERT} --factor-sets dual",
        4,
        "short_factor equals long_factor",
        factors(short_factor=[2.0] * 8, target_length=256),
    ),
    "start tokens in hf": Case(CONVERT, 4, "cannot hold n_hat = 4", factors(n_hat=4, target_length=256)),
    "start tokens in gguf": Case(CONVERT.replace("hf", "gguf"), 4, "n_hat", factors(n_hat=4, target_length=256)),
    "unknown format": Case(CONVERT.replace("hf", "ggfu"), 2, "did you mean gguf?"),
    "unknown weight type": Case(f"{CONVERT} --outtype q9", 4, "expected --outtype auto, f32, f16, bf16"),
    "unknown format option": Case(f"{CONVERT} --option a=b", 2, "unknown options a"),
    "an option that is no pair": Case(f"{CONVERT} --option ab", 2, "expected KEY=VALUE"),
    "unknown strategy": Case(f"{SEARCH} --strategy evolutoin", 2, "evolution"),
    "start tokens beyond the target": Case(f"{SEARCH} --n-hat 300", 2, "start tokens below 256, got 300"),
    "unknown n_hat": Case(f"{SEARCH} --n-hat -3", 2, "expected search or a whole number of 0 or more"),
    "unknown formats to extend": Case(f"{EXTEND} --formats hf,ggfu", 2, "did you mean gguf?"),
    "a format twice": Case(f"{EXTEND} --formats hf,hf", 2, "hf is there twice"),
    "csv with rows that differ": Case(
        "factors import ROOM/f.csv -o OUT", 2, "got rows that differ", put("f.csv", "1,2\n1,3")
    ),
    "training without stages": Case(f"{EXTEND} --lora 4", 2, "need --stages PLAN: lora_rank was null, is 4"),
    "more layers of LoRA than there are, before the search": Case(
        f"{EXTEND} --stages default --lora 4 --lora-layers 9", 2, "expected at most the model's 2 layers, got 9"
    ),
    "a model that cannot be trained, before the search": Case(
        f"{EXTEND} --stages default", 4, "final_logit_softcapping", config(final_logit_softcapping=30.0)
    ),
    "stages on top of a file": Case(f"{EXTEND} --stages default --from FACTORS", 2, "--from with --stages"),
    "one row over processes, in one": Case(
        f"{EXTEND} --stages default --sequence-parallel 2", 2, "expected a divisor of the number of processes"
    ),
    "short factors where no runtime takes them": Case(
        "recover MODEL --factors FACTORS --window 65 --text TEXT -o OUT",
        2,
        "expected at most the original window of 64",
    ),
    "a heat map of nothing": Case("eval MODEL --text TEXT --windows 64 --heat-map ROOM/map.png", 2, "--heat-map shows"),
    "a limit for no harness": Case(
        "eval MODEL --text TEXT --windows 64 --lm-eval-limit 2", 2, "expected --lm-eval TASKS"
    ),
    "nothing to resume": Case(f"{EXTEND} --resume", 2, "no such run to resume"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(room: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    assert refused(room, CASES[name]).out == ""


# -- what is there already


@pytest.mark.parametrize("command", [EXTEND, SEARCH, CONVERT, "factors import FACTORS -o OUT"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_output_is_refused(room: Path, command: str, kind: str) -> None:
    (room / "out").mkdir() if kind == "folder" else (room / "out").write_text("mine")
    before = listing(room)
    done = run_cli(*arguments(room, command))
    assert done.code == 2, done.err
    assert_one_line(done.lines, "out exists; choose another output, or replace it (--overwrite)")
    assert listing(room) == before


def test_overwrite_replaces_an_artifact(room: Path) -> None:
    assert run_cli(*arguments(room, CONVERT)).code == 0
    (room / "out" / "stale").write_text("old")
    done = run_cli(*arguments(room, f"{CONVERT} --overwrite"))
    assert done.code == 0, done.err
    assert not (room / "out" / "stale").exists()
    assert (room / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    "command", [CONVERT, CONVERT.replace("--to hf", "--to onnx"), "factors export FACTORS --to csv -o OUT"]
)
@pytest.mark.parametrize("also", ["thesis.txt", "config.json"])
def test_overwrite_replaces_no_folder_that_is_no_artifact(room: Path, command: str, also: str) -> None:
    (room / "out").mkdir()
    (room / "out" / also).write_text("{}")
    before = listing(room)
    done = run_cli(*arguments(room, f"{command} --overwrite"))
    assert done.code == 2, done.err
    assert_one_line(done.lines, "not replaced")
    assert listing(room) == before


def test_overwrite_of_extend_replaces_a_run_and_nothing_else(room: Path) -> None:
    (room / "out").mkdir()
    (room / "out" / "thesis.txt").write_text("years of work")
    done = run_cli(*arguments(room, f"{EXTEND} --overwrite"))
    assert done.code == 2
    assert_one_line(done.lines, "expected a run of extend to overwrite")
    assert (room / "out" / "thesis.txt").read_text() == "years of work"


def test_debug_shows_the_traceback_of_a_users_mistake(room: Path) -> None:
    done = run_cli(*arguments(room, f"{CONVERT.replace('MODEL', 'nowhere')} --debug"))
    assert done.code == 2
    assert "Traceback" in done.err


# -- a full disk


def limit_file_size(size: int) -> Callable[[], None]:
    """For a child process: a write past `size` bytes fails with EFBIG, as a disk does that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.parametrize("format_name", ["hf", "gguf", "onnx"])
def test_a_full_disk_leaves_nothing(room: Path, format_name: str) -> None:
    before = listing(room)
    command = arguments(room, CONVERT.replace("--to hf", f"--to {format_name}"))
    not_counted = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    process = cli_process(*command, preexec_fn=limit_file_size(20_000), env=not_counted)  # coverage's file grows larger
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert "no room left on the disk" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert listing(room) == before


# -- Ctrl-C


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_ctrl_c_during_a_search_is_130_and_resumable(room: Path) -> None:
    long = arguments(room, SEARCH.replace("--max-evals 2", "--max-evals 60"))
    journal = room / "out.journal" / "search.jsonl"
    process = cli_process(*long)
    wait_for(lambda: journal.is_file() and journal.read_bytes().count(b"\n") > 4)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert (
        err.splitlines()[-1]
        == "Interrupted. A run of `extend`, `search`, `finetune` or `recover` goes on with --resume, `publish` by itself."
    )
    assert "Traceback" not in err
    assert not (room / "out").exists()
    resumed = run_cli(*long, "--resume")
    assert resumed.code == 0, resumed.err
    undisturbed = run_cli(*[word.replace("/out", "/again") for word in long])
    assert undisturbed.code == 0, undisturbed.err
    found, expected = RescaleFactors.load(room / "out"), RescaleFactors.load(room / "again")
    assert (found.long_factor, found.short_factor) == (expected.long_factor, expected.short_factor)


def test_a_search_is_not_begun_over_by_accident(room: Path) -> None:
    """Its journal is there, its result is not: without --resume nothing is thrown away."""
    assert run_cli(*arguments(room, SEARCH)).code == 0
    (room / "out").unlink()
    done = run_cli(*arguments(room, SEARCH))
    assert done.code == 2
    assert_one_line(done.lines, "--resume")
