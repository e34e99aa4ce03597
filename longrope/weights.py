"""The safetensors files of a folder: which of them transformers would load, what their tensors are called, what is packed.

    folder ──weight_files──► files with sound headers ──names_of──► name in the model → name in the file

Names that training tools leave (`_orig_mod.`, `module.`), and those of a model that was saved without its head, are mended
here, so that every format and the engine see the same model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from longrope.errors import InputError
from longrope.reading import (
    COUNT_OR_ZERO,
    TEXT,
    Kind,
    as_object,
    check,
    list_of,
    own_file,
    parsed_json,
    printable,
    read_object,
    record,
    refuse_pointer,
    shown,
    table_of,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# What DistributedDataParallel, Lightning and PEFT put before names, and torch.compile, FSDP and activation checkpointing
# into them; a causal model that is a part of another one has `model.` twice.
WRAPPERS = (
    r"^module\.",
    r"^_forward_module\.",
    r"^base_model\.model\.",
    r"^model\.(?=model\.|lm_head\.)",
    r"_orig_mod\.",
    r"_fsdp_wrapped_module\.",
    r"_checkpoint_wrapped_module\.",
)
BASE_PREFIX, BASE_EMBEDDING, HEAD = "model.", "embed_tokens.weight", "lm_head.weight"
_PLACED = ("lm_head.", BASE_PREFIX)
MAX_HEADER = 100 << 20  # the bound of the safetensors library itself
# Bytes of a tensor that are compared where the same tensor lies in two files.
_COMPARED = 1 << 14
# Bits of a number, by the format's name of its type.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_ENTRY = record(
    {
        "dtype": Kind(
            f"a type of safetensors ({', '.join(_BITS)})", lambda value: isinstance(value, str) and value in _BITS
        ),
        "shape": list_of(COUNT_OR_ZERO),
        "data_offsets": Kind(
            "two offsets",
            lambda value: isinstance(value, list) and len(value) == 2 and all(map(COUNT_OR_ZERO.fits, value)),
        ),
    }
)
_INDEX = record({"weight_map": table_of(TEXT)})
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


# -- headers


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: name → {dtype, shape, data_offsets}, checked against the file's size.

    Raises:
        InputError: truncated, a Git LFS pointer, or not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        refuse_pointer(start + file.read(128), str(path))
        if size < 8 or length > size - 8 or length > MAX_HEADER:
            raise InputError(
                f"{path}: truncated or not safetensors: its header says {length} bytes, the file has {size}"
            )
        file.seek(8)
        name = f"{path}: not a safetensors file: its header"
        header = as_object(parsed_json(file.read(length), name), name)
    check(header.pop("__metadata__", {}), table_of(TEXT), f"{name}: __metadata__")
    end = _end_of(check(header, table_of(_ENTRY), name), name)
    if size != 8 + length + end:
        raise InputError(f"{path}: truncated or damaged: expected {8 + length + end} bytes, got {size}")
    return header


def data_start(file: BinaryIO) -> int:
    """Where the bytes begin that `data_offsets` count from, of a safetensors file that was just opened."""
    return 8 + int.from_bytes(file.read(8), "little")


def _end_of(header: Mapping[str, Any], name: str) -> int:
    """Where the last tensor ends; all lie one behind the other, each as large as its shape says."""
    end = 0
    for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        size = math.prod(entry["shape"]) * _BITS[entry["dtype"]] / 8
        if (start, stop) != (end, end + size):
            raise InputError(
                f"{name}: {printable(tensor)}: expected {size:g} bytes from {end} on, for {entry['dtype']} of shape "
                f"{entry['shape']}, got {start} to {stop}"
            )
        end = stop
    return end


# -- files


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers loads: model.safetensors where it is there, else the shards of the index.

    Raises:
        InputError: none, broken ones, or a whole file beside complete shards with other weights.
    """
    whole, index = own_file(folder, SINGLE), own_file(folder, INDEX)
    if whole.is_file():
        safetensors_header(whole)
        _refuse_other_shards(whole, index)
        return (whole,)
    if not index.is_file():
        raise InputError(f"{folder}: {_why_no_weights(folder)}")
    files = _indexed_files(index)
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file, but the index names it")
        safetensors_header(own_file(folder, file.name))
    return files


def has_weights(folder: Path) -> bool:
    """Whether a folder has safetensors files that transformers would load."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _indexed_files(index: Path) -> tuple[Path, ...]:
    """The files that model.safetensors.index.json names."""
    names = list(check(read_object(index), _INDEX, str(index))["weight_map"].values())
    if not names:
        raise InputError(f"{index}: expected a weight_map of tensor names to files, got an empty one")
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise InputError(f"{index}: weight file {shown(name)} lies outside the folder; refused")
    return tuple(index.parent / name for name in sorted(set(names)))


def _refuse_other_shards(whole: Path, index: Path) -> None:
    """Two complete sets of weights in one folder must be the same one: some programs load the one, some the other."""
    if not index.is_file():
        return
    shards = [file for file in _indexed_files(index) if file != whole]
    if not shards or not all(file.is_file() for file in shards):
        return
    tensors = {name: (file, entry) for file in shards for name, entry in safetensors_header(file).items()}
    alone = safetensors_header(whole)
    same = set(alone) == set(tensors) and all(
        _same_tensor((whole, entry), tensors[name]) for name, entry in alone.items()
    )
    if not same:
        raise InputError(
            f"{whole.parent}: {SINGLE} and the shards of {INDEX} hold different weights; transformers would load "
            f"{SINGLE}, other programs the shards. Remove the one that is not meant"
        )


def _same_tensor(one: tuple[Path, Mapping[str, Any]], other: tuple[Path, Mapping[str, Any]]) -> bool:
    alike = all(one[1][key] == other[1][key] for key in ("dtype", "shape"))
    return alike and _ends(*one) == _ends(*other)


def _ends(file: Path, entry: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The first and the last bytes of a tensor."""
    start, end = entry["data_offsets"]
    with file.open("rb") as handle:
        base = data_start(handle)
        handle.seek(base + start)
        first = handle.read(min(_COMPARED, end - start))
        handle.seek(base + max(start, end - _COMPARED))
        return first, handle.read(min(_COMPARED, end - start))


def _why_no_weights(folder: Path) -> str:
    def first(*patterns: str) -> str:
        return next((path.name for pattern in patterns for path in sorted(folder.glob(pattern))), "")

    if shard := next((path.name for path in sorted(folder.iterdir()) if _SHARD.fullmatch(path.name)), ""):
        return (
            f"expected {INDEX} beside the shards ({shard}), found none; download it too, or save the model again with "
            "transformers' save_pretrained"
        )
    if file := first("consolidated*.safetensors", "consolidated*.pth"):
        return (
            f"only {file}, in the layout of the model's maker; download the repository's transformers files "
            f"({SINGLE} or {INDEX}), or convert it with the script of transformers for this model"
        )
    if file := first("*.onnx", "onnx/*.onnx"):
        return f"only an ONNX graph ({file}), which is no source of weights; take the model that it was exported from"
    if file := first("*.bin", "*.pt", "*.pth", "*.ckpt"):
        return f"only pickle weights ({file}), which can run code when loaded; convert them to safetensors first"
    neither = f"expected {SINGLE} or {INDEX}, found neither"
    if file := first("*.safetensors"):
        return f"{neither}, but {file}; if that is the whole model, call it {SINGLE}"
    if file := first("*.gguf"):
        return f"{neither}, but {file}; give the path of the GGUF file itself"
    if file := first("*.npz"):
        return f"{neither}, but {file}, which MLX wrote; take the model in the layout of transformers"
    return neither


def refuse_adapter(folder: Path, name: str) -> None:
    """Raise InputError for a folder that holds a LoRA adapter instead of a model, or beside one.

    transformers puts an adapter that lies there on top of the weights, or on those of the base that it names.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    base = read_object(file, f"{name}: adapter_config.json").get("base_model_name_or_path")
    of = f" for {shown(base)}" if isinstance(base, str) and base else ""
    if has_weights(folder):
        raise InputError(
            f"{name}: holds an adapter{of} beside the weights: transformers would put it on top of them, other programs "
            "would not. Remove adapter_config.json if it is not meant, else merge the adapter and take the merged folder"
        )
    raise InputError(
        f"{name}: holds an adapter{of}, not a model; merge it first (peft: AutoPeftModelForCausalLM.from_pretrained("
        "FOLDER).merge_and_unload().save_pretrained(MERGED), with the base model's tokenizer), and take the merged folder"
    )


# -- numbers

# Numbers of a type, as whole numbers: their numpy type, and the bits of the exponent, all set where one is not finite.
_BIT_PATTERNS: Mapping[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
# Of a larger tensor, so many parts of so many bytes are looked at, evenly spread.
_PARTS, _PART_BYTES = 16, 1 << 12


def require_finite(file: Path, header: Mapping[str, Any]) -> None:
    """Refuse weights that hold NaN or infinity, by a sample of every tensor; all of it up to 64 KiB.

    Looking at every number would take a third of the time in which they are copied. Where weights are converted to another
    type all of them are looked at (`refuse_non_finite`).

    Raises:
        InputError: names the tensor and the place.
    """
    with file.open("rb") as handle:
        base = data_start(handle)
        for name, entry in header.items():
            if entry["dtype"] not in _BIT_PATTERNS:
                continue
            begin, end = entry["data_offsets"]
            for start, count in _parts(end - begin):
                handle.seek(base + begin + start)
                numbers = np.frombuffer(handle.read(count), _BIT_PATTERNS[entry["dtype"]][0])
                refuse_non_finite(numbers, entry["dtype"], f"{file}: {printable(name)}", start // numbers.itemsize)


def _parts(size: int) -> Iterator[tuple[int, int]]:
    """Start and length, in bytes, of what is looked at of a tensor; starts are multiples of 8."""
    if size <= _PARTS * _PART_BYTES:
        yield 0, size
        return
    for part in range(_PARTS):
        yield (size - _PART_BYTES) * part // (_PARTS - 1) // 8 * 8, _PART_BYTES


def refuse_non_finite(numbers: NDArray[Any], dtype: str, name: str, first: int = 0) -> None:
    """Raise InputError where numbers of a safetensors type hold NaN or infinity.

    Args:
        numbers: as whole numbers of the type's width, or as floats of it.
        dtype: F64, F32, F16 or BF16.
        name: of the file and the tensor.
        first: place of the first number in the tensor.
    """
    kind, exponent = _BIT_PATTERNS[dtype]
    bits = numbers.reshape(-1).view(kind)
    negative = exponent | 1 << (8 * bits.itemsize - 1)
    if not bits.size or (bits.view(f"i{bits.itemsize}").max() < exponent and bits.max() < negative):
        return
    place = int(((bits & kind(exponent)) == exponent).argmax())
    raise InputError(
        f"{name}: number {first + place} is NaN or infinite; the model's training has failed, or a conversion has "
        "overflowed. Take weights that are finite"
    )


# -- names


def names_of(stored: Iterable[str], *, tied: bool = False) -> dict[str, str]:
    """Name in the files → name in the model.

    Args:
        stored: names in the files.
        tied: whether the output head is the embedding, so that the only one of both is the embedding: of two names of one
            tensor, safetensors' `save_model` keeps the first, which is the head's.

    Raises:
        InputError: two tensors would get one name.
    """
    wrapped = re.compile("|".join(WRAPPERS))
    plain = {name: wrapped.sub("", name) for name in stored}
    if BASE_EMBEDDING in plain.values():  # the model without its head
        plain = {name: new if new.startswith(_PLACED) else BASE_PREFIX + new for name, new in plain.items()}
    if tied and not any("embed" in new or "wte" in new for new in plain.values()):
        plain = {name: BASE_PREFIX + BASE_EMBEDDING if new == HEAD else new for name, new in plain.items()}
    owners: dict[str, str] = {}
    for name, new in plain.items():
        if (other := owners.setdefault(new, name)) != name:
            raise InputError(f"the weights {shown(other)} and {shown(name)} would both be called {shown(new)}")
    return plain


# -- quantized weights

_DEQUANTIZE: Mapping[str, str] = {
    "bitsandbytes": "from_pretrained(FOLDER).dequantize()",
    "fp8": "from_pretrained(FOLDER, quantization_config=FineGrainedFP8Config(dequantize=True))",
    "mxfp4": "from_pretrained(FOLDER, quantization_config=Mxfp4Config(dequantize=True))",
    "compressed-tensors": "from_pretrained(FOLDER, quantization_config=CompressedTensorsConfig(run_compressed=False))",
}


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """What config.json tells transformers of quantized weights; None when it says nothing."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    by_bits = next((name for name in ("load_in_4bit", "load_in_8bit") if settings.get(name)), None)
    return str(settings.get("quant_method") or ("bitsandbytes" if by_bits else "an unknown method"))


def is_packed(dtype: str) -> bool:
    """Whether a safetensors type holds something else than plain numbers of 16 bits or more."""
    return dtype not in FLOATS


def way_out_of(method: str) -> str:
    """How weights of a quantization method become plain floats."""
    how = _DEQUANTIZE.get(method)
    dequantize = f"dequantize it first (transformers: {how}, then save_pretrained), or " if how else ""
    return f"{dequantize}take the original model that was quantized"
