"""llama.cpp through ctypes: loading, logs, and what must be freed.

Native code logs through a callback that Python has to keep alive; its lines are collected and shown only on failure.
"""

from __future__ import annotations

import ctypes
import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from converters.gguf.library import llama_library
from longrope.errors import InputError

Load = Literal["all", "vocabulary", "skeleton"]
_LOG_LINES = 400
_log: deque[str] = deque(maxlen=_LOG_LINES)


@cache
def llama() -> Any:
    """The bindings, with logs captured and the backend started."""
    library = llama_library()
    library.llama_log_set(_log_callback(), ctypes.c_void_p())
    library.llama_backend_init()
    return library


@cache
def ggml() -> Any:
    """The tensor library under llama.cpp, with the types of what is called in it."""
    library = importlib.import_module(f"{llama_library().__name__}._ggml").libggml
    sizes = [ctypes.c_int64] * 3  # first element, rows, columns
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


@cache
def _log_callback() -> Any:
    def keep(level: int, message: bytes, data: Any) -> None:
        _log.append(message.decode("utf-8", errors="replace"))

    return llama_library().llama_log_callback(keep)


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
    return (telling or lines or ["it said nothing"])[0]


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


def tokenize(model: Any, text: str, *, add_special: bool = True) -> list[int]:
    """Token ids as llama.cpp makes them, with control tokens in the text recognized."""
    library = llama()
    data = text.encode("utf-8")
    room = len(data) + 16
    buffer = (library.llama_token * room)()
    vocab = library.llama_model_get_vocab(model)
    count = library.llama_tokenize(vocab, data, len(data), buffer, room, add_special, True)
    if count < 0:
        raise InputError(f"llama.cpp cannot tokenize {text[:40]!r}")
    return list(buffer[:count])
