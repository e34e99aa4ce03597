"""Broken Hugging Face folders as data: each fault, and the id of the check that must catch it. The folder has two sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# llama.cpp rounds contexts up to 256 tokens: only from there on is there a short regime to measure.
ORIGINAL, TARGET = 256, 512
Fault = Callable[[Path], None]
Json = dict[str, Any]

# -- tools to break things with


def edit_config(change: Callable[[Json], object]) -> Fault:
    def fault(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return fault


def in_both(change: Callable[[Json], object]) -> Fault:
    """A change of both spellings of the rope parameters."""

    def fault(config: Json) -> None:
        change(config["rope_scaling"])
        change(config["rope_parameters"])

    return edit_config(fault)


def drop_everywhere(config: Json) -> None:
    del config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}


def drop_original(config: Json) -> None:
    for place in (config, config["rope_scaling"], config["rope_parameters"]):
        del place["original_max_position_embeddings"]


def swap_sets(rope: Json) -> None:
    rope["short_factor"], rope["long_factor"] = rope["long_factor"], rope["short_factor"]


def shorten(*names: str) -> Fault:
    return in_both(lambda rope: rope.update({name: rope[name][:-1] for name in names}))


def set_top_level(**changes: Any) -> Fault:
    return edit_config(lambda config: config.update(changes))


def edit_weights(change: Callable[[Json], object]) -> Fault:
    def fault(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return fault


def nudge(weights: Json) -> None:
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] += 0.5


def swap_layers(weights: Json) -> None:
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    weights[first], weights[second] = weights[second].clone(), weights[first].clone()


# -- the catalogue

FAULTS: dict[str, tuple[Fault, str]] = {
    "no factors": (edit_config(drop_everywhere), "hf.rope_scaling"),
    "no rope_scaling": (edit_config(lambda config: config.pop("rope_scaling")), "hf.rope_scaling"),
    "no rope_parameters": (edit_config(lambda config: config.pop("rope_parameters")), "hf.rope_parameters"),
    "wrong attention factor": (
        in_both(lambda rope: rope.update(attention_factor=1.0)),
        "hf.rope_parameters.attention_factor",
    ),
    "wrong length scale": (in_both(lambda rope: rope.update(factor=1.5)), "hf.rope_parameters.factor"),
    "no original length": (edit_config(drop_original), "hf.config.original_max_position_embeddings"),
    "another original at the top": (
        set_top_level(original_max_position_embeddings=TARGET),
        "hf.config.original_max_position_embeddings",
    ),
    "another theta at the top": (set_top_level(rope_theta=5e5), "hf.config.rope_theta"),
    "another window": (set_top_level(max_position_embeddings=ORIGINAL), "hf.config.max_position_embeddings"),
    "sets swapped": (in_both(swap_sets), "hf.rope_parameters.long_factor"),
    "a factor too few": (shorten("short_factor", "long_factor"), "hf.rope_parameters.long_factor"),
    "a factor too few in one set": (shorten("long_factor"), "hf.rope_parameters.long_factor"),
    "a factor of zero": (
        in_both(lambda rope: rope["long_factor"].__setitem__(3, 0.0)),
        "hf.rope_parameters.long_factor",
    ),
    "no short set": (in_both(lambda rope: rope.pop("short_factor")), "hf.rope_parameters.short_factor"),
    "mscale on top": (in_both(lambda rope: rope.update(long_mscale=1.2)), "hf.rope_parameters.mscale"),
    "one weight changed": (edit_weights(nudge), "hf.weights"),
    "weights of two layers swapped": (edit_weights(swap_layers), "hf.weights"),
}
