"""`seeds`: no search, only the known methods: none, PI, NTK-aware and a grid of YaRN ramps.

What every searched result must beat. Sources: PI (arXiv 2306.15595), NTK-aware (bloc97, 2023), YaRN (arXiv 2309.00071).
"""

from __future__ import annotations

from collections.abc import Iterator

from longrope import rope
from longrope.search.space import YARN_BETAS, SearchSpace, StartingPoint
from longrope.search.strategies.problem import Problem
from longrope.search.trial import Plan

BETA_FAST = (128.0, 64.0, 32.0, 16.0, 8.0, 4.0)
BETA_SLOW = (4.0, 2.0, 1.0, 0.5, 0.25)
# PI, NTK, YaRN 32/1, none, and the grid's other ramps.
OWN_BUDGET = 3 + 1 + sum(fast > slow and (fast, slow) != YARN_BETAS for fast in BETA_FAST for slow in BETA_SLOW)


def seeds(problem: Problem) -> Plan:
    """Evaluate every starting point once; a budget cuts the list from its end."""
    points = [
        *problem.starting_points,
        StartingPoint("none", problem.space.candidate(rope.unscaled_factors(problem.space.rotary_dim))),
    ]
    points += yarn_grid(problem.space)
    points = points[: problem.budget(len(points))]
    yield [problem.known(point) for point in points]


def yarn_grid(space: SearchSpace) -> Iterator[StartingPoint]:
    """YaRN with every ramp of the grid but its own, which is a starting point already."""
    for fast in BETA_FAST:
        for slow in BETA_SLOW:
            if fast > slow and (fast, slow) != YARN_BETAS:
                yield StartingPoint(f"YaRN {fast:g}/{slow:g}", space.yarn(fast, slow))
