"""Files that are written aside, in the records of a job, and then moved to their place in its output folder.

So the content of each file is recorded before the file is there, and a file that is there with another content is known
to be the user's: it is never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellwright.core.claim import Files, files_below, is_as_written
from cellwright.core.errors import OutputError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import remove
from cellwright.core.text import count, listed


def identities_below(staging: Path) -> dict[str, FileIdentity]:
    """The files below a folder, by name, with their content."""
    return {name: FileIdentity.of(staging / name) for name in sorted(files_below(staging))}


def check_way(root: Path, files: Files, known: Files, shown: Path) -> None:
    """Raise `OutputError` if a file that is not ours is where one of ``files`` is to be.

    known: files that may be replaced, with their content. shown: the folder, for the message.
    """
    foreign = [
        name
        for name, identity in files.items()
        if not is_as_written(root, name, identity) and not (name in known and is_as_written(root, name, known[name]))
    ]
    refuse_foreign(foreign, shown)


def refuse_foreign(foreign: Sequence[str], shown: Path) -> None:
    """Raise `OutputError` if there are files of the user (their names) where files are to be written."""
    if foreign:
        raise OutputError(
            "files that cellwright did not write have the names of files to be written",
            where=shown,
            got=f"{count(len(foreign), 'file')} ({listed(foreign)})",
            remedy="move them to another folder and run the same command again, or choose another `out`",
        )


def move_files(staging: Path, root: Path, files: Mapping[str, object]) -> None:
    """Move files to their place, in this order, and remove the folder in which they were."""
    for name in files:
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(target)
    remove(staging)
