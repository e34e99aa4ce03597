"""What dead processes have left under a folder and among the temporary files: found by name, and cleared away."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longrope.files import REPLACED, put_back
from longrope.locks import LOCK, is_held, is_lock, lock_file, remove_stale
from longrope.owners import Owner
from longrope.unfinished import PARTIAL, abandoned_temporaries, remove

# A checkpoint that is being written by all processes of a training run, under RUN/checkpoints.
_CHECKPOINT = re.compile(rf"\.step-\d{{8,}}(\.old)?{re.escape(PARTIAL)}")
Kind = Literal["partial", "lock", "replaced", "temporary"]


@dataclass(frozen=True)
class Leftover:
    """Something that is not what it was to become.

    Args:
        path: where it lies.
        kind: a partial file or folder, a lock that nobody holds, a folder that was moved aside, a temporary folder.
        elsewhere: it belongs to a process on another machine, of which nobody here knows whether it is alive.
    """

    path: Path
    kind: Kind
    elsewhere: bool = False


def leftovers(folder: Path) -> Iterator[Leftover]:
    """What lies under a folder, links not followed, and in the folder for temporary files."""
    for place, names, files in os.walk(folder):
        for name in [*names, *files]:
            found = _judged(Path(place, name))
            if found is not None:
                yield found
        names[:] = [name for name in names if not name.endswith((PARTIAL, REPLACED))]
    for path in abandoned_temporaries(Path(tempfile.gettempdir())):
        yield Leftover(path, "temporary")


def clear(found: Leftover) -> None:
    """Remove it; a folder that was moved aside for one that never came gets its name back."""
    if found.kind == "replaced":
        put_back(found.path)
    elif found.kind == "lock":
        remove_stale(found.path)
    elif not found.elsewhere:
        remove(found.path)


def _judged(path: Path) -> Leftover | None:
    if not path.name.startswith("."):
        return None
    if path.name.endswith(LOCK):
        return Leftover(path, "lock") if is_lock(path) and not is_held(path) else None
    if path.name.endswith(REPLACED):
        return Leftover(path, "replaced")
    if not path.name.endswith(PARTIAL):
        return None
    owner = Owner.named_in(path.name)
    if owner is not None:
        return None if owner.state == "alive" else Leftover(path, "partial", owner.state == "elsewhere")
    run = path.parent.parent
    written = _CHECKPOINT.fullmatch(path.name) and (run / "training.json").is_file()
    return Leftover(path, "partial") if written and not is_held(lock_file(run)) else None
