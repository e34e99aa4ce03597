"""Broken Hugging Face folders as data: each fault, and the id of the check that must catch it. The folder has two sets."""

from __future__ import annotations

from typing import Any

from tests.folder_faults import Fault, change_json, config, rope, weights

# llama.cpp rounds contexts up to 256 tokens: only from there on is there a short regime to measure.
ORIGINAL, TARGET = 256, 512
Json = dict[str, Any]

# -- what is done to the rope parameters, and to the weights


def drop_everywhere(data: Json) -> None:
    del data["rope_scaling"]
    data["rope_parameters"] = {"rope_type": "default", "rope_theta": data["rope_theta"]}


def drop_original(data: Json) -> None:
    for place in (data, data["rope_scaling"], data["rope_parameters"]):
        del place["original_max_position_embeddings"]


def swap_sets(data: Json) -> None:
    data["short_factor"], data["long_factor"] = data["long_factor"], data["short_factor"]


def shorten(*names: str) -> Fault:
    return rope(lambda data: data.update({name: data[name][:-1] for name in names}))


def nudge(tensors: Json) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 0.5


def swap_layers(tensors: Json) -> None:
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]


# -- the catalogue

FAULTS: dict[str, tuple[Fault, str]] = {
    "no factors": (change_json("config.json", drop_everywhere), "hf.rope_scaling"),
    "no rope_scaling": (config(rope_scaling=None), "hf.rope_scaling"),
    "no rope_parameters": (config(rope_parameters=None), "hf.rope_parameters"),
    "wrong attention factor": (
        rope(lambda data: data.update(attention_factor=1.0)),
        "hf.rope_parameters.attention_factor",
    ),
    "wrong length scale": (rope(lambda data: data.update(factor=1.5)), "hf.rope_parameters.factor"),
    "no original length": (change_json("config.json", drop_original), "hf.config.original_max_position_embeddings"),
    "another original at the top": (
        config(original_max_position_embeddings=TARGET),
        "hf.config.original_max_position_embeddings",
    ),
    "another theta at the top": (config(rope_theta=5e5), "hf.config.rope_theta"),
    "another window": (config(max_position_embeddings=ORIGINAL), "hf.config.max_position_embeddings"),
    "sets swapped": (rope(swap_sets), "hf.rope_parameters.long_factor"),
    "a factor too few": (shorten("short_factor", "long_factor"), "hf.rope_parameters.long_factor"),
    "a factor too few in one set": (shorten("long_factor"), "hf.rope_parameters.long_factor"),
    "a factor of zero": (
        rope(lambda data: data["long_factor"].__setitem__(3, 0.0)),
        "hf.rope_parameters.long_factor",
    ),
    "no short set": (rope(lambda data: data.pop("short_factor")), "hf.rope_parameters.short_factor"),
    "mscale on top": (rope(lambda data: data.update(long_mscale=1.2)), "hf.rope_parameters.mscale"),
    "one weight changed": (weights(nudge), "hf.weights"),
    "weights of two layers swapped": (weights(swap_layers), "hf.weights"),
}
