"""Worker pools: the same results whatever their number, deaths survived, nothing hangs."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import psutil
import pytest

from longrope.errors import InputError, MissingRequirementError
from longrope.machine import Machine
from longrope.progress import Silent
from longrope.search import SearchOptions, search
from longrope.search.evaluators import (
    LocalEvaluator,
    PoolEvaluator,
    ProcessWorkerPool,
    RayWorkerPool,
    Recipe,
    Report,
    make_evaluator,
    serve_jobs,
)
from longrope.search.objective import Objective, Window
from longrope.search.processes import worker_context
from longrope.search.trial import Candidate, Job, Measurement
from tests.common import TARGET, pico_corpus

GOOD = [Candidate(tuple(1.0 + 0.1 * k * np.arange(8))) for k in range(4)]
CURSED = Candidate((6.66,) * 8)


@pytest.fixture(scope="module")
def corpus(pico):
    return pico_corpus(pico)


@pytest.fixture(scope="module")
def recipe(pico, corpus):
    objective = Objective(tuple(Window(ids) for ids in corpus.windows(128, 2)))
    return Recipe(pico.path, pico.name, objective, Machine(threads=1), 1.1)


def jobs_of(candidates):
    return [Job(candidate, window, window == 1) for candidate in candidates for window in (0, 1)]


def serve_and_die(recipe, connection):
    """A worker that the cursed candidate kills, as running out of memory would."""

    class Trap:
        def recv(self):
            job = connection.recv()
            if job.candidate == CURSED:
                os.kill(os.getpid(), signal.SIGKILL)
            return job

        def send(self, answer):
            connection.send(answer)

    serve_jobs(recipe, Trap())


def serve_nobody(recipe, connection):
    """A worker that dies at once."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_any_number_of_processes_gives_the_same(recipe, workers):
    expected = {job: m.nll for job, m in LocalEvaluator(recipe).measure(jobs_of(GOOD))}
    pool = make_evaluator(recipe, executor="processes", workers=workers)
    try:
        measured = dict(pool.measure(jobs_of(GOOD)))
        again = dict(pool.measure(jobs_of(GOOD[:1])))
    finally:
        pool.close()
    assert {job: m.nll for job, m in measured.items()} == expected
    assert all(expected[job] == m.nll for job, m in again.items())
    assert all(m.gradient is not None for job, m in measured.items() if job.gradient)


def test_three_deaths_fail_the_candidate_and_nothing_else(recipe):
    warnings = []
    pool = PoolEvaluator(ProcessWorkerPool([recipe] * 2, serve_and_die), warnings.append)
    jobs = [Job(candidate, 0) for candidate in (*GOOD[:2], CURSED, *GOOD[2:])]
    try:
        measured = dict(pool.measure(jobs))
    finally:
        pool.close()
    assert measured[Job(CURSED, 0)].nll == float("inf")
    assert all(np.isfinite(measured[Job(candidate, 0)].nll) for candidate in GOOD)
    assert len(warnings) == 3
    assert "failed" in warnings[-1]


def test_workers_that_never_work_are_an_error(recipe):
    pool = PoolEvaluator(ProcessWorkerPool([recipe], serve_nobody))
    try:
        with pytest.raises(MissingRequirementError, match="died before anything"):
            dict(pool.measure([Job(GOOD[0], 0)]))
    finally:
        pool.close()


def test_a_worker_killed_while_idle_is_replaced(recipe):
    others = set(multiprocessing.active_children())
    pool = PoolEvaluator(ProcessWorkerPool([recipe]))
    try:
        list(pool.measure([Job(GOOD[0], 0)]))
        (worker,) = set(multiprocessing.active_children()) - others
        worker.kill()
        worker.join()
        measured = dict(pool.measure([Job(GOOD[1], 0)]))
    finally:
        pool.close()
    assert np.isfinite(measured[Job(GOOD[1], 0)].nll)


def test_all_workers_start_with_the_first_job(recipe):
    others = set(multiprocessing.active_children())
    pool = ProcessWorkerPool([recipe] * 2)
    try:
        pool.submit(0, Job(GOOD[0], 0))
        assert len(set(multiprocessing.active_children()) - others) == 2
    finally:
        pool.stop(0)
        pool.stop(1)


def test_workers_are_spawned_where_forking_is_not_safe(recipe, monkeypatch):
    assert worker_context(["cpu"]).get_start_method() == ("forkserver" if sys.platform == "linux" else "spawn")
    assert worker_context(["cpu", "cuda:0"]).get_start_method() == "spawn"
    monkeypatch.setattr(sys, "platform", "darwin")
    expected = {job: m.nll for job, m in LocalEvaluator(recipe).measure(jobs_of(GOOD[:1]))}
    pool = make_evaluator(recipe, executor="processes", workers=2)
    try:
        measured = dict(pool.measure(jobs_of(GOOD[:1])))
    finally:
        pool.close()
    assert {job: m.nll for job, m in measured.items()} == expected


MEASURES_AND_DIES = """
import os, pickle, signal, sys
from longrope.search.options import SearchOptions
from longrope.search.processes import import_ahead

import_ahead(SearchOptions(device="cpu", executor="processes", workers=2))
import psutil
from longrope.search.evaluators import make_evaluator

recipe, job = pickle.load(sys.stdin.buffer)
list(make_evaluator(recipe, executor="processes", workers=2).measure([job]))
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_and_their_server_end_with_a_process_that_was_killed(recipe):
    started = pickle.dumps((recipe, Job(GOOD[0], 0)))
    done = subprocess.run([sys.executable, "-c", MEASURES_AND_DIES], input=started, stdout=subprocess.PIPE, timeout=300)
    assert done.returncode == -signal.SIGKILL
    left = [psutil.Process(pid) for pid in map(int, done.stdout.split()) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
    assert len(done.stdout.split()) >= 3


class SleepyWorkerPool:
    """Two workers without processes; the cursed candidate's never reports."""

    size = 2

    def __init__(self):
        self.jobs, self.stopped = {}, 0

    def submit(self, worker, job):
        self.jobs[worker] = job

    def reports(self, busy, timeout):
        awake = [w for w in busy if self.jobs[w].candidate != CURSED]
        if not awake:
            time.sleep(timeout)
        return [Report(w, Measurement(sum(self.jobs[w].candidate.factors), 1)) for w in awake]

    def stop(self, worker):
        self.stopped += 1


def test_a_hung_worker_is_given_up(monkeypatch):
    monkeypatch.setattr("longrope.search.evaluators.PATIENCE_SECONDS", 0.05)
    workers = SleepyWorkerPool()
    measured = dict(PoolEvaluator(workers).measure([Job(candidate, 0) for candidate in (CURSED, *GOOD)]))
    assert measured[Job(CURSED, 0)].nll == float("inf")
    assert len(measured) == 5
    assert workers.stopped == 3


def test_a_failed_candidate_kills_no_more_workers(monkeypatch):
    monkeypatch.setattr("longrope.search.evaluators.PATIENCE_SECONDS", 0.05)
    workers = SleepyWorkerPool()
    pool = PoolEvaluator(workers)
    measured = dict(pool.measure([Job(GOOD[0], 0), *(Job(CURSED, window) for window in range(21))]))
    assert [measured[Job(CURSED, window)].nll for window in range(21)] == [float("inf")] * 21
    assert np.isfinite(measured[Job(GOOD[0], 0)].nll)
    assert workers.stopped <= 4, "three deaths, and the other worker's, which had begun"
    assert dict(pool.measure([Job(CURSED, 30)]))[Job(CURSED, 30)].nll == float("inf")
    assert workers.stopped <= 4


def test_errors_with_a_message_come_through(recipe, tmp_path):
    pool = make_evaluator(replace(recipe, path=tmp_path), executor="processes", workers=1)
    try:
        with pytest.raises(InputError, match=r"config\.json"):
            dict(pool.measure([Job(GOOD[0], 0)]))
    finally:
        pool.close()


def test_a_search_with_processes_is_the_same_search(pico, corpus, tmp_path):
    options = SearchOptions(strategy="evolution", max_evals=12, num_documents=2, threads=1)
    alone = search(pico, corpus, TARGET, options=options)
    together = search(
        pico, corpus, TARGET, options=replace(options, executor="processes", workers=2), journal_dir=tmp_path
    )
    assert together.history == alone.history
    assert together.factors.long_factor == alone.factors.long_factor
    assert len((tmp_path / "search.jsonl").read_text().splitlines()) == 1 + 2 * alone.evaluations


@pytest.fixture(scope="module")
def two_at_once(pico, corpus, tmp_path_factory):
    """`auto` on two processes, with its journal; enough for one turn of gradient steps, and mutants."""
    folder, progress = tmp_path_factory.mktemp("two"), Silent()
    options = SearchOptions(max_evals=24, num_documents=3, threads=1, executor="processes", workers=2)
    return options, folder, search(pico, corpus, TARGET, options=options, journal_dir=folder, progress=progress)


def test_two_workers_take_two_gradients_a_step_and_race_two_mutants(two_at_once):
    _, _, found = two_at_once
    steps = [point.candidate for point in found.history if point.gradient]
    assert steps
    assert steps[::2] == steps[1::2]
    assert len(set(steps)) == len(steps) // 2
    assert sum(point.label == "mutant" for point in found.history) > 2
    assert found.factors.provenance["workers"] == 2


def test_their_search_does_not_depend_on_time(pico, corpus, two_at_once, tmp_path):
    """Killed anywhere it goes on to the same end, on as many workers as there are then; it says that it began with two."""
    options, folder, found = two_at_once
    lines = (folder / "search.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "search.jsonl").write_text("".join(lines[: len(lines) // 2]))
    alone, progress = replace(options, executor="local", workers=1), Silent()
    again = search(pico, corpus, TARGET, options=alone, journal_dir=tmp_path, resume=True, progress=progress)
    assert again.history == found.history
    assert again.factors.provenance["workers"] == 2
    assert not [text for text in progress.warnings if "began with" in text]
    many = replace(options, workers=3)
    replayed = search(pico, corpus, TARGET, options=many, journal_dir=folder, resume=True, progress=progress)
    assert replayed.history == found.history
    assert [text for text in progress.warnings if "began with 2 workers" in text]


def test_workers_need_an_executor():
    with pytest.raises(InputError, match="executor processes or ray"):
        SearchOptions(workers=2)


# -- Ray


def test_ray_missing_is_said_before_any_work(recipe, monkeypatch):
    monkeypatch.setattr("longrope.search.evaluators.find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'longrope-export\[ray\]'"):
        make_evaluator(recipe, executor="ray", workers=2)


class FakeRay:
    """The few calls RayWorkerPool makes, run in this process; one candidate kills its actor."""

    class exceptions:  # noqa: N801  Ray's own spelling
        class RayError(Exception):
            pass

        class RayActorError(RayError):
            pass

    def __init__(self):
        self.killed = 0

    def cluster_resources(self):
        return {"CPU": 2.0, "memory": 1e9}

    def is_initialized(self):
        return True

    def remote(self, **resources):
        def wrap(cls):
            class Remote:
                @staticmethod
                def remote(*args):
                    actor = cls(*args)

                    class Handle:
                        class measure:  # noqa: N801
                            @staticmethod
                            def remote(job):
                                return ("ref", id(job), job, actor)

                    return Handle

            return Remote

        return wrap

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        job = reference[2]
        if job.candidate == CURSED:
            raise self.exceptions.RayActorError
        return reference[3].measure(job)

    def kill(self, actor):
        self.killed += 1


@pytest.fixture
def fake(monkeypatch):
    ray = FakeRay()
    monkeypatch.setattr("longrope.search.evaluators.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_actors_that_no_machine_has_room_for_are_refused(recipe, fake):
    with pytest.raises(MissingRequirementError, match="expected 3 CPU in the Ray cluster, got 2"):
        RayWorkerPool([recipe] * 3)
    on_gpu = replace(recipe, machine=replace(recipe.machine, device="cuda"))
    with pytest.raises(MissingRequirementError, match="expected 1 GPU in the Ray cluster, got 0"):
        RayWorkerPool([on_gpu])


class SteadyWorkerPool:
    """One worker without a process, whose every job takes 50 seconds, and for how long it was waited for."""

    size = 1

    def __init__(self):
        self.asked = []

    def submit(self, worker, job):
        pass

    def reports(self, busy, timeout):
        self.asked.append(timeout)
        return [Report(0, Measurement(1.0, 1, seconds=50.0))]

    def stop(self, worker):
        pass


def test_a_slow_first_job_is_waited_for():
    """Before anything was measured, what a job takes on a very slow machine is what counts."""
    workers = SteadyWorkerPool()
    pool = PoolEvaluator(workers, cost=lambda job: 5000.0 if job.gradient else 1000.0)
    assert len(dict(pool.measure([Job(GOOD[0], 0), Job(GOOD[1], 0)]))) == 2
    assert len(dict(pool.measure([Job(GOOD[2], 0, gradient=True)]))) == 1
    patience = [600 + 1000, 600 + 20 * 50, 600 + 20 * 50 * 5]
    assert workers.asked == pytest.approx(patience, abs=5), "then twenty times the pace of what was measured"


def test_long_jobs_go_first():
    """Else a worker would begin the longest when all others have nothing left to do."""
    pool = PoolEvaluator(SteadyWorkerPool(), cost=lambda job: 3.0 if job.gradient else 1.0)
    jobs = [Job(GOOD[0], 0), Job(GOOD[1], 0), Job(GOOD[2], 0, gradient=True)]
    assert [job for job, _ in pool.measure(jobs)] == [jobs[2], jobs[0], jobs[1]]


def test_ray_actors_die_and_are_replaced(recipe, fake):
    pool = PoolEvaluator(RayWorkerPool([recipe] * 2))
    measured = dict(pool.measure([Job(candidate, 0) for candidate in (GOOD[0], CURSED, GOOD[1])]))
    assert measured[Job(CURSED, 0)].nll == float("inf")
    expected = {job: m.nll for job, m in LocalEvaluator(recipe).measure([Job(c, 0) for c in GOOD[:2]])}
    assert {job: m.nll for job, m in measured.items() if job.candidate != CURSED} == expected
    assert fake.killed == 3
    pool.close()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_real_ray_gives_the_same(recipe):
    import ray

    expected = {job: m.nll for job, m in LocalEvaluator(recipe).measure(jobs_of(GOOD))}
    pool = make_evaluator(recipe, executor="ray", workers=2)
    try:
        measured = dict(pool.measure(jobs_of(GOOD)))
    finally:
        pool.close()
        ray.shutdown()
    assert {job: m.nll for job, m in measured.items()} == expected
