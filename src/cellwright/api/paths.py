"""What a path is: a model, predictions, or annotations, in any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cellwright.api.models import NAMED_MODELS
from cellwright.core.dataset import Dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.core.progress import Track, no_progress
from cellwright.data.formats.contract import Prefer
from cellwright.data.identity import FileIdentity, digest_of

# Files of a prediction folder that do not hold predictions.
_NOT_READ = (".index", "_overlay.png", "contact_sheet.png", "counts.png", "plate.png", "summary.csv", "failures.csv")
# These formats may lack the names and sizes of their images, which then come from another dataset.
LIST_FORMATS = (
    "coco_results",
    "rle_csv",
    "rle_csv_submission",
    "dsb2018_csv",
    "xml_outlines",
    "imagej_roi",
    "geojson",
    "labelme",
    "yolo_seg",
)


def is_model(path: Path) -> bool:
    """Whether ``path`` is a model: one by name (``nuclei``), a model folder, or a run.

    Raises `UsageError` if a file or folder has the name of a model, since either could be meant.
    """
    if str(path) in NAMED_MODELS and path.exists():
        remedy = f"give the whole path of the file or folder, or rename it to use the model {path}"
        raise UsageError("a file or folder here has the same name as a model", got=str(path), remedy=remedy)
    return str(path) in NAMED_MODELS or is_model_folder(path)


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a model folder or a run."""
    return any((path / name).is_file() for name in ("model.json", "model/model.json"))


@dataclass(frozen=True)
class HowToRead:
    """How predictions and annotations are read.

    prefer: which file of an image in a prediction folder to read if several were edited differently. format: None
    detects it; option: the parameter that gives it. series: the image that is meant in files of several.
    """

    prefer: Prefer | None = None
    format: str | None = None
    option: str = "format"
    series: int | str | None = None
    track: Track = no_progress


def read_objects(path: Path, how: HowToRead = HowToRead(), images: Dataset | None = None) -> Dataset:
    """Predictions or annotations in any format; image files may be absent.

    images: where the names and sizes of the images come from if the format may lack them. Raises `InputError` if there
    are images only, which would otherwise count as images without objects.
    """
    from cellwright.data.formats import FORMATS, ReadOptions, get_format, sniff
    from cellwright.data.formats.image_folder import describe_contents
    from cellwright.data.formats.label_images import are_all_zero
    from cellwright.data.images.passed_over import results_note

    form = sniff(path, how.option) if how.format is None else get_format(how.format)
    if form.name == "image_folder" and are_all_zero(path):
        form = FORMATS["label_folder"]  # nothing was found, which is a result
    if form.name == "image_folder":
        remedy = "give the masks; label images are found if they are called <image>_masks"
        raise InputError("images without any objects", where=path, got=describe_contents(path), remedy=remedy)
    options = ReadOptions(images=images, require_images=False, prefer=how.prefer, series=how.series, track=how.track)
    dataset = form.read(path, options)
    skipped = results_note(path) if path.is_dir() else None
    return dataset if skipped is None else replace(dataset, notes=(*dataset.notes, skipped))


def read_ground_truth(path: Path, predictions: Sequence[Path], how: HowToRead = HowToRead()) -> Dataset:
    """The annotations to evaluate against.

    If their format may lack the names of the images, these come from the first prediction whose format has them. If
    ``path`` holds predictions, those below their score threshold are removed.
    """
    from cellwright.data.formats import sniff
    from cellwright.evaluation.pairing import above_threshold

    images = None
    if (sniff(path, how.option).name if how.format is None else how.format) in LIST_FORMATS:
        candidates = (other for other in predictions if other.exists() and not is_model_folder(other))
        source = next((other for other in candidates if sniff(other).name not in LIST_FORMATS), None)
        images = None if source is None else read_objects(source, HowToRead(track=how.track))
    return above_threshold(read_objects(path, how, images))


def short_names(paths: Sequence[Path]) -> list[str]:
    """A short, distinct name per path: its last part, with the folder before it or a number where names repeat.

    >>> short_names([Path("runs/a/model"), Path("runs/b/model")])
    ['a_model', 'b_model']
    """
    names = [path.stem if path.is_file() else path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        longer = [f"{path.resolve().parent.name}_{name}" for path, name in zip(paths, names, strict=True)]
        numbered = [f"{name}_{k + 1}" for k, name in enumerate(names)]
        names = longer if len(set(longer)) == len(longer) else numbered
    return [name.replace("|", "_") for name in names]


def content_of(path: Path) -> str:
    """Identifies a model or predictions by their content: all files that are not hidden, except pictures and lists."""
    from cellwright.models.weights.model_folder import CHOICES, model_folder

    if str(path) in CHOICES and is_model(path):
        return " ".join(content_of(Path(network)) for network in CHOICES[str(path)])
    if is_model(path):
        path = path if str(path) == "classical" else model_folder(path)
    if not path.is_dir():
        return FileIdentity.of(path).digest or str(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.endswith(_NOT_READ)]
    visible = [file.relative_to(path) for file in files]
    visible = [name for name in visible if not any(part.startswith(".") for part in name.parts)]
    return digest_of(repr([(name.as_posix(), FileIdentity.of(path / name).digest) for name in visible]))
