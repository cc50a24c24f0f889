"""Files that are whole after a power cut."""

import os
import stat

import pytest

from dspy_diffusion_infill import disk


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another_and_its_name_after(
    tmp_path, monkeypatch
):
    part, whole = tmp_path / "part", tmp_path / "whole"
    whole.write_text("old")
    part.write_text("new")
    synced, sync = [], os.fsync

    def told(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(("folder" if is_folder else "file", whole.read_text()))
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
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.replace(part, whole)
    assert whole.read_text() == "old"
