"""Convert and validate in one call each: what notebooks use and the command line wraps.

checkpoint, factors ──────convert──► artifact, read back
artifact, reference, texts ─validate─► Validation: static checks, then its runtime against the reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import registry
from converters.base import Check, Export
from converters.expectations import expected_factors
from converters.isolation import Isolate, workplace_for
from longrope.checkpoint import Checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.machine import resolve_device
from longrope.progress import Progress, Silent
from longrope.provenance import provenance
from longrope.text import Corpus

if TYPE_CHECKING:
    from converters.parity import Validation  # imports torch, which writing a file does not need


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote.

    Args:
        path: the artifact, of a split one its first part; a single-file format names it itself in a folder.
        checks: the read-back checks, none of them failed.
        files: the artifact's folder or its files, all parts of a split one.
    """

    path: Path
    checks: Sequence[Check]
    files: tuple[Path, ...]


def convert(
    checkpoint: Checkpoint,
    output: str | Path,
    *,
    to: str,
    factors: RescaleFactors | None = None,
    factor_sets: str = "auto",
    outtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write one artifact with its factors inside, read everything back, and only then give it its name.

    Args:
        checkpoint: the source model.
        output: file or folder to write; a folder that exists takes a single-file format's own name.
        to: `hf`, `gguf`, `onnx`, or a format that another distribution registered.
        factors: rotary_dim / 2 factors a set; None for the checkpoint's own.
        factor_sets: `single`, `dual`, or `auto` for the format's preference.
        outtype: weight type, a name the format knows; None for its default.
        options: the format's own options.
        overwrite: replace what is at `output`.
        progress: where bars and warnings go; None for nowhere.

    Raises:
        InputError: there are no factors, they contradict the model, or the output exists.
        MissingRequirementError: a library of the format is missing.
        UnsupportedError: the format cannot express the model or the factors.
        FailedReadBackError: what was written is not what was asked; nothing is left behind.
    """
    progress, output = progress or Silent(), Path(output)
    converter = registry.converter(to)
    known = checkpoint.bind(factors) if factors is not None else checkpoint.factors
    if known is None:
        raise InputError(f"{checkpoint.name} has no rescale factors of its own, and none were given")
    chosen = converter.choose_sets(known, factor_sets, checkpoint)
    converter.check_requirements()
    planned = converter.plan(Export(checkpoint, chosen, outtype, options or {}))
    for oddity in (*checkpoint.oddities(), *planned.oddities, *chosen.oddities()):
        progress.warn(oddity)
    path = output / planned.file_name if converter.suffix and output.is_dir() else output
    checks = planned.save(path, progress, overwrite=overwrite)
    files = converter.files_of(path)
    return Conversion(files[0], checks, files)


def validate(
    artifact: str | Path,
    reference: Checkpoint,
    corpus: Corpus | None,
    *,
    factors: RescaleFactors | None = None,
    factor_sets: str = "auto",
    windows: Sequence[int] = (),
    windows_per_length: int = 4,
    crossing: bool = True,
    device: str = "auto",
    threads: int | None = None,
    isolate: Isolate = "auto",
    progress: Progress | None = None,
) -> Validation:
    """Check one artifact's keys, tensors, factors and weights, then compare its runtime's logits with the reference's.

    Args:
        artifact: a Hugging Face folder, a `.gguf` file or an ONNX folder.
        reference: the model it was made from, extended or not; it runs in transformers, float32.
        corpus: token ids to compare on; None for the static checks alone, with a skipped check `FORMAT.parity`.
        factors: what the artifact must carry; None for the reference's, or else what its exporter recorded in it.
        factor_sets: `single` or `dual` where the artifact must have that; `auto` takes what it has.
        windows: lengths in tokens; empty for the original window and the target.
        windows_per_length: at most so many windows of each length.
        crossing: decode token by token across the original window, too.
        device: torch device of the reference; `auto` is the GPU when there is one.
        threads: CPU threads of every runtime; None for their defaults.
        isolate: whether its runtime gets a process of its own, with limits; `auto`: llama.cpp and onnxruntime do.
        progress: where bars and warnings go; None for nowhere.

    Returns:
        Every check with its id, and for each window perplexities (per token), KL(reference || artifact) in nats per
        token, top-1 agreement (0 … 1) and the largest logit difference.

    Raises:
        InputError: no such artifact, a window that no document is long enough for, other vocabularies.
        MissingRequirementError: a library of the format is missing.
    """
    path = Path(artifact)
    converter = registry.recognize(path)
    converter.check_requirements()
    opened = workplace_for(converter, path, isolate) if corpus is not None else None
    with opened or nullcontext() as workplace:  # starts while torch is being imported
        from converters.parity import Artifact, ValidateOptions, Validation, static_validation, validate_artifacts

        expectation = expected_factors(path, converter, reference, factors, factor_sets)
        if expectation is None:
            message = "neither the artifact nor the reference carries any, and none were given"
            check = Check(f"{converter.name}.factors", "fail", "rescale factors", None, message)
            return Validation(str(path), converter.name, reference.name, [check], provenance=provenance())
        options = ValidateOptions(
            windows=tuple(windows) or (expectation.factors.original, expectation.factors.target),
            windows_per_length=windows_per_length,
            crossing=crossing,
            threads=threads,
            device=resolve_device(device),
        )
        judged = Artifact(path, converter, converter.plan_of(path, expectation.factors, reference), workplace=workplace)
        if corpus is None:
            result = static_validation(judged, reference, None)
            result.checks.append(Check(f"{converter.name}.parity", "skip", message="not run: static checks only"))
        else:
            (result,) = validate_artifacts(
                [judged], reference, expectation.reference, corpus, options, progress or Silent()
            )
        result.checks = [*expectation.notes, *result.checks]
        return result
