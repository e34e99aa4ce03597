"""Good artifacts, measured: `python -m benchmarks.bench_validation [--types NAME,NAME]`.

Formats × weight types × factor sets × model types, random weights: what arithmetic and rounding do to logits, where a
policy's limits come from, and which of these good artifacts a policy flags: none should be. The measurements go to
runs/bench/validation.json, which keeps those of other types, the table that benchmarks/validation.md quotes to the
terminal.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.figures import ROOT, say
from converters import registry
from converters.base import Export
from converters.judging import judge, judged
from converters.measurements import Validation, measured_of
from converters.policy import PRESETS
from converters.validation import validate_all
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import LongRopeError
from longrope.files import write_json
from longrope.measures import WindowScore
from longrope.progress import Silent
from tests.common import FEATURES, TARGET, pico_corpus, pico_factors, pico_folder

ROOM = ROOT / "runs" / "bench" / "validation"
RESULT = ROOT / "runs" / "bench" / "validation.json"
TYPES = ("llama", "qwen2_moe", "gemma", "phi3", "granite", "qwen3", "mixtral", "qwen2")
OUTTYPES = {
    "hf": ("auto", "f32", "bf16", "f16"),
    "gguf": ("f32", "f16", "bf16", "q8_0", "q5_1", "q4_0", "q6_k", "q4_k_m", "q2_k"),
    "onnx": ("f32", "f16", "int8", "int4"),  # onnxruntime runs bf16 on GPUs only
}
# Rows of a multiple of 256, which llama.cpp's mixed types need.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16, "num_key_value_heads": 4}
STATISTICS = ("kl_median", "kl_mean", "kl_p99", "kl_max", "ppl_delta_percent")


def calmer(folder: Path) -> Checkpoint:
    """The model with half its matrices' scale: wide random layers would make noise of any rounding."""
    path = folder / "model.safetensors"
    tensors = {name: tensor * (0.5 if tensor.ndim > 1 else 1.0) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return open_checkpoint(folder)


def artifacts(checkpoint: Checkpoint, room: Path, *, dual: bool) -> Iterator[Path]:
    """All artifacts of a model that its formats can express."""
    for format_name, outtypes in OUTTYPES.items():
        converter = registry.converter(format_name)
        for outtype in outtypes:
            name = f"{room.name}-{format_name}-{outtype}-{'dual' if dual else 'single'}{converter.suffix}"
            factors = checkpoint.bind(pico_factors(checkpoint.rotary_dim, dual=dual))
            try:
                converter.convert(Export(checkpoint, factors, outtype), room / name, Silent())
            except LongRopeError as error:
                say(f"  {name}: {error}")
            else:
                yield room / name


def measured(model_type: str) -> list[Validation]:
    """Every good artifact of a model type, measured."""
    room = ROOM / model_type
    shutil.rmtree(room, ignore_errors=True)
    pico_folder(room / "model", model_type, **{**FEATURES.get(model_type, {}), **SIZES})
    checkpoint = calmer(room / "model")
    corpus = pico_corpus(checkpoint)
    found: list[Validation] = []
    for dual in (False, True):
        mine = list(artifacts(checkpoint, room, dual=dual))
        factors = pico_factors(checkpoint.rotary_dim, dual=dual)
        found += validate_all(
            mine, checkpoint, corpus, factors=factors, windows=(64, TARGET), windows_per_length=2, threads=1
        )
    shutil.rmtree(room)
    return found


def kept(chosen: Sequence[str]) -> list[Validation]:
    """What an earlier call measured of other model types."""
    entries = json.loads(RESULT.read_text())["artifacts"] if RESULT.is_file() else []
    prefixes = tuple(f"{model_type}-" for model_type in chosen)
    return [measured_of(entry, str(RESULT)) for entry in entries if not entry["artifact"].startswith(prefixes)]


def groups(validations: Sequence[Validation]) -> dict[tuple[str, str], list[WindowScore]]:
    """Scores by what was compared and by arithmetic or weight type."""
    found: dict[tuple[str, str], list[WindowScore]] = defaultdict(list)
    for validation in validations:
        kind = validation.weights
        if kind is not None:
            windows = validation.runtime if kind.rounded else validation.windows
            dual_forward = validation.factor_sets == "dual" and bool(validation.stale)
            found["runtime", kind.arithmetic] += [
                score for score in windows if score.regime != "crossing" or not dual_forward
            ]
            found["rounding", kind.name] += validation.rounding
    return found


def print_table(validations: Sequence[Validation]) -> None:
    """For each group, the median and the largest of each statistic over artifacts and windows."""
    say(f"\n| compared | type | windows | {' | '.join(STATISTICS)} | top-1 | tied |")
    say("|---" * (5 + len(STATISTICS)) + "|")
    for (compared, name), scores in sorted(groups(validations).items()):
        if not scores:
            continue
        cells = []
        for statistic in STATISTICS:
            values = np.abs([getattr(score, statistic) for score in scores])
            cells.append(f"{np.median(values):.1e} / {values.max():.1e}")
        decided = [score.decided_agreements / max(score.tokens - score.tied, 1) for score in scores]
        tied = np.mean([score.tied / score.tokens for score in scores])
        say(f"| {compared} | {name} | {len(scores)} | {' | '.join(cells)} | {min(decided):.3f} | {100 * tied:.0f} % |")


def print_flagged(validations: Sequence[Validation]) -> None:
    """The good artifacts that a policy fails."""
    for name, policy in PRESETS.items():
        flagged = {}
        for validation in validations:
            failed = [check for check in judge(validation, policy) if check.status == "fail"]
            if failed:
                flagged[validation.artifact] = failed
        say(f"\n{name}: {len(flagged)} of {len(validations)} good artifacts are flagged")
        for artifact, failed in flagged.items():
            for check in failed[:3]:
                say(f"  {Path(artifact).name}: {check.id}: {check.actual} {check.message}")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--types", default=",".join(TYPES), help="model types, by comma")
    chosen = parser.parse_args().types.split(",")
    validations = kept(chosen)
    for model_type in chosen:
        say(model_type)
        validations += measured(model_type)
    write_json(
        RESULT, {"schema_version": 1, "artifacts": [judged(each, PRESETS["default"]).to_json() for each in validations]}
    )
    print_table(validations)
    print_flagged(validations)


if __name__ == "__main__":
    main()
