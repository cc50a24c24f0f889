"""Files that are still there, and whole, after a power cut."""

import os
from pathlib import Path


def replace(part: Path, whole: Path) -> None:
    """Puts a file that was written in the place of another; a reader sees the old or the new one.

    Raises:
        OSError: it cannot be written, as on a full disk; ``whole`` is as it was.
    """
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(whole)
    sync_folder(whole.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can say so."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
