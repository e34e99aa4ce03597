"""Who measures: this process, one process a device, or Ray actors on many machines.

    jobs ──► pool ──► worker 0: WindowModel ──► Measurement ─┐
               │ └──► worker 1: WindowModel ──► Measurement ─┼──► in the order they finish
               └──── a dead worker is replaced, its job retried, and after three deaths of one candidate given up

A measurement depends on the job alone, not on who makes it, nor on when.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from longrope.checkpoint import open_folder
from longrope.errors import LongRopeError, MissingRequirementError
from longrope.estimates.memory import spread
from longrope.machine import Machine
from longrope.search.measure import WindowModel
from longrope.search.objective import Objective
from longrope.search.processes import leave_signals_to_parent, worker_context
from longrope.search.trial import Candidate, Job, Measurement

MAX_DEATHS = 3
# What a candidate that workers die of is worth, on all its windows.
FAILED = Measurement(float("inf"), 0)
# A worker is taken for hung after this many seconds and, beside them, this many times what its job takes at the slowest pace
# so far; before anything was measured, once what it takes on a very slow machine.
PATIENCE_SECONDS = 600.0
PATIENCE_FACTOR = 20.0


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to build its model; it travels to other processes.

    Args:
        path: the checkpoint's folder.
        name: what the user called it.
        objective: windows.
        machine: device, dtype, threads.
        default_attention: attention factor of candidates that leave theirs open.
    """

    path: Path
    name: str
    objective: Objective
    machine: Machine
    default_attention: float

    def build(self) -> WindowModel:
        """The model, loaded."""
        return WindowModel(open_folder(self.path, self.name), self.machine, self.default_attention)


class Evaluator(Protocol):
    """Measures jobs; results do not depend on how many workers there are."""

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Measurement]]:
        """Every job once, in the order they finish."""
        ...

    def close(self) -> None:
        """Free models and processes."""
        ...


def make_evaluator(
    recipe: Recipe,
    *,
    executor: str = "local",
    workers: int = 1,
    warn: Callable[[str], None] = lambda text: None,
    cost: Callable[[Job], float] = lambda job: 1.0,
) -> Evaluator:
    """The evaluator of an executor's name; `warn` and `cost` as in `PoolEvaluator`.

    Raises:
        MissingRequirementError: Ray was asked for and is not installed.
    """
    if executor == "local":
        return LocalEvaluator(recipe)
    if recipe.machine.threads is None:
        recipe = replace(recipe, machine=replace(recipe.machine, threads=1))
    if executor == "ray":
        return PoolEvaluator(RayWorkerPool([recipe] * workers), warn, cost)
    recipes = [
        replace(recipe, machine=replace(recipe.machine, device=d)) for d in spread(recipe.machine.device, workers)
    ]
    return PoolEvaluator(ProcessWorkerPool(recipes), warn, cost)


class LocalEvaluator:
    """One model in this process, loaded at the first job."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model: WindowModel | None = None

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Measurement]]:
        self._model = self._model or self._recipe.build()
        windows = [self._recipe.objective.windows[job.window] for job in jobs]
        for numbers in self._model.passes(jobs, windows):
            group = [jobs[number] for number in numbers]
            yield from zip(group, self._model.measure_together(group, [windows[n] for n in numbers]), strict=True)

    def close(self) -> None:
        self._model = None


# -- pools


@dataclass(frozen=True)
class Report:
    """What became of a worker's job: a measurement, an error to raise here, or, if neither, its death and why, if known."""

    worker: int
    measurement: Measurement | None = None
    error: LongRopeError | None = None
    reason: str = ""

    @classmethod
    def of(cls, worker: int, answer: Measurement | LongRopeError) -> Report:
        """What a worker that lives sent."""
        if isinstance(answer, LongRopeError):
            return cls(worker, error=answer)
        return cls(worker, measurement=answer)


class WorkerPool(Protocol):
    """Workers of one kind, by number; the pool decides who does what."""

    size: int

    def submit(self, worker: int, job: Job) -> None:
        """Give an idle worker a job; a worker is started when it does not run."""
        ...

    def reports(self, busy: Sequence[int], timeout: float) -> list[Report]:
        """Wait for at least one of the busy workers, at most so many seconds."""
        ...

    def stop(self, worker: int) -> None:
        """End a worker, whatever it is doing."""
        ...


class PoolEvaluator:
    """Hands jobs to workers, replaces the dead, retries their jobs.

    Args:
        workers: the workers.
        warn: called with a message for each worker that died.
        cost: seconds that a job takes on a very slow machine.
    """

    def __init__(
        self,
        workers: WorkerPool,
        warn: Callable[[str], None] = lambda text: None,
        cost: Callable[[Job], float] = lambda job: 1.0,
    ) -> None:
        self._workers, self._warn, self._cost = workers, warn, cost
        self._deaths: Counter[Candidate] = Counter()
        self._slowest: float | None = None  # seconds of a job over its cost

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Measurement]]:
        longest_first = sorted(jobs, key=self._cost, reverse=True)
        waiting, running, since = deque(longest_first), dict[int, Job](), dict[int, float]()
        while waiting or running:
            for worker in range(self._workers.size):
                while waiting and self._deaths[waiting[0].candidate] >= MAX_DEATHS:
                    yield waiting.popleft(), FAILED
                if waiting and worker not in running:
                    running[worker], since[worker] = waiting.popleft(), time.monotonic()
                    self._workers.submit(worker, running[worker])
            if not running:
                continue
            for report in self._next_reports(running, since):
                job = running.pop(report.worker)
                if report.error:
                    raise report.error
                if report.measurement:
                    pace = report.measurement.seconds / self._cost(job)
                    self._slowest = max(self._slowest or 0.0, pace)
                    yield job, report.measurement
                elif self._give_up(job, report.reason):
                    yield job, FAILED
                else:
                    waiting.appendleft(job)

    def close(self) -> None:
        for worker in range(self._workers.size):
            self._workers.stop(worker)

    def _next_reports(self, running: dict[int, Job], since: dict[int, float]) -> list[Report]:
        """Reports of finished and dead workers; one that is silent for too long is stopped and counts as dead."""
        until = {worker: since[worker] + self._patience(job) for worker, job in running.items()}
        reports = self._workers.reports(list(running), max(min(until.values()) - time.monotonic(), 0.01))
        hung = [w for w in running if time.monotonic() > until[w] and w not in {r.worker for r in reports}]
        for worker in hung:
            self._workers.stop(worker)
        return [*reports, *(Report(worker) for worker in hung)]

    def _patience(self, job: Job) -> float:
        """Seconds after which a worker with this job is taken for hung."""
        pace = 1.0 if self._slowest is None else PATIENCE_FACTOR * self._slowest
        return PATIENCE_SECONDS + pace * self._cost(job)

    def _give_up(self, job: Job, reason: str) -> bool:
        """Count a death; whether this candidate has had its three.

        Raises:
            MissingRequirementError: no worker ever measured anything, so it is not the candidate's fault.
        """
        self._deaths[job.candidate] += 1
        deaths = self._deaths[job.candidate]
        if deaths < MAX_DEATHS:
            self._warn(f"a worker died{reason}; its candidate is retried (death {deaths} of {MAX_DEATHS})")
            return False
        if self._slowest is None:
            raise MissingRequirementError(
                f"{MAX_DEATHS} workers died before anything was measured{reason or ', most likely for lack of memory'}; "
                "use fewer workers or a smaller dtype, or measure in this process to see the error",
                option="executor local",
            )
        self._warn(f"{MAX_DEATHS} workers died of one candidate; it counts as failed and the search goes on")
        return True


class Worker:
    """A model and its windows, built at the first job: what a worker process and a Ray actor hold."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model: WindowModel | None = None

    def measure(self, job: Job) -> Measurement | LongRopeError:
        """One job's measurement, or the error to raise where the search runs."""
        try:
            self._model = self._model or self._recipe.build()
            return self._model.measure(job, self._recipe.objective.windows[job.window])
        except LongRopeError as error:
            return error


# -- processes


@dataclass
class _Process:
    process: Any
    connection: Connection
    recipe: Recipe | None

    def send(self, job: Job) -> None:
        """A job, and the recipe before the first. Its windows fill a pipe, and starting would wait until they are read."""
        if self.recipe is not None:
            self.connection.send(self.recipe)
            self.recipe = None
        self.connection.send(job)


class ProcessWorkerPool:
    """One process a recipe; each builds its own model and sees nothing of the others. All start with the first job.

    Args:
        recipes: one per worker.
        serve: what a process runs.
    """

    def __init__(self, recipes: Sequence[Recipe], serve: Callable[[Recipe, Connection], None] | None = None) -> None:
        self.size = len(recipes)
        self._recipes = recipes
        self._serve = serve or serve_jobs
        self._context = worker_context([recipe.machine.device for recipe in recipes])
        self._running: dict[int, _Process] = {}

    def submit(self, worker: int, job: Job) -> None:
        if not self._running:  # all together, so that they import side by side
            self._running = {number: self._start(number) for number in range(self.size)}
        elif worker not in self._running:
            self._running[worker] = self._start(worker)
        try:
            self._running[worker].send(job)
        except OSError:  # it died idle; a fresh one takes the job
            self.stop(worker)
            self._running[worker] = self._start(worker)
            self._running[worker].send(job)

    def reports(self, busy: Sequence[int], timeout: float) -> list[Report]:
        connections = {worker: self._running[worker].connection for worker in busy}
        ready = wait(list(connections.values()), timeout)
        return [self._received(worker) for worker, connection in connections.items() if connection in ready]

    def stop(self, worker: int) -> None:
        running = self._running.pop(worker, None)
        if running:
            running.connection.close()
            running.process.kill()
            running.process.join()

    def _start(self, worker: int) -> _Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._serve, theirs), daemon=True)
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise MissingRequirementError(
                f"a worker process could not be started ({error}), most likely for lack of memory; use fewer workers, or "
                "measure in this process",
                option="executor local",
            ) from error
        theirs.close()  # so that its end closes with the worker, and its death is heard
        return _Process(process, ours, self._recipes[worker])

    def _received(self, worker: int) -> Report:
        try:
            answer = self._running[worker].connection.recv()
        except (EOFError, OSError):
            self.stop(worker)
            return Report(worker)
        return Report.of(worker, answer)


def _work(serve: Callable[[Recipe, Connection], None], connection: Connection) -> None:
    """A worker process, until the pipe closes or its parent dies."""
    leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        recipe: Recipe = connection.recv()
    except EOFError:
        return
    serve(recipe, connection)


def serve_jobs(recipe: Recipe, connection: Connection) -> None:
    """Measure what comes through the pipe until it closes."""
    worker = Worker(recipe)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        connection.send(worker.measure(job))


def _end_with_parent() -> None:
    """End this process, whatever it is computing, when the one that started it is gone, however that died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


# -- Ray


class RayWorkerPool:
    """Ray actors, one per recipe; Ray places them on the machines of its cluster.

    The checkpoint's folder must be readable under the same path on every machine.

    Raises:
        MissingRequirementError: Ray is not installed, or its cluster has no room for so many actors.
    """

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        if find_spec("ray") is None:
            raise MissingRequirementError(
                "executor ray needs the extra `ray`: pip install 'longrope-export[ray]', or use processes",
                option="executor processes",
            )
        import ray

        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
        self.size = len(recipes)
        self._recipes = recipes
        machine = recipes[0].machine
        needed = {"CPU": machine.threads or 1, "GPU": int(machine.device.startswith("cuda"))}
        self._refuse_crowding(needed, ray.cluster_resources())
        self._actor_class = ray.remote(num_cpus=needed["CPU"], num_gpus=needed["GPU"])(Worker)
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}

    def submit(self, worker: int, job: Job) -> None:
        if worker not in self._actors:
            self._actors[worker] = self._actor_class.remote(self._recipes[worker])
        self._pending[worker] = self._actors[worker].measure.remote(job)

    def reports(self, busy: Sequence[int], timeout: float) -> list[Report]:
        by_reference = {self._pending[worker]: worker for worker in busy}
        ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=timeout)
        return [self._received(by_reference[reference], reference) for reference in ready]

    def stop(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor)

    def _refuse_crowding(self, needed: Mapping[str, int], there: Mapping[str, float]) -> None:
        """Actors that no machine has room for would wait for ever."""
        for kind, each in needed.items():
            if self.size * each > there.get(kind, 0):
                raise MissingRequirementError(
                    f"{self.size} workers of {each} {kind} each: expected {self.size * each} {kind} in the Ray cluster, got "
                    f"{there.get(kind, 0):g}; use fewer workers or threads, or add machines first",
                    option="workers",
                )

    def _received(self, worker: int, reference: Any) -> Report:
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # of the actor, of its machine, or of what it ran
            self.stop(worker)
            return Report(worker, reason=f" ({str(error).strip().splitlines()[-1]})" if str(error).strip() else "")
        return Report.of(worker, answer)
