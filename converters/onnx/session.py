"""One onnxruntime session over an artifact: passes of new tokens, with the cache kept in onnxruntime's memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from converters.onnx.names import BATCH, LOGITS_TO_KEEP, PAST, TOTAL_LENGTH, locate
from longrope.errors import InputError, MissingRequirementError
from longrope.sources import Rows
from longrope.text import TokenIds

Cache = dict[str, Any]
# Before it, Attention gave wrong logits without a word: all of them in 1.23, those with a soft cap up to 1.26.
MINIMUM_VERSION = (1, 28)
NUMPY_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxSession:
    """An open artifact.

    Args:
        path: the folder or model file.
        threads: None for one a core.
        also: values of the graph that passes give out, too.

    Attributes:
        switches: the graph takes `rope_total_length`: it has two sets.
        vocab_size: V.

    Raises:
        InputError: onnxruntime does not open it.
        MissingRequirementError: the CPU cannot run its weight type (bf16), or onnxruntime is too old to be right.
    """

    def __init__(self, path: Path, threads: int | None = None, also: Sequence[str] = ()) -> None:
        self._session = _open(path, threads, also)
        self._past = [item for item in self._session.get_inputs() if item.name.startswith("past_")]
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._optional = {item.name for item in self._session.get_overridable_initializers()}
        self.switches = TOTAL_LENGTH in self._optional
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])

    def empty_cache(self) -> Cache:
        return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._empty(1).items()}

    def _empty(self, batch: int) -> dict[str, np.ndarray[Any, Any]]:
        """Caches without tokens, and states of zeros."""
        sizes: dict[Any, int] = {BATCH: batch, PAST: 0}
        return {
            item.name: np.zeros([sizes.get(size, size) for size in item.shape], dtype=NUMPY_TYPES[item.type])
            for item in self._past
        }

    def forward(
        self, ids: TokenIds, start: int, cache: Cache, total: int = 0, logits_to_keep: int = 0
    ) -> tuple[Rows, Cache]:
        """One pass over ids [t] at positions start … start + t - 1.

        Args:
            ids: new tokens.
            start: tokens in the cache.
            cache: from `empty_cache` or the last pass.
            total: length of the whole sequence, which decides the factor set; 0 lets the positions decide.
            logits_to_keep: how many of the last tokens' logits are wanted; 0 for all.

        Returns:
            logits [t, V] float32, or fewer rows where fewer are wanted and the graph can leave some out; the grown cache.
        """
        named = self._pass(ids, start, cache, total, logits_to_keep)
        grown = {item.name: named[present_name(item.name)] for item in self._past}
        return named["logits"].numpy()[0].astype(np.float32, copy=False), grown

    def values(self, names: Sequence[str], ids: TokenIds, total: int) -> list[Rows]:
        """Values [t, …] that the session was opened to give out, of a pass over ids [t] from position 0."""
        named = self._pass(ids, 0, self.empty_cache(), total, 1)
        return [named[name].numpy()[0].astype(np.float32, copy=False) for name in names]

    def _pass(self, ids: TokenIds, start: int, cache: Cache, total: int, logits_to_keep: int) -> dict[str, Any]:
        """All outputs of one pass by name."""
        feeds: dict[str, Any] = {
            "input_ids": np.asarray(ids, dtype=np.int64)[None],
            "attention_mask": np.ones((1, start + len(ids)), dtype=np.int64),
            "position_ids": np.arange(start, start + len(ids), dtype=np.int64)[None],
        }
        optional = {TOTAL_LENGTH: np.array([total]), LOGITS_TO_KEEP: np.array(logits_to_keep)}
        feeds |= {name: value for name, value in optional.items() if name in self._optional}
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        results = self._session.run_with_ort_values(self._outputs, {**values, **cache})
        return dict(zip(self._outputs, results, strict=True))

    def run(self, feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
        """Logits [B, T, V] of a batch from an empty cache, with any mask and positions."""
        feeds = {**feeds, **self._empty(len(feeds["input_ids"]))}
        logits: np.ndarray[Any, Any] = self._session.run(["logits"], feeds)[0]
        return logits


def present_name(past: str) -> str:
    """The output that a cache's input is fed from."""
    return past.replace("past_key_values", "present").replace("past_", "present_")


def _open(path: Path, threads: int | None, also: Sequence[str]) -> Any:
    _require_version(ort.__version__)
    file = locate(path)
    if file is None:
        raise InputError(f"{path}: expected an ONNX model or a folder with one, found none")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    model: str | bytes = str(file)
    if also:
        model = _with_outputs(file, also)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime raises a class of its own for every status
        if type(error).__name__ == "NotImplemented":
            raise MissingRequirementError(
                f"{file}: onnxruntime's CPU provider has no kernels for this weight type ({error}); run it on a GPU "
                "provider, or export f32, f16, int8 or int4"
            ) from None
        raise InputError(f"{file}: onnxruntime does not open it on the CPU: {error}") from None


def _with_outputs(file: Path, names: Sequence[str]) -> bytes:
    """A copy of a graph, its weights left where they are, that gives out these values, too."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    copied: bytes = model.SerializeToString()
    return copied


def _require_version(version: str) -> None:
    if tuple(map(int, version.split(".")[:2])) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise MissingRequirementError(
            f"onnxruntime {version} computes attention wrongly; expected {wanted} or later: "
            f"pip install 'onnxruntime>={wanted}'"
        )
