"""The kinds of files of somebody else: a sound room, which file of it is broken, and the commands that read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.common import PICO_BUDGET, TARGET, WINDOW, pico_factors, pico_folder, pico_text, run_cli
from tests.hostile.documents import Form, Gguf, Json, Lines, Onnx, Safetensors, Text

TO_HF = "convert ROOM/model --factors ROOM/factors.json -o OUT --to hf"
TO_GGUF = "convert ROOM/model --factors ROOM/factors.json -o OUT.gguf --to gguf"
SMALL = f"--text ROOM/text.txt --windows {WINDOW} --windows-per-length 1 --threads 1"
EXTEND = f"extend ROOM/model --target-length {TARGET} --text ROOM/text.txt {PICO_BUDGET} --formats hf"
EVAL = "eval ROOM/model --text ROOM/text.txt --windows 32 --windows-per-length 1 --threads 1"
SEARCH = f"search ROOM/model --target-length {TARGET} -o ROOM/found.json --text ROOM/text.txt --documents 1 --threads 1"


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Args:
        files: of the room, by the form they are broken in.
        commands: each reads them; OUT is a new name, removed afterwards.
        before: commands that make the file.
    """

    files: Mapping[str, Form]
    commands: Sequence[str]
    before: Sequence[str] = ()


_SIDE = {
    "model/README.md": Text(),
    "model/tokenizer_config.json": Json(),
    "model/special_tokens_map.json": Json(),
    "model/generation_config.json": Json(),
    "model/chat_template.jinja": Text(),
    "hf/longrope.json": Json(),
}
TARGETS: Mapping[str, Target] = {
    "factors": Target(
        {"factors.json": Json()},
        (
            "factors show ROOM/factors.json",
            "factors diff ROOM/factors.json ROOM/sound.json",
            "factors export ROOM/factors.json -o OUT --to config",
            "factors export ROOM/factors.json -o OUT --to gguf",
            TO_HF,
            TO_GGUF,
        ),
    ),
    "config": Target({"model/config.json": Json()}, ("inspect ROOM/model", "factors show ROOM/model/config.json")),
    "config-run": Target({"model/config.json": Json()}, (TO_HF, TO_GGUF, EVAL)),
    "artifact-config": Target(
        {"hf/config.json": Json()}, ("inspect ROOM/hf", "factors show ROOM/hf/config.json", "inspect ROOM/hf --json")
    ),
    "side-files": Target(_SIDE, (TO_HF, TO_GGUF, "inspect ROOM/hf")),
    "adapter": Target(
        {"adapter/adapter_config.json": Json()},
        ("inspect ROOM/adapter", "validate ROOM/adapter --reference ROOM/model --text ROOM/text.txt"),
    ),
    "safetensors": Target({"model/model.safetensors": Safetensors()}, ("inspect ROOM/model", TO_GGUF, TO_HF)),
    "shard-index": Target(
        {"shards/model.safetensors.index.json": Json()},
        ("inspect ROOM/shards", TO_HF.replace("ROOM/model", "ROOM/shards")),
    ),
    "tokenizer": Target({"model/tokenizer.json": Json(), "model/tokenizer_config.json": Json()}, (TO_GGUF, EVAL)),
    "stages": Target(
        {"stages.toml": Text()},
        (f"{EXTEND} -o OUT --plan --stages ROOM/stages.toml",),
    ),
    "recipe": Target({"recipe.yaml": Text()}, ("@recipe ROOM/recipe.yaml",)),
    "texts": Target(
        {"text.txt": Text(), "text.jsonl": Lines()},
        (EVAL, EVAL.replace("text.txt", "text.jsonl")),
    ),
    "tasks": Target(
        {"qa.jsonl": Lines()},
        ("eval ROOM/model --qa ROOM/qa.jsonl --task-windows 256 --max-new-tokens 1 --threads 1",),
    ),
    "journal": Target(
        {"found.json.journal/search.jsonl": Lines()},
        (f"{SEARCH} --max-evals 2 --resume --overwrite",),
        (f"{SEARCH} --max-evals 2",),
    ),
    "run": Target(
        {
            "run/run.json": Json(),
            "run/validation.json": Json(),
            "run/evaluation.json": Json(),
            "run/factors.json": Json(),
        },
        (
            "report ROOM/run -o OUT.html",
            "report ROOM/sound-run ROOM/run -o OUT.html",
            "card ROOM/run",
            "publish ROOM/run --repo-id a/b --dry-run --base-model c/d",
            "@resume ROOM/run",
            "@recipe ROOM/run/run.json",
        ),
    ),
    "training": Target(
        {"tuned.training/training.json": Json(), "tuned.training/log.jsonl": Lines()},
        (
            "finetune ROOM/model --factors ROOM/factors.json --text ROOM/text.txt -o ROOM/tuned --steps 2 --batch 1 "
            "--length 64 --threads 1 --save-every 1 --resume --overwrite",
        ),
        (
            "finetune ROOM/model --factors ROOM/factors.json --text ROOM/text.txt -o ROOM/tuned --steps 2 --batch 1 "
            "--length 64 --threads 1 --save-every 1",
        ),
    ),
    "gguf": Target(
        {"model.gguf": Gguf()},
        (
            "inspect ROOM/model.gguf",
            "factors show ROOM/model.gguf",
            "convert ROOM/model.gguf --factors ROOM/factors.json -o OUT --to hf",
            "patch ROOM/model.gguf --factors ROOM/factors.json -o OUT.gguf",
        ),
    ),
    "gguf-validate": Target(
        {"model.gguf": Gguf()},
        (f"validate ROOM/model.gguf --reference ROOM/model {SMALL}",),
    ),
    "imatrix": Target(
        {"imatrix.dat": Form(), "imatrix.gguf": Gguf()},
        (
            f"{TO_GGUF} --outtype q2_k_s --option imatrix=ROOM/imatrix.dat",
            f"{TO_GGUF} --outtype q2_k_s --option imatrix=ROOM/imatrix.gguf",
        ),
    ),
    "onnx": Target(
        {
            "onnx/model.onnx": Onnx(),
            "onnx/config.json": Json(),
            "onnx/genai_config.json": Json(),
        },
        (
            "inspect ROOM/onnx",
            "factors show ROOM/onnx",
            f"validate ROOM/onnx --reference ROOM/model {SMALL}",
        ),
    ),
    "csv": Target(
        {"factors.csv": Text()}, ("factors import ROOM/factors.csv -o OUT.json", "factors show ROOM/factors.csv")
    ),
}


def _stages_of(path: Path) -> None:
    from longrope.finetune.stages import read_plan_file

    read_plan_file(path).for_model(WINDOW, TARGET)


def _recipe_of(path: Path) -> None:
    from longrope.options import build, declared
    from longrope_export.commands.extend import ExtendRequest
    from longrope_export.recipes import with_recipe

    given = {"target-length": TARGET, **with_recipe({"model": str(path)}, declared(ExtendRequest))}
    build(ExtendRequest, {**given, "output": path.with_name("out")})


def _resume(path: Path) -> None:
    from longrope.options import build
    from longrope_export.commands.extend import ExtendRequest
    from longrope_export.preflight import check_run_folder

    values = {"model": "default", "target-length": TARGET, "output": path, "resume": True}
    request = build(ExtendRequest, values)
    check_run_folder(request, {})


# What a command reads before it does work that takes too long here: `@NAME PATH` in place of a command.
CALLS: Mapping[str, Callable[[Path], None]] = {"@stages": _stages_of, "@recipe": _recipe_of, "@resume": _resume}


def words(room: Path, command: str) -> list[str]:
    """A command's words with the room's paths."""
    return [word.replace("ROOM", str(room)).replace("OUT", str(room / "out")) for word in command.split()]


def make_room(room: Path, kinds: Sequence[str]) -> Path:
    """Sound files of these kinds, and all that they need."""
    model = pico_folder(room / "model")
    made = pico_factors()
    made.save(room / "factors.json")
    made.save(room / "sound.json")
    (room / "text.txt").write_text(pico_text(40), encoding="utf-8")
    (room / "text.jsonl").write_text("".join(json.dumps({"text": pico_text(12, n)}) + "\n" for n in range(3)))
    for kind in kinds:
        if kind in _MAKERS:
            _MAKERS[kind](room, model)
        for command in TARGETS[kind].before:
            done = run_cli(*words(room, command))
            assert done.code == 0, done.err
    return room


def _side_files(room: Path, model: Path) -> None:
    (model / "README.md").write_text(
        "---\nlicense: mit\nlanguage: en\ntags:\n- a\nbase_model: a/b\nmodel_name: c\n---\n# Model\n"
    )
    special = {name: {"content": "<|endoftext|>", "lstrip": False} for name in ("bos_token", "eos_token")}
    (model / "special_tokens_map.json").write_text(json.dumps(special))
    (model / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.5}')
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    _artifact(room, model)


def _artifact(room: Path, model: Path) -> None:
    if not (room / "hf").exists():
        assert run_cli(*words(room, TO_HF.replace("OUT", "ROOM/hf"))).code == 0


def _adapter(room: Path, model: Path) -> None:
    (room / "adapter").mkdir()
    (room / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b", "r": 8}')


def _shards(room: Path, model: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, room / "shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    table = {}
    for part, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / file)
        table |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": table})
    )


def _stages(room: Path, model: Path) -> None:
    (room / "stages.toml").write_text(
        'name = "two"\noriginal = 64\n\n[[stage]]\nlength = 128\nsteps = 1\nbatch = 1\nlearning_rate = 1e-4\n'
        'schedule = "cosine"\nshort_share = 0.25\nsequence_length = 64\nfactors = "search"\nmax_evals = 2\n\n'
        "[[stage]]\nlength = 256\nwarmup = 0\n"
    )


def _recipe(room: Path, model: Path) -> None:
    (room / "recipe.yaml").write_text(
        "model: model\ntarget-length: 256\ntext: text.txt\nformats: hf\nmax-evals: 2\ndocuments: 1\nshort-windows: 1\n"
        "windows-per-length: 1\nseed: 1\nfamily: free\nfactor-sets: single\nthreads: 1\n"
    )


def _tasks(room: Path, model: Path) -> None:
    rows = [{"context": pico_text(1, n), "question": "Why?", "answers": ["No", "Yes"]} for n in range(2)]
    (room / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(room: Path, model: Path) -> None:
    done = run_cli(*words(room, f"{EXTEND} -o ROOM/run"))
    assert done.code == 0, done.err
    rows = [
        {"length": 128, "depth": d, "samples": 2, "accuracy": 0.5, "answer_ppl": 2.0, "generated": None} for d in (0, 1)
    ]
    evaluation = {
        "schema_version": 1,
        "artifact": "hf",
        "perplexity": [{"length": 64, "windows": 1, "ppl": 3.0}],
        "passkey": rows,
    }
    (room / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    shutil.copytree(room / "run", room / "sound-run")


def _gguf(room: Path, model: Path) -> None:
    if not (room / "model.gguf").exists():
        command = TO_GGUF.replace("OUT.gguf", "ROOM/model.gguf --outtype f16")
        assert run_cli(*words(room, command)).code == 0


def _imatrix(room: Path, model: Path) -> None:
    import struct

    import numpy as np

    from converters.gguf.container import TensorInfo, text
    from converters.gguf.writing import Content, write_gguf

    values = np.ones(64, np.float32)
    name = b"blk.0.attn_q.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 2, len(values)) + values.tobytes()
    (room / "imatrix.dat").write_bytes(struct.pack("<i", 1) + entry)
    tensors = {f"{name.decode()}.in_sum2": values[None], f"{name.decode()}.counts": np.full((1, 1), 2, np.float32)}
    contents = [
        Content(TensorInfo(key, data.shape, 0), lambda data=data: iter((data,))) for key, data in tensors.items()
    ]
    write_gguf(room / "imatrix.gguf", {"general.type": text("imatrix")}, contents)


def _onnx(room: Path, model: Path) -> None:
    command = TO_HF.replace("OUT --to hf", "ROOM/onnx --to onnx")
    assert run_cli(*words(room, command)).code == 0


def _csv(room: Path, model: Path) -> None:
    row = ",".join(str(1 + n / 8) for n in range(8))
    (room / "factors.csv").write_text(f"{row}\n{row}\n")


_MAKERS: Mapping[str, Callable[[Path, Path], None]] = {
    "artifact-config": _artifact,
    "side-files": _side_files,
    "adapter": _adapter,
    "shard-index": _shards,
    "stages": _stages,
    "recipe": _recipe,
    "tasks": _tasks,
    "run": _run,
    "gguf": _gguf,
    "gguf-validate": _gguf,
    "imatrix": _imatrix,
    "onnx": _onnx,
    "csv": _csv,
}
