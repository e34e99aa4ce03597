"""What can be wrong with an artifact, and what to do about it; and `Explanation`, what was found out of one.

Every failed check speaks of some cause, by its id: `cause_of_check`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from converters.base import Check


@dataclass(frozen=True)
class Cause:
    """One kind of fault.

    Args:
        title: what is wrong, as a sentence.
        advice: what to do.
    """

    title: str
    advice: str


EXPORT_AGAIN = "Export again with the factors that the checks expect"
CAUSES: Mapping[str, Cause] = {
    "loads": Cause("The runtime does not open the artifact.", "Mend what the failed checks name, or export again."),
    "files": Cause(
        "The runtime computes the reference's logits; a file beside the weights differs.",
        "Copy the file that the failed check names from the reference.",
    ),
    "rope.plain": Cause(
        "The RoPE is not rescaled.",
        "The factors are missing, all ones, or under a key that the runtime does not read. "
        f"{EXPORT_AGAIN}; a GGUF file can be mended by `patch`.",
    ),
    "rope.switch": Cause(
        "The runtime does not change factor sets at the original window.",
        "Correct the original window, or the condition on it, in the artifact; a single set needs no switch.",
    ),
    "rope.sets_exchanged": Cause(
        "The two factor sets are exchanged: the short one is used beyond the original window, the long one within.",
        "Exchange them, or the two branches of the switch.",
    ),
    "rope.factors": Cause("The rotary factors are others.", f"{EXPORT_AGAIN}."),
    "rope.attention_factor": Cause(
        "The attention factor is another.",
        "Write the expected number where this runtime reads it, once: it multiplies cos and sin, not the scores again.",
    ),
    "rope.theta": Cause("The base of the rotary frequencies is another.", "Write the reference's theta."),
    "rope.n_hat": Cause(
        "The number of start tokens that are not rescaled is another.", "Export again with the expected n_hat."
    ),
    "rope.layout": Cause(
        "Rotary pairs are put together otherwise than the weights are laid out.",
        "Permute the rows of q and k as the runtime wants them: llama.cpp interleaves the halves of each head.",
    ),
    "rope.dimensions": Cause(
        "Another part of each head is rotated.", "Write the reference's number of rotated dimensions."
    ),
    "rope.precision": Cause(
        "Rotary frequencies or angles are rounded too coarsely.",
        "Compute inverse frequencies and angles in float32 or better, whatever the type of the weights is.",
    ),
    "attention": Cause(
        "The attention of single layers is another: q or k, their rotation, or the scores.",
        "Compare the weights of q and k, the rotation and the scale of these layers with the reference's.",
    ),
    "weights": Cause("Weights are others than the reference's.", "Convert the named tensors again."),
    "settings": Cause(
        "A number of the configuration is another.",
        "Write the reference's number where the failed check says.",
    ),
    "graph": Cause("The graph is not this model's.", "Export the graph again, or mend the named nodes."),
    "non_finite": Cause(
        "Logits are not finite.", "Look for NaN and infinity among the weights and factors of the named layer."
    ),
    "cache": Cause(
        "Only decoding through the cache differs.", "Look at the names, order and types of the caches and at positions."
    ),
    "padding": Cause(
        "Only batches of padded texts differ.", "Look at how the mask and the positions of padded rows are used."
    ),
    "rounding": Cause(
        "Nothing but the rounding of the weights was found.", "Choose a finer weight type, or a laxer policy."
    ),
    "unknown": Cause("The cause was not found.", "Begin with the first layer that differs and with the failed checks."),
}

# Patterns of check ids behind the name of the format, the first that fits counts.
_CHECKS: tuple[tuple[str, str], ...] = (
    (r"loads|readable|opset|arch|general\.type|external_data", "loads"),
    (r"parity\..*|rounding\..*|own_weights|batch|precision.*|factors\.(short_)?unverified", ""),
    (r".*attention_factor|.*attn_factor|.*mscale", "rope.attention_factor"),
    (r"switch|original|.*original_(max_position_embeddings|context_length)", "rope.switch"),
    (r".*rope_theta|.*freq_base|inv_freq", "rope.theta"),
    (r"n_hat", "rope.n_hat"),
    (r"rope\.dimension_count", "rope.dimensions"),
    (
        r"rope_freqs|factors(\..*)?|rope\.scaling\..*|rope_(scaling|parameters).*|config\.rope_(scaling|parameters).*",
        "rope.factors",
    ),
    (r"weights|tensors\..*", "weights"),
    (r"cache", "cache"),
    (r"graph|inputs|outputs|rope\.chain", "graph"),
    (
        r"config\.fields|attention\..*|keys|.*(count|length|_size)|.*epsilon|expert.*|logit_scale|.*softcapping",
        "settings",
    ),
)


def cause_of_check(check: Check) -> str:
    """The cause that a failed check speaks of; "" where it says only that something differs."""
    name = check.id.partition(".")[2]
    cause = next((cause for pattern, cause in _CHECKS if re.fullmatch(pattern, name)), "files")
    if cause == "weights":  # of a graph, whose check looks at all initializers and names one
        return _OF_TENSORS.get(next(iter(re.findall(r"rope\.[a-z_]+|see onnx", check.message)), ""), cause)
    return cause


# What initializers of a graph hold beside weights, and a message that refers to another check.
_OF_TENSORS = {
    "rope.long_factor": "rope.factors",
    "rope.short_factor": "rope.factors",
    "rope.inv_freq": "rope.theta",
    "rope.attention_factor": "rope.attention_factor",
    "rope.n_hat": "rope.n_hat",
    "rope.original_max_position_embeddings": "rope.switch",
    "see onnx": "",
}


@dataclass(frozen=True)
class Shape:
    """How a window's logits differ from the reference's, over its positions.

    Args:
        length: of the window, in tokens.
        regime: the set that the artifact must use there.
        kl_mean: KL(reference || artifact) in nats per token.
        positions: where it was looked at.
        kl: KL there.
        max_logit_diff: the largest logit difference there.
        words: the shape, in words.
    """

    length: int
    regime: str
    kl_mean: float
    positions: tuple[int, ...]
    kl: tuple[float, ...]
    max_logit_diff: tuple[float, ...]
    words: str


@dataclass(frozen=True)
class Trial:
    """The reference with one thing changed, against the artifact.

    Args:
        cause: what it stands for.
        change: in words.
        length: of the window, in tokens.
        kl_mean: KL(changed reference || artifact) in nats per token, over `Shape.kl_mean`'s window or its beginning.
        kl_unchanged: the same without the change.
    """

    cause: str
    change: str
    length: int
    kl_mean: float
    kl_unchanged: float


@dataclass(frozen=True)
class Part:
    """A part of the model by itself: the reference's, given the artifact's own state, against the artifact's.

    Args:
        name: `embeddings`, `layer 0` …, `head`.
        error: relative to what the part adds (root mean square over positions).
        error_at_start: the same at position 0, where no rotation and no score matters.
        differs: whether that is more than rounding.
    """

    name: str
    error: float
    error_at_start: float
    differs: bool


@dataclass(frozen=True)
class Explanation:
    """Why an artifact fails.

    Args:
        cause: a key of `CAUSES`.
        title: what is wrong.
        advice: what to do.
        where: layers and positions; empty where it is everywhere or not known.
        checks: failed checks that speak of this cause.
        evidence: what was measured, in sentences.
        shapes: over positions, a window each.
        trials: changes of the reference that come closest to the artifact, the closest first, for each window that differs.
        parts: every part of the model; empty where the runtime does not give hidden states.
    """

    cause: str
    title: str
    advice: str
    where: str = ""
    checks: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = ()
    trials: tuple[Trial, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def sentence(self) -> str:
        """What is wrong, and where."""
        return f"{self.title.removesuffix('.')}{f' ({self.where})' if self.where else ''}."
