"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from longrope.errors import InputError, MissingRequirementError
from longrope.files import PARTIAL, errors_of_writing, remove_partial, staged, write_atomically


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "/" for path in sorted(folder.rglob("*"))
    }


class BoomError(Exception):
    """What a block may die of."""


# -- write_atomically


def test_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.json", "one")
    write_atomically(tmp_path / "a" / "b.json", b"two")
    assert contents(tmp_path) == {"a": "/", "a/b.json": "two"}


def test_write_gives_the_mode_an_ordinary_file_has(tmp_path: Path) -> None:
    """mkstemp makes files of mode 0600, which a server that shares a model folder could not read."""
    write_atomically(tmp_path / "ours", "x")
    (tmp_path / "ordinary").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_while_writing_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_atomically(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingRequirementError, match="no room left on the disk"):
        write_atomically(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "old"}


def test_writing_over_a_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_atomically(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "/"}


# -- staged


def _staged_file(path: Path, text: str, *, overwrite: bool = False) -> None:
    with staged(path, overwrite=overwrite) as temporary:
        temporary.write_text(text)


def _staged_folder(path: Path, name: str, *, overwrite: bool = False) -> None:
    with staged(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        (temporary / name).write_text(name)


@pytest.mark.parametrize("below", ["a", "b/a"])
@pytest.mark.parametrize("write", [write_atomically, _staged_file])
def test_a_place_that_is_no_folder_is_bad_input(tmp_path: Path, write: Callable[[Path, str], None], below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        write(tmp_path / "file" / below, "new")
    assert contents(tmp_path) == {"file": "x"}


def test_the_name_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    with staged(tmp_path / "out" / "a.gguf") as temporary:
        temporary.write_text("x")
        assert temporary.name == "a.gguf"
        assert not (tmp_path / "out" / "a.gguf").exists()
    assert contents(tmp_path / "out") == {"a.gguf": "x"}


def test_the_name_is_given_to_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename must find the bytes; so they are flushed first, and the rename itself afterwards."""
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "out").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    _staged_folder(tmp_path / "out", "weights")
    assert flushed == [("weights", False), ("out", False), (tmp_path.name, True)]


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), half_written(tmp_path / "out") as temporary:
        raise error
    assert not temporary.exists()
    assert contents(tmp_path) == {}


@contextmanager
def half_written(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A staged folder with one file in it."""
    with staged(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        yield temporary


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_output_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir() if kind == "folder" else (tmp_path / "out").write_text("old")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"out exists; choose another output, or replace it"):
        _staged_file(tmp_path / "out", "new")
    assert contents(tmp_path) == before


def test_a_link_to_nowhere_is_an_existing_output(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="out exists"):
        _staged_file(tmp_path / "out", "new")


def test_overwriting_a_folder_leaves_none_of_its_files(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "old")
    _staged_folder(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {"out": "/", "out/new": "new"}


def test_overwriting_a_folder_with_a_file_and_back(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "old")
    _staged_file(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {"out": "new"}
    _staged_folder(tmp_path / "out", "again", overwrite=True)
    assert contents(tmp_path) == {"out": "/", "out/again": "again"}


def test_a_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "old")
    with pytest.raises(BoomError), half_written(tmp_path / "out", overwrite=True):
        raise BoomError
    assert contents(tmp_path) == {"out": "/", "out/old": "old"}


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _staged_folder(tmp_path / "out", "old")
    replace, calls = Path.replace, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(MissingRequirementError):
        _staged_folder(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {"out": "/", "out/old": "old"}


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no room left on the disk"), (errno.EACCES, "not writable"), (errno.EROFS, "not writable")],
)
def test_the_machines_errors_say_what_it_lacks(tmp_path: Path, code: int, message: str) -> None:
    with pytest.raises(MissingRequirementError, match=message), half_written(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("I/O error: File too large (os error 27)", r"no room left on the disk \(File too large\)"),
        ("I/O error: No space left on device (os error 28)", "no room left"),
        ("I/O error: Permission denied (os error 13)", "not writable"),
    ],
)
def test_what_the_system_said_to_safetensors_is_understood(tmp_path: Path, said: str, message: str) -> None:
    with pytest.raises(MissingRequirementError, match=message), errors_of_writing(tmp_path):
        raise SafetensorError(f"Error while serializing: {said}")


def test_other_errors_of_safetensors_stay_its_own(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="invalid header"), errors_of_writing(tmp_path):
        raise SafetensorError("invalid header")


def test_other_errors_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), half_written(tmp_path / "out"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = [".hidden", "model.partial", ".git"]
    with half_written(tmp_path / "sub" / "out") as temporary:
        killed = shutil.copytree(temporary.parent, Path(f"{temporary.parent}{PARTIAL}"))
    shutil.rmtree(tmp_path / "sub" / "out")
    assert (killed / "out" / "half").is_file()
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".run.json.x1y2z3.partial").write_text("half")
    remove_partial(tmp_path)
    assert contents(tmp_path) == {**dict.fromkeys(sorted(kept), "mine"), "sub": "/"}
