"""Two and four gloo processes train as one does: losses, gradient norms and weights, over ten steps.

Rows of one long sequence and rows of packed short and long ones take turns, each sequence with its own factor set and with
bounds inside the processes' parts; rows count unequally many tokens, so that a mean of means would show.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from longrope.checkpoint import Checkpoint
from longrope.errors import InputError, UnsupportedError
from longrope.finetune.parallel import Parallel, decoder_layers
from longrope.finetune.ulysses import check_heads, repeated_heads
from tests.common import pico_config
from tests.processes import Outcome, Run, run_processes, train

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(pico: Checkpoint) -> Run:
    return Run(pico.path)


@pytest.fixture(scope="module")
def alone(base: Run) -> Outcome:
    """The same training in one process."""
    return train(base)


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    assert len(outcome.losses) == len(expected.losses) == 10
    assert outcome.losses == pytest.approx(expected.losses, abs=TOLERANCE)
    assert outcome.norms == pytest.approx(expected.norms, abs=TOLERANCE)
    assert outcome.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(outcome.weights[name], weight, atol=TOLERANCE, rtol=0)


def test_the_reference_run_moves(alone: Outcome) -> None:
    assert max(alone.losses) - min(alone.losses) > 0.1
    assert min(alone.norms) > 0.1


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_does(base: Run, alone: Outcome, count: int) -> None:
    runs = {
        "weights in parts": replace(base, recompute=True),
        "sequences in parts": replace(base, sequence_parallel=count, fsdp=1),
        "both": replace(base, sequence_parallel=2, recompute=True),
    }
    if count == 4:
        runs["copies of parts"] = replace(base, fsdp=2)
    for outcomes in run_processes(count, train, runs).values():
        for outcome in outcomes:
            assert_same(outcome, alone)


def test_weights_are_in_parts_only_where_that_was_asked(base: Run, alone: Outcome) -> None:
    runs = {"parts": replace(base, steps=1), "copies": replace(base, steps=1, fsdp=1)}
    found = run_processes(2, train, runs)
    assert [outcome.numel_here for outcome in found["parts"]] == [alone.numel_here // 2] * 2
    assert [outcome.numel_here for outcome in found["copies"]] == [alone.numel_here] * 2


# -- one process


def test_one_process_splits_nothing() -> None:
    parallel = Parallel.single()
    tensor = torch.arange(12).view(2, 6)
    assert torch.equal(parallel.split_sequence(tensor), tensor)
    assert parallel.sum_(torch.tensor(3.0)) == 3
    assert (parallel.rank, parallel.data_parallel, parallel.sequence_rank, parallel.is_main) == (0, 1, 0, True)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with Parallel.from_environment(device="cpu") as parallel:
        assert parallel.world_size == 1
        assert parallel.weights_mesh is None


def test_places_of_eight_processes() -> None:
    """Neighbours share a sequence."""
    places = [Parallel(rank, 8, 4, torch.device("cpu")) for rank in range(8)]
    assert [(p.data_rank, p.sequence_rank) for p in places] == [(r, s) for r in range(2) for s in range(4)]
    tensor = torch.arange(16).view(1, 16)
    assert [p.split_sequence(tensor)[0, 0].item() for p in places] == [0, 4, 8, 12] * 2


def test_sizes_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    with pytest.raises(
        InputError, match=r"sequence_parallel: expected a divisor of the number of processes \(4\), got 3"
    ):
        Parallel.from_environment(3, device="cpu")
    with pytest.raises(InputError, match="fsdp"):
        Parallel.from_environment(2, device="cpu", fsdp=8)
    with pytest.raises(InputError, match="a sequence of 10 tokens cannot be shared by 4 processes"):
        Parallel(0, 4, 4, torch.device("cpu")).split_sequence(torch.zeros(1, 10))


def test_heads_that_cannot_be_shared_are_refused() -> None:
    check_heads(pico_config(), 4)
    with pytest.raises(UnsupportedError, match=r"4 attention heads cannot be shared by 3 processes; expected one of"):
        check_heads(pico_config(), 3)


@pytest.mark.parametrize(("heads", "processes", "expected"), [(2, 2, 2), (2, 4, 4), (3, 2, 6), (8, 4, 8), (1, 8, 8)])
def test_key_heads_are_repeated_no_more_than_needed(heads: int, processes: int, expected: int) -> None:
    x = torch.arange(heads).view(1, heads, 1, 1)
    repeated = repeated_heads(x, processes)
    assert repeated.shape[1] == expected
    assert repeated.flatten().tolist() == sorted(list(range(heads)) * (expected // heads))


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no decoder layers"):
        decoder_layers(torch.nn.Linear(2, 2))
