"""What every runner of a Python engine shares: the request's windows in, mean NLL of each and the engine's version out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np


def nll(logits, ids):
    """Mean NLL in nats of a window's tokens after the first, of logits [T, V]."""
    logits = np.asarray(logits, dtype=np.float64)[: len(ids) - 1]
    top = logits.max(-1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return float(np.mean(log_sum - logits[np.arange(len(logits)), ids[1:]]))


def serve(version: str, score: Callable[[str, dict], list[float]]) -> None:
    """Answer the request on the command line: artifact, request file, answer file."""
    artifact, request_file, answer_file = sys.argv[1:]
    found = score(artifact, json.loads(Path(request_file).read_text()))
    Path(answer_file).write_text(json.dumps({"version": version, "nll": found}))
