"""Greedy generation with optimum's ORTModelForCausalLM: folder, request file, answer file."""

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM

folder, request_file, answer_file = sys.argv[1:]
request = json.loads(Path(request_file).read_text())
model = ORTModelForCausalLM.from_pretrained(folder)
model.generation_config.eos_token_id = None
ids = model.generate(torch.tensor([request["prompt"]]), max_new_tokens=request["max_new_tokens"], do_sample=False)
Path(answer_file).write_text(json.dumps(ids[0].tolist()))
