"""Greedy generation with onnxruntime-genai: folder, request file, answer file."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

folder, request_file, answer_file = sys.argv[1:]
request = json.loads(Path(request_file).read_text())
model = genai.Model(folder)
length = len(request["prompt"]) + request["max_new_tokens"]
params = genai.GeneratorParams(model)
params.set_search_options(max_length=length, min_length=length, do_sample=False)
generator = genai.Generator(model, params)
generator.append_tokens(np.array([request["prompt"]], dtype=np.int32))
while not generator.is_done():
    generator.generate_next_token()
Path(answer_file).write_text(json.dumps(generator.get_sequence(0).tolist()))
