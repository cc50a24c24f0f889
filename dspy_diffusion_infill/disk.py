"""Files and folders that are still there, and whole, after a power cut."""

import os
from contextlib import suppress
from pathlib import Path


def replace(part: Path, whole: Path) -> None:
    """Puts a file that was written in the place of another; a reader sees the old or the new one.

    Raises:
        OSError: it cannot be written, as on a full disk; ``whole`` is as it was.
    """
    with part.open("rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())
    part.replace(whole)
    sync_folder(whole.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are missing.

    Raises:
        OSError: it cannot be made, or is no folder.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can say so.

    Windows opens no folders, and some file systems of a network sync none.
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
