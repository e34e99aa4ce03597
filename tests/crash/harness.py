"""Commands that are killed, ended or refused their disk at one chosen call of the system, and what must hold then.

    scenario ──undisturbed──► the files that it must end with, and how many calls there are
        └──call n: killed, half written and killed, SIGTERM, EIO …──► nothing wrong has a final name
                                                     └──the same command again──► the same files, no litter

`python -m tests.crash` does it for every call of every scenario; a sample runs with the tests.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from longrope import rope
from tests.common import PICO_BUDGET, REPOSITORY, TARGET, WINDOW, pico_factors, pico_folder, pico_text
from tests.hub import NAMESPACE, LocalHub

SHIM = Path(__file__).with_name("shim.c")
REPO = f"{NAMESPACE}/pico"


class Disturbance(IntEnum):
    """What happens at the chosen call; numbers are those of shim.c."""

    NOTHING = 0
    KILL = 1
    KILL_HALF_WRITTEN = 2
    SIGNAL = 3
    FAIL = 4
    FAIL_FROM_THEN_ON = 5


@dataclass(frozen=True)
class Scenario:
    """A command that writes.

    Args:
        name: of the command and its case.
        arguments: with IN for the folder of inputs and WORK for the one that is written to.
        prepare: puts into WORK what is there before.
        again: added where the command is repeated after it was disturbed.
        growing: names, below WORK, of files that are written step by step, and whose content is the run's own business.
        network: whether what is sent and received is a boundary, too.
    """

    name: str
    arguments: str
    prepare: Callable[[Path, Path], object] = lambda _inputs, _work: None
    again: str = ""
    growing: tuple[str, ...] = ()
    network: bool = False


def _with_old_parts(inputs: Path, work: Path) -> None:
    for part in inputs.glob("old-*.gguf"):
        shutil.copyfile(part, work / part.name.replace("old", "model"))


def _with_old_folder(inputs: Path, work: Path) -> None:
    shutil.copytree(inputs / "old", work / "model")


def _with_file(inputs: Path, work: Path) -> None:
    shutil.copyfile(inputs / "old.gguf", work / "model.gguf")


CONVERT = "convert IN/model --factors IN/factors.json"
SCENARIOS = {
    each.name: each
    for each in (
        Scenario("convert gguf", f"{CONVERT} --to gguf -o WORK/model.gguf"),
        Scenario(
            "convert gguf parts",
            f"{CONVERT} --to gguf -o WORK/model.gguf --option split_max_size=100K --overwrite",
            _with_old_parts,
        ),
        Scenario("convert hf over another", f"{CONVERT} --to hf -o WORK/model --overwrite", _with_old_folder),
        Scenario("convert onnx", f"{CONVERT} --to onnx -o WORK/model"),
        Scenario("convert from gguf", "convert IN/old.gguf --factors IN/factors.json --to hf -o WORK/model"),
        Scenario("patch in place", "patch WORK/model.gguf --factors IN/factors.json --in-place", _with_file),
        Scenario(
            "search",
            f"search IN/model --target-length {TARGET} --text IN/texts -o WORK/factors.json --max-evals 3 --documents 1 "
            "--threads 1",
            again="--resume",
            growing=("factors.json.journal/*",),
        ),
        Scenario(
            "finetune",
            "finetune IN/model --factors IN/single.json --text IN/texts -o WORK/tuned --steps 2 --batch 1 --save-every 1 "
            "--threads 1",
            again="--resume",
            growing=("tuned.training/log.jsonl", "tuned.training/checkpoints/*", "tuned.training/tensorboard/*"),
        ),
        Scenario(
            "extend",
            f"extend IN/model --target-length {TARGET} --text IN/texts -o WORK/run --formats hf,gguf,onnx "
            f"{PICO_BUDGET.replace('--max-evals 6', '--max-evals 1').replace('--short-evals 4', '--short-evals 1')}",
            again="--resume",
            growing=("run/journal/*", "run/run.json"),
        ),
        Scenario(
            "publish",
            f"publish IN/old --repo-id {REPO} --base-model org/base --license mit --unverified",
            network=True,
        ),
    )
}


def compiler() -> str | None:
    """The system's C compiler, where the shim can be used: on Linux."""
    return shutil.which("cc") or shutil.which("gcc") if sys.platform == "linux" else None


def make_inputs(folder: Path) -> Path:
    """The pico model, texts, factors and what is there before, in a new folder."""
    from tests.common import run_cli

    pico_folder(folder / "model")
    (folder / "texts").mkdir()
    for seed in range(2):
        (folder / "texts" / f"{seed}.txt").write_text(pico_text(40, seed), encoding="utf-8")
    pico_factors().save(folder / "factors.json")
    pico_factors(dual=False).save(folder / "single.json")
    other = tuple((np.asarray(rope.ntk_factors(16, TARGET / WINDOW)) * 1.5).tolist())
    pico_factors(long_factor=other, short_factor=other).save(folder / "other.json")
    old = ("convert", folder / "model", "--factors", folder / "other.json")
    for target in (
        ("--to", "gguf", "-o", folder / "old.gguf"),
        ("--to", "gguf", "--option", "split_max_size=100K", "-o", folder / "old"),
        ("--to", "hf", "-o", folder / "old"),
    ):
        done = run_cli(*old, *target)
        assert done.code == 0, done.err
    return folder


@dataclass
class Ended:
    """How a command ended, what it said, and how many boundaries it had (None of one that was killed)."""

    code: int
    said: str
    count: int | None


@dataclass
class Box:
    """A folder in which scenarios are run, always under the same paths, by children of one process.

    Args:
        folder: a new one.
        inputs: from `make_inputs`; read only.
    """

    folder: Path
    inputs: Path
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder = self.folder.resolve()
        shim = self.folder / "shim.so"
        command = compiler()
        assert command is not None
        subprocess.run([command, "-O1", "-shared", "-fPIC", "-o", shim, SHIM, "-ldl"], check=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            "LD_PRELOAD": str(shim),
            "CRASH_ROOT": f"{self.folder}/box/",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "LONGROPE_CACHE": "",
        }
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._zygote.stdin.close()  # type: ignore[union-attr]
        self._zygote.wait(60)

    @property
    def work(self) -> Path:
        return self.folder / "box" / "work"

    def reset(self, scenario: Scenario) -> None:
        """The state before a scenario, and nothing else."""
        shutil.rmtree(self.folder / "box", ignore_errors=True)
        for name in ("work", "tmp"):
            (self.folder / "box" / name).mkdir(parents=True)
        scenario.prepare(self.inputs, self.work)

    def run(
        self,
        arguments: str,
        disturbance: Disturbance = Disturbance.NOTHING,
        at: int = 0,
        number: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command in a child, disturbed at its call number `at` by a signal or an error `number`."""
        words = [word.replace("IN/", f"{self.inputs}/").replace("WORK/", f"{self.work}/") for word in arguments.split()]
        said, count = self.folder / "said", self.folder / "count"
        count.unlink(missing_ok=True)
        job = {
            "arguments": words,
            "action": int(disturbance),
            "at": at,
            "code": number,
            "said": str(said),
            "count": str(count),
            "environment": {"TMPDIR": str(self.folder / "box" / "tmp"), **(environment or {})},
        }
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        print(json.dumps(job), file=self._zygote.stdin, flush=True)
        answer = json.loads(self._zygote.stdout.readline())
        return Ended(answer["code"], said.read_text(), int(count.read_text()) if count.is_file() else None)

    def state(self) -> dict[str, str]:
        """Everything in the box: name → SHA-256 of its bytes, or `/` for a folder."""
        box = self.folder / "box"
        return {
            path.relative_to(box).as_posix(): "/" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(box.rglob("*"))
        }


@dataclass
class Trial:
    """A scenario in a box, with what it does undisturbed."""

    box: Box
    scenario: Scenario
    hub: LocalHub | None = None

    @cached_property
    def initial(self) -> dict[str, str]:
        self.box.reset(self.scenario)
        return self.box.state()

    @cached_property
    def undisturbed(self) -> tuple[dict[str, str], frozenset[str], int]:
        """The files of two runs, which of them differ from run to run (clocks, durations), and the number of calls."""
        states, counts = [], []
        for _ in range(2):
            time.sleep(1 - time.time() % 1)  # files hold the second in which they were made
            self._reset()
            ended = self.run(self.scenario.arguments)
            assert ended.code == 0, ended.said
            states.append(self.state())
            counts.append(ended.count)
        first, second = states
        assert first.keys() == second.keys()
        assert counts[0] is not None
        return first, frozenset(name for name in first if first[name] != second[name]), counts[0]

    @property
    def calls(self) -> int:
        return self.undisturbed[2]

    def run(
        self, arguments: str, disturbance: Disturbance = Disturbance.NOTHING, at: int = 0, number: int = 0
    ) -> Ended:
        environment = {}
        if self.hub is not None:
            environment = {
                "HF_ENDPOINT": self.hub.endpoint,
                "HF_TOKEN": self.hub.token,
                "NO_PROXY": "127.0.0.1",
                "CRASH_NET": "1",
            }
        return self.box.run(arguments, disturbance, at, number, environment)

    def state(self) -> dict[str, str]:
        """The box, and the Hub where there is one."""
        remote = {}
        if self.hub is not None:
            remote = {
                f"hub/{repo}/{place}": hashlib.sha256(data).hexdigest()
                for repo in self.hub.repositories
                for place, data in self.hub.tree(repo).items()
            }
        return {**self.box.state(), **remote}

    def disturb(self, disturbance: Disturbance, at: int, number: int = 0) -> list[str]:
        """Disturb the scenario once, run it again, and say what is wrong then, a line each; nothing where all is well."""
        expected, volatile, _ = self.undisturbed
        self._reset()
        ended = self.run(self.scenario.arguments, disturbance, at, number)
        return [*self._faults_of(ended, disturbance, number), *self._faults_after(expected, volatile, disturbance)]

    def _faults_of(self, ended: Ended, disturbance: Disturbance, number: int) -> Iterator[str]:
        if disturbance in (Disturbance.KILL, Disturbance.KILL_HALF_WRITTEN) and ended.code != -signal.SIGKILL:
            yield f"was not killed but ended with {ended.code}: {ended.said[-300:]}"
        if disturbance is Disturbance.SIGNAL and ended.code not in (0, 128 + number):
            yield f"exit code {ended.code} after signal {number}: {ended.said[-300:]}"
        if disturbance in (Disturbance.FAIL, Disturbance.FAIL_FROM_THEN_ON) and ended.code not in (0, 2, 3):
            yield f"exit code {ended.code} after {os.strerror(number)}: {ended.said[-300:]}"
        if "Traceback" in ended.said:
            yield f"a traceback: {ended.said[-600:]}"

    def _faults_after(
        self, expected: Mapping[str, str], volatile: frozenset[str], disturbance: Disturbance
    ) -> Iterator[str]:
        left = self.state()
        yield from self._wrong_names(left, expected, volatile)
        if disturbance is Disturbance.SIGNAL:
            yield from (f"litter after a signal: {name}" for name in left if _is_litter(name))
        again = self.run(f"{self.scenario.arguments} {self._again()}")
        now = self.state()
        done = again.code == 0 or (again.code == 2 and " exists" in again.said)
        if not done:
            yield f"again: exit code {again.code}: {again.said[-600:]}"
        yield from (f"litter at the end: {name}" for name in now if _is_litter(name))
        for name in sorted(expected.keys() | now.keys()):
            if _is_litter(name) or (self._grows(name) and name in expected.keys() & now.keys()):
                continue
            if name not in now or name not in expected:
                yield f"{name}: {'missing' if name in expected else 'too much'} at the end"
            elif name not in volatile and now[name] != expected[name]:
                yield f"{name}: other bytes at the end"

    def _wrong_names(
        self, left: Mapping[str, str], expected: Mapping[str, str], volatile: frozenset[str]
    ) -> Iterator[str]:
        """Files that are neither what was there nor what must be there, and folders that are neither."""
        for name, content in left.items():
            known = (self.initial.get(name), expected.get(name))
            if _is_litter(name) or self._grows(name) or name in volatile:
                continue
            if content not in known:
                yield f"{name}: has its final name and is wrong"
        for folder in ("work/model", "work/tuned", "work/run/hf", "work/run/onnx"):
            there = {name for name in left if name.startswith(f"{folder}/")}
            wanted = [{name for name in state if name.startswith(f"{folder}/")} for state in (self.initial, expected)]
            if folder in left and there not in wanted:
                yield f"{folder}: has its final name and is not whole"

    def _again(self) -> str:
        """The option to go on, where there is something to go on with."""
        return self.scenario.again if any(not path.name.startswith(".") for path in self.box.work.iterdir()) else ""

    def _grows(self, name: str) -> bool:
        return any(fnmatch.fnmatch(name, f"work/{pattern}") for pattern in self.scenario.growing)

    def _reset(self) -> None:
        _ = self.initial
        self.box.reset(self.scenario)
        if self.hub is not None:
            for kept in (self.hub.repositories, self.hub.objects, self.hub.uploads, self.hub.received):
                kept.clear()


def _is_litter(name: str) -> bool:
    """What has no final name: hidden files of ours, and whatever lies in the folder for temporary files."""
    return name.startswith("tmp/") or any(
        part.startswith(".") and part.endswith((".partial", ".lock", ".replaced", ".soft")) for part in name.split("/")
    )
