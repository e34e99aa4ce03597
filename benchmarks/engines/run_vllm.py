"""NLL of windows in vLLM: the log-probabilities of the prompt's own tokens."""

import numpy as np
import vllm
from nll import serve


def score(folder, request):
    model = vllm.LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=request["context"],
        max_num_seqs=1,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 28,
    )
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in request["windows"]]
    found = []
    for ids, output in zip(request["windows"], model.generate(prompts, sampling), strict=True):
        rows = output.prompt_logprobs[1:]
        found.append(float(-np.mean([row[token].logprob for row, token in zip(rows, ids[1:], strict=True)])))
    return found


if __name__ == "__main__":
    serve(vllm.__version__, score)
