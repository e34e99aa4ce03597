"""Objectives beyond whole windows, memory plans, and passes that give the same numbers in less memory."""

import math
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from longrope.errors import InputError, MissingRequirementError, UnsupportedError, is_out_of_memory
from longrope.estimates.memory import FREE_SHARE, free_for_each, require_memory, spread
from longrope.estimates.search import MIN_PASS, MIN_ROWS, search_estimate, search_memory
from longrope.machine import Machine
from longrope.progress import Silent
from longrope.search import Candidate, SearchOptions, WindowModel, check_search, measure, run, search
from longrope.search.evaluation_cache import EvaluationCache
from longrope.search.measure import smaller
from longrope.search.objective import PENALTY, Objective, Window
from longrope.search.strategies.evolution import keep
from longrope.search.trial import Job, Measurement, Trial
from longrope.search.windows import build_objective, needle_windows, oddities
from longrope.text import Corpus, Document
from tests.common import FEATURES, PICO_CHANGES, TARGET, WINDOW, pico_checkpoint, pico_corpus, pico_factors

OPTIONS = SearchOptions(strategy="evolution", max_evals=12, num_documents=2, threads=1)
CANDIDATE = Candidate(pico_factors().long_factor, n_hat=2, attention_factor=1.1)


def between(plan, pico):
    """Free bytes in which a forward fits, and a gradient with everything recomputed does not."""
    recomputed = search_memory(pico, plan.forward.window, gradient=True, available=1)
    assert recomputed.checkpointing
    return int((plan.forward.total + recomputed.total) / 2 / FREE_SHARE)


@pytest.fixture(scope="module")
def corpus(pico):
    return pico_corpus(pico)


# -- needles and mixtures


def test_only_the_needles_answer_counts(pico, corpus):
    windows = needle_windows(pico, corpus, TARGET, 4)
    assert [len(w) for w in windows] == [TARGET] * 4
    for window in windows:
        answer = pico.tokenizer.decode(window.ids[window.start : window.stop].tolist()).strip()
        text = pico.tokenizer.decode(window.ids.tolist())
        assert len(answer) == 5
        assert answer.isdigit()
        assert text.count(answer) >= 3
    assert sum(w.weight for w in windows) == pytest.approx(1.0)


def test_needle_loss_is_the_answers(pico, corpus):
    (window,) = needle_windows(pico, corpus, 128, 1)
    model = WindowModel(pico, Machine())
    model.rotary.set(CANDIDATE.factors, 1.1, 2)
    with torch.inference_mode():
        logits = model.model(torch.as_tensor(window.ids)[None]).logits[0].double()
    rows = torch.log_softmax(logits, -1)[window.start - 1 : window.stop - 1]
    answer = torch.as_tensor(window.ids[window.start : window.stop])
    assert model.nll(CANDIDATE, window) == pytest.approx(-float(rows.gather(1, answer[:, None]).mean()), rel=1e-5)


@pytest.mark.parametrize("objective", ["needle", "mixed"])
def test_a_search_on_needles(pico, corpus, objective):
    result = search(pico, corpus, TARGET, options=replace(OPTIONS, objective=objective, strategy="gradient"))
    assert math.isfinite(result.loss)
    assert result.factors.target == TARGET


def test_shares_of_other_lengths(pico, corpus):
    objective = build_objective(pico, corpus, TARGET, replace(OPTIONS, window_shares=((128, 0.25), (64, 0.25))))
    shares = {n: sum(w.weight for w in objective.windows if len(w) == n and not w.extra) for n in (TARGET, 128, 64)}
    assert shares == pytest.approx({TARGET: 0.5, 128: 0.25, 64: 0.25})
    for wrong in (((128, 1.0),), ((128, -0.1),), ((128, 0.5), (64, 0.5))):
        with pytest.raises(InputError, match="shares"):
            replace(OPTIONS, window_shares=wrong)
    for length in (1, TARGET + 1):
        with pytest.raises(InputError, match=f"a window share of {length} tokens: expected 2 to the target's {TARGET}"):
            check_search(pico, TARGET, replace(OPTIONS, window_shares=((length, 0.25),)))


def test_a_part_keeps_its_share_when_some_of_its_windows_are_measured():
    """Races measure a window of every part at a time, however many each has."""
    ids = np.arange(10)
    windows = (Window(ids, weight=0.5), *(Window(ids, weight=0.125, part=1) for _ in range(4)))
    objective = Objective(windows)
    assert objective.mean("target", (0, 1), (1.0, 3.0)) == pytest.approx(2.0)
    assert objective.mean("target", (0, 1, 2), (1.0, 3.0, 5.0)) == pytest.approx(2.5)
    assert objective.mean("target", (1, 2), (3.0, 5.0)) == pytest.approx(4.0)
    assert objective.mean("target", (0, 1, 2, 3, 4), (1.0, 3.0, 5.0, 3.0, 5.0)) == pytest.approx(2.5)
    trial, slopes = Trial(CANDIDATE, (0, 1, 2), "", gradient=True), ((1.0, 0.0), (0.0, 1.0), (0.0, 1.0))
    measured = [Measurement(2.0, 30, slope) for slope in slopes]
    np.testing.assert_allclose(objective.outcome(trial, measured).gradient, [0.5, 0.5])


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
def test_a_two_sided_search_keeps_its_budget(pico, corpus, strategy):
    options = replace(OPTIONS, strategy=strategy, max_evals=30, short_budget=0.05, num_short_windows=3)
    result = search(pico, corpus, TARGET, options=options)
    assert result.short_cap is not None
    (chosen,) = [point for point in result.front if point.chosen]
    assert chosen.candidate.factors == result.factors.long_factor
    shorts, targets = [p.short_loss for p in result.front], [p.target_loss for p in result.front]
    assert shorts == sorted(shorts)
    assert targets == sorted(targets, reverse=True)
    if any(short <= result.short_cap for short in shorts):
        assert chosen.short_loss <= result.short_cap
    one_sided = search(pico, corpus, TARGET, options=OPTIONS)
    assert one_sided.front == ()


# -- memory


def test_passes_through_the_cache_change_nothing(pico, corpus):
    window = Window(corpus.documents[0].ids[:200], start=30, stop=190)
    whole = WindowModel(pico, Machine()).nll(CANDIDATE, window)
    for tokens in (199, 64, 33):
        assert WindowModel(pico, Machine(pass_tokens=tokens)).nll(CANDIDATE, window) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v2", "llama4_text", "gemma3_text", "glm4"])
def test_rows_of_one_pass_have_factors_of_their_own(tmp_path, corpus, model_type):
    """Tables in halves, complex ones, those beside a sliding layer's own, and parts of heads."""
    checkpoint = pico_checkpoint(tmp_path / "model", model_type, **{**PICO_CHANGES, **FEATURES}.get(model_type, {}))
    windows = [Window(ids) for ids in corpus.windows(100, 2)] + [Window(corpus.windows(100, 1)[0], start=90, stop=95)]
    pairs = checkpoint.rotary_dim // 2
    tried = [
        Candidate(tuple(np.geomspace(1.0, 4.0, pairs))),
        Candidate((2.0,) * pairs, n_hat=7, attention_factor=1.2),
        Candidate((1.5,) * pairs, n_hat=0),
    ]
    model = WindowModel(checkpoint, Machine(threads=1, together=512), 1.1)
    jobs = [Job(candidate, w) for candidate in tried for w in range(3)] + [Job(tried[0], 0, gradient=True)]
    asked = [windows[job.window] for job in jobs]
    passes = model.passes(jobs, asked)
    assert sorted(map(len, passes)) == [1, 1, 3, 5]
    alone = WindowModel(checkpoint, Machine(threads=1), 1.1)
    assert alone.passes(jobs, asked) == [[number] for number in range(10)]
    for numbers in passes:
        group, there = [jobs[n] for n in numbers], [asked[n] for n in numbers]
        for job, window, found in zip(group, there, model.measure_together(group, there), strict=True):
            expected = alone.measure(job, window)
            assert found.nll == pytest.approx(expected.nll, rel=1e-5)
            assert (found.tokens, found.gradient is None) == (expected.tokens, expected.gradient is None)


def test_what_does_not_fit_together_is_measured_in_parts(pico, corpus):
    windows = [Window(ids) for ids in corpus.windows(64, 3)]
    jobs = [Job(Candidate((1.0 + k,) * 8), w) for k in range(3) for w in range(3)]
    model, rows = WindowModel(pico, Machine(threads=1, together=4096)), list[int]()

    def refuse(module, args, given):
        rows.append(len(given["input_ids"]))
        if rows[-1] > 3:
            raise torch.OutOfMemoryError("out of memory, on purpose")

    model.model.get_decoder().register_forward_pre_hook(refuse, with_kwargs=True)
    asked = [windows[job.window] for job in jobs]
    assert model.passes(jobs, asked) == [list(range(9))]
    found = model.measure_together(jobs, asked)
    assert rows == [9, 4, 2, 2, 5, 2, 3]
    expected = [
        WindowModel(pico, Machine(threads=1)).measure(job, window).nll for job, window in zip(jobs, asked, strict=True)
    ]
    assert [m.nll for m in found] == pytest.approx(expected, rel=1e-5)


def test_checkpointing_changes_nothing(pico, corpus):
    window = Window(corpus.documents[0].ids[:200])
    plain = WindowModel(pico, Machine(checkpointing=False)).nll_and_gradient(CANDIDATE, window)
    model = WindowModel(pico, Machine(checkpointing=True))
    again = model.nll_and_gradient(CANDIDATE, window)
    assert again[0] == pytest.approx(plain[0], rel=1e-6)
    np.testing.assert_allclose(again[1], plain[1], rtol=1e-4, atol=1e-6)
    assert model.nll(CANDIDATE, window) == pytest.approx(plain[0], rel=1e-6)


def test_running_out_of_memory_halves_the_passes(pico, corpus, monkeypatch):
    window = Window(np.tile(corpus.documents[0].ids[:512], 4))
    model = WindowModel(pico, Machine())
    expected, inner, tried = model.nll(CANDIDATE, window), measure.hidden_blocks, []

    def short_of_memory(network, ids, pass_tokens):
        tried.append(pass_tokens)
        if pass_tokens > 600:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return inner(network, ids, pass_tokens)

    monkeypatch.setattr(measure, "hidden_blocks", short_of_memory)
    assert model.measure(Job(CANDIDATE, 0), window).nll == pytest.approx(expected, rel=1e-5)
    assert tried == [2048, 1024, 512]
    model.nll(CANDIDATE, window)
    assert tried[3:] == [512]
    monkeypatch.setattr(measure, "hidden_blocks", Mock(side_effect=RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        model.nll(CANDIDATE, window)


def test_there_is_an_end_to_halving(pico):
    plan = search_memory(pico, 1024)
    for _ in range(20):
        if plan.rows == MIN_ROWS and plan.pass_tokens == MIN_PASS:
            break
        plan = smaller(plan, False)
    with pytest.raises(MissingRequirementError, match="out of memory"):
        smaller(plan, False)
    assert smaller(search_memory(pico, 1024, gradient=True), True).checkpointing


def test_a_plan_takes_what_fits(pico):
    generous = search_memory(pico, 1 << 18, available=64 << 30)
    assert generous.pass_tokens == 1 << 18
    tight = search_memory(pico, 1 << 18, available=generous.total)
    assert tight.pass_tokens < 1 << 18
    assert tight.fits
    assert tight.total < generous.total
    gradient = search_memory(pico, 1 << 18, gradient=True, available=64 << 30)
    assert not gradient.checkpointing
    assert search_memory(pico, 1 << 18, gradient=True, available=gradient.total).checkpointing
    hopeless = search_memory(pico, 1 << 18, available=1 << 20)
    assert not hopeless.fits
    with pytest.raises(MissingRequirementError, match="262144 tokens"):
        require_memory(hopeless)
    require_memory(generous)
    assert "one pass" in str(generous)


def test_a_search_says_what_it_takes(pico, corpus):
    plan = search_estimate(pico, TARGET, OPTIONS)
    assert (plan.evaluations, plan.tokens, plan.gradient) == (12, 12 * 2 * TARGET, None)
    result = search(pico, corpus, TARGET, options=OPTIONS)
    assert 0.8 * plan.tokens <= result.tokens <= plan.tokens
    options = replace(OPTIONS, strategy="auto", short_budget=0.01, num_short_windows=3, window_shares=((128, 0.5),))
    plan = search_estimate(pico, TARGET, options)
    assert plan.gradient is not None
    assert plan.tokens == 12 * (2 * TARGET + 2 * 128 + 3 * WINDOW)
    assert "budget: 12 evaluations" in plan.lines()[0]
    assert search_estimate(pico, TARGET, replace(OPTIONS, max_evals=None)).evaluations == 1344


def test_every_worker_plans_on_its_share(pico, monkeypatch):
    whole = search_memory(pico, 1 << 18, available=math.inf)
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: int(whole.total / FREE_SHARE))
    options = replace(OPTIONS, executor="processes")
    assert search_estimate(pico, 1 << 18, options).forward.pass_tokens == 1 << 18
    shared = search_estimate(pico, 1 << 18, replace(options, workers=2)).forward
    assert shared.pass_tokens < 1 << 18, "shorter passes instead of a refusal"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert spread("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert free_for_each(spread("cuda", 2)) == int(whole.total / FREE_SHARE), "each GPU has its own"
    ray = search_estimate(pico, 1 << 18, replace(OPTIONS, executor="ray", workers=8, device="cuda"))
    assert ray.forward.fits
    assert ray.forward.available is None, "the actors' machines are not this one"


def test_memory_is_what_was_free_before_the_model_was_loaded(pico, monkeypatch):
    free = iter([100 << 30, 1 << 20, 1 << 20])
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: next(free))
    model = WindowModel(pico, Machine())
    assert model.plan(Window(np.zeros(TARGET, dtype=np.int64))).available == 100 << 30
    assert WindowModel(pico, Machine(available=5)).plan(Window(np.zeros(4, dtype=np.int64))).available == 5


def test_scores_that_are_written_out_are_counted(pico):
    capped = replace(pico, config={**pico.config, "attn_logit_softcapping": 50.0})
    more = search_memory(capped, 4096, available=math.inf).total - search_memory(pico, 4096, available=math.inf).total
    assert more == pico.config["num_attention_heads"] * 4096**2 * 12


def test_a_resumed_search_keeps_its_passes(pico, corpus, tmp_path, monkeypatch):
    """Whatever is free by then: other passes give other last digits, and so other candidates."""
    options = replace(OPTIONS, strategy="auto", max_evals=30)
    plan = search_estimate(pico, TARGET, options)
    plenty, tight = 64 << 30, between(plan, pico)
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: tight)
    begun = search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "tight")
    assert not any(point.gradient for point in begun.history)
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: plenty)
    file = tmp_path / "tight" / "search.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
    resumed = search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "tight", resume=True)
    assert resumed.history == begun.history
    used = []
    make = run.make_evaluator
    monkeypatch.setattr(run, "make_evaluator", lambda recipe, **rest: used.append(recipe) or make(recipe, **rest))
    search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "plenty")
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: tight)
    progress = Silent()
    search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "plenty", resume=True, progress=progress)
    assert any("when this search began" in warning for warning in progress.warnings)
    search(pico, corpus, TARGET, options=options, journal_dir=tmp_path / "tight", resume=True)
    assert [recipe.machine.available for recipe in used] == [plenty, tight, tight]


def test_a_non_finite_loss_counts_as_failed(pico, corpus, monkeypatch):
    plain = WindowModel.nll

    def overflowing(model, candidate, window):
        return math.nan if candidate.factors[1] > 3 else plain(model, candidate, window)

    monkeypatch.setattr(WindowModel, "nll", overflowing)
    result = search(pico, corpus, TARGET, options=OPTIONS)
    assert next(seed for seed in result.starting_points if seed.name == "PI").loss == math.inf
    assert math.isfinite(result.loss)
    assert result.factors.long_factor[1] <= 3


def test_a_gradient_that_its_machine_has_no_memory_for_is_not_tried(pico, corpus):
    window = Window(corpus.windows(TARGET, 1)[0])
    forward, gradient = (search_memory(pico, TARGET, gradient=g, available=math.inf).total for g in (False, True))
    tight = Machine(threads=1, available=int(1.001 * forward / FREE_SHARE))
    assert forward < search_memory(pico, TARGET, gradient=True, available=1).total < gradient
    measured = WindowModel(pico, tight).measure(Job(CANDIDATE, 0, gradient=True), window)
    assert (measured.gradient, measured.tokens) == (None, TARGET)
    assert measured.nll == WindowModel(pico, Machine(threads=1)).nll(CANDIDATE, window)


def test_gradients_that_do_not_fit_are_left_out(pico, corpus, monkeypatch):
    def too_large(model, candidate, window):
        raise MissingRequirementError("out of memory")

    monkeypatch.setattr(WindowModel, "nll_and_gradient", too_large)
    progress = Silent()
    result = search(pico, corpus, TARGET, options=replace(OPTIONS, strategy="auto", max_evals=40), progress=progress)
    assert any("1 gradients did not fit" in warning for warning in progress.warnings)
    assert any(point.label == "mutant" for point in result.history)
    with pytest.raises(MissingRequirementError, match="strategy gradient needs gradients"):
        search(pico, corpus, TARGET, options=replace(OPTIONS, strategy="gradient", max_evals=40))


def test_a_result_far_worse_than_chance_is_said(pico, corpus, monkeypatch):
    options, progress = replace(OPTIONS, strategy="seeds", max_evals=3), Silent()
    search(pico, corpus, TARGET, options=options, progress=progress)
    assert not any("worse than chance" in warning for warning in progress.warnings)
    nll_of = WindowModel.nll
    monkeypatch.setattr(WindowModel, "nll", lambda *given: 200 * nll_of(*given))
    search(pico, corpus, TARGET, options=options, progress=progress)
    (said,) = [warning for warning in progress.warnings if "worse than chance" in warning]
    assert "where guessing has 6.0" in said


def test_the_cap_comes_before_the_loss(pico, corpus, monkeypatch):
    """A candidate far better at the target that breaks the cap a little is not the result."""
    objective = Objective((Window(np.zeros(4, dtype=np.int64)), Window(np.zeros(4, dtype=np.int64), side="short")), 2.0)
    keeps = objective.outcome(Trial(CANDIDATE, (0, 1), "keeps"), [Measurement(3.5, 4), Measurement(2.0, 4)])
    breaks = objective.outcome(Trial(CANDIDATE, (0, 1), "breaks"), [Measurement(3.0, 4), Measurement(2.02, 4)])
    assert breaks.loss < keeps.loss
    assert keeps.rank < breaks.rank
    measured = {keeps.candidate: keeps, replace(CANDIDATE, n_hat=3): breaks}

    class Known:
        def measure(self, jobs):
            return ((job, Measurement(measured[job.candidate].losses[job.window], 4)) for job in jobs)

    for order in (list(measured), list(measured)[::-1]):
        cache = EvaluationCache(objective, Known())
        cache.evaluate([Trial(candidate, (0, 1), "") for candidate in order])
        assert cache.best.candidate == keeps.candidate
        assert cache.lowest == keeps.loss
        assert keep(1, [breaks, keeps]) == [keeps]
    progress = Silent()
    options = replace(OPTIONS, max_evals=6, short_budget=0.0, num_short_windows=2, start_from=())
    monkeypatch.setattr("longrope.search.run.math.log1p", lambda budget: -1.0)  # a cap that nothing keeps
    search(pico, corpus, TARGET, options=options, progress=progress)
    assert any("no candidate kept the short budget" in warning for warning in progress.warnings)


def test_an_attention_factor_that_breaks_the_cap_is_told_at_once(pico, corpus):
    options = replace(OPTIONS, strategy="seeds", max_evals=3, num_short_windows=2, attention_factor=3.0)
    for budget, told in ((0.0, True), (1000.0, False)):
        progress = Silent()
        search(pico, corpus, TARGET, options=replace(options, short_budget=budget), progress=progress)
        assert any("the attention factor of 3.000 alone raises" in line for line in progress.warnings) is told


def test_a_cap_is_kept_from_the_start(pico, corpus):
    """No known method keeps a small cap; powers of a ramp's factors lead up from what the model was trained with."""
    options = replace(OPTIONS, strategy="auto", attention_factor="search", short_budget=0.0, num_short_windows=3)
    space = check_search(pico, TARGET, options)
    mild = [seed.candidate for seed in space.mild_methods()]
    assert (set(mild[0].factors), mild[0].attention_factor) == ({1.0}, 1.0)
    assert mild[-1].factors == space.yarn(4, 0.25).factors
    assert np.all(np.diff([candidate.factors for candidate in mild], axis=0) >= 0)
    assert np.all(np.diff([candidate.attention_factor for candidate in mild]) > 0)
    fixed = check_search(pico, TARGET, OPTIONS).mild_methods()
    assert all(seed.candidate.attention_factor is None for seed in fixed)
    progress = Silent()
    result = search(pico, corpus, TARGET, options=replace(options, max_evals=30), progress=progress)
    assert not progress.warnings[1:], "but for who reads a searched attention factor"
    (chosen,) = [point for point in result.front if point.chosen]
    assert chosen.short_loss <= result.short_cap
    started = {
        point.label: point for point in result.history if len(point.windows) == 4 and "mutant" not in point.label
    }
    freest = min((p for p in started.values() if not p.gradient), key=lambda point: point.losses[0])
    assert freest.label in {seed.name for seed in result.starting_points}, (
        "the best at the target is measured whole, whatever the cap"
    )


def test_on_a_base_a_cap_is_kept_by_the_base(pico):
    """What is there before a second interpolation are the base's factors under the base's attention factor."""
    base = pico.bind(replace(pico_factors(dual=False, target=128), n_hat=0, attention_factor=1.3))
    space = check_search(pico, TARGET, replace(OPTIONS, from_factors=base, attention_factor="search"))
    first, *_, last = [seed.candidate for seed in space.mild_methods()]
    assert first.factors == pytest.approx(base.long_factor, abs=1e-6)
    assert first.attention_factor == pytest.approx(1.3)
    assert last.attention_factor == pytest.approx(math.sqrt(1.3 * space.default_attention))


@pytest.mark.parametrize("strategy", ["evolution", "cma", "auto"])
def test_starting_points_that_the_budget_leaves_out_are_told(pico, corpus, strategy):
    """Given files come first, and a cap's mild starting points do not push them out."""
    given = pico_factors(dual=False)
    options = replace(
        OPTIONS, strategy=strategy, start_from=(given,), short_budget=0.5, num_short_windows=2, max_evals=4
    )
    progress = Silent()
    result = search(pico, corpus, TARGET, options=options, progress=progress)
    labels = {point.label for point in result.history}
    assert "given 1 (test)" in labels
    (told,) = [line for line in progress.warnings if "the budget was too small for these starting points" in line]
    left_out = told.split(": ")[1].split(";")[0].split(", ")
    assert left_out
    assert not labels & set(left_out)


def test_perplexity_is_the_targets_even_above_the_cap(pico, corpus):
    """The penalty is for strategies; people are shown what the model scores."""
    options = replace(OPTIONS, strategy="seeds", max_evals=4, short_budget=0.0, num_short_windows=2)
    result = search(pico, corpus, TARGET, options=options)
    model = WindowModel(pico, Machine(threads=1), result.factors.formula_attention_factor)
    windows = corpus.windows(TARGET, options.num_documents)
    above = [seed for seed in result.starting_points if seed.excess]
    assert above, "no seed is better than the original RoPE at its own window"
    for seed in above:
        plain = np.mean([model.nll(seed.candidate, Window(ids)) for ids in windows])
        assert seed.perplexity == pytest.approx(math.exp(plain), rel=1e-6)
        assert seed.loss == pytest.approx(plain + PENALTY * seed.excess)
    last = result.history[-1]
    assert math.exp(last.best_target) == pytest.approx(result.perplexity)


def test_gradient_steps_see_every_length(pico, corpus):
    options = replace(OPTIONS, window_shares=((64, 0.25),))
    objective = build_objective(pico, corpus, TARGET, options)
    lengths = [len(window) for window in objective.windows if window.extra]
    assert lengths.count(64) == 16
    assert lengths[0] == TARGET, "steps are as long as the target's tokens allow"


def test_a_part_without_fresh_windows_gives_its_own_again(pico, corpus):
    short = Corpus(tuple(replace(document, ids=document.ids[: TARGET + 70]) for document in corpus.documents[:2]))
    objective = build_objective(pico, short, TARGET, replace(OPTIONS, window_shares=((64, 0.25),)))
    target, other = objective.parts
    assert target.share == pytest.approx(0.75)
    assert target.fresh == target.ranking == (0, 1)
    assert {len(objective.windows[i]) for i in other.fresh} == {64}
    assert not set(other.fresh) & set(other.ranking)


def test_texts_that_serve_only_in_part_are_told(pico, corpus):
    mixed = Corpus((*corpus.documents[:1], Document("short", corpus.documents[1].ids[:50])))
    many = len(mixed.windows(TARGET)) + 1
    told = list(oddities(mixed, TARGET, replace(OPTIONS, num_documents=many), WINDOW))
    assert told == [
        f"1 of 2 documents are shorter than {TARGET} tokens and were left out at that length",
        f"expected {many} windows of {TARGET} tokens, got {many - 1}; more text ranks candidates better",
    ]
    assert not list(oddities(corpus, TARGET, OPTIONS, WINDOW))
    short = Corpus((Document("d", corpus.documents[0].ids[: 3 * WINDOW]),))
    capped = replace(OPTIONS, num_documents=1, short_budget=0.01, num_short_windows=4, window_shares=((100, 0.25),))
    told = list(oddities(short, 2 * WINDOW, replace(capped, objective="mixed", num_documents=4), WINDOW))
    assert [line.split(";")[0] for line in told] == [
        f"expected 2 windows of {2 * WINDOW} tokens, got 1",
        "expected 4 windows of 100 tokens, got 1",
        f"expected 4 windows of {WINDOW} tokens, got 3",
    ]


@pytest.mark.parametrize("name", ["objective", "executor"])
def test_names_of_nothing_are_refused(name):
    with pytest.raises(InputError, match=f"{name}: expected .* or .*, got 'proces'"):
        replace(OPTIONS, **{name: "proces"})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_known_by_its_words(error, said):
    assert is_out_of_memory(error) is said


def test_a_device_that_is_not_there_is_told_before_the_search(pico):
    with pytest.raises(MissingRequirementError, match="torch finds 0 of kind cuda"):
        search_estimate(pico, TARGET, replace(OPTIONS, device="cuda"))
    with pytest.raises(InputError, match="expected cpu, cuda"):
        search_estimate(pico, TARGET, replace(OPTIONS, device="gpu"))


def test_a_search_that_cannot_fit_is_refused(pico, corpus, monkeypatch):
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: 1 << 20)
    with pytest.raises(MissingRequirementError, match="not enough memory"):
        search(pico, corpus, TARGET, options=OPTIONS)


def test_auto_goes_without_gradients_where_they_do_not_fit(pico, corpus, monkeypatch):
    options = replace(OPTIONS, strategy="auto", max_evals=60)
    plan = search_estimate(pico, TARGET, options)
    taken = search(pico, corpus, TARGET, options=options)
    assert any(point.gradient for point in taken.history)
    monkeypatch.setattr("longrope.estimates.memory.free_memory", lambda device: between(plan, pico))
    progress = Silent()
    without = search(pico, corpus, TARGET, options=options, progress=progress)
    assert not any(point.gradient for point in without.history)
    assert any("goes without" in warning for warning in progress.warnings)
    with pytest.raises(MissingRequirementError, match="not enough memory"):
        search(pico, corpus, TARGET, options=replace(options, strategy="gradient"))


# -- windows as a user has them


def test_a_sliding_window_of_some_layers_below_the_target_is_refused(tmp_path, corpus):
    some = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    qwen = pico_checkpoint(tmp_path / "qwen2", "qwen2", sliding_window=128, **some)
    with pytest.raises(UnsupportedError, match="sliding_window"):
        search(qwen, corpus, TARGET, options=OPTIONS)


def test_a_search_attends_to_everything_where_all_layers_slide(tmp_path):
    sliding, full = (pico_checkpoint(tmp_path / str(window), "mistral", sliding_window=window) for window in (16, None))
    models = [WindowModel(each, Machine()) for each in (sliding, full)]
    ids = torch.arange(64)[None]
    assert torch.equal(*(each.model(ids).logits for each in models))


def test_partial_rotary_models_get_as_many_factors_as_they_turn(tmp_path, corpus):
    phi = pico_checkpoint(
        tmp_path / "phi",
        "phi3",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )
    result = search(phi, corpus, TARGET, options=replace(OPTIONS, max_evals=3))
    assert len(result.factors.long_factor) == phi.rotary_dim // 2 == 4
    assert phi.window == WINDOW
