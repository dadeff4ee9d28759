"""Where results go: an output that exists is never touched without being asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

from cellwright.core.errors import OutputError


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where ``path`` exists and may not be replaced."""
    if path.is_dir():
        raise OutputError("a folder stands where a file should be written", where=path, remedy="choose another --out")
    if path.exists() and not overwrite:
        raise OutputError("this output exists", where=path, remedy="give --overwrite, or choose another --out")


def claim_folder(folder: Path, marker: str, *, overwrite: bool) -> None:
    """Make room for an output folder whose own files include ``marker``.

    Raises `OutputError` where the folder holds something: a finished output without ``overwrite``, or what is not ours
    (which is never removed).
    """
    if folder.is_file():
        raise OutputError("a file stands where a folder should be written", where=folder, remedy="choose another --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / marker).exists():
        raise OutputError(
            "this folder is not empty and not an output of this command",
            where=folder,
            expected=f"a new folder, or one with {marker}",
            remedy="choose another --out",
        )
    if not overwrite:
        raise OutputError("this output exists", where=folder, remedy="give --overwrite, or choose another --out")
    if Path.cwd().is_relative_to(folder.resolve()) or (folder / ".git").exists():
        raise OutputError(
            "this folder is more than an output of this command, so it is not removed",
            where=folder,
            remedy="choose another --out, or remove the old output by hand",
        )
    shutil.rmtree(folder)
