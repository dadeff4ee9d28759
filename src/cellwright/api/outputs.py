"""Where outputs go: an existing output is replaced only on request."""

from __future__ import annotations

import shutil
from pathlib import Path

from cellwright.core.errors import OutputError


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if ``path`` exists and may not be replaced."""
    if path.is_dir():
        raise OutputError("the output file is a folder", where=path, remedy="choose another `out`")
    if path.exists() and not overwrite:
        raise OutputError(
            "this output already exists", where=path, remedy="use `overwrite=True`, or choose another `out`"
        )


def claim_folder(folder: Path, marker: str, *, overwrite: bool) -> None:
    """Make room for an output folder: remove an old output, if ``overwrite`` is set. Raises as `check_folder`."""
    if check_folder(folder, marker, overwrite=overwrite):
        shutil.rmtree(folder)


def check_folder(folder: Path, marker: str, *, overwrite: bool) -> bool:
    """Whether there is an old output to remove; ``marker`` is the name of a file that shows that cellwright wrote it.

    Raises `OutputError` for an old output without ``overwrite``, and for a folder with other files, which are never
    removed.
    """
    if folder.is_file():
        raise OutputError("the output folder is a file", where=folder, remedy="choose another `out`")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / marker).exists():
        raise OutputError(
            "this folder is not empty and not an output of this command",
            where=folder,
            expected=f"a new folder, or one with {marker}",
            remedy="choose another `out`",
        )
    if not overwrite:
        raise OutputError(
            "this output already exists", where=folder, remedy="use `overwrite=True`, or choose another `out`"
        )
    if Path.cwd().is_relative_to(folder.resolve()) or (folder / ".git").exists():
        raise OutputError(
            "this folder is the working folder or a git repository, so it is not removed",
            where=folder,
            remedy="choose another `out`, or remove the old output by hand",
        )
    return True
