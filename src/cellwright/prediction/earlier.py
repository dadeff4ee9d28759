"""Prediction folders written by versions that did not claim their output folders.

They hold ``.job.json`` (the request, and all images once they are done) and, while images are left, ``.progress/``. The
first versions had only ``predictions.json``. They stay readable, a finished one is complete, and with ``overwrite`` the
files that such a version wrote are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cellwright.core.claim import CLAIM, CONTROL, Claim
from cellwright.core.errors import CellwrightError
from cellwright.core.file_identity import FileIdentity
from cellwright.core.files import read_json
from cellwright.data.formats.coco import WRITTEN
from cellwright.data.formats.paths import output_path
from cellwright.data.formats.predictions import EDITABLE
from cellwright.prediction.job import (
    CONTACT_SHEET,
    COUNTS,
    ENDINGS,
    FAILURES,
    MEASUREMENTS,
    PLATE,
    PREDICTIONS,
    RECIPE,
    SUMMARY,
    WELLS,
)
from cellwright.prediction.ledger import Done, images_in

JOB_FILE, PROGRESS = ".job.json", ".progress"
_ABOUT_ALL = (PREDICTIONS, SUMMARY, FAILURES, RECIPE, CONTACT_SHEET, MEASUREMENTS, WELLS, COUNTS, PLATE)
_HIDDEN = (JOB_FILE, "predictions.index")


def is_earlier(folder: Path) -> bool:
    """Whether a folder has no claim, but was written by an earlier version."""
    return not (folder / CONTROL / CLAIM).is_file() and (
        (folder / JOB_FILE).is_file() or (folder / PROGRESS).is_dir() or (folder / PREDICTIONS).is_file()
    )


def earlier_claim(folder: Path) -> Claim | None:
    """What a folder without a claim is, for `OutputFolder`: None if cellwright did not write it."""
    if not is_earlier(folder):
        return None
    job, content = _json(folder / JOB_FILE), _json(folder / PREDICTIONS)
    request, images = job.get("request"), job.get("images")
    if not isinstance(request, dict):
        request = None
    is_ours = request is not None or _is_ours(content) or _is_job(folder / PROGRESS)
    if not is_ours:
        return None
    records = _records(folder)
    written = content["info"].get(WRITTEN) if _is_ours(content) else None
    digests = {**_digests(written), **_digests({name: record["files"] for name, record in records.items()})}
    ids = {*(images if isinstance(images, dict) else ()), *digests, *records, *_ids(content)}
    is_complete = (folder / PREDICTIONS).is_file() and not records
    return Claim("predict", request, "complete" if is_complete else "writing", _files(folder, ids, digests))


def earlier_images(folder: Path) -> Mapping[str, Done]:
    """All images of a finished job, by id. Raises `FormatError` if the record is damaged."""
    return images_in(folder / JOB_FILE)


def _files(
    folder: Path, ids: Iterable[str], digests: Mapping[str, Mapping[str, str]]
) -> dict[str, FileIdentity | None]:
    """The files of such a folder that exist, with the digests that are known."""
    files: dict[str, FileIdentity | None] = {}
    names = {
        **dict.fromkeys([*_ABOUT_ALL, *_HIDDEN]),
        **dict.fromkeys(path.name for path in folder.glob("*_plate.png")),
    }
    for path in (folder / PROGRESS).iterdir() if (folder / PROGRESS).is_dir() else ():
        names[f"{PROGRESS}/{path.name}"] = None
    for name in names:
        if (folder / name).is_file():
            files[name] = None
    for image_id in ids:
        for kind, ending in ENDINGS.items():
            try:
                path = output_path(folder, image_id, ending)
            except CellwrightError:  # not an id of ours
                continue
            if path.is_file():
                digest = digests.get(image_id, {}).get(kind) if kind in EDITABLE else None
                files[path.relative_to(folder).as_posix()] = FileIdentity(digest) if digest else None
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path) if path.is_file() else {}
    except CellwrightError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_ours(predictions: Mapping[str, Any]) -> bool:
    """Whether this is the content of a ``predictions.json`` of cellwright."""
    return "schema_version" in predictions and isinstance(predictions.get("info"), dict)


def _is_job(progress: Path) -> bool:
    return (progress / "job.json").is_file() or any(progress.glob("*.done")) or (progress / "lock").is_file()


def _ids(predictions: Mapping[str, Any]) -> list[str]:
    images = predictions.get("images") if _is_ours(predictions) else None
    listed = images if isinstance(images, list) else []
    return [str(image.get("sample_id") or image.get("file_name")) for image in listed if isinstance(image, dict)]


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of images in an unfinished job, by id: the digests of their files, if they are known."""
    records = {}
    for path in (folder / PROGRESS).glob("*.done"):
        info = _json(path.with_suffix(".json")).get("info")
        files = info.get("files") if isinstance(info, dict) else None
        records[str(_json(path).get("id"))] = {"files": files if isinstance(files, dict) else {}}
    return records


def _digests(written: Any) -> dict[str, dict[str, str]]:
    if not isinstance(written, dict):
        return {}
    return {str(name): one for name, one in written.items() if isinstance(one, dict)}
