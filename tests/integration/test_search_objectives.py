"""Objectives beyond whole windows, memory plans, and passes that give the same numbers in less memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from longrope.errors import InputError, MissingRequirementError, UnsupportedError
from longrope.progress import Silent
from longrope.search import Candidate, Machine, SearchOptions, WindowModel, plan_search, search
from longrope.search.measure import smaller
from longrope.search.memory import MIN_PASS, MIN_ROWS, SHARE, MemoryPlan, plan_memory, require_memory
from longrope.search.objective import PENALTY, Objective, Window
from longrope.search.trial import Job, Measurement, Trial
from longrope.search.windows import build_objective, needle_windows
from longrope.text import Corpus, Document
from tests.common import TARGET, WINDOW, pico_checkpoint, pico_factors, pico_text

OPTIONS = SearchOptions(strategy="evolution", max_evals=12, num_documents=2, threads=1)
CANDIDATE = Candidate(pico_factors().long_factor, n_hat=2, attention_factor=1.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return pico_checkpoint(tmp_path_factory.mktemp("pico") / "model")


@pytest.fixture(scope="module")
def corpus(checkpoint):
    texts = [checkpoint.encode(pico_text(60, seed)) for seed in range(3)]
    return Corpus(tuple(Document(f"d{i}", np.array(ids)) for i, ids in enumerate(texts)))


# -- needles and mixtures


def test_only_the_needles_answer_counts(checkpoint, corpus):
    windows = needle_windows(checkpoint, corpus, TARGET, 4)
    assert [len(w) for w in windows] == [TARGET] * 4
    for window in windows:
        answer = checkpoint.tokenizer.decode(window.ids[window.start : window.stop].tolist()).strip()
        text = checkpoint.tokenizer.decode(window.ids.tolist())
        assert len(answer) == 5
        assert answer.isdigit()
        assert text.count(answer) >= 3
    assert sum(w.weight for w in windows) == pytest.approx(1.0)


def test_needle_loss_is_the_answers(checkpoint, corpus):
    (window,) = needle_windows(checkpoint, corpus, 128, 1)
    model = WindowModel(checkpoint, Machine())
    model.rotary.set(CANDIDATE.factors, 1.1, 2)
    with torch.inference_mode():
        logits = model.model(torch.as_tensor(window.ids)[None]).logits[0].double()
    rows = torch.log_softmax(logits, -1)[window.start - 1 : window.stop - 1]
    answer = torch.as_tensor(window.ids[window.start : window.stop])
    assert model.nll(CANDIDATE, window) == pytest.approx(-float(rows.gather(1, answer[:, None]).mean()), rel=1e-5)


@pytest.mark.parametrize("objective", ["needle", "mixed"])
def test_a_search_on_needles(checkpoint, corpus, objective):
    result = search(checkpoint, corpus, TARGET, options=replace(OPTIONS, objective=objective, strategy="gradient"))
    assert math.isfinite(result.loss)
    assert result.factors.target == TARGET


def test_shares_of_other_lengths(checkpoint, corpus):
    objective = build_objective(checkpoint, corpus, TARGET, replace(OPTIONS, window_shares=((128, 0.25), (64, 0.25))))
    shares = {n: sum(w.weight for w in objective.windows if len(w) == n and not w.extra) for n in (TARGET, 128, 64)}
    assert shares == pytest.approx({TARGET: 0.5, 128: 0.25, 64: 0.25})
    for wrong in (((128, 1.0),), ((128, -0.1),), ((1, 0.1),)):
        with pytest.raises(InputError, match="shares"):
            build_objective(checkpoint, corpus, TARGET, replace(OPTIONS, window_shares=wrong))


# -- two sides


def test_the_cap_is_a_penalty_and_so_is_its_slope():
    ids = np.arange(10)
    objective = Objective((Window(ids), Window(ids, side="short")), short_cap=2.0)
    assert objective.loss((0, 1), (3.0, 1.5)) == 3.0
    assert objective.loss((0, 1), (3.0, 2.1)) == pytest.approx(3.0 + 0.1 * PENALTY)
    trial = Trial(CANDIDATE, (0, 1), "", gradient=True)
    measured = [Measurement(3.0, 30, (1.0, 0.0)), Measurement(2.1, 30, (0.0, 1.0))]
    np.testing.assert_allclose(objective.outcome(trial, measured).gradient, [1.0, PENALTY])
    measured[1] = replace(measured[1], nll=1.0)
    np.testing.assert_allclose(objective.outcome(trial, measured).gradient, [1.0, 0.0])


@pytest.mark.parametrize("strategy", ["evolution", "auto"])
def test_a_two_sided_search_keeps_its_budget(checkpoint, corpus, strategy):
    options = replace(OPTIONS, strategy=strategy, max_evals=30, short_budget=0.05, num_short_windows=3)
    result = search(checkpoint, corpus, TARGET, options=options)
    assert result.short_cap is not None
    (chosen,) = [point for point in result.front if point.chosen]
    assert chosen.candidate.factors == result.factors.long_factor
    shorts, targets = [p.short_loss for p in result.front], [p.target_loss for p in result.front]
    assert shorts == sorted(shorts)
    assert targets == sorted(targets, reverse=True)
    if any(short <= result.short_cap for short in shorts):
        assert chosen.short_loss <= result.short_cap
    one_sided = search(checkpoint, corpus, TARGET, options=OPTIONS)
    assert one_sided.front == ()


# -- memory


def test_passes_through_the_cache_change_nothing(checkpoint, corpus):
    window = Window(corpus.documents[0].ids[:200], start=30, stop=190)
    whole = WindowModel(checkpoint, Machine()).nll(CANDIDATE, window)
    for tokens in (199, 64, 33):
        assert WindowModel(checkpoint, Machine(pass_tokens=tokens)).nll(CANDIDATE, window) == pytest.approx(
            whole, rel=1e-5
        )


def test_checkpointing_changes_nothing(checkpoint, corpus):
    window = Window(corpus.documents[0].ids[:200])
    plain = WindowModel(checkpoint, Machine(checkpointing=False)).nll_and_gradient(CANDIDATE, window)
    model = WindowModel(checkpoint, Machine(checkpointing=True))
    again = model.nll_and_gradient(CANDIDATE, window)
    assert again[0] == pytest.approx(plain[0], rel=1e-6)
    np.testing.assert_allclose(again[1], plain[1], rtol=1e-4, atol=1e-6)
    model._recompute_activations(False)
    assert model.nll_and_gradient(CANDIDATE, window)[0] == pytest.approx(plain[0], rel=1e-6)


def test_running_out_of_memory_halves_the_passes(checkpoint, corpus, monkeypatch):
    window = Window(np.tile(corpus.documents[0].ids[:512], 4))
    model = WindowModel(checkpoint, Machine())
    expected, inner, tried = model.nll(CANDIDATE, window), model._nll, []

    def short_of_memory(candidate, window, plan):
        tried.append(plan.pass_tokens)
        if plan.pass_tokens > 600:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return inner(candidate, window, plan)

    monkeypatch.setattr(model, "_nll", short_of_memory)
    assert model.measure(Job(CANDIDATE, 0), window).nll == pytest.approx(expected, rel=1e-5)
    assert tried == [2048, 1024, 512]
    model.nll(CANDIDATE, window)
    assert tried[3:] == [512]
    monkeypatch.setattr(model, "_nll", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        model.nll(CANDIDATE, window)


def test_there_is_an_end_to_halving(checkpoint):
    plan = plan_memory(checkpoint, 1024)
    for _ in range(20):
        if plan.rows == MIN_ROWS and plan.pass_tokens == MIN_PASS:
            break
        plan = smaller(plan, False)
    with pytest.raises(MissingRequirementError, match="out of memory"):
        smaller(plan, False)
    assert smaller(plan_memory(checkpoint, 1024, gradient=True), True).checkpointing


def test_a_plan_takes_what_fits(checkpoint):
    generous = plan_memory(checkpoint, 1 << 16, available=64 << 30)
    assert generous.pass_tokens == 1 << 16
    tight = plan_memory(checkpoint, 1 << 16, available=generous.total)
    assert tight.pass_tokens < 1 << 16
    assert tight.fits
    assert tight.total < generous.total
    gradient = plan_memory(checkpoint, 1 << 16, gradient=True, available=64 << 30)
    assert not gradient.checkpointing
    assert plan_memory(checkpoint, 1 << 16, gradient=True, available=gradient.total).checkpointing
    hopeless = plan_memory(checkpoint, 1 << 16, available=1 << 20)
    assert not hopeless.fits
    with pytest.raises(MissingRequirementError, match="65536 tokens"):
        require_memory(hopeless)
    require_memory(generous)
    assert isinstance(generous, MemoryPlan)
    assert "one pass" in str(generous)


def test_a_search_says_what_it_takes(checkpoint, corpus):
    plan = plan_search(checkpoint, TARGET, OPTIONS)
    assert (plan.evaluations, plan.tokens, plan.gradient) == (12, 12 * 2 * TARGET, None)
    result = search(checkpoint, corpus, TARGET, options=OPTIONS)
    assert 0.8 * plan.tokens <= result.tokens <= plan.tokens
    options = replace(OPTIONS, strategy="auto", short_budget=0.01, num_short_windows=3, window_shares=((128, 0.5),))
    plan = plan_search(checkpoint, TARGET, options)
    assert plan.gradient is not None
    assert plan.tokens == 12 * (2 * TARGET + 2 * 128 + 3 * WINDOW)
    assert "budget: 12 evaluations" in plan.lines()[0]
    assert plan_search(checkpoint, TARGET, replace(OPTIONS, max_evals=None)).evaluations == 1344


def test_a_search_that_cannot_fit_is_refused(checkpoint, corpus, monkeypatch):
    monkeypatch.setattr("longrope.search.memory.free_memory", lambda device: 1 << 20)
    with pytest.raises(MissingRequirementError, match="not enough memory"):
        search(checkpoint, corpus, TARGET, options=OPTIONS)


def test_auto_goes_without_gradients_where_they_do_not_fit(checkpoint, corpus, monkeypatch):
    options = replace(OPTIONS, strategy="auto", max_evals=60)
    plan = plan_search(checkpoint, TARGET, options)
    between = (plan.forward.total + plan.gradient.total) / 2 / SHARE
    taken = search(checkpoint, corpus, TARGET, options=options)
    assert any(point.gradient for point in taken.history)
    monkeypatch.setattr("longrope.search.memory.free_memory", lambda device: int(between))
    monkeypatch.setattr("longrope.search.memory._ways", lambda window, gradient: [(False, window)])
    progress = Silent()
    without = search(checkpoint, corpus, TARGET, options=options, progress=progress)
    assert not any(point.gradient for point in without.history)
    assert any("goes without" in warning for warning in progress.warnings)
    with pytest.raises(MissingRequirementError, match="not enough memory"):
        search(checkpoint, corpus, TARGET, options=replace(options, strategy="gradient"))


# -- windows as a user has them


def test_a_sliding_window_below_the_target_is_refused(tmp_path, corpus):
    mistral = pico_checkpoint(tmp_path / "mistral", "mistral", sliding_window=128)
    with pytest.raises(UnsupportedError, match="sliding_window"):
        search(mistral, corpus, TARGET, options=OPTIONS)


def test_partial_rotary_models_get_as_many_factors_as_they_turn(tmp_path, corpus):
    phi = pico_checkpoint(
        tmp_path / "phi",
        "phi3",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )
    result = search(phi, corpus, TARGET, options=replace(OPTIONS, max_evals=3))
    assert len(result.factors.long_factor) == phi.rotary_dim // 2 == 4
    assert phi.window == WINDOW
