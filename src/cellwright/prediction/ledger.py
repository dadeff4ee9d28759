"""The records of a job that writes a prediction folder: which images are done, and what their files contain.

They lie in ``progress/`` of the output folder, named by a digest of the image's id:

    <digest>.files/  the files of an image that is being written; they are moved to their place when all are there
    <digest>.begun   size and digest of each file that is about to be moved, so that what a killed job left is known
    <digest>.json    the objects, as a small COCO file
    <digest>.png     a thumbnail
    <digest>.done    that the image is done: what was read, and size and digest of each file above and of each output
    <digest>.failed  why a shard could not predict the image
    images.json      all images, once all of them are done; then the others are removed

A record counts only if all that it lists has the content that was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cellwright.core.claim import Files, is_inside
from cellwright.core.errors import CellwrightError, FormatError, InputError
from cellwright.core.file_identity import FileIdentity, digest_of
from cellwright.core.files import read_json, remove, write_json
from cellwright.core.staging import check_way, identities_below, move_files

IMAGES = "images.json"
SCHEMA_VERSION = 1
ABOUT_ALL = ""  # the id under which the files about all images are begun


@dataclass(frozen=True)
class Done:
    """An image that is done.

    file: of the image. pixels: a hash of what was read from it. objects: their number.
    files: those written for it, by name. parts: its records, by suffix.
    """

    file: FileIdentity
    pixels: str
    objects: int
    files: Mapping[str, FileIdentity] = field(default_factory=dict)
    parts: Mapping[str, FileIdentity] = field(default_factory=dict)

    @staticmethod
    def from_dict(values: Any, where: Path) -> Done:
        """From JSON values. Raises `FormatError` for others."""
        try:
            names = ("files", "parts")
            several = {name: {str(k): _identity(v) for k, v in values.get(name, {}).items()} for name in names}
            outside = [name for name in several["files"] if not is_inside(name)]
            if outside:
                raise ValueError(f"the file name {outside[0]!r}")
            return Done(_identity(values["file"]), str(values["pixels"]), int(values["objects"]), **several)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            remedy = "use `overwrite=True` to start again, or choose another `out`"
            raise FormatError("a record of this job is damaged", where=where, got=str(error), remedy=remedy) from error


def _begun(path: Path) -> tuple[str, Files] | None:
    """The image and its files; None if there is no record, or a power cut damaged it before any file was moved."""
    try:
        content = read_json(path)
        files = {str(name): _identity(value) for name, value in content["files"].items()}
        return str(content["id"]), {name: identity for name, identity in files.items() if is_inside(name)}
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _identity(values: Any) -> FileIdentity:
    return FileIdentity(str(values["digest"]), int(values["bytes"]), int(values["modified_ns"]))


class Ledger:
    """The records in a folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, image_id: str, suffix: str) -> Path:
        """A file about one image."""
        return self.folder / f"{digest_of(image_id)}{suffix}"

    def begin(self, image_id: str, files: Files) -> None:
        """Record that these files are moved to their place next."""
        content = {name: None if identity is None else asdict(identity) for name, identity in files.items()}
        write_json(self.path(image_id, ".begun"), {"id": image_id, "files": content})

    def begun(self) -> dict[str, Files]:
        """All files that were begun, by the id of their image (`ABOUT_ALL`: about all of them)."""
        found = (_begun(path) for path in sorted(self.folder.glob("*.begun")))
        return dict(one for one in found if one is not None)

    def begun_of(self, image_id: str) -> Files:
        """The files of an image that were begun."""
        one = _begun(self.path(image_id, ".begun"))
        return {} if one is None else one[1]

    @contextmanager
    def staging(self, image_id: str) -> Iterator[Path]:
        """An empty folder for the files of an image, which is removed in the end."""
        folder = self.path(image_id, ".files")
        remove(folder)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            remove(folder)

    def move_in(
        self, image_id: str, staging: Path, root: Path, *, shown: Path, known: Files | None = None
    ) -> dict[str, FileIdentity]:
        """Move the files of an image from ``staging`` to ``root``, and say what they are.

        known: files that may be replaced, besides those that were begun. shown: the folder, for messages. Raises
        `OutputError` for files of the user with their names.
        """
        files = identities_below(staging)
        check_way(root, files, {**(known or {}), **self.begun_of(image_id)}, shown)
        self.begin(image_id, files)
        move_files(staging, root, files)
        return files

    def record(self, image_id: str, done: Done) -> Done:
        """Record that an image is done, with the content of the parts of its record; returns that."""
        parts = [path for path in (self.path(image_id, suffix) for suffix in (".json", ".png")) if path.is_file()]
        complete = Done(done.file, done.pixels, done.objects, done.files, {p.suffix: FileIdentity.of(p) for p in parts})
        write_json(self.path(image_id, ".done"), {"id": image_id, **asdict(complete)})
        return complete

    def done(self) -> dict[str, Done]:
        """The images that are done, by id; without those whose record is damaged or incomplete."""
        return dict(one for path in sorted(self.folder.glob("*.done")) if (one := self._read(path)) is not None)

    def read(self, image_id: str) -> Done | None:
        """The record of an image that is done."""
        one = self._read(self.path(image_id, ".done"))
        return None if one is None else one[1]

    def _read(self, path: Path) -> tuple[str, Done] | None:
        try:
            content = read_json(path)
            one = Done.from_dict(content, path)
            image_id = str(content["id"])
        except (InputError, AttributeError, KeyError, TypeError):
            return None
        return (image_id, one) if path == self.path(image_id, ".done") and self.is_whole(image_id, one) else None

    def fail(self, image_id: str, error: CellwrightError) -> None:
        """Record why an image failed, for the process that finishes the job."""
        parts = {name: str(value) for name, value in error.parts().items()}
        write_json(self.path(image_id, ".failed"), {"id": image_id, **parts})

    def forget_failure(self, image_id: str) -> None:
        """Remove what `fail` has written."""
        self.path(image_id, ".failed").unlink(missing_ok=True)

    def failures(self) -> dict[str, CellwrightError]:
        """Why images failed, by id; a record that is damaged does not count."""
        failures = dict[str, CellwrightError]()
        for path in sorted(self.folder.glob("*.failed")):
            try:
                content = {str(name): str(value) for name, value in read_json(path).items()}
                parts = {name: content.get(name) for name in ("where", "got", "expected")}
                error = InputError(content["problem"], **parts, remedy=content.get("fix"))
                failures[content["id"]] = error
            except (InputError, AttributeError, KeyError):
                continue
        return failures

    def is_whole(self, image_id: str, done: Done) -> bool:
        """Whether the parts of a record have the content that was recorded."""
        return ".json" in done.parts and all(
            FileIdentity.of(self.path(image_id, suffix), part).digest == part.digest
            for suffix, part in done.parts.items()
        )

    def finish(self, images: Mapping[str, Done]) -> None:
        """Record all images in one file."""
        content = {image_id: {**asdict(done), "files": {}, "parts": {}} for image_id, done in images.items()}
        write_json(self.folder / IMAGES, {"schema_version": SCHEMA_VERSION, "images": content}, indent=None)

    def finished(self) -> dict[str, Done] | None:
        """All images, if `finish` has recorded them. Raises `FormatError` if that is damaged."""
        path = self.folder / IMAGES
        return images_in(path) if path.is_file() else None

    def remove_list(self) -> None:
        """Remove what `finish` has written."""
        (self.folder / IMAGES).unlink(missing_ok=True)

    def remove_all_but_list(self) -> None:
        """Remove the records of single images."""
        for path in self.folder.iterdir():
            if path.name != IMAGES:
                remove(path)


def images_in(path: Path) -> dict[str, Done]:
    """The images in a JSON file. Raises `FormatError` if it is damaged."""
    content = read_json(path)
    try:
        return {str(name): Done.from_dict(one, path) for name, one in content["images"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        remedy = "use `overwrite=True` to start again, or choose another `out`"
        raise FormatError("the record of this job is damaged", where=path, got=str(error), remedy=remedy) from error
