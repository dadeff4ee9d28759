"""The claim on an output folder, ``.cellwright/claim.json``: whose it is, its state, and the files that were written.

How output folders are written is described in `core.output_folder`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from cellwright.core.errors import FormatError, InputError
from cellwright.core.events import plain
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import flush, output_error, read_json, write_text
from cellwright.core.text import differences

CONTROL, CLAIM = ".cellwright", "claim.json"
SCHEMA_VERSION = 1
_LONGEST_NAME = 255  # bytes, of file systems

State = Literal["writing", "swapping", "complete"]
Files = Mapping[str, FileIdentity | None]
"""Files of an output by their names relative to it, with ``/``; None: the content is not known (earlier versions)."""


@dataclass(frozen=True)
class Claim:
    """What ``claim.json`` says. request: None if it is not known (earlier versions).

    files: the files of a result that is complete, or was before the job went on. replaced, keeps_progress: while a new
    result is moved in, the files of the old one, and whether the records of the new one are kept.
    """

    verb: str
    request: Mapping[str, Any] | None
    state: State
    files: Files = field(default_factory=dict)
    replaced: Files = field(default_factory=dict)
    keeps_progress: bool = False

    def __post_init__(self) -> None:
        outside = [name for name in (*self.files, *self.replaced) if not is_inside(name)]
        if outside:
            raise ValueError(f"the file name {outside[0]!r}")

    @staticmethod
    def read(root: Path) -> Claim | None:
        """The claim on a folder, or None. Raises `FormatError` if it is damaged."""
        path = root / CONTROL / CLAIM
        if not path.is_file():
            return None
        try:
            content = dict(read_json(path))
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {content['schema_version']!r}")
            claim = Claim(
                str(content["verb"]),
                None if content["request"] is None else dict(content["request"]),
                content["state"],
                _files_from(content["files"]),
                _files_from(content.get("replaced", {})),
                bool(content.get("keeps_progress", False)),
            )
            if claim.state not in get_args(State):
                raise ValueError(f"state {claim.state!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            remedy = "choose another `out`"
            problem = "the record of this output folder is damaged"
            raise FormatError(problem, where=path, got=str(error), remedy=remedy) from error
        return claim

    def write(self, root: Path) -> None:
        """Write the claim on a folder; when this returns, it is on the disk."""
        content = {name: value for name, value in asdict(self).items() if value or name in ("request", "files")}
        path = root / CONTROL / CLAIM
        # ASCII, for names of files need not be valid Unicode.
        write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, **content}, allow_nan=False) + "\n")
        try:
            flush(path.parent)
        except OSError as error:
            raise output_error(path, error) from error


def _files_from(values: Any) -> Files:
    files = {str(name): None if one is None else FileIdentity(**one) for name, one in dict(values).items()}
    for name, identity in files.items():
        if identity is not None and not isinstance(identity.digest, str):
            raise TypeError(f"the digest of {name!r}")
    return files


def is_inside(name: str) -> bool:
    """Whether a recorded name is one of a result: relative, without ``..``, possible, and not in ``.cellwright``."""
    path = PurePosixPath(name)
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in path.parts):
        return False
    if path.as_posix() != name or path.is_absolute() or not path.parts or (os.name == "nt" and {*"\\:"} & {*name}):
        return False
    return ".." not in path.parts and "\0" not in name and path.parts[0].lower() != CONTROL


def check_complete(path: Path | str) -> None:
    """Raise `InputError` for an input that is part of an output which is unfinished, or was being replaced.

    Without a claim, nothing is known. An unfinished job with an earlier result is no error: that is still there.
    """
    path = Path(path).resolve()
    for folder in (path, *path.parents):
        try:
            claim = Claim.read(folder)
        except (InputError, OSError):
            continue
        if claim is None:
            continue
        is_part = any((folder / name).is_relative_to(path) for name in (*claim.files, *claim.replaced))
        if (claim.state == "swapping" and is_part) or (claim.state == "writing" and not claim.files and folder == path):
            state = "not complete" if claim.state == "writing" else "half replaced by a new one"
            verb = ascii(claim.verb)[1:-1]
            raise InputError(
                f"this output of cellwright {verb} is {state}: the command is still running, or was interrupted",
                where=folder,
                remedy="run the command that writes it again; it goes on where it was interrupted",
            )


def claim_above(path: Path) -> Claim | None:
    """The claim on an output that ``path``, a file or a folder, is part of; None if it is part of none."""
    path = path.resolve()
    for folder in path.parents:
        with suppress(InputError, OSError):
            claim = Claim.read(folder)
            if claim is not None and any((folder / name).is_relative_to(path) for name in claim.files):
                return claim
    return None


def changes(request: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """What differs between two requests: names of inputs, and options; parts of a sentence.

    >>> changes({"the model": "a1", "options": {"iou": 0.5}}, {"the model": "b2", "options": {"iou": 0.25}})
    ['the model', '`iou` 0.5 instead of 0.25']
    """
    now, then = dict(plain(dict(request))), dict(before)
    options = [now.pop("options", {}), then.pop("options", {})]
    named = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return named + (differences(*options) if all(isinstance(one, Mapping) for one in options) else ["the options"])


# --- the files of an output, by their names relative to its folder


def files_below(folder: Path) -> list[str]:
    """The plain files below a folder, with ``/`` in their names; links are not followed."""
    found = []
    for root, _, names in os.walk(folder):
        paths = [Path(root) / name for name in names]
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def remove_ours(folder: Path, name: str) -> None:
    """Remove a file that we wrote, if it is a plain file, and the folders that are empty without it."""
    if not is_plain_file(folder, name):
        return
    (folder / name).unlink()
    for parent in (folder / name).parents:
        if parent == folder or any(parent.iterdir()):
            break
        parent.rmdir()


def _has_plain_parents(folder: Path, name: str) -> bool:
    """Whether each folder between is one, not a link or a file, or does not exist."""
    parents = [folder / parent for parent in PurePosixPath(name).parents][:-1]
    return not any(parent.is_symlink() or (parent.exists() and not parent.is_dir()) for parent in parents)


def is_plain_file(folder: Path, name: str) -> bool:
    path = folder / name
    return _has_plain_parents(folder, name) and path.is_file() and not path.is_symlink()


def is_as_written(folder: Path, name: str, identity: FileIdentity | None) -> bool:
    """Whether a file of ours does not exist, or has the content that was recorded (None: it is not known).

    An empty file, which a power cut may leave, has no content that could be lost.
    """
    if not _has_plain_parents(folder, name):
        return False
    if not os.path.lexists(folder / name):
        return True
    if not is_plain_file(folder, name):
        return False
    if identity is None or (folder / name).stat().st_size == 0:
        return True
    return FileIdentity.of(folder / name, identity).digest == identity.digest
