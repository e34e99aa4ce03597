"""The options of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from longrope.errors import InputError
from longrope.factors import N_HAT_CHOICES, RescaleFactors
from longrope.family import FamilyName
from longrope.machine import AUTO, Dtype, Machine, device_option, resolve, seed_option, threads_option
from longrope.options import PATH, Fraction, Share, Tokens, check_declared, option
from longrope.search.strategies import NEED_GRADIENTS, TAKE_GRADIENTS, own_budget

if TYPE_CHECKING:
    from longrope.checkpoint import Checkpoint

ObjectiveName = Literal["perplexity", "needle", "mixed"]
Executor = Literal["local", "processes", "ray"]
FactorFile = Annotated[RescaleFactors, replace(PATH, name="FILE", load=RescaleFactors.load)]
# Options that may change when a run is resumed; how many workers it began with is in its journal's notes.
MACHINE_ONLY = ("device", "threads", "executor", "workers")


@dataclass(frozen=True)
class SearchOptions:
    """Every option of a search; the defaults are what most people want.

    Args:
        strategy: a name of `longrope.search.strategies.STRATEGIES`.
        max_evals: budget in full evaluations (all documents, L' tokens each); None for the strategy's own.
        seed: of every random draw.
        num_documents: windows of L' tokens that a candidate is measured on, 5 in the paper.
        n_hat: start tokens that are not rescaled: a number, or `search`.
        attention_factor: `formula` (portable), `search` (some engines ignore it), or a number.
        objective: `perplexity` of whole windows, `needle` (a passkey in real text, only the answer counts), or `mixed`.
        window_shares: (length, share) of further window lengths in the objective; the target keeps the rest.
        short_budget: largest rise of perplexity at the original window, as a fraction (0.01); None for no cap.
        num_short_windows: windows of L tokens that the rise is measured on.
        from_factors: second interpolation: search multipliers on top of these factors of an extended model.
        start_from: factors to start from beside PI, NTK and YaRN.
        family: `free` factors, or those of a few parameters that every engine computes: `yarn` or `linear`.
        dtype: `float32`, `bfloat16` or `float16`; `auto` for the checkpoint's own on a GPU, float32 on a CPU.
        device: a torch device; `auto` for the GPU when there is one.
        threads: torch's threads in each process; None for torch's own choice here, and one in worker processes.
        executor: `local` (this process), `processes` (one per device), or `ray` (actors on many machines).
        workers: number of processes or actors; on a GPU, as many devices are used in turn. `auto` takes so many gradients a
            step and races so many candidates, so that another number finds other factors; the same number the same ones.

    Raises:
        InputError: a number is out of range.
    """

    strategy: str = option(
        "auto",
        section="Search",
        metavar="NAME",
        help="Search strategy: auto, cma, dim_mono, dim_piece_mono, evolution, gradient, longrope2 or seeds.",
    )
    max_evals: int | None = option(
        None, section="Search", minimum=1, unset="the strategy's own", help="Budget of the search, in evaluations."
    )
    num_documents: int = option(
        5, name="documents", section="Search", minimum=1, help="Documents that every candidate is measured on."
    )
    short_budget: Fraction | None = option(
        None,
        section="Search",
        unset="no cap",
        help="Largest rise of perplexity at the original window, such as 1%.",
    )
    objective: ObjectiveName = option(
        "perplexity",
        help="Objective of the search: perplexity of whole windows, of a needle's answer, or both mixed.",
    )
    window_shares: tuple[tuple[Tokens, Share], ...] = option(
        (), name="window-share", help="A further window length and its share in the objective; repeatable."
    )
    start_from: tuple[FactorFile, ...] = option(
        (), help="Factor file that the search starts from, beside the known methods; repeatable."
    )
    from_factors: FactorFile | None = option(
        None, name="from", help="Factor file to search on top of, for a second interpolation."
    )
    n_hat: int | Literal["search"] = option(
        0,
        section="Factors",
        minimum=0,
        help=f"Start tokens that are not rescaled: a number, or search, which tries {', '.join(map(str, N_HAT_CHOICES))}.",
    )
    attention_factor: float | Literal["formula", "search"] = option(
        "formula",
        section="Factors",
        above=0,
        help="Attention factor: formula (portable), search or a number; vLLM and others ignore what is not the formula's.",
    )
    family: FamilyName = option(
        "free",
        section="Factors",
        help="Rescaling to search: free factors, one per rotary pair, or the parameters of yarn or linear, which engines "
        "that hold no factors compute, too.",
    )
    num_short_windows: int = 16
    dtype: Dtype = option(
        AUTO,
        section="Machine",
        help="Precision of the model's forward passes: auto is the checkpoint's own on a GPU, float32 on a CPU.",
    )
    device: str = device_option()
    threads: int | None = threads_option()
    seed: int = seed_option()
    executor: Executor = option(
        "local", help="Where candidates are measured: in this process, in one process a device, or in Ray actors."
    )
    workers: int = option(
        1,
        minimum=1,
        help="Processes or actors that measure candidates, with one thread each unless --threads says more.",
    )

    def __post_init__(self) -> None:
        check_declared(self)
        if self.num_short_windows < 1:
            raise InputError(f"num_short_windows: expected a number above 0, got {self.num_short_windows}")
        shares = [share for _, share in self.window_shares]
        if sum(shares) >= 1 or any(share <= 0 for share in shares):
            raise InputError(f"window shares: expected shares above 0, below 1 in all, got {self.window_shares}")
        if self.family != "free":
            self._check_family()
        if self.workers > 1 and self.executor == "local":
            raise InputError(f"{self.workers} workers need executor processes or ray, got local")

    def _check_family(self) -> None:
        """Refuse what a family of parameters has no place for."""
        linear_attention = self.family == "linear" and self.attention_factor != "formula"
        refused = {
            f"strategy {self.strategy}: a family has its own search, auto": self.strategy != "auto",
            f"n_hat {self.n_hat}: no engine leaves start tokens unscaled": self.n_hat != 0,
            "from: parameters replace those that are there": self.from_factors is not None,
            "start-from: free factors are not points of a family": bool(self.start_from),
            f"attention factor {self.attention_factor}: linear interpolation has none": linear_attention,
        }
        for reason in (reason for reason, holds in refused.items() if holds):
            raise InputError(f"family {self.family} with {reason}")

    def on(self, checkpoint: Checkpoint) -> Self:
        """The same with `auto` made plain for a checkpoint on this machine."""
        device, dtype = resolve(self.device, self.dtype, checkpoint)
        return replace(self, device=device, dtype=dtype)

    @property
    def machine(self) -> Machine:
        return Machine(self.device, self.dtype, self.threads)

    @property
    def takes_gradients(self) -> bool:
        """Whether the strategy takes gradients where they fit into memory."""
        return self.strategy in TAKE_GRADIENTS and self.family == "free"

    @property
    def needs_gradients(self) -> bool:
        """Whether the strategy cannot do without gradients."""
        return self.strategy in NEED_GRADIENTS

    def evaluations(self, target_length: int) -> int:
        """The budget in full evaluations: as given, or the strategy's own."""
        return self.max_evals or own_budget(self.strategy, target_length)

    def evaluation_tokens(self, original: int, target_length: int) -> int:
        """Tokens that a full evaluation reads: windows of L' tokens, of other lengths, and of L under a short budget."""
        tokens = self.num_documents * (target_length + sum(length for length, _ in self.window_shares))
        return tokens if self.short_budget is None else tokens + self.num_short_windows * original

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON: for the journal's header and for provenance. The machine does not."""
        data = asdict(self)
        data["from_factors"] = self.from_factors.to_json() if self.from_factors else None
        data["start_from"] = [factors.to_json() for factors in self.start_from]
        return {name: value for name, value in data.items() if name not in MACHINE_ONLY}
