"""What memory is free, what a process may take of it, and whether an estimate fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from longrope.errors import MissingRequirementError
from longrope.machine import SHARDED

# Part of the free memory that an estimate may fill; the rest is for the allocator and other processes.
FREE_SHARE = 0.8
# What a process takes beyond its tensors, bytes: Python, torch and the kernels' work space; on a GPU CUDA's context, the
# work space of its libraries, NCCL's buffers and the allocator's unused blocks. The first is measured by `make
# bench-search`, the second is an assumption.
HOST_RUNTIME = 350 << 20
GPU_RUNTIME = 2_000_000_000
# Where Linux says what a container may use, by version of its control groups: limit, use, and in a list of counters the
# part of the use that is reclaimed when it is needed.
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes in one process at the peak.

    Args:
        parts: name → bytes, the runtime included.
        checkpointing: activations are recomputed in backward.
        available: bytes free when it was made; None when unknown.
    """

    parts: Mapping[str, float]
    checkpointing: bool = False
    available: int | None = None

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the total is within `FREE_SHARE` of what is free; true when that is unknown."""
        return self.available is None or self.total <= FREE_SHARE * self.available

    def _summary(self, parts: Mapping[str, float], how: str = "") -> str:
        """The total, what is free, how, and the parts named, in GiB."""
        free = f" of {self.available / 2**30:.1f} GiB free" if self.available is not None else ""
        named = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        return f"about {self.total / 2**30:.2f} GiB{free}{how} ({named})"


def require_memory(estimate: MemoryEstimate) -> None:
    """Raise MissingRequirementError when an estimate does not fit."""
    if not estimate.fits:
        raise MissingRequirementError(
            f"not enough memory for {estimate}; use a smaller dtype, a shorter target, or another machine"
        )


def runtime_bytes(device: str) -> int:
    """What a process on a device takes beyond its tensors."""
    return GPU_RUNTIME if device.startswith("cuda") else HOST_RUNTIME


def free_memory(device: str) -> int | None:
    """Bytes free on a device, what torch keeps for its own next use included; None when it does not say."""
    if device == SHARDED:
        places = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        return sum(free_memory(place) or 0 for place in places)
    if device.startswith("cuda"):
        card = torch.device(device)
        kept = torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card)
        return int(torch.cuda.mem_get_info(card)[0] + kept)
    return min(int(psutil.virtual_memory().available), container_memory()) if device == "cpu" else None


def container_memory(root: Path = CGROUPS) -> int:
    """Bytes that this container may still take; more than any machine has without a limit, or where none can be read."""
    for limit, used, counters, reclaimed in CGROUP_FILES:
        try:
            room = int((root / limit).read_text()) - int((root / used).read_text())
            counts = dict(line.split() for line in (root / counters).read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        return max(0, room + int(counts.get(reclaimed, 0)))
    return 1 << 62


def spread(device: str, workers: int) -> list[str]:
    """A device for every worker: the GPUs in turn for `cuda`, else the same for all."""
    if device != "cuda":
        return [device] * workers
    return [f"cuda:{index % max(1, torch.cuda.device_count())}" for index in range(workers)]


def free_for_each(devices: Sequence[str]) -> int | None:
    """Bytes that each of some processes, one per name, may count on; None when a device does not say."""
    free = {device: free_memory(device) for device in set(devices)}
    shares = [amount // count for device, count in Counter(devices).items() if (amount := free[device]) is not None]
    return min(shares, default=None)
