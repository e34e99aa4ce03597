"""NLL of windows in llama.cpp, in one context of the size that was asked for; keys and values in float32."""

import llama_cpp
from nll import nll, serve


def score(file, request):
    model = llama_cpp.Llama(
        file,
        n_ctx=request["context"],
        n_threads=1,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    return [nll(logits(model, ids), ids) for ids in request["windows"]]


def logits(model, ids):
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)].copy()


serve(llama_cpp.__version__, score)
