"""What a checkpoint is written as, and why it is refused when llama.cpp would compute something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from converters.gguf.layouts import LAYOUTS
from longrope.architectures import ARCHITECTURES, GgufRope
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors, FactorSet

LONG = "rope_factors_long.weight"
SHORT = "rope_factors_short.weight"
FREQS = "rope_freqs.weight"
# Keys of our own, which no runtime reads.
OWN_PREFIX = "longrope_export."
FACTORS_KEY = OWN_PREFIX + "factors"


@dataclass(frozen=True)
class Target:
    """What a checkpoint is written as.

    Args:
        architecture: llama.cpp's name.
        rope: "sets" for both factor tensors, "freqs" for the one that serves every context.
        permute_qk: the rows of q and k are interleaved.
    """

    architecture: str
    rope: GgufRope
    permute_qk: bool

    @property
    def factor_tensors(self) -> Mapping[str, FactorSet]:
        """Tensor name → the set it holds."""
        return {LONG: "long", SHORT: "short"} if self.rope == "sets" else {FREQS: "long"}


def target_of(checkpoint: Checkpoint, factors: BoundFactors, *, as_llama: bool = False) -> Target:
    """What a checkpoint with these factors is written as.

    Args:
        as_llama: write a network that is Llama's under another name as architecture llama.

    Raises:
        UnsupportedError: llama.cpp has no architecture that computes this network with these factors.
    """
    target = _by_table(checkpoint, as_llama=as_llama)
    _refuse_start_tokens(factors)
    _refuse_other_networks(checkpoint, target)
    _refuse_sliding_window(checkpoint, factors)
    if target.rope == "freqs" and factors.factor_sets == "dual":
        raise UnsupportedError(
            f"llama.cpp's {target.architecture} takes one factor set for every context; "
            "use --factor-sets single, or export to HF or ONNX"
        )
    return target


def _by_table(checkpoint: Checkpoint, *, as_llama: bool) -> Target:
    row = checkpoint.architecture
    if as_llama and row.gguf_as_llama:
        return Target("llama", "sets", permute_qk=True)
    if as_llama and row.gguf != "llama":
        possible = sorted(row.model_type for row in ARCHITECTURES.values() if row.gguf_as_llama)
        raise UnsupportedError(
            f"a {row.model_type} network is not Llama's; as_llama works for {' and '.join(possible)}"
        )
    if row.gguf is None or row.gguf_rope is None:
        way_out = "write it as llama (option as_llama)" if row.gguf_as_llama else "export to HF or ONNX instead"
        reason = row.note or "llama.cpp has no such architecture"
        raise UnsupportedError(f"GGUF cannot hold rope factors for {row.model_type}: {reason}; {way_out}")
    return Target(row.gguf, row.gguf_rope, row.permute_qk)


def _refuse_start_tokens(factors: BoundFactors) -> None:
    if factors.n_hat:
        raise UnsupportedError(
            f"GGUF cannot hold n_hat = {factors.n_hat} start tokens: llama.cpp rescales every position; "
            "export to ONNX, which can, or search with --n-hat 0"
        )


def _refuse_other_networks(checkpoint: Checkpoint, target: Target) -> None:
    """Fields of config.json for which llama.cpp computes one value only."""
    config = {"sliding_window": checkpoint.architecture.default_window, **checkpoint.config}
    for name, needed in LAYOUTS[target.architecture].needs.items():
        given = config.get(name, needed)
        if given != needed:
            raise UnsupportedError(
                f"{checkpoint.name}: llama.cpp computes {name} = {needed!r} for this architecture, the model has "
                f"{given!r}; export to HF or ONNX instead"
            )


def _refuse_sliding_window(checkpoint: Checkpoint, factors: BoundFactors) -> None:
    """llama.cpp attends to the whole context where transformers would look back fewer tokens than the target."""
    config, row = checkpoint.config, checkpoint.architecture
    window = config.get("sliding_window", row.default_window) if row.sliding_window else None
    used = window and config.get("use_sliding_window", True)
    if used and window is not None and window < factors.target:
        raise UnsupportedError(
            f"{checkpoint.name}: transformers attends to the last {window} tokens (sliding_window), llama.cpp to all "
            f"{factors.target}; set sliding_window to null in config.json, or use a target of at most {window}"
        )
    alike = {"full_attention", "sliding_attention"} if used else {"full_attention"}
    others = sorted(set(config.get("layer_types") or ()) - alike)
    if others:
        raise UnsupportedError(
            f"{checkpoint.name}: some layers have {' and '.join(others)} (layer_types in config.json), llama.cpp gives "
            "all of them full attention; export to HF or ONNX instead"
        )
