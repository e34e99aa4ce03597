"""What published methods cost inside the original window, as `validate --quality` measures it: benchmarks/validation.md.

python -m benchmarks.bench_quality [MODEL TEXTS LENGTH …]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import say
from converters.judging import judge
from converters.measurements import Validation
from converters.policy import PRESETS
from longrope.checkpoint import Checkpoint
from longrope.factors import BoundFactors, RescaleFactors
from longrope.machine import Machine
from longrope.progress import Silent
from longrope.quality import QualityOptions, measure_quality
from longrope.search.methods import known_candidates
from longrope.text import load_corpus
from longrope_export import default_model
from longrope_export.models import open_model

WINDOWS = 8
HEADER = (
    "target",
    "extension",
    "inside, % ± s.e.",
    "KL inside",
    "beyond original, %",
    "beyond YaRN, %",
    "passkeys",
    "warned",
)


def main() -> None:
    """Print the table of one model, the built-in one if none is named."""
    name, texts, *lengths = sys.argv[1:] or ["default", str(default_model.TEST_TEXTS), "512", "1024", "2048"]
    checkpoint = open_model(name)
    corpus = load_corpus([Path(texts)], checkpoint.encode)
    say(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for length in map(int, lengths):
        for method, factors in extensions(checkpoint, length):
            (quality,) = measure_quality(
                checkpoint, [factors], corpus, QualityOptions(windows_per_length=WINDOWS), Machine(), Silent()
            )
            checks = judge(Validation("", "hf", "", quality=quality), PRESETS["default"])
            found = {check.id.removeprefix("quality."): check for check in checks}
            inside = found[f"inside.{checkpoint.window}"].actual
            beyond = [found[f"beyond.{other}.{length}"].actual["ppl_rise_percent"] for other in ("original", "YaRN")]
            passkeys = found.get(f"passkey.{length}")
            cells = [
                f"{length}",
                method,
                f"{inside['ppl_rise_percent']:+.2f} ± {inside['standard_error']:.2f}",
                f"{inside['kl_mean']:.3f}",
                *(f"{value:+.1f}" for value in beyond),
                "–" if passkeys is None else passkeys.actual["found"],
                ", ".join(id for id, check in found.items() if check.status in ("warn", "fail")) or "–",
            ]
            say(f"| {' | '.join(cells)} |")


def extensions(checkpoint: Checkpoint, target: int) -> Iterator[tuple[str, BoundFactors]]:
    """The published methods as a single set of factors."""
    for name in ("PI", "NTK", "YaRN 32/1"):
        rope = known_candidates(checkpoint, target)[name]
        given = RescaleFactors(
            rope.factors, rope.factors, attention_factor=rope.attention_factor, base=checkpoint.base_for(target)
        )
        yield name, checkpoint.bind(given, target=target)


if __name__ == "__main__":
    main()
