"""NLL of windows in CTranslate2, of the model that its own converter makes of the folder."""

import tempfile

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter
from nll import nll, serve


def score(folder, request):
    with tempfile.TemporaryDirectory() as room:
        TransformersConverter(folder).convert(f"{room}/model")
        model = ctranslate2.Generator(f"{room}/model")
        return [nll(np.array(model.forward_batch([ids]))[0], ids) for ids in request["windows"]]


serve(ctranslate2.__version__, score)
