"""What transformers would load from a folder, compared with what is in it, before anything is exported or computed.

names and shapes of the files ──in_doubt──► no: exports of other formats, which know every tensor, go on without torch
                                      └──► yes, and for Hugging Face folders always: transformers' own loading report,
                                           on the meta device, where no weight is read
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longrope.checkpoint import DERIVED, Checkpoint
from longrope.errors import InputError
from longrope.reading import printable, said_by
from longrope.weights import BASE_EMBEDDING, BASE_PREFIX, HEAD, WRAPPERS, require_finite

_LAYER = re.compile(r"(?P<layers>.*\blayers)\.(?P<number>\d+)\.(?P<module>.+)\.\w+")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# Types whose decoder layers are Llama's, with norms of their own beside, and those that always have biases.
_LIKE_LLAMA: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("llama", "mistral", "ministral3", "granite", "qwen2", "smollm3", "seed_oss", "gemma"), ()),
    "qwen3": ("self_attn.q_norm", "self_attn.k_norm"),
}
_ALWAYS_BIASED: Mapping[str, Sequence[str]] = {"qwen2": _ATTENTION[:3]}
# Words in the fields of config.json that give a module biases, by how the module's name begins.
_SWITCHES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("self_attn.", "attention.", "attn."), ("attention", "attn", "qkv")),
    **dict.fromkeys(("mlp.", "feed_forward."), ("mlp", "ffn")),
    "lm_head.": ("head",),
}
_BIAS = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+)\.bias")
Shape = tuple[int, ...]


# -- without transformers


def require_announced(checkpoint: Checkpoint, *, names_are_known: bool = False) -> Sequence[str]:
    """Refuse a checkpoint whose weights are not those that its config.json announces; torch is imported only in doubt.

    Args:
        checkpoint: what is to be exported.
        names_are_known: the format's own plan refuses weights that are missing or have no place; only biases, which no
            plan can judge, for config.json says whether they are applied, and names that are not the model's leave a doubt
            then.

    Returns:
        What transformers leaves out, in words.

    Raises:
        InputError: names the first weight, and the field where it is one of config.json; or one that is not finite.
        UnsupportedError: the weights are quantized, and `names_are_known` or config.json does not say it.
    """
    for file, header in checkpoint.weight_headers.items():
        require_finite(file, header)
    copied = checkpoint.quantization is not None and checkpoint.announced_quantization is not None
    if names_are_known or not copied:
        checkpoint.require_float_weights()
    if names_are_known:
        odd_biases = _biases(checkpoint) != set(_announced_biases(checkpoint))
        in_doubt = odd_biases or _has_other_names(checkpoint)
    else:
        in_doubt = copied or not _is_as_announced(checkpoint)
    return require_loadable(checkpoint) if in_doubt else ()


def _biases(checkpoint: Checkpoint) -> set[str]:
    """Modules of Llama's layers that have biases in the files; any other name of a bias stands for itself."""
    text = (checkpoint.text_name(stored) or "" for stored in checkpoint.weight_names)
    names = [name for name in text if name.endswith(".bias") and not DERIVED.fullmatch(name)]
    return {found[1] if (found := _BIAS.fullmatch(name)) else name for name in names}


def _announced_biases(checkpoint: Checkpoint) -> Sequence[str]:
    """Those modules that config.json gives biases."""
    config, always = checkpoint.config, _ALWAYS_BIASED.get(checkpoint.model_type, ())
    attention = _ATTENTION if config.get("attention_out_bias", True) else _ATTENTION[:3]
    return (*always, *(attention if config.get("attention_bias") else ()), *(_MLP if config.get("mlp_bias") else ()))


def _has_other_names(checkpoint: Checkpoint) -> bool:
    """Whether some weight is none of transformers' model, of a type whose model is known here."""
    expected = announced_weights(checkpoint)
    return expected is not None and not set(_shapes(checkpoint)) <= set(expected)


def _shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Name in the model → shape, of every weight in the files."""
    names = checkpoint.weight_names
    return {
        names[name]: tuple(entry["shape"])
        for header in checkpoint.weight_headers.values()
        for name, entry in header.items()
        if not DERIVED.fullmatch(names[name])
    }


def _is_as_announced(checkpoint: Checkpoint) -> bool:
    """Whether names and shapes are those of transformers' model, of a type whose model is known here."""
    expected = announced_weights(checkpoint)
    if expected is None:
        return False
    shapes = _shapes(checkpoint)
    if checkpoint.config.get("tie_word_embeddings"):
        shapes.setdefault(HEAD, expected[HEAD])
    return shapes == expected


def announced_weights(checkpoint: Checkpoint) -> dict[str, Shape] | None:
    """Names and shapes of all weights of transformers' model, the output head among them; None for types not known here."""
    config, norms = checkpoint.config, _LIKE_LLAMA.get(checkpoint.model_type)
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {"num_key_value_heads": config.get("num_attention_heads"), **config}
    sizes = [config.get(name) for name in fields]
    if norms is None or not all(isinstance(size, int) for size in sizes):
        return None
    hidden, inner, layers, heads, kv_heads = (int(size or 0) for size in sizes)
    queries, keys = heads * checkpoint.head_dim, kv_heads * checkpoint.head_dim
    matrices = {
        **dict(zip(_ATTENTION, ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)), strict=True)),
        **dict(zip(_MLP, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True)),
    }
    within: dict[str, Shape] = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    within |= {f"{name}.weight": (checkpoint.head_dim,) for name in norms}
    for name, shape in matrices.items():
        module = f"{'self_attn' if name in _ATTENTION else 'mlp'}.{name}"
        within[f"{module}.weight"] = shape
        if name in _announced_biases(checkpoint):
            within[f"{module}.bias"] = shape[:1]
    ends: dict[str, Shape] = {
        f"{BASE_PREFIX}{BASE_EMBEDDING}": (checkpoint.vocab_size, hidden),
        f"{BASE_PREFIX}norm.weight": (hidden,),
        HEAD: (checkpoint.vocab_size, hidden),
    }
    return ends | {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in within.items()}


# -- with transformers


def require_loadable(checkpoint: Checkpoint) -> Sequence[str]:
    """`require_announced` by transformers' own loading report, for every model; weights may be quantized.

    Returns:
        What transformers leaves out, in words.

    Raises:
        InputError: transformers does not load it, or would start some weights at random, or ignore some of the model's.
        UnsupportedError: a rope_type without a closed form.
    """
    from longrope.modeling import build_config

    _ = checkpoint.base  # whose words are plainer than transformers'
    packed = checkpoint.quantization is not None
    config = build_config(checkpoint, None)
    if packed:
        config.quantization_config = None
        del config.quantization_config
    _, left_out = _loaded(checkpoint, config, device_map="meta", packed=packed)
    if not left_out:
        return ()
    return (
        f"{len(left_out)} weights have no place in the model that config.json describes, the first is "
        f"{printable(left_out[0])}; transformers leaves them out, and so does everything here",
    )


def load_pretrained(checkpoint: Checkpoint, config: Any, **options: Any) -> Any:
    """transformers' causal model of a checkpoint, every weight of which is in its files.

    Args:
        checkpoint: the folder.
        config: transformers' configuration.
        options: `weights`, tensors by their name in the checkpoint's files, to be taken in place of those; and options of
            `from_pretrained`.

    Raises:
        InputError: transformers does not load it, or the weights are not those of the configuration.
    """
    return _loaded(checkpoint, config, **options)[0]


def _loaded(
    checkpoint: Checkpoint,
    config: Any,
    *,
    packed: bool = False,
    weights: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, Sequence[str]]:
    """transformers' causal model of a checkpoint, and the names of weights that it leaves out.

    Args:
        checkpoint: the folder.
        config: transformers' configuration.
        packed: weights are quantized, and the configuration does not say so: packed tensors stand for a weight.
        weights: tensors by their name in the checkpoint's files, to be taken in place of those; None for the files'.
        options: of `from_pretrained`.

    Raises:
        InputError: transformers does not load it, or the weights are not those of the configuration.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its report of odd weights becomes an error of ours below
    auto = AutoModelForCausalLM if checkpoint.wrapper is None else AutoModelForImageTextToText
    kind = auto if weights is None else _class_of(auto, config)
    renamed = any(name != new for name, new in checkpoint.weight_names.items())
    with said_by("transformers", checkpoint.name):
        model, loading = kind.from_pretrained(
            checkpoint.path if weights is None else None,
            config=config,
            state_dict=weights,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping=dict.fromkeys(WRAPPERS, "") if renamed else None,
            **options,
        )
    if renamed:
        _forget_renaming(model)
    missing, mismatched = sorted(loading["missing_keys"]), sorted(loading["mismatched_keys"])
    extra = [name for name in sorted(loading["unexpected_keys"]) if not DERIVED.fullmatch(name)]
    if packed:
        modules = tuple({_module(name) for name in extra})
        missing = [name for name in missing if not any(module.startswith(_module(name)) for module in modules)]
        extra, mismatched = [], []
    _refuse_unfit(checkpoint, missing, mismatched, extra)
    _refuse_ignored(checkpoint, config, extra, model.state_dict())
    return model, extra


def _refuse_unfit(
    checkpoint: Checkpoint, missing: Sequence[str], mismatched: Sequence[tuple[str, Any, Any]], extra: Sequence[str]
) -> None:
    """Raise InputError for weights that are missing, or have another shape than the configuration's."""
    if missing:
        raise InputError(
            f"{checkpoint.name}: {len(missing)} weights are missing, the first is {missing[0]}{_hint(missing, extra)}"
        )
    if mismatched:
        name, found, expected = mismatched[0]
        raise InputError(
            f"{checkpoint.name}: {len(mismatched)} weights have another shape than config.json says, the first is {name}: "
            f"expected {list(expected)}, got {list(found)}"
        )


def _forget_renaming(model: Any) -> None:
    """transformers would give weights their odd names back when it saves the model; the names of its parameters are right."""
    conversions = getattr(model, "_weight_conversions", None) or ()
    model._weight_conversions = [each for each in conversions if each.source_patterns[0] not in WRAPPERS]


def _class_of(auto: Any, config: Any) -> Any:
    """The model class of a configuration; transformers' automatic ones take no tensors in place of files."""
    import torch

    with torch.device("meta"):
        return type(auto.from_config(config))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _hint(missing: Sequence[str], extra: Sequence[str]) -> str:
    """What may be the cause where weights are missing."""
    if missing == [HEAD]:
        return (
            "; transformers would start the output head at random. Set tie_word_embeddings to true in config.json if the "
            "head is the embedding, or save the model with its head"
        )
    if not extra:
        return ""
    return (
        f"; {len(extra)} weights in the files have other names than the model's, the first is {printable(extra[0])}. Take a "
        "repository of this model with the names of transformers, or rename them"
    )


def _refuse_ignored(checkpoint: Checkpoint, config: Any, extra: Iterable[str], known: Iterable[str]) -> None:
    """Refuse weights of layers and modules that the model has, which transformers would leave out."""
    known = list(known)
    layers = {(found["layers"], found["number"]) for name in known if (found := _LAYER.fullmatch(name))}
    modules = {_module(name) for name in known}
    ignored = [
        name
        for name in extra
        if _module(name) in modules
        or ((found := _LAYER.fullmatch(name)) and (found["layers"], found["number"]) in layers)
    ]
    if not ignored:
        return
    raise InputError(
        f"{checkpoint.name}: {len(ignored)} weights have no place in the model that config.json describes, the first is "
        f"{ignored[0]}; transformers would ignore them{_switch_for(ignored[0], config)}"
    )


def _switch_for(name: str, config: Any) -> str:
    """Which field of config.json announces a bias."""
    if not name.endswith(".bias"):
        return ""
    switches = [key for key, value in config.to_dict().items() if "bias" in key and value is False]
    module = found["module"] if (found := _LAYER.fullmatch(name)) else name
    words = next((words for part, words in _SWITCHES.items() if module.startswith(part)), ())
    fitting = [key for key in switches if any(word in key for word in words)]
    fitting = fitting or [key for key in switches if key in ("bias", "use_bias")]
    return f". Set {' or '.join(fitting)} to true in config.json if the model was trained with it" if fitting else ""
