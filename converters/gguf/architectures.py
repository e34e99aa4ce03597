"""What a checkpoint is written as in llama.cpp, and what llama.cpp would compute otherwise than transformers: refused here.

    config.json ──carriers.TARGETS──► Target (llama.cpp's architecture, and which factor tensors it reads)

Source: llama.cpp as vendored by llama-cpp-python 0.3.36 (src/llama-arch.cpp, src/models/*.cpp).
"""

from __future__ import annotations

from converters.gguf.carriers import Target, candidates, sliding_window
from converters.gguf.factors import require_expressible
from converters.gguf.layouts import layout_of, renamed_config
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors
from longrope.hf_config import switch_length


def target_of(
    checkpoint: Checkpoint, factors: BoundFactors, *, carrier: str | None = None, as_llama: bool | None = None
) -> Target:
    """The first row of the table that computes this checkpoint with these factors.

    Args:
        carrier: llama.cpp's architecture that is wanted; None for the first that can.
        as_llama: True for architecture llama, False for any other.

    Raises:
        UnsupportedError: llama.cpp has no architecture that computes this network with these factors; says why the first
            one, or the wanted one, does not.
    """
    refusals = []
    wanted = "llama" if as_llama else carrier
    for target in candidates(checkpoint, factors, carrier=wanted, llama=as_llama is not False):
        try:
            _refuse_other_networks(checkpoint, target)
            refuse_factors(checkpoint, target, factors)
        except UnsupportedError as error:
            refusals.append(error)
        else:
            return target
    raise refusals[0]


def refuse_factors(checkpoint: Checkpoint, target: Target, factors: BoundFactors) -> None:
    """Raise UnsupportedError for factors with which llama.cpp would compute something else than transformers."""
    if not target.slides:
        _refuse_sliding_window(checkpoint, factors)
    if target.one_base and factors.written_theta != checkpoint.rope_theta:
        raise UnsupportedError(
            f"llama.cpp's {target.architecture} rotates layers that slide by the same base as the others, which has to stay "
            f"{checkpoint.rope_theta:g}; the parameters have {factors.written_theta:g}"
        )
    _ = switch_length(checkpoint.config, factors)
    require_expressible(factors, target.architecture, target.rope)
    _ = target.keys(checkpoint, factors)


def _refuse_other_networks(checkpoint: Checkpoint, target: Target) -> None:
    """Fields of config.json for which llama.cpp computes one value only."""
    config = {"sliding_window": checkpoint.architecture.default_window, **renamed_config(checkpoint.config)}
    for name, needed in {**layout_of(target).needs, **target.needs}.items():
        given = config.get(name, needed)
        if given != needed:
            raise UnsupportedError(
                f"{checkpoint.name}: llama.cpp computes {name} = {needed!r} for this architecture, the model has "
                f"{given!r}; export to HF or ONNX instead"
            )

    scale = config.get("query_pre_attn_scalar", checkpoint.head_dim)
    if scale != checkpoint.head_dim and target.architecture != "gemma4":  # which has it in the norm of queries
        raise UnsupportedError(
            f"{checkpoint.name}: llama.cpp scales queries by the head size {checkpoint.head_dim}, the model by "
            f"query_pre_attn_scalar = {scale}; export to HF or ONNX instead"
        )


def _refuse_sliding_window(checkpoint: Checkpoint, factors: BoundFactors) -> None:
    """llama.cpp attends to the whole context where transformers would look back fewer tokens than the target."""
    window = sliding_window(checkpoint)
    if window is not None and window < factors.target:
        raise UnsupportedError(
            f"{checkpoint.name}: transformers attends to the last {window} tokens (sliding_window), llama.cpp to all "
            f"{factors.target}; set sliding_window to null in config.json, or use a target of at most {window}"
        )
    alike = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    others = sorted(set(checkpoint.config.get("layer_types") or ()) - alike - {"attention"})
    if others:
        raise UnsupportedError(
            f"{checkpoint.name}: some layers have {' and '.join(others)} (layer_types in config.json), llama.cpp gives "
            "all of them full attention; export to HF or ONNX instead"
        )
