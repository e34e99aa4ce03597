"""Benchmarks: `python -m tests.bench.bench_NAME` prints a table and writes runs/bench/NAME.json."""
