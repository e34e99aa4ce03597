"""Which rows of the tables come into question for a checkpoint and its factors.

free factors    carriers.TARGETS   architectures that load factors
a family        NATIVES            the model's own architecture, whose keys hold the parameters
"""

from __future__ import annotations

from collections.abc import Mapping

from converters.gguf.carriers import TARGETS, Target
from longrope.checkpoint import Checkpoint
from longrope.errors import UnsupportedError
from longrope.factors import BoundFactors

# The model types whose own architecture loads no factors, or not both sets.
NATIVES: Mapping[str, Target] = {
    "qwen2": Target("qwen2"),
    "qwen3": Target("qwen3"),
    "qwen3_moe": Target("qwen3moe"),
    "seed_oss": Target("seed_oss"),
    "smollm3": Target("smollm3", permute_qk=True),
    "olmo2": Target("olmo2"),
    "gemma": Target("gemma"),
    "gemma2": Target("gemma2", slides=True),
    "gemma3_text": Target("gemma3", slides=True),
}
# Architectures that compute a family's keys as transformers computes its parameters; the tests compare logits of each.
# mistral3 does not: it scales queries by the original window, which the keys move.
COMPUTES_FAMILIES = frozenset(
    {"llama", "granite", "granitemoe", "minicpm3", "apertus", "arcee", "exaone4"}
    | {target.architecture for target in NATIVES.values()}
)
# Carriers that rotate all layers by the same keys as a model's own architecture would.
_PLAIN_CARRIERS = ("llama", "granite")


def candidates(
    checkpoint: Checkpoint, factors: BoundFactors, *, carrier: str | None = None, llama: bool = True
) -> tuple[Target, ...]:
    """The rows of a checkpoint's type, at least one. Raises UnsupportedError when none is left."""
    rows = _of_family(checkpoint.model_type) if factors.family else TARGETS.get(checkpoint.model_type, ())
    if not rows:
        raise UnsupportedError(f"GGUF cannot hold {_words(checkpoint, factors)}; export to HF or ONNX instead")
    left = tuple(row for row in rows if carrier in (None, row.architecture) and (llama or row.architecture != "llama"))
    if not left:
        wanted = f"as {carrier}" if carrier else "as anything but llama"
        known = ", ".join(row.architecture for row in rows)
        raise UnsupportedError(f"a {checkpoint.model_type} network cannot be written {wanted}; expected {known}")
    return left


def _of_family(model_type: str) -> tuple[Target, ...]:
    """Its own architecture, then those that compute the same network with the same keys."""
    own = (NATIVES[model_type],) if model_type in NATIVES else ()
    rows = (row for row in TARGETS.get(model_type, ()) if row.carried is None or row.architecture in _PLAIN_CARRIERS)
    return tuple(row for row in (*own, *rows) if row.architecture in COMPUTES_FAMILIES)


def _words(checkpoint: Checkpoint, factors: BoundFactors) -> str:
    if factors.family:
        kind = factors.family.type
        return (
            f"{kind} for {checkpoint.model_type}: no architecture of llama.cpp is known here that computes both alike"
        )
    way_out = "; its own computes YaRN (--family yarn)" if checkpoint.model_type in NATIVES else ""
    return (
        f"rope factors for {checkpoint.model_type}: llama.cpp has no architecture that computes this network and loads rope "
        f"factors{way_out}"
    )


def architectures_of(model_type: str) -> frozenset[str]:
    """What models of a type are written as."""
    own = (NATIVES[model_type],) if model_type in NATIVES else ()
    return frozenset(row.architecture for row in (*own, *TARGETS.get(model_type, ())))
