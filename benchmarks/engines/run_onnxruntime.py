"""NLL of windows in onnxruntime, each in one pass of the plain session: what a user of the graph gets."""

import numpy as np
import onnxruntime
from nll import nll, serve


def score(folder, request):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    return [nll(logits(session, np.array([ids])), ids) for ids in request["windows"]]


def logits(session, ids):
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    for each in session.get_inputs():
        if each.name.startswith("past_key_values"):
            sizes = [1, *(size if isinstance(size, int) else 0 for size in each.shape[1:])]
            feeds[each.name] = np.zeros(sizes, dtype=np.float32)
    known = {each.name for each in session.get_inputs()}
    return session.run(["logits"], {name: value for name, value in feeds.items() if name in known})[0][0]


serve(onnxruntime.__version__, score)
