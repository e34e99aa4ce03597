"""A model's passes kept between calls: its last hidden states, in the user's cache folder.

    tokens, factor set ─┐
    PassCache.of(...) ──┴─SHA-256──► FOLDER/HASH.safetensors: hidden states [T, D]

A pass through the layers is most of what a window costs; the logits are made of its hidden states anew, since those of a
window of 16,384 tokens and 49 thousand words take 3.2 GB and the hidden states 38 MB. What a pass depends on is in its
name: every byte of the weights, the configuration, the factors, the tokens, and all of the machine and the versions that
could change the last bit. Files are read without pickle; one that does not hold what was written is measured anew. Of
the folder's other files none is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.errors import LongRopeError
from longrope.files import sha256_of, write_atomically
from longrope.provenance import processor, versions
from longrope.reading import said_by
from longrope.text import TokenIds
from longrope.unfinished import is_abandoned, is_partial, remove

if TYPE_CHECKING:
    from torch import Tensor

    from longrope.checkpoint import Checkpoint
    from longrope.factors import BoundFactors, FactorSet

# A folder in the place of the user's; empty for no cache at all.
VARIABLE = "LONGROPE_CACHE"
# Of all files together; those that were not used for longest make room.
LIMIT = 4 * 2**30
_STATES, _DIGEST = "hidden_states", "sha256"
_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


def cache_folder() -> Path | None:
    """Where passes are kept: what `VARIABLE` says, or the user's cache folder by the system's custom; None for nowhere."""
    if (given := os.environ.get(VARIABLE)) is not None:
        # pathlib's raises where there is no home
        return Path(os.path.expanduser(given)) if given else None  # noqa: PTH111
    from platformdirs import user_cache_path

    return user_cache_path("longrope-export", appauthor=False) / "passes"


class PassCache:
    """Passes of one model.

    Args:
        folder: where they lie.
        about: all that they depend on, beside the tokens and the set: JSON-able.

    Attributes:
        found, missing: passes that were there, and that were not.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.found, self.missing = folder, 0, 0
        self._about = hashlib.sha256(json.dumps(about, sort_keys=True).encode())

    @classmethod
    def of(cls, checkpoint: Checkpoint, factors: BoundFactors, *, dtype: str, device: str, folder: Path) -> PassCache:
        """The passes of `build_model(checkpoint, factors, dtype=…, device=…)` on this machine, with torch's threads now."""
        import torch

        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        chips = [platform.machine(), processor(), torch.backends.cpu.get_cpu_capability(), *gpus]
        says = factors.to_json()
        about = {
            "weights": [sha256_of(file) for file in checkpoint.weight_files],
            "config": checkpoint.whole_config,
            "factors": {name: value for name, value in says.items() if name not in ("provenance", "base")},
            "dtype": dtype,
            "device": [device, *chips, torch.get_num_threads(), _products()],
            "versions": versions(),
            "engine": [sha256_of(file) for file in sorted(Path(__file__).parent.rglob("*.py"))],  # between two versions
        }
        return cls(folder, about)

    def get(self, ids: TokenIds, factor_set: FactorSet) -> Tensor | None:
        """Hidden states [T, D] of one window [T], as they came; None where they are not there."""
        states = self._read(self._path(ids, factor_set))
        if states is None or states.ndim != 2 or len(states) != len(ids):
            self.missing += 1
            return None
        self.found += 1
        return states

    def put(self, ids: TokenIds, factor_set: FactorSet, states: Tensor) -> None:
        """Keep the hidden states [T, D] of a window; what does not fit, or cannot be written, is not kept."""
        from safetensors.torch import save

        kept_TD = states.cpu().contiguous()
        size = kept_TD.numel() * kept_TD.element_size()
        with suppress(OSError, LongRopeError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if size <= min(LIMIT, shutil.disk_usage(self.folder).free // 2):
                self._make_room(size)
                data = save({_STATES: kept_TD}, {_DIGEST: _digest(kept_TD)})
                write_atomically(self._path(ids, factor_set), data)

    def _read(self, path: Path) -> Tensor | None:
        """The states in a file, as they were put; None where it is not there, or holds anything else."""
        from safetensors import safe_open

        with suppress(LongRopeError, OSError), said_by("safetensors", path.name):
            if not path.is_file() or path.stat().st_size > LIMIT:
                return None
            with safe_open(path, framework="pt") as file:
                # Memory of its own: products of what lies elsewhere than torch would put it differ in their last bit.
                states: Tensor = file.get_tensor(_STATES).clone()
                if _digest(states) != (file.metadata() or {}).get(_DIGEST):
                    return None
            with suppress(OSError):
                path.touch()  # of a folder that is not ours to write the files can be read all the same
            return states
        return None

    def _path(self, ids: TokenIds, factor_set: FactorSet) -> Path:
        digest = self._about.copy()
        digest.update(f"{factor_set} {len(ids)} ".encode())
        digest.update(ids.astype("<i8").tobytes())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _make_room(self, size: int) -> None:
        """Remove what was not used for longest until `size` bytes more keep the limit, and what dead processes left."""
        files = list(self.folder.iterdir())
        for path in files:
            if is_partial(path) and is_abandoned(path):
                remove(path)
        kept = [(path.lstat(), path) for path in files if _FILE.fullmatch(path.name) and path.is_file()]
        taken = sum(stat.st_size for stat, _ in kept)
        for stat, path in sorted(kept, key=lambda each: each[0].st_mtime):
            if taken + size <= LIMIT:
                return
            path.unlink(missing_ok=True)
            taken -= stat.st_size


def _digest(states_TD: Tensor) -> str:
    """SHA-256 of a tensor's numbers."""
    import torch

    return hashlib.sha256(states_TD.view(torch.uint8).numpy().data).hexdigest()


def _products() -> str:
    """How torch multiplies numbers of float32, which its user may have changed."""
    import torch

    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by newer names, which the old one cannot say
        backends: Any = torch.backends
        return f"{backends.cuda.matmul.fp32_precision} {backends.mkldnn.matmul.fp32_precision}"
