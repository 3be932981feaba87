"""Folders that only their owner may enter; those that were there before keep the mode that somebody gave them."""

from __future__ import annotations

from pathlib import Path


def make_private_folder(folder: Path) -> None:
    """Create the folder and its missing parents, each with mode 0700. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        # One by one: mkdir(parents=True) gives the parents the default mode. exist_ok: others may start at once.
        path.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # FileExistsError when a file stands there
