"""NLL of windows in onnxruntime-genai: the logits of the prompt's pass."""

from importlib.metadata import version

import numpy as np
import onnxruntime_genai as genai
from nll import nll, serve


def score(folder, request):
    model = genai.Model(folder)
    return [nll(prompt_logits(model, ids, request["context"]), ids) for ids in request["windows"]]


def prompt_logits(model, ids, context):
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=context)
    generator = genai.Generator(model, options)
    generator.append_tokens(np.array([ids], dtype=np.int32))
    return generator.get_output("logits")[0]


serve(version("onnxruntime-genai"), score)
