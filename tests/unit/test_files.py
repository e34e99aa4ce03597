"""Files are whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from longrope.errors import InputError, MissingRequirementError
from longrope.files import errors_of_writing, is_stillborn, remove_all, remove_partial, staged, write_atomically
from longrope.locks import alone_at, refuse_occupied
from longrope.owners import Owner
from longrope.unfinished import PARTIAL, WHOLE, discard_mine, partial, temporary_folder


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "/" for path in sorted(folder.rglob("*"))
    }


def dead_owner() -> str:
    """The name of a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    owner = dataclasses.replace(Owner.current(), pid=ended.pid).text
    ended.wait()
    return owner


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
    with staged(path, overwrite=overwrite, is_ours=lambda _: True) as temporary:
        temporary.write_text(text)


def _staged_folder(path: Path, name: str, *, overwrite: bool = False) -> None:
    with staged(path, overwrite=overwrite, is_ours=lambda _: True) as temporary:
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
    with staged(path, overwrite=overwrite, is_ours=lambda _: True) as temporary:
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


@pytest.fixture(params=["exchanged", "moved aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder is replaced: in one call of the system, or in two steps where there is no such call."""
    if request.param == "moved aside":
        monkeypatch.setattr("longrope.files.exchange", lambda first, second: False)
    return str(request.param)


def test_overwriting_a_folder_leaves_none_of_its_files(tmp_path: Path, way: str) -> None:
    _staged_folder(tmp_path / "out", "old")
    _staged_folder(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {"out": "/", "out/new": "new"}


def test_overwriting_a_folder_with_a_file_and_back(tmp_path: Path, way: str) -> None:
    _staged_folder(tmp_path / "out", "old")
    _staged_file(tmp_path / "out", "new", overwrite=True)
    assert contents(tmp_path) == {"out": "new"}
    _staged_folder(tmp_path / "out", "again", overwrite=True)
    assert contents(tmp_path) == {"out": "/", "out/again": "again"}


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "thesis")
    with pytest.raises(InputError, match="not replaced"), staged(tmp_path / "out", overwrite=True):
        raise AssertionError("nothing is begun")
    assert contents(tmp_path) == {"out": "/", "out/thesis": "thesis"}


def test_a_failed_overwrite_keeps_the_old(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "old")
    with pytest.raises(BoomError), half_written(tmp_path / "out", overwrite=True):
        raise BoomError
    assert contents(tmp_path) == {"out": "/", "out/old": "old"}


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _staged_folder(tmp_path / "out", "old")
    monkeypatch.setattr("longrope.files.exchange", lambda first, second: False)
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
    [
        (errno.ENOSPC, "no room left on the disk"),
        (errno.EDQUOT, "no room left on the disk"),
        (errno.EACCES, "not writable"),
        (errno.EROFS, "not writable"),
        (errno.EIO, "the disk fails"),
        (errno.ESTALE, "the disk fails"),
        (errno.ENOMEM, "out of memory"),
        (errno.EMFILE, "too many open files"),
    ],
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
    with pytest.raises(OSError, match="Bad file descriptor"), half_written(tmp_path / "out"):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = [".hidden", "model.partial", ".git"]
    with half_written(tmp_path / "sub" / "out") as temporary:
        killed = shutil.copytree(temporary.parent, tmp_path / "sub" / f".out.{dead_owner()}-3{PARTIAL}")
    shutil.rmtree(tmp_path / "sub" / "out")
    assert (killed / "out" / "half").is_file()
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".run.json.x1y2z3.partial").write_text("half")
    (tmp_path / f".run.json.{dead_owner()}-0.partial").write_text("half")
    remove_partial(tmp_path)
    assert contents(tmp_path) == {**dict.fromkeys(sorted(kept), "mine"), "sub": "/"}


# -- what is not finished, and whose it is


def test_what_a_live_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with half_written(tmp_path / "out") as temporary:
        remove_partial(tmp_path)
        write_atomically(tmp_path / "other", "x")
        assert (temporary / "half").read_text() == "half"
    assert contents(tmp_path) == {"other": "x", "out": "/", "out/half": "half"}


@pytest.mark.parametrize("changes", [{"pid": 2**22}, {"started": 1}, {"host": "00000000"}])
def test_the_next_writer_removes_what_a_dead_one_left_and_nothing_of_another_machine(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    owner = dataclasses.replace(Owner.current(), **changes)  # type: ignore[arg-type]
    left = tmp_path / f".out.{owner.text}-0{PARTIAL}"
    left.mkdir()
    (left / "out").write_text("half")
    _staged_file(tmp_path / "out", "new")
    assert left.exists() is (owner.state == "elsewhere")
    assert (tmp_path / "out").read_text() == "new"


def test_what_a_process_left_that_died_after_giving_the_name_is_removed_with_the_refusal(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("whole")
    (tmp_path / f".model.gguf.{dead_owner()}-0.partial").mkdir()
    with pytest.raises(InputError, match="exists"), staged(tmp_path / "model.gguf"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_process_that_waits_for_its_parent_is_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    owner = Owner.current()
    try:
        assert dataclasses.replace(owner, pid=ended.pid, started=0).state == "dead"
        assert owner.state == "alive"
        assert Owner.named_in(f".a-b.{owner.text}-7.partial") == owner
        assert Owner.named_in(".a.partial") is None
    finally:
        ended.wait()


def test_a_process_removes_what_it_did_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    room = temporary_folder("test")
    with partial(tmp_path / "a") as file, partial(tmp_path / "b") as folder:
        file.write_text("half")
        folder.mkdir()
        (folder / "b").write_text("half")
        discard_mine()
        assert contents(tmp_path) == {}
    room.cleanup()


def test_temporary_folders_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"longrope-gguf-{dead_owner()}-abc").mkdir()
    (tmp_path / "longrope-notes").mkdir()
    with temporary_folder("test") as room:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([Path(room).name, "longrope-notes"])
        assert Path(room).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 120])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, "x")
    _staged_file(tmp_path / name, "y", overwrite=True)
    assert contents(tmp_path) == {name: "y"}


# -- sets of files


def _staged_set(path: Path, names: str) -> None:
    with staged(path, overwrite=True) as temporary:
        for name in names:
            temporary.with_name(name).write_text(name)


def test_the_first_file_of_a_set_is_named_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, replace = [], Path.replace

    def noted(self: Path, target: Path) -> Path:
        named.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    _staged_set(tmp_path / "a", "abc")
    assert [name for name in named if name in "abc"] == ["c", "b", "a"]
    assert contents(tmp_path) == {"a": "a", "b": "b", "c": "c"}


def _dead_set(tmp_path: Path, *, whole: bool) -> None:
    """What a process leaves that is killed after the last file of a set has got its name."""
    room = tmp_path / f".a.{dead_owner()}-0{PARTIAL}"
    room.mkdir()
    for name in ("a", "b", *([WHOLE] if whole else [])):
        (room / name).write_text(name)
    (tmp_path / "c").write_text("c")


def test_a_set_that_was_whole_when_its_writer_died_gets_its_names(tmp_path: Path) -> None:
    _dead_set(tmp_path, whole=True)
    with pytest.raises(InputError, match="exists"):
        _staged_file(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "a", "b": "b", "c": "c"}


def test_a_set_that_was_not_whole_is_removed(tmp_path: Path) -> None:
    _dead_set(tmp_path, whole=False)
    _staged_file(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "new", "c": "c"}


def test_a_dead_set_replaces_no_file_that_came_later(tmp_path: Path) -> None:
    _dead_set(tmp_path, whole=True)
    (tmp_path / "b").write_text("mine")
    os.utime(tmp_path / "b", (2**33, 2**33))
    _staged_file(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "new", "b": "mine", "c": "c"}


# -- replaced folders


def test_a_folder_that_is_overwritten_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _staged_folder(tmp_path / "out", "old")
    seen, replace = [], Path.replace

    def noted(self: Path, target: Path) -> Path:
        seen.append((tmp_path / "out").is_dir())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    _staged_folder(tmp_path / "out", "new", overwrite=True)
    assert all(seen)
    assert contents(tmp_path) == {"out": "/", "out/new": "new"}


@pytest.mark.parametrize("new", [True, False])
def test_a_folder_that_a_dead_process_moved_aside_is_put_back(tmp_path: Path, *, new: bool) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").write_text("old")
    if new:
        _staged_folder(tmp_path / "elsewhere", "new")
        (tmp_path / "elsewhere").rename(tmp_path / "out")
    remove_partial(tmp_path)
    name = "new" if new else "old"
    assert contents(tmp_path) == {"out": "/", f"out/{name}": name}


def test_a_folder_is_removed_in_one_step(tmp_path: Path) -> None:
    _staged_folder(tmp_path / "out", "old")
    remove_all(tmp_path / "out")
    assert contents(tmp_path) == {}


def test_a_folder_of_a_run_that_died_at_once_is_known(tmp_path: Path) -> None:
    assert is_stillborn(tmp_path)
    (tmp_path / f".run.json.{dead_owner()}-0.partial").write_text("half")
    assert is_stillborn(tmp_path)
    with partial(tmp_path / "run.json") as living:
        living.write_text("half")
        assert not is_stillborn(tmp_path)
    (tmp_path / "mine").write_text("x")
    assert not is_stillborn(tmp_path)
    assert not is_stillborn(tmp_path / "nothing")


# -- one at a time

HOLDER = """
import sys, time
from pathlib import Path
from longrope.files import staged
with staged(Path(sys.argv[1])) as temporary:
    temporary.write_text("theirs")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "writing\n"
        for overwrite in (False, True):
            with pytest.raises(InputError, match=rf"another run is at work here \(process {holder.pid} on .* since 2"):
                _staged_file(out, "ours", overwrite=overwrite)
        with pytest.raises(InputError, match="another run is at work"):
            refuse_occupied(out)
    finally:
        holder.kill()
        holder.communicate()
    refuse_occupied(out)
    _staged_file(out, "ours")
    assert contents(tmp_path) == {"out": "ours"}


def test_a_lock_by_the_file_itself_where_the_disk_knows_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with alone_at(tmp_path / "out"):
        with pytest.raises(InputError, match=rf"process {os.getpid()} on"), alone_at(tmp_path / "out"):
            pass
        with alone_at(tmp_path / "out", again=True):
            refuse_occupied(tmp_path / "out")
    assert contents(tmp_path) == {}


def test_two_names_of_one_folder_are_one_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with (
        alone_at(tmp_path / "out"),
        pytest.raises(InputError, match="another run is at work"),
        alone_at(tmp_path / "link"),
    ):
        pass


def test_a_temporary_folder_goes_with_its_object_and_no_error_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = temporary_folder("test")
    (Path(folder.name) / "file").write_text("x")
    monkeypatch.setattr(os, "rmdir", _no_room)
    del folder
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1  # it is there still, for the next start
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = temporary_folder("test")
    left = Path(folder.name)
    assert left.is_dir()
    del folder
    assert not left.exists()


def test_what_dead_processes_left_in_the_temporary_folder_goes_with_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp" / f"longrope-gguf-{dead_owner()}-abc").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "model").write_text("whole")
    with pytest.raises(InputError, match="exists"), staged(tmp_path / "model"):
        pass
    assert not list((tmp_path / "tmp").iterdir())


def _no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
