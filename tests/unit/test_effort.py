"""What of a validation fits in a time: a pure plan from the cost of a window."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.effort import CROSSING_PASSES, EFFORTS, effort_of, fitted, left_out
from longrope.errors import InputError
from tests.common import unscaled


def quadratic(length: int) -> float:
    """Seconds of a window: 8 for 8192 tokens, 24 for 16384."""
    return length / 2048 + length**2 / 2**24


def test_everything_fits_in_enough_time() -> None:
    fit = fitted({8192: 4, 16384: 4}, 8192, quadratic, 1000.0, crossing=True, shorten=False)
    assert fit.windows == {8192: (8192, 4), 16384: (16384, 4)}
    assert fit.crossing
    assert left_out({8192: 4, 16384: 4}, fit, crossing=True) == []


def test_first_a_window_of_each_length_then_the_crossing_then_more() -> None:
    each = quadratic(8192) + quadratic(16384)
    tight = fitted({8192: 4, 16384: 4}, 8192, quadratic, each, crossing=True, shorten=False)
    assert (tight.windows, tight.crossing) == ({8192: (8192, 1), 16384: (16384, 1)}, False)
    more = each + CROSSING_PASSES * quadratic(8192) + 2 * quadratic(8192)
    fit = fitted({8192: 4, 16384: 4}, 8192, quadratic, more, crossing=True, shorten=False)
    assert (fit.windows, fit.crossing) == ({8192: (8192, 3), 16384: (16384, 1)}, True)
    assert left_out({8192: 4, 16384: 4}, fit, crossing=True) == [
        "1 of 4 windows of 8192 tokens",
        "3 of 4 windows of 16384 tokens",
    ]


def test_quick_cuts_the_window_inside_first_and_never_moves_one_across_the_original_length() -> None:
    wanted = {8192: 1, 16384: 1}
    fit = fitted(wanted, 8192, quadratic, 20.0, crossing=False, shorten=True)
    long, short = fit.windows[16384][0], fit.windows[8192][0]
    assert 8192 < long < 16384
    assert 512 <= short < 8192
    assert quadratic(long) + quadratic(short) <= 20.0 < quadratic(long + 256) + quadratic(512)
    assert left_out(wanted, fit, crossing=False)[0] == f"windows of 8192 tokens ({short} in their place)"
    assert fitted(wanted, 8192, quadratic, 5.0, crossing=False, shorten=True).windows.keys() == {8192}
    assert not fitted(wanted, 8192, quadratic, 0.01, crossing=False, shorten=True).windows


@settings(derandomize=True, deadline=None)
@given(
    wanted=st.dictionaries(st.integers(2, 1 << 17), st.integers(1, 8), min_size=1, max_size=6),
    original=st.integers(2, 1 << 16),
    seconds=st.floats(0.0, 1e5),
    crossing=st.booleans(),
    shorten=st.booleans(),
)
def test_no_plan_takes_more_than_there_is(
    wanted: dict[int, int], original: int, seconds: float, crossing: bool, shorten: bool
) -> None:
    fit = fitted(wanted, original, quadratic, seconds, crossing=crossing, shorten=shorten)
    spent = sum(count * quadratic(taken) for taken, count in fit.windows.values())
    assert spent + CROSSING_PASSES * quadratic(original) * fit.crossing <= seconds * (1 + 1e-9)
    for length, (taken, count) in fit.windows.items():
        assert 1 <= count <= wanted[length]
        assert taken == length or (shorten and 2 <= taken < length)
        assert (taken > original) == (length > original)


def test_presets_differ_in_lengths_and_windows() -> None:
    factors = unscaled(8192, 65536)
    assert effort_of("quick").lengths(factors) == effort_of("default").lengths(factors) == (8192, 65536)
    assert effort_of("thorough").lengths(factors) == (4096, 8192, 16384, 32768, 65536)
    assert EFFORTS["thorough"].lengths(unscaled(8192, 16384)) == (4096, 8192, 12288, 16384)
    with pytest.raises(InputError, match="quick"):
        effort_of("quik")
