"""`longrope-export recover`: a short set for an extended model, compared on held-out text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.files import alone_in
from longrope.options import ModelName, Tokens, nested, option
from longrope.provenance import provenance
from longrope.search.options import SearchOptions
from longrope_export import options
from longrope_export.journals import journal_of, refuse_output

if TYPE_CHECKING:
    from longrope.progress import Progress
    from longrope.search import Recovery

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RecoverRequest:
    """The options of `recover`."""

    model: ModelName = option(argument=True, help="Extended model, or one that --factors extends.")
    window: Tokens = option(section="Input", help="Window to recover, in tokens.")
    texts: tuple[Path, ...] = options.texts(required=True)
    test_texts: tuple[Path, ...] = options.test_texts()
    original: Tokens | None = options.original()
    search: SearchOptions = nested(
        SearchOptions(max_evals=64), only=("max_evals", "dtype", "device", "threads", "seed")
    )
    factors: Path | None = option(
        None, section="Factors", unset="the model's own", help="File of the long set, where MODEL has none of its own."
    )
    stages: tuple[Path, ...] = option(
        (),
        name="from",
        section="Factors",
        help="Factors that MODEL was fine-tuned with: a starting point, and compared; repeatable.",
    )
    output: Path = options.output("File to write, factors.json, with both sets.")
    json_path: str | None = options.json_file()
    resume: bool = options.resume("Go on with the journal beside the output.")
    overwrite: bool = options.overwrite()


@options.command(RecoverRequest)
def command(request: RecoverRequest) -> int:
    """Search short-window factors for an extended MODEL and put them beside its long set.

    On held-out text they are compared with the original RoPE, the long set and, with --from, earlier stages' factors.
    """
    from longrope_export.console import ConsoleProgress, write_json
    from longrope_export.tables import print_recovery

    recovery = run_recover(request, ConsoleProgress())
    print_recovery(recovery, request.window, request.output, err=request.json_path == "-")
    write_json(recovery_json(request, recovery), request.json_path)
    return 0


def run_recover(request: RecoverRequest, progress: Progress) -> Recovery:
    """Search a short set, compare it on held-out text, and save both sets. The journal is kept in `OUTPUT.journal/`."""
    from longrope.search import recover_short
    from longrope.text import load_corpus
    from longrope_export.models import open_model
    from longrope_export.preflight import check_weights

    checkpoint = open_model(request.model, request.original)
    check_weights(checkpoint, progress)
    known = RescaleFactors.load(request.factors) if request.factors else checkpoint.factors
    if known is None:
        raise InputError(f"{request.model} has no rescale factors; pass --factors FACTORS.json")
    corpus = load_corpus(request.texts, checkpoint.encode)
    if request.test_texts:
        held_out = load_corpus(request.test_texts, checkpoint.encode)
    else:
        corpus, held_out = corpus.split()
    refuse_output(request.output, resume=request.resume, overwrite=request.overwrite)
    with alone_in(request.output):
        recovery = recover_short(
            checkpoint,
            corpus,
            known,
            window=request.window,
            options=request.search,
            journal_dir=journal_of(request.output),
            resume=request.resume,
            overwrite=request.overwrite,
            progress=progress,
            stages=_named(request.stages),
            held_out=held_out,
        )
        recovery.factors.save(request.output)
    return recovery


def recovery_json(request: RecoverRequest, recovery: Recovery) -> dict[str, Any]:
    """The versioned result of `recover`."""
    made = provenance(factors=str(request.output), seed=recovery.factors.provenance.get("seed"))
    return {
        "schema_version": SCHEMA_VERSION,
        "model": request.model,
        "window": request.window,
        **recovery.to_json(),
        "provenance": made,
    }


def _named(paths: Sequence[Path]) -> dict[str, RescaleFactors]:
    """Factor files by name, by their whole path where a name is there twice."""
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else str(path): RescaleFactors.load(path) for path in paths}
