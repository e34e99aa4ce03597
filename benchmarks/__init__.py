"""Benchmarks: `python -m benchmarks.bench_NAME` prints a table and writes runs/bench/NAME.json."""
