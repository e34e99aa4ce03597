"""One search of `bench_search --part parallel`: workers begin to import before this process does, as with `search`."""

from __future__ import annotations

import sys
from pathlib import Path

from longrope.search.options import SearchOptions
from longrope.search.processes import import_ahead


def main(workers: int, seed: int, threads: int, model: Path, quick: bool) -> None:
    """A line of JSON each time the best so far changed."""
    executor = "local" if workers == 1 else "processes"
    options = SearchOptions(device="cpu", threads=threads, seed=seed, workers=workers, executor=executor)  # type: ignore[arg-type]
    import_ahead(options)
    from benchmarks.bench_search import timed_points

    timed_points(options, model, quick=quick)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]), sys.argv[5] == "quick")
