"""Searches on a pico model: window 64, target 256."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from longrope import scoring
from longrope.checkpoint import unscaled_factors
from longrope.errors import InputError
from longrope.machine import Machine
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.rope import attention_factor_formula
from longrope.search import (
    Candidate,
    SearchOptions,
    WindowModel,
    evaluate_methods,
    recover_short,
    search,
)
from longrope.search.evaluators import LocalEvaluator
from longrope.search.objective import Objective, Window
from longrope.search.windows import whole_windows
from longrope.text import Corpus, Document
from tests.common import TARGET, WINDOW, pico_corpus, pico_factors

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = SearchOptions(strategy="evolution", max_evals=18, num_documents=2, threads=1)


@pytest.fixture(scope="module")
def corpus(pico):
    return pico_corpus(pico)


@pytest.fixture(scope="module")
def plain(pico, corpus):
    """The undisturbed run that others are compared with."""
    return search(pico, corpus, TARGET, options=OPTIONS)


# -- the measurement


def test_nll_is_the_scorers(pico, corpus):
    factors = pico.bind(pico_factors(dual=False))
    windows = corpus.windows(TARGET, 2)
    expected = scoring.nll(TorchSource(build_model(pico, factors), factors), windows, "long")
    model = WindowModel(pico, Machine(), factors.effective_attention_factor)
    actual = np.mean([model.nll(Candidate(factors.long_factor), Window(ids)) for ids in windows])
    assert actual == pytest.approx(expected, rel=1e-5)


def test_gradient_is_the_slope(pico, corpus):
    model = WindowModel(pico, Machine(dtype="float32"))
    model.model.double()
    window = Window(corpus.documents[0].ids[:96], start=40, stop=90)
    factors, step = np.array(pico_factors().long_factor), 3e-4

    def at(logs):
        values = np.exp(logs)
        return Candidate(tuple(values[:-1]), n_hat=3, attention_factor=values[-1])

    logs = np.log([*factors, 1.1])
    nll, gradient = model.nll_and_gradient(at(logs), window)
    assert nll == pytest.approx(model.nll(at(logs), window), rel=1e-6)
    for index in (0, 3, 7, 8):
        nudge = step * np.eye(9)[index]
        slope = (model.nll(at(logs + nudge), window) - model.nll(at(logs - nudge), window)) / (2 * step)
        assert gradient[index] == pytest.approx(slope, rel=2e-2, abs=4e-3)


def test_bfloat16_is_close(pico, corpus):
    window = Window(corpus.documents[0].ids[:128])
    candidate = Candidate(pico_factors().long_factor, attention_factor=1.1)
    exact = WindowModel(pico, Machine()).nll(candidate, window)
    assert WindowModel(pico, Machine(dtype="bfloat16")).nll(candidate, window) == pytest.approx(exact, rel=0.05)


def test_windows_are_weighted_by_their_tokens():
    ids = np.arange(100)
    objective = Objective((Window(ids, weight=3), Window(ids, weight=1)))
    assert objective.loss((0, 1), (1.0, 2.0)) == pytest.approx(1.25)
    assert objective.loss((1,), (2.0,)) == 2.0


# -- the search


def test_the_result_is_bound_and_never_worse_than_a_seed(plain, pico):
    assert plain.factors.factor_sets == "single"
    assert (plain.factors.model_type, plain.factors.rotary_dim) == ("llama", pico.rotary_dim)
    assert (plain.factors.original, plain.factors.target) == (WINDOW, TARGET)
    assert plain.factors.attention_factor is None
    assert plain.factors.method == "evolution"
    assert [start.name for start in plain.starting_points] == ["PI", "NTK", "YaRN 32/1"]
    assert plain.loss <= min(start.loss for start in plain.starting_points)
    assert plain.perplexity == pytest.approx(math.exp(plain.loss))
    assert plain.evaluations == len(plain.history) == 16
    assert plain.tokens == plain.evaluations * 2 * TARGET
    best = [point.best for point in plain.history]
    assert best == sorted(best, reverse=True)


def test_the_same_seed_gives_the_same_factors(plain, pico, corpus):
    again = search(pico, corpus, TARGET, options=OPTIONS)
    assert again.factors.long_factor == plain.factors.long_factor
    assert again.history == plain.history


def test_n_hat_is_part_of_the_genome(pico, corpus):
    result = search(pico, corpus, TARGET, options=replace(OPTIONS, n_hat="search", max_evals=30))
    assert len({point.candidate.n_hat for point in result.history}) > 2
    fixed = search(pico, corpus, TARGET, options=replace(OPTIONS, n_hat=4, max_evals=6))
    assert fixed.factors.n_hat == 4


def test_second_interpolation_multiplies(pico, corpus):
    base = pico_factors(dual=False, target=128)
    options = replace(OPTIONS, from_factors=base, max_evals=6)
    result = search(pico, corpus, TARGET, options=options)
    ratio = np.array(result.factors.long_factor) / np.array(base.long_factor)
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 1.25 * 2 + 1e-6).all()
    pi = next(point for point in result.history if point.label == "PI")
    np.testing.assert_allclose(pi.candidate.factors, 2 * np.array(base.long_factor), rtol=1e-5)
    assert result.factors.original == WINDOW


def test_given_factors_are_a_seed(pico, corpus):
    given = pico_factors(dual=False)
    result = search(pico, corpus, TARGET, options=replace(OPTIONS, start_from=(given,), strategy="seeds"))
    assert "given 1 (test)" in [seed.name for seed in result.starting_points]
    assert "none" in [seed.name for seed in result.starting_points]


def test_what_given_files_lose_is_told(pico, corpus):
    """Start tokens and an attention factor that the search neither keeps nor searches."""
    given = replace(pico_factors(dual=False, target=128), n_hat=4, attention_factor=1.07)
    for options, words in (
        (
            {"start_from": (given,)},
            ["to start from: their n_hat of 4", "to start from: their attention factor of 1.07"],
        ),
        (
            {"from_factors": given},
            [
                "to search on top of: their n_hat of 4",
                "to search on top of: their attention factor of 1.07",
            ],
        ),
        ({"from_factors": given, "n_hat": 4, "attention_factor": 1.07}, []),
        ({"from_factors": replace(given, n_hat=0, attention_factor=attention_factor_formula(2.0, WINDOW))}, []),
        (
            {
                "start_from": (replace(given, n_hat=5, attention_factor=None),),
                "n_hat": "search",
                "strategy": "evolution",
            },
            [],
        ),
        ({"start_from": (given,), "n_hat": "search", "attention_factor": "search", "strategy": "evolution"}, []),
    ):
        progress = Silent()
        wanted = replace(OPTIONS, **{"strategy": "seeds", "max_evals": 3, **options})
        search(pico, corpus, TARGET, options=wanted, progress=progress)
        lost = [warning.removeprefix("factors ") for warning in progress.warnings if "is not kept" in warning]
        assert len(lost) == len(words)
        assert all(map(str.startswith, lost, words))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**32}, "seed: expected a whole number from 0"),
        ({"strategy": "evolutoin"}, "did you mean evolution"),
        ({"n_hat": 256}, "n_hat"),
        ({"attention_factor": "auto"}, "attention_factor: expected formula, search"),
        ({"attention_factor": -1.0}, "attention_factor: expected .* a number above 0, got -1.0"),
        ({"from_factors": pico_factors(target=256)}, "above 256"),
        ({"start_from": (pico_factors(32),)}, "another model"),
    ],
)
def test_wrong_options(pico, corpus, changes, message):
    with pytest.raises(InputError, match=message):
        search(pico, corpus, TARGET, options=replace(OPTIONS, **changes))


@pytest.mark.parametrize("name", ["max_evals", "num_documents", "threads"])
def test_numbers_below_one(name):
    with pytest.raises(InputError, match=name):
        SearchOptions(**{name: 0})


def test_a_search_on_a_rescaled_model_starts_from_what_that_computes(pico, corpus):
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": pico.rope_theta}
    rescaled = replace(pico, config={**pico.config, "rope_parameters": parameters, "rope_scaling": None})
    ids = corpus.first_windows(WINDOW, 1)[0]
    own = build_model(rescaled)(input_ids=torch.as_tensor(ids)[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(own[:-1], torch.as_tensor(ids)[1:]).item()
    unscaled = Candidate.of(unscaled_factors(rescaled, TARGET), "long")
    assert set(unscaled.factors) == {2.0}
    assert WindowModel(rescaled, Machine()).nll(unscaled, Window(ids)) == pytest.approx(expected, abs=1e-5)
    found = search(rescaled, corpus, TARGET, options=OPTIONS).factors
    assert (found.base, min(found.long_factor) >= 2.0) == (rescaled.base, True)


def test_short_documents_are_counted(pico, corpus):
    with pytest.raises(InputError, match="got 3 documents, the longest"):
        search(pico, corpus, 1 << 16, options=OPTIONS)
    with pytest.raises(InputError, match="above 64"):
        search(pico, corpus, WINDOW, options=OPTIONS)


# -- the journal


class Counting(LocalEvaluator):
    """Stops after so many measurements, as a kill would."""

    allowed = 10**9
    done = 0

    def measure(self, jobs):
        for pair in super().measure(jobs):
            if Counting.done >= Counting.allowed:
                raise KeyboardInterrupt
            Counting.done += 1
            yield pair


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr("longrope.search.evaluators.LocalEvaluator", Counting)
    Counting.allowed, Counting.done = 10**9, 0
    return Counting


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 31])
def test_a_killed_run_ends_the_same(plain, pico, corpus, tmp_path, counting, stop):
    counting.allowed = stop
    with pytest.raises(KeyboardInterrupt):
        search(pico, corpus, TARGET, options=OPTIONS, journal_dir=tmp_path)
    counting.allowed, counting.done = 10**9, 0
    result = search(pico, corpus, TARGET, options=OPTIONS, journal_dir=tmp_path, resume=True)
    assert result.factors.long_factor == plain.factors.long_factor
    assert result.history == plain.history
    assert counting.done == 32 - stop
    jobs = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()[1:]]
    assert len({(tuple(j["factors"]), j["window"]) for j in jobs}) == len(jobs) == 32


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from longrope.checkpoint import open_checkpoint
from longrope.journal import Journal
from longrope.search import SearchOptions, search
from longrope.text import Corpus, Document

model, texts, journal, stop = sys.argv[1:]
append = Journal.append
lines = []

def append_and_die(self, record):
    append(self, record)
    lines.append(record)
    if len(lines) == int(stop):
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_and_die
ids = np.load(texts)
corpus = Corpus(tuple(Document(name, ids[name]) for name in ids.files))
options = SearchOptions(strategy="auto", max_evals=18, num_documents=2, threads=1)
search(open_checkpoint(model), corpus, 256, options=options, journal_dir=Path(journal))
"""


@pytest.mark.parametrize("stop", [23])
def test_kill_9_at_any_moment(pico, corpus, tmp_path, stop):
    """A real SIGKILL in a real process; the rest is done here, with the same end."""
    options = replace(OPTIONS, strategy="auto")
    np.savez(tmp_path / "texts.npz", **{document.name: document.ids for document in corpus.documents})
    arguments = [str(pico.path), str(tmp_path / "texts.npz"), str(tmp_path / "journal"), str(stop)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    result = search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "journal", resume=True)
    plain = search(pico, corpus, TARGET, options=options)
    assert result.history == plain.history
    assert result.factors.long_factor == plain.factors.long_factor


def test_a_finished_run_is_not_measured_again(plain, pico, corpus, tmp_path, counting):
    for _ in range(2):
        result = search(pico, corpus, TARGET, options=OPTIONS, journal_dir=tmp_path, resume=True)
    assert counting.done == 32
    assert result.history == plain.history


def test_another_run_is_refused(pico, corpus, tmp_path):
    search(pico, corpus, TARGET, options=OPTIONS, journal_dir=tmp_path)
    with pytest.raises(InputError, match="resume it"):
        search(pico, corpus, TARGET, options=OPTIONS, journal_dir=tmp_path)
    with pytest.raises(InputError, match=r"settings\.seed was 0, is 1"):
        search(pico, corpus, TARGET, options=replace(OPTIONS, seed=1), journal_dir=tmp_path, resume=True)
    other = Corpus(corpus.documents[::-1])
    with pytest.raises(InputError, match="text was"):
        search(pico, other, TARGET, options=OPTIONS, journal_dir=tmp_path, resume=True)
    moved = replace(OPTIONS, threads=2)
    search(pico, corpus, TARGET, options=moved, journal_dir=tmp_path, resume=True)


# -- beside the search


def test_a_method_that_does_not_exist_is_refused(pico):
    with pytest.raises(InputError, match="unknown method 'YaRN'; expected one of NTK, PI, YaRN 32/1, none"):
        evaluate_methods(pico, [], TARGET, methods=["none", "YaRN"])


def test_the_table_of_methods(plain, pico, corpus):
    windows = corpus.windows(TARGET, 3)
    rows = evaluate_methods(pico, windows, TARGET, {"searched": Candidate.of(plain.factors, "long")})
    names = [row.name for row in rows]
    assert names[:4] == ["none", "PI", "NTK", "YaRN 32/1"]
    assert names[-1] == "searched"
    assert rows[0].loss == pytest.approx(np.average(rows[0].losses, weights=rows[0].weights))
    assert rows[-1].loss < rows[0].loss
    model = WindowModel(pico, Machine())
    assert rows[0].losses[0] == pytest.approx(model.nll(Candidate((1.0,) * 8), Window(windows[0])), rel=1e-6)


def test_a_short_set_is_never_worse_than_the_long_one(pico, corpus):
    factors = pico.bind(pico_factors(dual=False))
    found = recover_short(pico, corpus, factors, num_windows=4, options=SearchOptions(max_evals=24, threads=1))
    assert found.loss <= found.single_loss
    assert found.factors.long_factor == factors.long_factor
    assert found.factors.factor_sets == "dual"
    assert found.factors.effective_attention_factor == factors.effective_attention_factor
    source = TorchSource(build_model(pico, found.factors), found.factors)
    short_windows = [w.ids for w in whole_windows(corpus, WINDOW, 4)]
    assert scoring.nll(source, short_windows, "short") == pytest.approx(found.loss, rel=1e-5)
    assert len(found.search.history) <= 24


def test_a_recovery_that_could_not_be_compared_is_refused_before_it_searches(pico, corpus, tmp_path):
    short = Corpus((Document("short", corpus.documents[0].ids[: WINDOW - 1]),))
    with pytest.raises(InputError, match=f"the longest with {WINDOW - 1}"):
        recover_short(pico, corpus, pico_factors(dual=False), held_out=short, journal_dir=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_recovery_fills_what_the_factors_leave_open(pico, corpus):
    """A CSV of factors says no window; the model does."""
    open_window = pico_factors(dual=False, original_max_position_embeddings=None)
    options = SearchOptions(max_evals=2, threads=1)
    found = recover_short(pico, corpus, open_window, window=WINDOW, num_windows=1, options=options)
    assert found.factors.original == WINDOW
    with pytest.raises(InputError, match=f"at most the original window of {WINDOW}"):
        recover_short(pico, corpus, open_window, window=WINDOW + 1, options=options)


def test_recovery_compares_short_sets_on_held_out_text(pico, corpus):
    factors = pico.bind(pico_factors(dual=False))
    stage = replace(factors, long_factor=tuple(f**0.5 for f in factors.long_factor))
    stage = replace(stage, short_factor=stage.long_factor)
    search_on, held_out = corpus.split()
    found = recover_short(
        pico,
        search_on,
        factors,
        num_windows=4,
        options=SearchOptions(max_evals=24, threads=1),
        stages={"stage 1": stage},
        held_out=held_out,
    )
    names = ["searched", "original RoPE", "stage 1", "long set (single)"]
    assert [score.name for score in found.comparison] == names
    assert found.winner == min(found.comparison, key=lambda score: score.loss)
    assert {score.attention_factor for score in found.comparison} == {factors.effective_attention_factor}
    windows = [w.ids for w in whole_windows(held_out, WINDOW, 64)]
    for score, values in zip(found.comparison[1:], ((1.0,) * 8, stage.long_factor, factors.long_factor), strict=True):
        swapped = replace(factors, short_factor=values)
        source = TorchSource(build_model(pico, swapped), swapped)
        assert scoring.nll(source, windows, "short") == pytest.approx(score.loss, rel=1e-5)
    data = found.to_json()
    assert data["winner"] == found.winner.name
    assert data["dual"]["perplexity"] <= data["single"]["perplexity"]
    assert found.search.loss <= min(seed.loss for seed in found.search.starting_points)
    assert "stage 1" in [seed.name for seed in found.search.starting_points]
