"""A dozen boundaries of each command, of the hundreds that `make crash-test` tries: see `tests.crash`."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.crash.harness import SCENARIOS, Box, Disturbance, Trial, compiler, make_inputs
from tests.hub import LocalHub

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs Linux and a C compiler, which builds the shim")

# Shares of a command's calls at which it is disturbed; a long command at fewer.
SHORT = {
    Disturbance.KILL: (0.01, 0.4, 0.7, 0.95),
    Disturbance.KILL_HALF_WRITTEN: (0.2, 0.6),
    Disturbance.SIGNAL: (0.02, 0.1, 0.8),
    Disturbance.FAIL: (0.4,),
    Disturbance.FAIL_FROM_THEN_ON: (0.6,),
}
LONG = {
    Disturbance.KILL: (0.05, 0.97),
    Disturbance.KILL_HALF_WRITTEN: (0.5,),
    Disturbance.SIGNAL: (0.7,),
    Disturbance.FAIL_FROM_THEN_ON: (0.8,),
}
SAMPLES = {
    "convert gguf parts": SHORT,
    "convert hf over another": SHORT,
    "patch in place": SHORT,
    "search": LONG,
    "finetune": LONG,
    "extend": LONG,
    "publish": LONG,
}
NUMBERS = {
    Disturbance.SIGNAL: int(signal.SIGTERM),
    Disturbance.FAIL: errno.EIO,
    Disturbance.FAIL_FROM_THEN_ON: errno.ENOSPC,
}


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("crash")
    with Box(folder / "work", make_inputs(folder / "inputs")) as box:
        yield box


@pytest.mark.parametrize("name", SAMPLES)
def test_a_disturbed_command_goes_on_to_the_same_end(box: Box, name: str) -> None:
    with LocalHub() if SCENARIOS[name].network else nullcontext() as hub:
        trial = Trial(box, SCENARIOS[name], hub)
        faults = {
            f"{disturbance.name} at call {at} of {trial.calls}": found
            for disturbance, shares in SAMPLES[name].items()
            for at in (max(1, round(share * trial.calls)) for share in shares)
            if (found := trial.disturb(disturbance, at, NUMBERS.get(disturbance, 0)))
        }
    assert not faults
