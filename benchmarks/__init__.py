"""Benchmarks: `python -m benchmarks.bench_NAME` prints a table and writes benchmarks/results/NAME.json; see README.md."""
