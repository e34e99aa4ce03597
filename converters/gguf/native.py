"""The two libraries of the extra `gguf`, and llama.cpp through ctypes: loading, splitting text, quantizing, its log.

Native code logs through a callback that Python has to keep alive; its lines are collected and shown only on failure.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrope.errors import InputError, MissingRequirementError

EXTRA = "gguf"


class OptionalLibrary:
    """A library of the extra `gguf`, imported when one of its names is first used.

    Importing `gguf` takes 40 ms; `--help`, and finding the format of a file, need none of it.

    Raises:
        MissingRequirementError: on use, when it cannot be imported; names the pip command.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def require(self) -> ModuleType:
        """The module."""
        try:
            return importlib.import_module(self._name)
        except ImportError as error:
            raise MissingRequirementError(
                f"GGUF needs the package {self._name!r}, which cannot be imported ({error}); "
                f"install it with: pip install 'longrope-export[{EXTRA}]'"
            ) from None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.require(), name)
        setattr(self, name, found)
        return found


gguf = OptionalLibrary("gguf")
llama_cpp = OptionalLibrary("llama_cpp")

Importance = dict[str, NDArray[np.float32]]
Load = Literal["all", "vocabulary", "skeleton"]
_LOG_LINES = 400
_FELL_BACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
_log: deque[str] = deque(maxlen=_LOG_LINES)


@cache
def llama() -> Any:
    """The bindings, with logs captured and the backend started."""
    library = llama_cpp.require()
    library.llama_log_set(_log_callback(), ctypes.c_void_p())
    library.llama_backend_init()
    return library


@cache
def ggml() -> Any:
    """The tensor library under llama.cpp, with the types of what is called in it."""
    library = importlib.import_module(f"{llama_cpp.require().__name__}._ggml").libggml
    sizes = [ctypes.c_int64] * 3  # first element, rows, columns
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_get_name.argtypes, library.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    library.ggml_nbytes.argtypes, library.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    to_host = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]  # tensor, to, first byte, bytes
    library.ggml_backend_tensor_get.argtypes, library.ggml_backend_tensor_get.restype = to_host, None
    return library


def reading_callback(wanted: Callable[[str], bool], found: dict[str, NDArray[np.float32]]) -> Any:
    """A context's `cb_eval` that copies tensors out while llama.cpp computes them.

    Args:
        wanted: whether a float32 tensor of this name is to be copied.
        found: where they go, flat, by name; of those of one name the last stays.
    """

    def read(tensor: int, ask: bool, _data: Any) -> bool:
        name = ggml().ggml_get_name(tensor).decode("utf-8", errors="replace")
        if ask:
            return wanted(name)
        found[name] = np.empty(ggml().ggml_nbytes(tensor) // 4, dtype=np.float32)
        ggml().ggml_backend_tensor_get(tensor, found[name].ctypes.data, 0, found[name].nbytes)
        return True

    return llama().ggml_backend_sched_eval_callback(read)


@cache
def _log_callback() -> Any:
    def keep(_level: int, message: bytes, _data: Any) -> None:
        _log.append(message.decode("utf-8", errors="replace"))

    return llama_cpp.llama_log_callback(keep)


def clear_log() -> None:
    """Forget what llama.cpp logged before the work that comes now."""
    _log.clear()


def recent_log() -> str:
    """What llama.cpp logged lately."""
    return "".join(_log)


def _reason() -> str:
    """The line of the log that most likely says what went wrong."""
    lines = [line.strip() for line in recent_log().splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (telling or lines or ["its log is empty"])[0]


@contextmanager
def loaded_model(path: Path, *, load: Load = "all", name: str | None = None) -> Iterator[Any]:
    """A llama_model for the time of the block.

    Args:
        path: the file; the first one where it is split.
        load: "all"; "vocabulary", where the file need not have any tensor; or "skeleton", which checks keys, names and
            shapes of all tensors as a real load does, and reads none.
        name: for messages; None for the path.

    Raises:
        InputError: llama.cpp refuses the file; says why. The whole native log is a note on the error.
    """
    library = llama()
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only, params.no_alloc = load == "vocabulary", load == "skeleton"
    if params.no_alloc:
        params.load_mode = library.LLAMA_LOAD_MODE_NONE  # with a memory map llama.cpp aborts
    clear_log()
    model = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise failure(f"{name or path}: llama.cpp cannot load it")
    try:
        yield model
    finally:
        library.llama_model_free(model)


def failure(message: str) -> InputError:
    """An error with llama.cpp's reason in its line and the whole log as a note."""
    error = InputError(f"{message}: {_reason()}")
    error.add_note(recent_log())
    return error


def tokenize(model: Any, text: str) -> list[int]:
    """Token ids as llama.cpp makes them, with what it adds around a text, and control tokens in the text recognized."""
    library = llama()
    data = text.encode("utf-8")
    room = len(data) + 16
    buffer = (library.llama_token * room)()
    vocab = library.llama_model_get_vocab(model)
    count = library.llama_tokenize(vocab, data, len(data), buffer, room, True, True)
    if count < 0:
        raise InputError(f"llama.cpp cannot tokenize {text[:40]!r}")
    return list(buffer[:count])


def quantize(source: Path, target: Path, file_type: str, *, importance: Importance | None, threads: int) -> int:
    """Quantize a GGUF file of floats into another one.

    Args:
        file_type: name in gguf.LlamaFileType.
        importance: mean squared activation of every column, by tensor name; None without.
        threads: 0 for all there are.

    Returns:
        The number of tensors that llama.cpp gave another type than the mix's, because their rows do not divide into its
        blocks of 256.

    Raises:
        InputError: llama.cpp refuses; says why.
    """
    library = llama()
    params = library.llama_model_quantize_default_params()
    params.ftype = gguf.LlamaFileType[file_type]
    params.nthread = threads
    if importance:
        table = _native_table(importance)
        params.imatrix = table
    clear_log()
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise failure(f"llama.cpp cannot quantize to {file_type}")
    found = _FELL_BACK.search(recent_log())
    return int(found[1]) if found else 0


def _native_table(importance: Importance) -> Any:
    """The importance matrix as a C array that ends with an empty entry; it refers to numpy's memory."""
    entry = llama().llama_model_imatrix_data
    rows = [
        entry(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
        for name, values in importance.items()
    ]
    return (entry * (len(rows) + 1))(*rows, entry(None, None, 0))
