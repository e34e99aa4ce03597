"""NLL of windows in mlx-lm, each in one forward pass."""

from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from nll import nll, serve


def score(folder, request):
    model, _ = load_model(Path(folder))
    return [nll(np.array(model(mx.array([ids]))[0].astype(mx.float32)), ids) for ids in request["windows"]]


serve(version("mlx-lm"), score)
