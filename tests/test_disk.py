"""Files and folders that are there, and whole, after a power cut."""

import errno
import os
import stat
from pathlib import Path

import pytest
from test_diffusion_infill import compile_with

from dspy_diffusion_infill import disk
from dspy_diffusion_infill.journal import Journal


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.fixture
def synced(monkeypatch) -> list[os.stat_result]:
    """The files and folders that are synced, in order."""
    found, sync = [], os.fsync

    def told(descriptor: int) -> None:
        found.append(os.fstat(descriptor))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    return found


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another_and_its_name_after(
    tmp_path, monkeypatch
):
    part, whole = tmp_path / "part", tmp_path / "whole"
    whole.write_text("old")
    part.write_text("new")
    synced, sync = [], os.fsync

    def told(descriptor: int) -> None:
        synced.append(("folder" if is_folder(descriptor) else "file", whole.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    disk.replace(part, whole)
    assert synced == [("file", "old"), ("folder", "new")]
    assert not part.exists()


def test_where_the_disk_is_full_the_old_file_stays(tmp_path, monkeypatch):
    part, whole = tmp_path / "part", tmp_path / "whole"
    whole.write_text("old")
    part.write_text("new")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.replace(part, whole)
    assert whole.read_text() == "old"


def test_a_file_system_that_syncs_no_folders_is_written_all_the_same(tmp_path, monkeypatch):
    sync = os.fsync

    def told(descriptor: int) -> None:
        if is_folder(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    Journal(tmp_path / "new" / "j", identity={}).put("k", 1, about="x")
    (tmp_path / "part").write_text("new")
    disk.replace(tmp_path / "part", tmp_path / "whole")
    assert Journal(tmp_path / "new" / "j", identity={}).get("k") == 1
    assert (tmp_path / "whole").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows opens no folders")
@pytest.mark.parametrize("identity", [None, {"a": 1}])
def test_the_name_of_a_new_journal_is_on_the_disk_and_so_are_its_folders(
    identity, tmp_path, synced
):
    path = tmp_path / "some" / "folder" / "j"
    journal = Journal(path, identity=identity)
    journal.put("k", 1, about="x")
    folders = [one for one in synced if stat.S_ISDIR(one.st_mode)]
    for folder in (tmp_path, tmp_path / "some", tmp_path / "some" / "folder"):
        assert [os.path.samestat(one, folder.stat()) for one in folders].count(True) == 1
    journal.put("k", 2, about="x")
    assert len([one for one in synced if stat.S_ISDIR(one.st_mode)]) == 3


def test_every_file_of_a_search_that_takes_the_place_of_another_is_on_the_disk_first(
    tmp_path, monkeypatch, synced
):
    replaced, replace = [], Path.replace

    def told(part: Path, whole: Path) -> Path:
        assert os.path.samestat(synced[-1], part.stat())
        replaced.append(whole.name)
        return replace(part, whole)

    monkeypatch.setattr(Path, "replace", told)
    monkeypatch.setattr(os, "replace", lambda part, whole: told(Path(part), Path(whole)))
    compile_with(log_dir=tmp_path, sweeps=1)
    assert set(replaced) == {"best_program.json", "run.json"}
