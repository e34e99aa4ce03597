import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from longrope.errors import InputError, MissingRequirementError
from longrope.journal import Journal, differences

HEADER = {"model": "a", "settings": {"seed": 1, "list": [1, 2]}}


def written(path: Path, *records: dict) -> Path:
    with Journal(path, HEADER, resume=False) as journal:
        for record in records:
            journal.append(record)
    return path


def test_records_come_back_bit_for_bit(tmp_path):
    values = [0.1, 1 / 3, math.inf, 5e-324]
    path = written(tmp_path / "folder" / "j.jsonl", {"values": values}, {"n": 2})
    with Journal(path, HEADER, resume=True) as journal:
        assert journal.records == [{"values": values}, {"n": 2}]
        journal.append({"n": 3})
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_cut_line_is_dropped(tmp_path, cut):
    path = written(tmp_path / "j.jsonl", {"n": 1}, {"n": 2})
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, HEADER, resume=True) as journal:
        assert journal.records == [{"n": 1}]
        journal.append({"n": 3})
    with Journal(path, HEADER, resume=True) as journal:
        assert journal.records == [{"n": 1}, {"n": 3}]


def test_a_cut_header_starts_over(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"journal": 1, "hea')
    with Journal(path, HEADER, resume=True) as journal:
        assert journal.records == []
        journal.append({"n": 1})
    assert json.loads(path.read_text().splitlines()[0]) == {"journal": 1, "header": HEADER, "notes": {}}


def test_notes_are_the_first_runs(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER, resume=False, notes={"free": 3}) as journal:
        journal.append({"n": 1})
    with Journal(path, HEADER, resume=True, notes={"free": 2}) as journal:
        assert journal.notes == {"free": 3}


def test_a_journal_without_records_leaves_nothing_behind(tmp_path):
    path = written(tmp_path / "folder" / "j.jsonl")
    assert not path.parent.exists()
    beside = written(tmp_path / "j.jsonl")
    assert not beside.exists()
    assert tmp_path.exists()


def test_an_existing_journal_is_not_overwritten(tmp_path):
    path = written(tmp_path / "j.jsonl", {"n": 1})
    with pytest.raises(InputError, match="resume it"):
        Journal(path, HEADER, resume=False)
    assert len(path.read_text().splitlines()) == 2


def test_a_changed_header_is_refused_by_name(tmp_path):
    path = written(tmp_path / "j.jsonl", {"n": 1})
    with pytest.raises(InputError, match=r"settings\.seed was 1, is 2"):
        Journal(path, {"model": "a", "settings": {"seed": 2, "list": [1, 2]}}, resume=True)


@pytest.mark.parametrize("content", ["hello\n", '{"records": 1}\n', '{"journal": 9, "header": {}}\n', "[1]\n"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match="journal"):
        Journal(path, HEADER, resume=True)


def test_a_second_run_is_refused_by_name(tmp_path):
    path = tmp_path / "j.jsonl"
    with (
        Journal(path, HEADER, resume=False),
        pytest.raises(InputError, match=rf"another run is at work here .*process {os.getpid()} on {platform.node()}"),
    ):
        Journal(path, HEADER, resume=True)


HOLDER = """
import sys, time
from pathlib import Path
from longrope.journal import Journal
journal = Journal(Path(sys.argv[1]), {"model": "a"}, resume=False)
journal.append({"n": 1})
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_another_process_holds_until_that_process_is_killed(tmp_path):
    path = tmp_path / "j.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on"):
            Journal(path, {"model": "a"}, resume=True)
    finally:
        holder.kill()
        holder.communicate()
    with Journal(path, {"model": "a"}, resume=True) as journal:
        assert journal.records == [{"n": 1}]
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            Journal(path, {"model": "a"}, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["j.jsonl"]


def test_a_journal_that_is_not_opened_is_free_again(tmp_path):
    path = written(tmp_path / "j.jsonl", {"n": 1})
    with pytest.raises(InputError, match="the run has changed"):
        Journal(path, {"model": "b"}, resume=True)
    with Journal(path, HEADER, resume=True) as journal:
        assert journal.records == [{"n": 1}]


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingRequirementError, match="not writable"):
        Journal(tmp_path / "file" / "j.jsonl", HEADER, resume=False)


def test_differences_name_the_leaves():
    assert differences({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}, "d": 1}) == [
        "a.b was 1, is 2",
        "c was 1, is null",
        "d was null, is 1",
    ]


def test_overwrite_starts_anew_unless_resumed(tmp_path):
    path = written(tmp_path / "j.jsonl", {"n": 1})
    with Journal(path, HEADER, resume=True, overwrite=True) as journal:
        assert journal.records == [{"n": 1}]
        with pytest.raises(InputError, match="another run"):
            Journal(path, HEADER, resume=False, overwrite=True)
    with Journal(path, {"other": 1}, resume=False, overwrite=True) as journal:
        assert journal.records == []
        journal.append({"n": 2})
    with Journal(path, {"other": 1}, resume=True) as journal:
        assert journal.records == [{"n": 2}]
