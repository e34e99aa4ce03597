"""Retrieval in every runtime: the rows of the answer alone, greedy decoding, tables, heat maps and JSON of `eval`."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import registry
from longrope import scoring
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, FactorSet
from longrope.modeling import TorchSource, build_model
from longrope.scoring import LogitSource, PromptSource, greedy, tail_logits
from longrope.text import TokenIds
from longrope_export.evaluation import open_artifact
from tests.common import TARGET, WINDOW, pico_factors, run_cli, write_every_format

FORMATS = ("hf", "gguf", "onnx")
SETS: tuple[FactorSet, ...] = ("short", "long")


@pytest.fixture(scope="module")
def artifacts(pico: Checkpoint, dual: BoundFactors, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format with both sets, in float32."""
    return write_every_format(pico, dual, tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module", params=FORMATS)
def source(request: pytest.FixtureRequest, artifacts: dict[str, Path], dual: BoundFactors) -> Iterator[LogitSource]:
    path = artifacts[request.param]
    opened = registry.recognize(path).open_source(path, dual, max_length=2 * TARGET, threads=1)
    yield opened
    opened.close()


def ids_of(length: int, seed: int = 0) -> TokenIds:
    return np.random.default_rng(seed).integers(1, 256, length)


def all_rows(source: LogitSource, ids: TokenIds, name: FactorSet) -> torch.Tensor:
    return torch.cat(list(source.logits(ids, name, len(ids))))


def test_onnx_factors_that_say_no_target_have_the_configurations(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """An artifact of another tool: its graph has factors, its metadata say nothing of them."""
    import onnx

    folder = shutil.copytree(artifacts["onnx"], tmp_path / "onnx")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")
    found = registry.recognize(folder).read_factors(folder)
    assert found is not None
    assert found.target_length is None
    opened = open_artifact(str(folder), threads=1)
    assert opened.window == TARGET
    assert [opened.source.set_for(length) for length in (WINDOW, WINDOW + 1)] == ["short", "long"]
    opened.source.close()


@pytest.mark.parametrize("name", SETS)
def test_tail_rows_are_those_of_the_whole_window(source: LogitSource, name: FactorSet) -> None:
    assert isinstance(source, PromptSource)
    ids = ids_of(WINDOW if name == "short" else TARGET)
    if source.rule == "per_context" and name == "short":
        pytest.skip("llama.cpp's smallest context, 256 tokens, is above the pico model's window")
    for first in (0, len(ids) // 2, len(ids) - 1):
        found = tail_logits(source, ids, name, first)
        torch.testing.assert_close(found, all_rows(source, ids, name)[first:], rtol=1e-4, atol=1e-4)


def test_greedy_is_what_reading_it_all_again_for_each_token_gives(source: LogitSource) -> None:
    prompt = ids_of(TARGET - 20, seed=1)
    written = greedy(source, prompt, 8, "long")
    again = list(prompt)
    for token in written:
        assert token == int(all_rows(source, np.asarray(again), "long")[-1].argmax())
        again.append(int(token))
    assert len(written) == 8


def test_greedy_stops_where_it_is_told_to(source: LogitSource) -> None:
    written = greedy(source, ids_of(TARGET - 20), 8, "long", stop=lambda tokens: len(tokens) == 3)
    assert len(written) == 3


class Plain:
    """A source that offers no more than the protocol asks for."""

    rule = "per_forward"

    def __init__(self, inner: LogitSource) -> None:
        self.inner, self.name, self.vocab_size = inner, inner.name, inner.vocab_size
        self.logits = inner.logits


def test_sources_without_ways_of_their_own_give_the_same(pico: Checkpoint, dual: BoundFactors) -> None:
    own = TorchSource(build_model(pico, dual), dual)
    plain = Plain(own)
    assert not isinstance(plain, PromptSource)
    ids = ids_of(300)
    torch.testing.assert_close(
        scoring.tail_logits(plain, ids, "long", 290),  # type: ignore[arg-type]
        own.tail_logits(ids, "long", 290),
        rtol=1e-4,
        atol=1e-4,
    )
    stop = lambda tokens: len(tokens) == 4  # noqa: E731
    written = scoring.greedy(plain, ids, 9, "long", stop)  # type: ignore[arg-type]
    assert np.array_equal(written, own.greedy(ids, 9, "long", stop))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_kept_cache_changes_nothing(
    pico: Checkpoint, dual: BoundFactors, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that share a start, in small passes, under one set and the other."""
    monkeypatch.setattr("longrope.modeling.LATER_TOKENS", 24)
    source = TorchSource(build_model(pico, dual), dual, pinned=pinned, prefill_tokens=40)
    whole = TorchSource(build_model(pico, dual), dual)
    shared = ids_of(100, seed=2)
    for seed, (name, length) in enumerate([("long", 256), ("long", 200), ("short", 60), ("long", 256)]):
        ids = np.concatenate([shared, ids_of(156, seed)])[:length]
        found = source.tail_logits(ids, name, length - 7)  # type: ignore[arg-type]
        expected = all_rows(whole, ids, name)[-7:]  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_shared_start_is_not_read_again(pico: Checkpoint) -> None:
    source = TorchSource(build_model(pico), None)
    seen: list[int] = []
    decoder = source.model.get_decoder()
    decoder.register_forward_pre_hook(lambda _m, _a, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True)
    ids = ids_of(60)
    source.tail_logits(ids, "short", 55)
    source.tail_logits(np.append(ids[:50], ids_of(10, seed=3)), "short", 55)
    assert seen[0] == 60
    assert seen[1] <= 10


# -- the command, and the report


def test_the_report_shows_an_evaluation_beside_it(tmp_path: Path, dual: BoundFactors) -> None:
    run = {"state": "done", "configuration": {"model": "m"}, "provenance": {}, "exports": [], "recipe": {}}
    methods = {"lengths": [], "rows": []}
    run["extension"] = {"search": None, "methods": methods}
    row = {"length": 4096, "depth": 0.5, "samples": 2, "accuracy": 0.5, "answer_ppl": None, "generated": None}
    evaluation = {"artifact": "m", "perplexity": [{"length": 4096, "windows": 3, "ppl": 7.125}], "passkey": [row]}
    for name, data in (("run", run), ("validation", {"passed": True, "artifacts": []}), ("evaluation", evaluation)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    dual.save(tmp_path / "factors.json")
    assert run_cli("report", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert '<td role="cell" data-label="perplexity">7.125</td>' in page
    assert "50 % of 2 prompts" in page.replace("\N{NO-BREAK SPACE}", " ")
    (tmp_path / "evaluation.json").write_text(json.dumps({**evaluation, "passkey": [{"length": 1}]}))
    broken = run_cli("report", tmp_path)
    assert (broken.code, "eval --json" in broken.err) == (2, True)


@pytest.mark.parametrize("name", FORMATS)
def test_eval_reports_both_tasks_by_length_and_depth(artifacts: dict[str, Path], texts: Path, name: str) -> None:
    lengths = ("--passkey", "150,256", "--needle", "256")
    options = ("--depths", "0,0.5", "--samples", 1, "--generate", "--threads", 1)
    done = run_cli("eval", artifacts[name], "--text", texts, *lengths, *options, "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["schema_version"] == 1
    assert [(row["length"], row["depth"]) for row in data["passkey"]] == [
        (150, 0.0),
        (150, 0.5),
        (256, 0.0),
        (256, 0.5),
    ]
    assert [row["length"] for row in data["needle"]] == [256, 256]
    for row in (*data["passkey"], *data["needle"]):
        assert row["answer_ppl"] > 1
        assert row["accuracy"] == row["generated"] == 0.0  # a random model knows nothing
    assert len(data["provenance"]["text_fingerprint"]) == 64


def test_runtimes_agree_on_retrieval(artifacts: dict[str, Path], texts: Path) -> None:
    ask = ("--text", texts, "--passkey", "256", "--depths", "0.5", "--samples", 2, "--threads", 1, "--json")
    found = [json.loads(run_cli("eval", artifacts[name], *ask).out)["passkey"][0]["answer_ppl"] for name in FORMATS]
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_the_default_model_recalls_and_shows_it(tmp_path: Path) -> None:
    """Teacher-forced and generated scoring agree on a model that can copy; tables and the heat map say so."""
    text = Path("longrope_export/default_model/texts/test/1834_andrew_jackson_d.txt")
    ask = ("--text", text, "--passkey", "128,256", "--depths", "0,1", "--samples", 1, "--generate", "--threads", 1)
    for suffix in ("svg", "png"):
        done = run_cli(
            "eval", "default", *ask, "--heat-map", tmp_path / f"map.{suffix}", "--json", tmp_path / "out.json"
        )
        assert done.code == 0, done.err
    rows = json.loads((tmp_path / "out.json").read_text())["passkey"]
    assert {(row["accuracy"], row["generated"]) for row in rows} == {(1.0, 1.0)}
    assert "answers generated" in done.out
    assert ET.parse(tmp_path / "map.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--windows, --passkey"),
        (("--shots", "0,x"), "whole numbers"),
        (("--passkey", "256", "--depths", "0,2"), "numbers from 0 to 1"),
        (("--passkey", "20"), "a length of at least"),
        (("--needle", "900k"), "filler tokens"),
        (("--passkey", "256", "--heat-map", "map.txt"), ".png or .svg"),
    ],
)
def test_eval_refuses_what_cannot_be(pico: Checkpoint, texts: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run_cli("eval", pico.path, "--text", texts, *arguments)
    assert done.code == 2
    assert message in done.err


# -- tasks


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The examples of docs/evaluation.md, longer."""
    room = tmp_path_factory.mktemp("tasks")
    story = "The baker lives in the mill. " * 12
    lines = {
        "many-shot": [{"input": f"{k}", "output": f"{k + 1}"} for k in range(12)],
        "qa": [{"context": story, "question": "Where does the baker live?", "answers": ["the mill"]}],
        "summarize": [{"document": story, "summary": "A baker lives in a mill."}],
    }
    for task, records in lines.items():
        (room / f"{task}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return {task: room / f"{task}.jsonl" for task in lines}


@pytest.mark.parametrize("name", FORMATS)
def test_tasks_run_in_every_runtime(artifacts: dict[str, Path], task_files: dict[str, Path], name: str) -> None:
    files = [part for task, path in task_files.items() for part in (f"--{task}", path)]
    options = ("--shots", "0,2", "--queries", 2, "--task-windows", "128,256", "--truncate", "--max-new-tokens", 8)
    done = run_cli("eval", artifacts[name], *files, *options, "--threads", 1, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["tasks"]
    found = [(row["task"], row["window"], row["shots"], row["truncated"]) for row in rows]
    one = [("many-shot", 0, 0), ("many-shot", 2, 0), ("qa", None, 1), ("summarize", None, 1)]
    assert found[:4] == [(task, 128, shots, cut) for task, shots, cut in one]
    assert [row["window"] for row in rows] == [128] * 4 + [256] * 4
    assert set(rows[2]["scores"]) == {"exact_match", "f1"}
    assert set(rows[3]["scores"]) == {"rouge1", "rougeL"}


def test_tasks_are_shown_and_need_no_text(pico: Checkpoint, task_files: dict[str, Path]) -> None:
    done = run_cli("eval", pico.path, "--many-shot", task_files["many-shot"], "--shots", "1", "--queries", 1)
    assert done.code == 0, done.err
    assert "accuracy" in done.out
    refused = run_cli("eval", pico.path, "--qa", task_files["qa"])
    assert refused.code == 2
    assert "1 of 1 documents do not fit a window of 64 tokens" in refused.err
    assert run_cli("eval", pico.path, "--windows", 64).code == 2


def test_single_and_dual_factors_show_at_short_lengths(artifacts: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    """A prompt within the original window is answered under the short set."""
    single = tmp_path / "single"
    pico_factors(dual=False).save(tmp_path / "single.json")
    plain = artifacts["hf"]
    done = run_cli("convert", plain, "--to", "hf", "--factor-sets", "single", "-o", single)
    assert done.code == 0, done.err
    ask = ("--text", texts, "--windows", f"{WINDOW},{TARGET}", "--windows-per-length", 1, "--threads", 1, "--json")
    short, long = zip(
        *(
            [row["ppl"] for row in json.loads(run_cli("eval", path, *ask).out)["perplexity"]]
            for path in (plain, single)
        ),
        strict=True,
    )
    assert short[0] != pytest.approx(short[1], rel=1e-6)
    assert long[0] == pytest.approx(long[1], rel=1e-6)


def test_a_folder_is_measured_in_another_dtype(artifacts: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        ask = (
            "eval",
            artifacts["hf"],
            "--text",
            texts,
            "--windows",
            "128",
            "--dtype",
            dtype,
            "--json",
            tmp_path / dtype,
        )
        done = run_cli(*ask)
        assert done.code == 0, done.err
        found.append(json.loads((tmp_path / dtype).read_text())["perplexity"][0]["ppl"])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)


@pytest.mark.parametrize("asked", [("--dtype", "bfloat16"), ("--device", "cuda")])
def test_a_runtime_that_chooses_by_itself_takes_no_device(
    artifacts: dict[str, Path], texts: Path, asked: tuple[str, str]
) -> None:
    done = run_cli("eval", artifacts["gguf"], "--text", texts, "--windows", "64", *asked)
    assert done.code == 2
    assert "is gguf, whose runtime chooses by itself" in done.err
