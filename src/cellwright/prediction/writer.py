"""The prediction folder, image by image: what is complete stays, so that an interrupted command can go on.

While a job runs, ``.progress/`` holds ``job.json`` (which job this is) and a small COCO file for every image that is
done. The last act of a job is to join them into ``predictions.json``; a folder that holds that file is finished.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import CellwrightError, OutputError, UsageError
from cellwright.core.files import atomic_path, read_json, write_json, write_png, write_text
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.formats import FORMATS
from cellwright.data.formats.contract import ReadOptions, WriteOptions
from cellwright.data.formats.paths import output_path
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.options import Outcome, PredictOptions
from cellwright.prediction.saves import ENDINGS, SAVES, Save
from cellwright.prediction.sources import Source

SCHEMA_VERSION = 1
PREDICTIONS_NAME = "predictions.json"
SHEET_TILES = 24
_TILE_PX = 480


@dataclass(frozen=True)
class Job:
    """What is predicted and left; two jobs that are equal leave the same files.

    recipe_yaml: the resolved recipe, kept as ``recipe.yaml``. model: what tells two sets of weights apart (a digest).
    reading: the choices made for reading images (channel, z, diameter). save: what is left for each image. info: more
    to say in predictions.json (JSON values); it does not make a job another one.
    """

    sources: tuple[Source, ...]
    class_names: tuple[str, ...]
    recipe_yaml: str
    model: str
    options: PredictOptions
    reading: Mapping[str, str | float | None]
    save: tuple[Save, ...] = SAVES
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.save if name not in SAVES]
        if unknown:
            raise UsageError("cannot save this", where="save", got=", ".join(unknown), expected=", ".join(SAVES))

    def facts(self) -> dict[str, str]:
        """A digest for each thing that makes a job what it is; an absent file counts as empty."""
        files = [(source.id, source.image_id, *_file_state(source.path)) for source in self.sources]
        parts = {
            "the images": files,
            "the recipe": self.recipe_yaml,
            "the model": [self.model, self.class_names],
            "the options": [asdict(self.options), dict(self.reading), sorted(self.save)],
        }
        return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest() for name, part in parts.items()}


@dataclass(frozen=True)
class Makers:
    """How pictures and tables are made; handed in, because drawing and measuring are other rooms' business.

    overlay: an image and its objects -> uint8 RGB (H', W', 3). thumbnail: the same with lines that survive shrinking.
    sheet: (caption, RGB) tiles -> uint8 RGB. beside: writes the file of another kind of `Save`, given the kind, the
    path, the objects, the image (None where it is not there) and the image's id.
    """

    overlay: Callable[[Image, Instances], np.ndarray]
    thumbnail: Callable[[Image, Instances], np.ndarray]
    sheet: Callable[[Sequence[tuple[str, np.ndarray]]], np.ndarray]
    beside: Callable[[Save, Path, Instances, Image | None, str], None]


class PredictionFolder:
    """An open prediction folder: `is_done`, `write` and `fail` image by image, then `finish`."""

    def __init__(self, out: Path, job: Job, makers: Makers, *, overwrite: bool = False) -> None:
        """Begin, or go on where the same job stopped.

        Raises `OutputError` for a finished job, another job's folder, or a folder that is not ours; with ``overwrite``
        the first two are removed and begun anew.
        """
        self.out, self._job, self._makers = out, job, makers
        self._progress = out / ".progress"
        self._failures: dict[str, CellwrightError] = {}
        _claim(out, self._progress / "job.json", job.facts(), overwrite=overwrite)
        write_text(out / "recipe.yaml", job.recipe_yaml)

    def is_done(self, index: int) -> bool:
        """Whether every output of source ``index`` stands already."""
        outputs = [self._output(index, kind) for kind in self._job.save]
        return all(path.is_file() for path in [*outputs, self._record(index)])

    def write(self, index: int, image: Image, outcome: Outcome, *, blank: bool = False) -> None:
        """Leave the outputs of source ``index``; its record comes last, so that a torn set is done again.

        blank: ``image`` stands in for one that is not there, and nothing is measured on it.
        """
        source, cells = self._job.sources[index], outcome.instances
        for kind in self._job.save:
            path = self._output(index, kind)
            match kind:
                case "masks":
                    _write_labels(path, cells, image)
                case "overlay":
                    write_png(path, self._makers.overlay(image, cells))
                case _:
                    self._makers.beside(kind, path, cells, None if blank else image, source.id)
        if index < SHEET_TILES:
            write_png(self._tile(index), _shrunk(self._makers.thumbnail(image, cells)))
        sample = Sample(
            id=source.id,
            image_path=source.path if source.path.is_file() else None,  # results may be fused without their images
            image_hw=image.image_hw,
            load=Loaded(outcome.candidates),
            image_id=index + 1 if source.image_id is None else source.image_id,
            split=source.split,
            group=source.group,
            pixel_size_um=image.pixel_size_um,
            source="cellwright predict",
        )
        summary = _summary_row(source.id, outcome, self._job.class_names)
        one = Dataset((sample,), self._job.class_names, root=self._progress, info={"summary": summary})
        FORMATS["coco"].write(one, self._record(index), WriteOptions())

    def fail(self, index: int, error: CellwrightError) -> None:
        """Note that source ``index`` failed; the job goes on and a later run of an unfinished job tries it again."""
        self._failures[self._job.sources[index].id] = error

    def finish(self) -> list[dict[str, Any]]:
        """Join everything: summary.csv, failures.csv, contact_sheet.png and, last, predictions.json.

        Returns the rows of the summary, in the order of the sources.
        """
        done = [index for index in range(len(self._job.sources)) if self._record(index).is_file()]
        parts = [FORMATS["coco"].read(self._record(index), ReadOptions(require_images=False)) for index in done]
        rows = [dict(part.info["summary"]) for part in parts]
        nothing = Instances.empty((1, 1), scored=True)
        names = list(_summary_row("", Outcome(nothing, nothing), self._job.class_names))
        write_text(self.out / "summary.csv", _csv(names, rows))
        failures = [_failure_row(name, error) for name, error in self._failures.items()]
        write_text(self.out / "failures.csv", _csv(["image", "problem", "where", "got", "fix"], failures))
        tiles = [(_caption(rows[k]), _read_png(self._tile(i))) for k, i in enumerate(done) if self._tile(i).is_file()]
        if tiles:
            write_png(self.out / "contact_sheet.png", self._makers.sheet(tiles))
        samples = tuple(sample for part in parts for sample in part)
        threshold = self._job.options.score_threshold
        info = {"description": "predictions by cellwright", "score_threshold": threshold, **self._job.info}
        whole = Dataset(samples, self._job.class_names, root=self.out, info=info)
        FORMATS["coco"].write(whole, self.out / PREDICTIONS_NAME, WriteOptions())
        shutil.rmtree(self._progress)
        return rows

    def _output(self, index: int, kind: Save) -> Path:
        return output_path(self.out, self._job.sources[index].id, ENDINGS[kind])

    def _record(self, index: int) -> Path:
        return self._progress / f"{index:08d}.json"

    def _tile(self, index: int) -> Path:
        return self._progress / f"{index:08d}.png"


def _claim(out: Path, job_file: Path, facts: dict[str, str], *, overwrite: bool) -> None:
    """Make ``out`` the folder of the job that ``facts`` describe, or raise `OutputError`."""
    another = "give --overwrite to begin anew, or choose another --out"
    if out.is_file():
        raise OutputError("a file stands where a folder should be written", where=out, remedy="choose another --out")
    finished, begun = (out / PREDICTIONS_NAME).is_file(), job_file.is_file()
    if not finished and not begun and out.is_dir() and any(out.iterdir()):
        raise OutputError(
            "this folder is not empty and holds no predictions",
            where=out,
            expected=f"a new folder, or one with {PREDICTIONS_NAME}",
            remedy="choose another --out",
        )
    if overwrite and (finished or begun):
        shutil.rmtree(out)
        finished = begun = False
    if finished:
        raise OutputError("these predictions are finished", where=out, remedy=another)
    if begun:
        before = read_json(job_file).get("facts", {})
        changed = [name for name, digest in facts.items() if before.get(name) != digest]
        if changed:
            got = f"changed since it began: {', '.join(changed)}"
            raise OutputError("this folder holds another, unfinished job", where=out, got=got, remedy=another)
        return
    write_json(job_file, {"schema_version": SCHEMA_VERSION, "facts": facts})


def _file_state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _summary_row(name: str, outcome: Outcome, class_names: Sequence[str]) -> dict[str, Any]:
    """One line of summary.csv."""
    cells = outcome.instances
    height, width = cells.image_hw
    covered = int(np.count_nonzero(cells.masks.foreground()))
    row: dict[str, Any] = {"image": name, "height_px": height, "width_px": width, "objects": len(cells)}
    if len(class_names) > 1:
        counts = np.bincount(cells.class_ids, minlength=len(class_names))
        row |= {f"objects_{label}": int(count) for label, count in zip(class_names, counts, strict=True)}
    assert cells.scores is not None
    row |= {
        "mean_score": round(float(cells.scores.mean()), 4) if len(cells) else None,
        "median_area_px": float(np.median(cells.masks.areas)) if len(cells) else None,
        "foreground_share": round(covered / (height * width), 5),
        "left_out_low_score": outcome.n_low_score,
        "left_out_small": outcome.n_small,
        "left_out_max_objects": outcome.n_over_cap,
        "model_cap_reached": outcome.model_cap,
        "overlap_pixels_resolved": outcome.pixels_resolved,
        # A label image holds one object a pixel: what the lower scores lose there is said here.
        "overlap_pixels_lost_in_label_image": int(cells.masks.areas.sum()) - covered,
    }
    return row | _diameter_columns(outcome.diameter)


def _diameter_columns(diameter: Diameter | None) -> dict[str, Any]:
    """By which diameter the image was resized, and how far; all empty for models that do not go by one."""
    if diameter is None:
        return dict.fromkeys(("diameter_px", "diameter_from", "network_scale", "network_scale_wanted"))
    px, wanted = diameter.px, diameter.wanted_scale
    return {
        "diameter_px": None if px is None else round(px, 2),
        "diameter_from": "estimated" if diameter.estimated else "given",
        "network_scale": round(diameter.scale, 4),
        "network_scale_wanted": None if wanted is None else round(wanted, 4),
    }


def _caption(row: Mapping[str, Any]) -> str:
    text = f"{row['image']}: {row['objects']} object{'' if row['objects'] == 1 else 's'}"
    if row["left_out_max_objects"]:
        text += f", {row['left_out_max_objects']} over --max-objects left out"
    return text + (f", the model's cap of {row['model_cap_reached']} reached" if row["model_cap_reached"] else "")


def _failure_row(name: str, error: CellwrightError) -> dict[str, Any]:
    where = None if error.where is None else Path(str(error.where)).name
    return {"image": name, "problem": error.problem, "where": where, "got": error.got, "fix": error.remedy}


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_labels(path: Path, cells: Instances, image: Image) -> None:
    """uint32 labels, the object's id in each of its pixels; where objects overlap the higher score wins."""
    best_first = cells.by_score()
    labels = best_first.masks.to_label_map(best_first.ids)
    resolution: dict[str, Any] = {}
    if image.pixel_size_um is not None:
        y, x = image.pixel_size_um
        resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels, compression="zlib", photometric="minisblack", **resolution)


def _read_png(path: Path) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR))[:, :, ::-1]


def _shrunk(rgb: np.ndarray) -> np.ndarray:
    scale = min(_TILE_PX / max(rgb.shape[:2]), 1.0)
    size_wh = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    return rgb if scale == 1.0 else cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA)
