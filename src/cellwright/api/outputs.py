"""Where the outputs of the short verbs go: kept if they are the same, and otherwise replaced only on request.

A folder is a `core.output_folder.OutputFolder`, and its result is built beside an old one. So are single files, which
have no record of their own: they are compared by content.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellwright.core.claim import CONTROL, Claim, claim_above, files_below
from cellwright.core.errors import FormatError, OutputError, UsageError
from cellwright.core.files import output_error, read_json, remove, sweep, temporary_path
from cellwright.core.output_folder import OTHER, OutputFolder
from cellwright.core.progress import ProgressReporter

SPLIT_BY = "split_by"  # in the info of a dataset: the options by which it was split
DATASET_VERBS = ("data convert", "data merge", "data split")
# What the markers of earlier versions begin with.
_SIGNS = (b"# Evaluation\n", b" compared with ", b"# Comparison of runs\n", b'"schema_version"', b"made by: cellwright")
_SKIPPED = (".index",)  # made from the file beside it; its header contains a time
_REQUEST_FILE = ".request.json"  # the record of earlier versions


class FolderOutput:
    """An output folder of a short verb.

    inputs: files and folders that the command reads. earlier: see `earlier_output`; same: see `OutputFolder`.

    ``place``: the folder, where a link leads if it is one. ``exists``: there is a result that may not be replaced by
    another. ``is_complete``: that is the result of this command.
    """

    def __init__(
        self,
        out: Path,
        verb: str,
        *,
        inputs: Iterable[Path | str],
        overwrite: bool,
        same: Iterable[str] = (),
        earlier: Callable[[Path], Claim | None] | None = None,
    ) -> None:
        self.out, self._overwrite, self._inputs = out, overwrite, [*inputs]
        self._folder = OutputFolder(out, verb, same=same, earlier=earlier)
        self.place = self._folder.path
        self.is_complete = False
        self.exists = self._folder.is_complete and not overwrite
        if overwrite:
            self._folder.check_replaceable(self._inputs)

    @property
    def text(self) -> str:
        """What to say about an output that `is_complete`."""
        return f"already complete: {self.out}/"

    def answers(self, request: Mapping[str, Any]) -> bool:
        """Whether the result of this request is there, and may stay. Raises `OutputError` for that of another one.

        request: what identifies the result, apart from where it is written: digests by what they identify ("the
        model"), and values as ``options``.
        """
        if not self._overwrite:
            self.is_complete = self._folder.answers(request)
            if not self.is_complete:  # files are missing
                self._folder.check_replaceable(self._inputs)
        return self.is_complete

    @contextmanager
    def write(self, request: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """A folder to write to; at the end its files replace those of an earlier result.

        request: see `answers`; without one, a result with the same files is complete, and for one with others,
        `OutputError` is raised.
        """
        compares = request is None and self.exists
        with self._folder.build(request or {}, unless=self._is_there if compares else None) as folder:
            yield folder

    @contextmanager
    def update(self, names: Iterable[str]) -> Iterator[Path]:
        """A folder in which to write only some files of the result again."""
        with self._folder.build({}, updates=names) as folder:
            yield folder

    def paths(self) -> list[Path]:
        """The files of the result."""
        claim = self._folder.claim
        return [] if claim is None else [self.out / name for name in claim.files]

    def _is_there(self, new: Path) -> bool:
        names = [name for name in files_below(new) if not name.startswith(f"{CONTROL}/")]
        _check_same({new / name: self.place / name for name in names})
        self.is_complete = True
        return True


class FileOutput:
    """A file that a verb writes, or several in one folder: `paths`.

    inputs: files that the command reads. suffixes: what the name of the first file may end in; (): anything. ``place``:
    the folder. ``exists``: there is one that may not be replaced by
    another. ``is_complete``: that is the result of this command.

    Raises `UsageError` for another suffix, `OutputError` for a folder of this name, and for a file that is an input or
    part of the output of a command that writes a folder.
    """

    def __init__(self, *out: Path, inputs: Iterable[Path | str], overwrite: bool, suffixes: Sequence[str] = ()) -> None:
        self.out = out[0]
        if suffixes and self.out.suffix.lower() not in suffixes:
            expected = f"a name that ends in {suffixes[0]}"
            got, remedy = self.out.name, "choose another `out`"
            raise UsageError("the output has another format", where="`out`", got=got, expected=expected, remedy=remedy)
        self.is_complete = False
        try:
            self._targets = {path.name: path.resolve() for path in out}  # where links lead
            given = [Path(path).resolve() for path in inputs]
            self.exists = any(path.exists() for path in self._targets.values()) and not overwrite
        except (OSError, RuntimeError) as error:
            raise output_error(self.out, error if isinstance(error, OSError) else OSError(str(error))) from error
        self.place = self._targets[self.out.name].parent
        for path, target in zip(out, self._targets.values(), strict=True):
            if target.is_dir():
                raise OutputError("the output file is a folder", where=path, remedy="choose another `out`")
            if target in given:
                raise OutputError("the output is an input of this command", where=path, remedy="choose another `out`")
            if (claim := claim_above(target)) is not None:
                raise OutputError(
                    f"this file is part of the output of cellwright {ascii(claim.verb)[1:-1]}",
                    where=path,
                    remedy="choose another `out`",
                )

    @property
    def text(self) -> str:
        """What to say about an output that `is_complete`."""
        return f"already complete: {self.out}"

    @contextmanager
    def write(self) -> Iterator[Path]:
        """A folder in which to write files with these names, which are moved to their place at the end.

        If there are files of these names that may not be replaced, they are compared; `OutputError` is raised if their
        content is another.
        """
        beside = self.place / f"{self.out.name}.d"
        folder = temporary_path(beside)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            for path in (beside, *self._targets.values()):
                sweep(self.place, path)
            remove(folder)
            folder.mkdir()
            yield folder
            if self.exists:
                _check_same({folder / name: target for name, target in self._targets.items()})
                self.is_complete = True
            else:
                for name, target in self._targets.items():
                    (folder / name).replace(target)
        except OSError as error:
            raise output_error(self.out, error) from error
        finally:
            remove(folder)

    def paths(self) -> list[Path]:
        """The files of the result."""
        return [self.out]


Output = FolderOutput | FileOutput


def write_once(
    output: Output,
    write: Callable[[Path], object],
    announcement: str,
    screen: ProgressReporter,
    *,
    dry_run: bool = False,
) -> list[Path]:
    """Write an output and return its files; if it is there already, check that it is the same.

    write: writes it to a folder. announcement: what will be written. Returns no files after a dry run. Raises
    `OutputError` if there is an output with other content.
    """
    if not output.exists:
        screen.note(f"will write {announcement}")
        if dry_run:
            return []
    with output.write() as folder:
        write(folder)
    if output.is_complete:
        screen.note(f"already complete: {announcement}")
    return [] if dry_run else output.paths()


def earlier_output(verb: str, marker: str, *patterns: str) -> Callable[[Path], Claim | None]:
    """Recognises the folders of versions without claims: by their record, or by ``marker``.

    patterns: the names of the files that those without a record have.
    """

    def earlier(folder: Path) -> Claim | None:
        record = folder / _REQUEST_FILE
        if record.is_file():
            try:
                content = read_json(record)
                names = [*map(str, content["files"]), _REQUEST_FILE]
                return Claim(verb, dict(content["request"]), "complete", dict.fromkeys(names))
            except (KeyError, TypeError, ValueError) as error:
                problem = "the record of this output is damaged"
                raise FormatError(problem, where=record, got=str(error), remedy=OTHER) from error
        if not _is_ours(folder / marker):
            return None
        found = [path for pattern in (marker, *patterns) for path in folder.glob(pattern) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in found]
        return Claim(verb, None, "complete", dict.fromkeys(names))

    return earlier


def _is_ours(marker: Path) -> bool:
    """Whether a file has the content of a marker of earlier versions; its name may be that of any file."""
    if not marker.is_file():
        return False
    with marker.open("rb") as file:
        start = file.read(1000)
    return any(sign in start for sign in _SIGNS)


def dataset_output(out: Path, verb: str, *, inputs: Iterable[Path | str], overwrite: bool) -> FolderOutput:
    """The folder of a dataset; one that another verb wrote may be replaced, too."""
    same = [other for other in DATASET_VERBS if other != verb]
    return FolderOutput(out, verb, inputs=inputs, overwrite=overwrite, same=same, earlier=_earlier_dataset)


def _earlier_dataset(folder: Path) -> Claim | None:
    """A dataset without a claim: its images may be anybody's, so they are not ours."""
    path = folder / "dataset.json"
    if not path.is_file() or b'"schema_version"' not in path.read_bytes()[:1000]:
        return None
    names = [name for name in ("dataset.json", "dataset.index") if (folder / name).is_file()]
    return Claim("data convert", None, "complete", dict.fromkeys(names))


def _check_same(pairs: Mapping[Path, Path]) -> None:
    """Raise `OutputError` unless each new file has the content of the old one."""
    for new, old in pairs.items():
        if not new.name.endswith(_SKIPPED) and not (old.is_file() and _is_same(new, old)):
            raise OutputError("this output already exists, with other content", where=old, remedy=OTHER)


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
