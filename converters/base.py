"""What every format does: plan without weights, write beside the target, read back, check, and only then rename.

Export ──Converter.plan──► PlannedExport ──write──► temporary path ──check──► rename
              │                  │
        refusals (exit 4)        └─with_factors──► the same export with other factors, nothing built again
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from converters.own_weights import WeightKind
from longrope.architectures import sliding_window_below
from longrope.base_rope import BaseRope
from longrope.checkpoint import Checkpoint, open_checkpoint, open_folder
from longrope.errors import InputError, LongRopeError, UnsupportedError
from longrope.factors import BoundFactors, FactorSets, RescaleFactors
from longrope.files import sha256_of, staged
from longrope.progress import Progress
from longrope.sources import Runtime

if TYPE_CHECKING:
    from longrope.scoring import LogitSource  # imports torch, which writing a file does not need

Factors = TypeVar("Factors", bound=RescaleFactors)
Status = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True)
class Check:
    """One finding about an artifact. Ids are stable and documented with the fault each one catches.

    Args:
        id: its name.
        status: what a policy makes of it.
        expected, actual: what was to be there, and what is.
        message: what it means.
        found: what it was before the policy; None for a check that the policy's limits or requirements make.
    """

    id: str
    status: Status
    expected: Any = None
    actual: Any = None
    message: str = ""
    found: Status | None = None

    @classmethod
    def equal(cls, id: str, expected: Any, actual: Any, message: str) -> Check:
        """Passes when both are equal; `message` says what it means when they are not."""
        ok = expected == actual
        return cls(id, "pass" if ok else "fail", expected, actual, "" if ok else message)

    @classmethod
    def equal_factors(cls, id: str, expected: Sequence[float], actual: Sequence[float] | None) -> Check:
        """Exact comparison of one factor set, None when it is missing; the message names the first pair that differs."""
        wanted = f"{len(expected)} factors"
        if actual is None:
            return cls(id, "fail", wanted, None, "the factors are not there")
        if len(actual) != len(expected):
            return cls(id, "fail", wanted, f"{len(actual)} factors", "they belong to another model")
        different = [pair for pair, (a, b) in enumerate(zip(expected, actual, strict=True)) if a != b]
        if not different:
            return cls(id, "pass", wanted, wanted)
        first = different[0]
        message = f"{len(different)} of {wanted} differ, the first at pair {first}"
        return cls(id, "fail", expected[first], actual[first], message)


@dataclass(frozen=True)
class RuntimeUse:
    """Which set a runtime uses when, in plain words, for `inspect`, the report and the model card.

    Args:
        runtime: its name.
        uses: which set, when.
        safe: whether a sequence may grow past the original window with a filled cache.
        advice: what to do, if anything.
        run: Markdown that starts it; `$repo` and the like stand for what the artifact itself does not know.
        run_local: the same for the artifact at `$path` on this machine; empty where there is no such way.
        checked: how this is known: with which version it was run, and how far off it was, or that it was read.
    """

    runtime: str
    uses: str
    safe: bool
    advice: str = ""
    run: str = ""
    run_local: str = ""
    checked: str = ""


@dataclass(frozen=True)
class Export:
    """What to write.

    Args:
        checkpoint: the source model.
        factors: with the factor sets that are to be written.
        outtype: weight type, a name the format knows; None for its default.
        options: the format's own options.
    """

    checkpoint: Checkpoint
    factors: BoundFactors
    outtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Record what an extension changes in the model beside its RoPE, in the provenance that every format keeps."""
        if widened := sliding_window_below(self.checkpoint.config, self.factors.target):
            said = f"all layers attend to everything; the model's attend to the last {widened} tokens (sliding_window)"
            noted = replace(self.factors, provenance={**self.factors.provenance, "attention": said})
            object.__setattr__(self, "factors", noted)


class PlannedExport(ABC):
    """One artifact, worked out from headers and not yet written: it names itself, writes itself and checks itself.

    Args:
        export: what is written.
    """

    def __init__(self, export: Export) -> None:
        self.export = export

    @property
    def file_name(self) -> str:
        """What a single-file artifact is called in a folder; empty for formats that are folders themselves."""
        return ""

    @property
    def oddities(self) -> Sequence[str]:
        """What of the source is not in the artifact, in words, to be said before it is written."""
        return ()

    @abstractmethod
    def with_factors(self, factors: BoundFactors) -> Self:
        """The same export with other factors of the same model; what does not depend on them is not built again.

        Raises:
            UnsupportedError: the format cannot hold these factors.
        """

    @abstractmethod
    def write(self, path: Path, progress: Progress) -> None:
        """Write the artifact under `path`, a temporary name."""

    @abstractmethod
    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        """Compare keys, tensors, factors and weights of an artifact with this plan, without running it.

        Args:
            path: the artifact, of this program or of another.
            sampled: weights may be sampled, for they were computed from the source a moment ago.
        """

    def own_weights(self, path: Path) -> Mapping[str, Any]:
        """The numbers in an artifact that its runtime computes with, as torch tensors by their name in the checkpoint.

        Raises:
            InputError: the artifact is broken.
            UnsupportedError: they cannot be told, or the model's class cannot hold them.
        """
        raise UnsupportedError("this format does not say which numbers its weights stand for")

    def save(self, path: Path, progress: Progress, *, overwrite: bool = False) -> list[Check]:
        """Write beside `path`, read back, and give it its name only when every check holds.

        Returns:
            The static checks, all of them without a failure.

        Raises:
            LongRopeError: what was written is not what was asked; nothing is left behind.
        """
        from converters.registry import wrote  # which imports this module

        with staged(path, overwrite=overwrite, is_ours=wrote) as temporary:
            self.write(temporary, progress)
            checks = self.check(temporary, sampled=True)
            failed = [check for check in checks if check.status == "fail"]
            if failed:
                raise FailedReadBackError(path, failed)
        for check in checks:
            if check.status == "warn":
                progress.warn(f"{path.name}: {check.message}")
        return checks


class UnreadableArtifact(PlannedExport):
    """Stands for the plan of an artifact that is too damaged to say which plan it follows: its one check fails.

    Args:
        export: the reference with the factors that the artifact must carry.
        format_name: of the artifact.
        error: what is wrong with it.
    """

    def __init__(self, export: Export, format_name: str, error: InputError) -> None:
        super().__init__(export)
        self.format_name, self.error = format_name, error

    def with_factors(self, factors: BoundFactors) -> UnreadableArtifact:
        return UnreadableArtifact(replace(self.export, factors=factors), self.format_name, self.error)

    def write(self, path: Path, progress: Progress) -> None:
        raise self.error

    def own_weights(self, path: Path) -> Mapping[str, Any]:
        raise self.error

    def check(self, path: Path, *, sampled: bool = False) -> list[Check]:
        return [Check(f"{self.format_name}.readable", "fail", "a sound artifact", "a broken one", str(self.error))]


class Converter(ABC):
    """One output format. Stateless; a subclass is registered by entry point `longrope_export.formats`.

    Attributes:
        name: what users call the format.
        suffix: of a single-file format ("" for folders).
        auto_factor_sets: what `--factor-sets auto` means here.
        outtypes: weight types it can write, the default first.
        extra: pip extra that brings its libraries; None when the core has them.
        runs_in_torch: whether `open_source` also takes `device` and `dtype`.
        foreign_runtime: whether the runtime is not Python, so that a bad artifact may end its process.
        hub_suffix: ends the name of the repository that takes this format's files; empty for the model's own.
    """

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    auto_factor_sets: ClassVar[FactorSets] = "single"
    outtypes: ClassVar[Sequence[str]] = ("auto",)
    extra: ClassVar[str | None] = None
    runs_in_torch: ClassVar[bool] = False
    foreign_runtime: ClassVar[bool] = True
    hub_suffix: ClassVar[str] = ""

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether `path` looks like an artifact of this format; looks at names and magic bytes only."""

    def wrote(self, path: Path) -> bool:
        """Whether `path` looks like an artifact that this converter wrote, so that it may be replaced."""
        return self.recognizes(path)

    @abstractmethod
    def check_requirements(self) -> None:
        """Raise MissingRequirementError, with the pip command, when a library is missing."""

    def check_reading(self) -> None:
        """The same for what reads headers alone, which may be less than what writes and runs artifacts."""
        self.check_requirements()

    @abstractmethod
    def plan(self, export: Export) -> PlannedExport:
        """Work out an export and validate everything that can be known without weights.

        Raises:
            UnsupportedError: the format cannot express this model, tokenizer, type or these factors.
        """

    @abstractmethod
    def plan_like(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> PlannedExport:
        """The plan that an artifact must follow: the reference with these factors, in the artifact's own type and options.

        Raises:
            InputError: the artifact does not say them, for it is broken.
        """

    @abstractmethod
    def read_factors(self, path: Path) -> RescaleFactors | None:
        """The factors in an artifact, exactly as stored; None when there are none.

        Raises:
            InputError: the artifact is broken.
        """

    def recorded_factors(self, path: Path) -> RescaleFactors | None:
        """The factors.json that our exporter recorded in the artifact beside the runtime's own fields; None without."""
        return None

    def base_rope(self, path: Path) -> BaseRope | None:
        """The RoPE of an artifact, and of one that was extended here the one below its factors; None where it does not say.

        Raises:
            InputError: the artifact is broken.
        """
        recorded = self.recorded_factors(path)
        return recorded.base if recorded is not None else None

    def own_checks(self, path: Path) -> list[Check]:
        """What is wrong with an artifact as far as that shows without its reference, for `inspect`; nothing is run.

        Raises:
            InputError: the artifact is broken.
        """
        return []

    def plan_of(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> PlannedExport:
        """`plan_like`, or for an artifact that is too damaged for it an `UnreadableArtifact`."""
        try:
            return self.plan_like(path, expected, reference)
        except InputError as error:
            return UnreadableArtifact(Export(reference, expected), self.name, error)

    def static_checks(self, path: Path, expected: BoundFactors, reference: Checkpoint) -> list[Check]:
        """Compare an artifact with what it must be (`PlannedExport.check`); one failed check when it cannot be read."""
        return self.plan_of(path, expected, reference).check(path)

    @abstractmethod
    def open_source(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None
    ) -> LogitSource:
        """The artifact in its own runtime, ready for windows of up to `max_length` tokens."""

    def open_runtime(
        self, path: Path, factors: BoundFactors | None, *, max_length: int, threads: int | None = None, **options: Any
    ) -> Runtime:
        """As `open_source`, in arrays; what a process of its own holds. Formats whose runtime needs no torch override it."""
        from converters.sources import SourceRuntime

        return SourceRuntime(self.open_source(path, factors, max_length=max_length, threads=threads, **options))

    def load_runtime(self) -> None:  # noqa: B027  most have nothing to do
        """Import what `open_runtime` will need."""

    def weight_kind(self, path: Path, reference: Checkpoint) -> WeightKind:
        """What the artifact's weight type does to the reference's weights. Raises InputError where it cannot be read."""
        return WeightKind("f32", rounded=False, arithmetic="f32")

    def files(self, path: Path) -> list[Path]:
        """Every file of an artifact, in order."""
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    def hashes(self, path: Path) -> dict[str, str]:
        """SHA-256 of every file of an artifact, by its place in the artifact's folder: which bytes a claim is about."""
        root = path if path.is_dir() else path.parent
        return {file.relative_to(root).as_posix(): sha256_of(file) for file in self.files(path)}

    def hub_files(self, path: Path, name: str) -> dict[str, Path | bytes]:
        """An artifact's files under the names that the Hub's viewers and runtimes look for, or bytes where they change.

        Args:
            path: the artifact.
            name: of the model, such as the second half of a repository's id.
        """
        root = path if path.is_dir() else path.parent
        files = {file.relative_to(root).as_posix(): file for file in self.files(path)}
        return {place: file for place, file in files.items() if not place.startswith(".") and "/." not in place}

    def metadata_strings(self, path: Path) -> dict[str, str]:
        """Texts in an artifact's binary metadata by key, the vocabulary left out: what may give away where it was made."""
        return {}

    def tokenizer_source(self, path: Path) -> Checkpoint:
        """The artifact as a checkpoint whose tokenizer and facts of config.json can be used."""
        return open_folder(path, needs_weights=False) if path.is_dir() else open_checkpoint(path)

    def runtime_uses(self, factors: RescaleFactors) -> list[RuntimeUse]:
        """Which runtime uses which set when; of factors as an artifact says them, too."""
        from converters.runtimes import runtime_uses  # which imports this module

        return runtime_uses(self.name, factors)

    @abstractmethod
    def describe(self, path: Path) -> dict[str, Any]:
        """Facts for `inspect`, JSON-able: architecture, weight types, lengths, provenance; where known, `parameters` (numbers
        in the weights) and `bytes` (of all weight files), and `tensor_types`, how many tensors have each type."""

    def preferred_sets(self, checkpoint: Checkpoint | None = None) -> FactorSets:
        """What `--factor-sets auto` means: `auto_factor_sets`, unless the format says otherwise of this model."""
        return self.auto_factor_sets

    def choose_sets(self, factors: Factors, factor_sets: str = "auto", checkpoint: Checkpoint | None = None) -> Factors:
        """`auto`: both sets where this format prefers that and there are two, else the long one. A given choice is honoured.

        Args:
            checkpoint: the model they are for; None where it is not known.

        Raises:
            UnsupportedError: `dual` was asked of a single set.
        """
        if factor_sets == "auto":
            return factors if self.preferred_sets(checkpoint) == "dual" else factors.as_single()
        return factors.with_sets(factor_sets)

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """The files or the folder that an artifact of this name consists of."""
        return (path,)

    def convert(self, export: Export, path: Path, progress: Progress, *, overwrite: bool = False) -> list[Check]:
        """Plan one artifact and save it; see `PlannedExport.save`."""
        self.check_requirements()
        return self.plan(export).save(path, progress, overwrite=overwrite)


def window_words(factors: RescaleFactors) -> str:
    """The original window in tokens, for a sentence; the letter L where the source does not say it."""
    return str(factors.original_max_position_embeddings or "L")


class FailedReadBackError(LongRopeError):
    """A converter read back something else than it was asked to write."""

    exit_code = 1

    def __init__(self, path: Path, failed: Sequence[Check]) -> None:
        first = failed[0]
        super().__init__(
            f"{path}: read-back failed ({len(failed)} checks), nothing was written. {first.id}: "
            f"expected {first.expected}, got {first.actual}. {first.message}"
        )
