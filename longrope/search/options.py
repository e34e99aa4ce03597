"""The options of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.search.measure import Machine
from longrope.search.strategies import NEED_GRADIENTS, TAKE_GRADIENTS, own_budget

ObjectiveName = Literal["perplexity", "needle", "mixed"]
Executor = Literal["local", "processes", "ray"]
OBJECTIVES, EXECUTORS = get_args(ObjectiveName), get_args(Executor)
# Options that may change when a run is resumed.
MACHINE_ONLY = ("device", "threads", "executor", "workers")


@dataclass(frozen=True)
class SearchOptions:
    """Everything a search can be told; the defaults are what most people want.

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
        dtype: `float32`, `bfloat16` or `float16`.
        device: a torch device.
        threads: torch's threads in each process; None for torch's own choice here, and one in worker processes.
        executor: `local` (this process), `processes` (one a device), or `ray` (actors on many machines).
        workers: number of processes or actors; on a GPU, as many devices are used in turn.

    Raises:
        InputError: a number is out of range.
    """

    strategy: str = "auto"
    max_evals: int | None = None
    seed: int = 0
    num_documents: int = 5
    n_hat: int | Literal["search"] = 0
    attention_factor: float | Literal["formula", "search"] = "formula"
    objective: ObjectiveName = "perplexity"
    window_shares: tuple[tuple[int, float], ...] = ()
    short_budget: float | None = None
    num_short_windows: int = 16
    from_factors: RescaleFactors | None = None
    start_from: tuple[RescaleFactors, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    executor: Executor = "local"
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("max_evals", "num_documents", "num_short_windows", "threads", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected a number above 0, got {value}")
        for name, known in (("objective", OBJECTIVES), ("executor", EXECUTORS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed: expected 0 … {2**32 - 1}, got {self.seed}")
        if self.short_budget is not None and not self.short_budget >= 0:
            raise InputError(f"short budget: expected a fraction of 0 or more, got {self.short_budget}")
        shares = [share for _, share in self.window_shares]
        if sum(shares) >= 1 or any(share <= 0 for share in shares):
            raise InputError(f"window shares: expected shares above 0, below 1 in all, got {self.window_shares}")
        if self.workers > 1 and self.executor == "local":
            raise InputError(f"{self.workers} workers need executor processes or ray, got local")

    @property
    def machine(self) -> Machine:
        return Machine(self.device, self.dtype, self.threads)

    @property
    def takes_gradients(self) -> bool:
        """Whether the strategy takes gradients where they fit into memory."""
        return self.strategy in TAKE_GRADIENTS

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
