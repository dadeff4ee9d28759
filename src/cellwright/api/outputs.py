"""Where outputs go: an existing output is kept if it is the same, and otherwise replaced only on request.

Files and datasets are compared by content: they are written beside the existing ones first. Folders that take long to
write record the request they answer in ``.request.json``, so that the same request need not be answered again.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellwright.core.errors import FormatError, OutputError
from cellwright.core.files import output_error, read_json, write_json
from cellwright.core.progress import ProgressReporter
from cellwright.core.text import differences

REQUEST_FILE = ".request.json"
SPLIT_BY = "split_by"  # in the info of a dataset: the options by which it was split
SCHEMA_VERSION = 1
OTHER = "use `overwrite=True`, or choose another `out`"
_SKIPPED = (".index",)  # made from the file beside it; its header contains a time


def exists_already(path: Path, *, overwrite: bool) -> bool:
    """Whether there is a file that may not be replaced. Raises `OutputError` for a folder of this name."""
    if path.is_dir():
        raise OutputError("the output file is a folder", where=path, remedy="choose another `out`")
    return path.exists() and not overwrite


def write_once(
    out: Path,
    write: Callable[[Path], Sequence[Path]],
    announcement: str,
    screen: ProgressReporter,
    *,
    is_there: bool,
    dry_run: bool = False,
) -> list[Path]:
    """Write an output and return its files; if it is there already, check that it is the same.

    announcement: what will be written. is_there: see `exists_already`. Returns no files after a dry run. Raises
    `OutputError` if there is an output with other content.
    """
    if is_there:
        paths = check_same(out, write)
        screen.note(f"already complete: {announcement}")
        return [] if dry_run else paths
    screen.note(f"will write {announcement}")
    return [] if dry_run else list(write(out))


def check_same(out: Path, write: Callable[[Path], Sequence[Path]]) -> list[Path]:
    """The files of an existing output that ``write`` would write again; `OutputError` if their content is another.

    out: a file or a folder. write: writes an output to another place and returns its files; paths in them are relative
    to the folder of ``out`` or one beside it.
    """
    out = out.resolve()
    is_file = not out.is_dir() and bool(out.suffix)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix if is_file else ''}")
    root, folder = (temporary.parent, out.parent) if is_file else (temporary, out)
    written: list[Path] = []
    try:
        written = [path.resolve() for path in write(temporary)]
        names = [path.relative_to(root).as_posix() for path in written]
        existing = [folder / (name.replace(temporary.stem, out.stem, 1) if is_file else name) for name in names]
        for new, old in zip(written, existing, strict=True):
            if new.suffix not in _SKIPPED and not (old.is_file() and _is_same(new, old)):
                raise OutputError("this output already exists, with other content", where=old, remedy=OTHER)
        return existing
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in (temporary, *written):
            path.unlink(missing_ok=True)


def _is_same(new: Path, old: Path) -> bool:
    """Whether two files have the same content; a dataset that has been split since is the same."""
    if new.suffix == ".zip" and zipfile.is_zipfile(old):
        with zipfile.ZipFile(new) as first, zipfile.ZipFile(old) as second:
            return [first.read(name) for name in first.namelist()] == [second.read(name) for name in second.namelist()]
    first, second = new.read_bytes(), old.read_bytes()
    return first == second or (new.name == "dataset.json" and _is_same_dataset(first, second))


def _is_same_dataset(new: bytes, old: bytes) -> bool:
    first, second = json.loads(new), _parsed(old)
    if not isinstance(second, dict) or not isinstance(second.get("images"), list):
        return False
    if not any("split" in image for image in first["images"]):
        later = ("split", "group")
        second["info"] = {key: value for key, value in second.get("info", {}).items() if key != SPLIT_BY}
        second["images"] = [{k: v for k, v in image.items() if k not in later} for image in second["images"]]
        first["images"] = [{k: v for k, v in image.items() if k not in later} for image in first["images"]]
    return first == second


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


class OutputFolder:
    """An output folder of one request: new, or the answer to an earlier one.

    marker: a file that shows that cellwright wrote the folder. request: what identifies the request, apart from where
    it is written: digests by what they identify ("the model"), and values as ``options``; None compares the content of
    the files instead, once they are written. ``exists``: the folder has an output that may not be replaced by another.
    ``is_complete``: that is the answer to this request.

    Raises `OutputError` for a folder that answers another request, unless ``overwrite`` is set, and for a folder with
    other files, which are never removed.
    """

    def __init__(
        self, folder: Path, marker: str, request: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        self.folder, self.request, self._overwrite = folder, request, overwrite
        self._old: list[str] | None = []  # files that are replaced; None: all
        self.is_complete = False
        self.exists = folder.is_dir() and any(folder.iterdir()) and not overwrite
        if folder.is_file():
            raise OutputError("the output folder is a file", where=folder, remedy="choose another `out`")
        if not folder.is_dir() or not any(folder.iterdir()):
            return
        if (folder / REQUEST_FILE).is_file():
            self._check_recorded()
        elif not (folder / marker).exists():
            raise OutputError(
                "this folder is not empty and not an output of this command",
                where=folder,
                expected=f"a new folder, or one with {marker}",
                remedy="choose another `out`",
            )
        elif overwrite:
            self._old = None
        elif request is not None:
            raise OutputError("this output already exists", where=folder, remedy=OTHER)
        if self._old is None and (Path.cwd().is_relative_to(folder.resolve()) or (folder / ".git").exists()):
            raise OutputError(
                "this folder is the working folder or a git repository, so it is not removed",
                where=folder,
                remedy="choose another `out`, or remove the old output by hand",
            )

    def _check_recorded(self) -> None:
        recorded = read_json(self.folder / REQUEST_FILE)
        try:
            before, files = dict(recorded["request"]), [str(name) for name in recorded["files"]]
        except (KeyError, TypeError) as error:
            where = self.folder / REQUEST_FILE
            problem = "the record of this output is damaged"
            raise FormatError(problem, where=where, got=str(error), remedy=OTHER) from error
        self._old = files
        if self._overwrite:
            return
        now = json.loads(json.dumps(self.request))
        options = differences(now.pop("options", {}), before.pop("options", {}))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)] + options
        if changed:
            got, problem = f"changed since: {', '.join(changed)}", "this output already exists, for another request"
            raise OutputError(problem, where=self.folder, got=got, remedy=OTHER)
        self.is_complete = all((self.folder / name).is_file() for name in files)

    @property
    def text(self) -> str:
        """What to say about a folder that `is_complete`."""
        return f"already complete: {self.folder}/"

    def remove(self) -> None:
        """Remove an old output, if ``overwrite`` was set."""
        if self._old is None:
            shutil.rmtree(self.folder)
        for name in self._old or ():
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def write(self) -> Iterator[Path]:
        """A folder of the same name to write to; at the end its files replace those of an earlier output.

        Without a request, an existing folder with the same files is complete; for others, `OutputError` is raised.
        """
        resolved = self.folder.resolve()
        temporary = resolved.with_name(f".{resolved.name}.{os.getpid()}.partial")
        new = temporary / resolved.name
        try:
            new.mkdir(parents=True)
            yield new
            files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
            if self.request is not None:
                content = {"schema_version": SCHEMA_VERSION, "request": dict(self.request), "files": files}
                write_json(new / REQUEST_FILE, content)
            elif self._is_written(new, files):
                self.is_complete = True
                return
            self._move(new, files)
        except OSError as error:
            raise output_error(self.folder, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _is_written(self, new: Path, files: Sequence[str]) -> bool:
        """Whether an earlier output has the same files; `OutputError` if it has others that may not be replaced."""
        if not self.exists:
            return False
        different = [name for name in files if not self._has(new, name)]
        if different:
            where = self.folder / different[0]
            raise OutputError("this output already exists, with other content", where=where, remedy=OTHER)
        return True

    def _has(self, new: Path, name: str) -> bool:
        return (self.folder / name).is_file() and _is_same(new / name, self.folder / name)

    def _move(self, new: Path, files: Sequence[str]) -> None:
        if self._old is None:
            shutil.rmtree(self.folder)
        for name in sorted(set(self._old or ()) - set(files)):
            old = self.folder / name
            old.unlink(missing_ok=True)
            if old.parent != self.folder and old.parent.is_dir() and not any(old.parent.iterdir()):
                old.parent.rmdir()
        for name in [*files, *([REQUEST_FILE] if self.request is not None else [])]:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(self.folder / name)
