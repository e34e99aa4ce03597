"""Hostile files: what strangers could send, as data, and a fuzzer that finds more."""
