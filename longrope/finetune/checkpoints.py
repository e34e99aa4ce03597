"""Checkpoints of a training run that outlive `kill -9` and a full disk, and any number of processes.

    checkpoints/step-00000040/            appears by one rename, after everything in it has been flushed to the disk
      tensors/shard-00001-….safetensors   trained weights and optimizer state, the parts of process 0
      tensors/shard-00002-….safetensors   the parts of process 1
      random-00000.json …                 random states of process 0 …
      state.json                          the caller's state, the optimizer's plain numbers

Tensors are torch.distributed.checkpoint's business, in its safetensors form: each file says which slice of which tensor it
holds, so any number of processes, sharded in whatever way, reads what it needs. Nothing is pickled. Frozen weights are not
saved: who resumes has the model they came from. Several machines need a file system that all of them see.
Before torch 2.8 that form cannot be spread over processes; there one process writes whole tensors by safetensors itself.
"""

from __future__ import annotations

import base64
import inspect
import json
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from longrope.errors import InputError, MissingRequirementError
from longrope.files import errors_of_writing, remove_partial, sync, write_atomically
from longrope.reading import COUNT, OBJECT, Kind, check, read_object, record, said_by, shown
from longrope.unfinished import PARTIAL
from longrope.weights import safetensors_header

CHECKPOINT_VERSION = 1
# A file is put together in memory before it is written.
FILE_BYTES = 512 << 20
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True)
_STEP = re.compile(r"step-(\d{8,})")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies under the run's folder of checkpoints."""
    return folder / f"step-{step:08d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step under a run's folder of checkpoints; None when there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], *, keep: int = 2
) -> None:
    """Write a checkpoint; all processes call it together.

    Args:
        folder: from `step_folder`; one that exists is replaced.
        model: sharded or not; its trained parameters are saved.
        optimizer: of these parameters.
        state: what the trainer wants back, as JSON: step, scheduler, data position.
        keep: so many of the newest checkpoints beside `folder` stay; the others are removed once this one is whole.

    Raises:
        MissingRequirementError: the disk is full or not writable, or not shared by all machines. Older checkpoints are as
            good as before, and nothing of this one is left.
    """
    rank, room = _rank(), folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        with _together(folder):
            if rank == 0:
                _make_room(room)
        with _together(folder):
            _check_shared(room)
            plain = _write_tensors(room / "tensors", model, optimizer)
            write_atomically(room / f"random-{rank:05d}.json", json.dumps(_random_states()))
        with _together(folder):
            if rank == 0:
                facts = {"version": CHECKPOINT_VERSION, "processes": _world_size()}
                content = json.dumps({**facts, "optimizer": plain, "state": dict(state)}, indent=1)
                write_atomically(room / "state.json", content)
                _publish(room, folder)
                _prune(folder.parent, keep)
    except BaseException:
        if rank == 0:
            shutil.rmtree(room, ignore_errors=True)
        raise


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, kind: Kind = OBJECT
) -> dict[str, Any]:
    """Put a checkpoint into a model, an optimizer and the random generators; all processes call it together.

    Args:
        folder: from `latest_checkpoint` or `step_folder`.
        model: as it was when saved, sharded over any number of processes.
        optimizer: a new one of the same kind and parameters.
        kind: of the state that was saved.

    Returns:
        The state that was saved.

    Raises:
        InputError: it is damaged, or is one of another model or optimizer.
    """
    content = _read_json(folder / "state.json")
    if content.get("version") != CHECKPOINT_VERSION:
        raise InputError(
            f"{folder}: expected a checkpoint of version {CHECKPOINT_VERSION}, got {shown(content.get('version'))}"
        )
    file = folder / "state.json"
    check(content, record({"optimizer": OBJECT, "processes": COUNT, "state": kind}), str(file))
    with said_by("torch's optimizer", str(file)):
        _read_tensors(folder, model, optimizer, content["optimizer"])
    _restore_random(folder, saved_by=content["processes"])
    state: dict[str, Any] = content["state"]
    return state


# -- tensors


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters by name, tied ones once; the live tensors, so that loading into them is loading the model."""
    return {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's live tensors, and its plain values; a new optimizer's state is made first."""
    flat: Mapping[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    tensors = {f"optimizer.{name}": value for name, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in flat.items() if not isinstance(value, Tensor)}


def _write_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    of_optimizer, plain = _optimizer_state(model, optimizer)
    tensors = {**_trained(model), **of_optimizer}
    if (storage := distributed_storage()) is None:
        _write_whole(folder, tensors)
    else:
        writer = storage.HuggingFaceStorageWriter(
            str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True
        )
        with _quiet():
            save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    sync(folder)
    return plain


def _read_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, plain: Mapping[str, Any]) -> None:
    for file in sorted((folder / "tensors").glob("*.safetensors")):
        safetensors_header(file)  # refuses what was cut
    of_optimizer, fresh = _optimizer_state(model, optimizer)
    if fresh.keys() != plain.keys():
        odd = sorted(fresh.keys() ^ plain.keys())[0]
        raise InputError(f"{folder}: is a checkpoint of another model or optimizer: they differ in {odd}")
    tensors = {**_trained(model), **of_optimizer}
    if (storage := distributed_storage()) is None:
        _read_whole(folder / "tensors", tensors)
        _set_groups(model, optimizer, plain)
        return
    reader = storage.HuggingFaceStorageReader(str(folder / "tensors"))
    try:
        with _quiet():
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise InputError(f"{folder}: is a checkpoint of another model or damaged: {_cause(error)}") from None
    flat: dict[str, Any] = {name.removeprefix("optimizer."): tensor for name, tensor in of_optimizer.items()}
    set_optimizer_state_dict(model, optimizer, {**flat, **plain}, options=_FLAT)


def distributed_storage() -> Any | None:
    """torch's module for safetensors files of tensors that are spread over processes; None in a torch without (2.6, 2.7)."""
    try:
        from torch.distributed.checkpoint import hf_storage
    except ImportError:
        return None
    taken = inspect.signature(hf_storage.HuggingFaceStorageWriter.__init__).parameters
    return hf_storage if "save_distributed" in taken else None


def _write_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """What one process holds, in files of safetensors."""
    folder.mkdir()
    numbers = _files(tensors)
    for number in sorted(set(numbers.values())):
        parts = {name: tensor.contiguous() for name, tensor in tensors.items() if numbers[name] == number}
        save_file(parts, folder / f"shard-{number:05d}.safetensors")


def _read_whole(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy files of `_write_whole` into live tensors of the same names and shapes. Raises InputError."""
    stored = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    for name, tensor in tensors.items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise InputError(f"{folder.parent}: is a checkpoint of another model or damaged: it has no such {name}")
        tensor.copy_(stored[name])


def _set_groups(model: nn.Module, optimizer: torch.optim.Optimizer, plain: Mapping[str, Any]) -> None:
    """Plain values of the optimizer's groups; its tensors are live. torch 2.6 cannot set them where weights are tied."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for group in optimizer.param_groups:
        prefixes = [f"param_groups.{name}." for parameter in group["params"] for name in names[parameter]]
        known = next(prefix for prefix in prefixes if f"{prefix}lr" in plain)
        group |= {key.removeprefix(known): value for key, value in plain.items() if key.startswith(known)}


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Name → number of the file it goes to, in each process: a file is put together in memory, so it must stay small."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // _world_size()
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice for its own formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- random states


def _random_states() -> dict[str, Any]:
    """States of the generators of torch (CPU and this process's device), numpy and Python."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    words = numpy_state["state"]
    return {
        "torch": _text(torch.get_rng_state()),
        "cuda": _text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "numpy": {**numpy_state, "state": {"key": words["key"].tolist(), "pos": words["pos"]}},
        "python": random.getstate(),
    }


def _restore_random(folder: Path, saved_by: int) -> None:
    """Go on where this process's generators were; a process that was not there is seeded from one that was, and its rank."""
    rank = _rank()
    file = folder / f"random-{rank % saved_by:05d}.json"
    with said_by("torch", f"{file}: damaged"):
        _set_random(_read_json(file))
    if rank >= saved_by:
        seed = int(torch.randint(2**31, ()).item()) + rank
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


def _set_random(states: Mapping[str, Any]) -> None:
    """Raises whatever torch, numpy and Python do on states that are none."""
    torch.set_rng_state(_bytes(states["torch"]))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(states["cuda"]))
    words = states["numpy"]["state"]
    np.random.set_state({**states["numpy"], "state": {**words, "key": np.asarray(words["key"], dtype=np.uint32)}})
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


# -- folders


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, by step."""
    found = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*") if (path / "state.json").is_file())
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _make_room(room: Path) -> None:
    """An empty folder for what is not finished; what killed runs left goes first, for it takes room."""
    room.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(room.parent)
    room.mkdir()


def _check_shared(room: Path) -> None:
    if not room.is_dir():
        raise MissingRequirementError(
            f"{room.parent}: process {_rank()} does not see what process 0 writes there; checkpoints of several machines "
            "need a file system that all of them share"
        )


def _publish(room: Path, folder: Path) -> None:
    """Flush and rename; a checkpoint of the same step is moved aside first, under a name that the next writer sweeps."""
    sync(room)
    if folder.exists():
        folder.replace(folder.with_name(f".{folder.name}.old{PARTIAL}"))
    room.replace(folder)
    sync(folder.parent)


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest; each is renamed first, so that a kill never leaves a half one that looks whole."""
    for old in _checkpoints(folder)[: -max(keep, 1)]:
        old.replace(old.with_name(f".{old.name}{PARTIAL}"))
    remove_partial(folder)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: expected a checkpoint, found no {path.name} in it")
    return read_object(path, f"{path}: damaged", non_finite=True)


# -- processes


@contextmanager
def _together(folder: Path) -> Iterator[None]:
    """A block that all processes leave well, or all with an error: who failed says why, the others that somebody did."""
    error: BaseException | None = None
    try:
        with errors_of_writing(folder), _plain_errors():
            yield
    except BaseException as caught:  # noqa: BLE001  raised again below, when the others know of it
        error = caught
    if not _all_well(error is None) and error is None:
        error = MissingRequirementError(f"{folder}: another process could not write its part; see its message")
    if error is not None:
        raise error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What torch wraps up, as what it was."""
    try:
        yield
    except CheckpointException as error:
        raise _cause(error) from None


def _cause(error: CheckpointException) -> BaseException:
    """This process's own failure, or the first one's."""
    failures = error.failures
    cause: BaseException = failures.get(_rank(), next(iter(failures.values())))[0]
    return cause


def _all_well(well: bool) -> bool:
    if not dist.is_initialized():
        return well
    on_gpu = dist.get_backend() == "nccl"
    flag = torch.tensor(int(well), device="cuda" if on_gpu else "cpu")
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
