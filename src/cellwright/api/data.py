"""Images, objects and datasets: reading, converting, describing, checking, splitting, drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from cellwright.api.outputs import claim_file
from cellwright.core.dataset import Dataset
from cellwright.core.errors import FormatError, InputError, OutputError, UsageError
from cellwright.core.files import unreadable
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress

if TYPE_CHECKING:
    from cellwright.data.check import Finding

DATASET_FILE = "dataset.json"
Table = tuple[str, tuple[str, ...], Iterable[Sequence[object]]]


@dataclass(frozen=True)
class ConvertPlan:
    """What ``data convert`` reads and writes; None finds out or keeps what the files say."""

    sources: tuple[Path, ...]
    out: Path
    format: str | None = None
    class_names: tuple[str, ...] | None = None
    copy_images: bool = False
    overwrite: bool = False
    rle_order: Literal["row", "column"] | None = None
    images: Path | None = None


@dataclass(frozen=True)
class SplitPlan:
    """What ``data split`` does; ``out`` None sets the dataset's own splits."""

    dataset: Path
    out: Path | None = None
    val: float = 0.2
    folds: int | None = None
    seed: int = 0
    group: str | None = None
    overwrite: bool = False
    test: float = 0.0
    alike: bool = False


@dataclass(frozen=True)
class MergePlan:
    """What ``data merge`` puts together.

    class_map: ``old=new`` (``old=`` leaves the class out), or YAML files of such pairs. keep: only these classes, in
    this order; none keeps all.
    """

    sources: tuple[Path, ...]
    out: Path
    class_map: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    overwrite: bool = False


def read_image(path: Path | str, *, channel: str | int | None = None, z: int | None = None) -> Image:
    """An image in its own dtype; see `data.images.read_image`."""
    from cellwright.data.images.read import read_image as read

    return read(path, channel=channel, z=z)


def read_dataset(path: Path | str, *, format: str | None = None, require_images: bool = True) -> Dataset:  # noqa: A002
    """A dataset folder, a prediction folder, or any source of a known format, lazily.

    require_images: False reads objects whose image files are absent. Raises `InputError` where no format fits.
    """
    from cellwright.data.formats import ReadOptions
    from cellwright.data.formats import read_dataset as read

    return read(Path(path), ReadOptions(require_images=require_images), name=format)


def read_instances(path: Path | str) -> Instances:
    """The objects of one file: a label image (``.tif``, ``.png``), or a source that holds exactly one image."""
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff", ".png"):
        from cellwright.data.formats.label_maps import instances_of, read_label_map

        return instances_of(read_label_map(path))
    dataset = read_dataset(path, require_images=False)
    if len(dataset) != 1:
        remedy = "read it with read_dataset"
        raise UsageError("this holds not exactly one image", where=path, got=f"{len(dataset)} images", remedy=remedy)
    return dataset[0].read_instances()


def is_dataset(path: Path) -> bool:
    """Whether ``path`` is a dataset of our own on disk."""
    return path.name == DATASET_FILE or (path / DATASET_FILE).is_file()


def convert(plan: ConvertPlan, track: Track = no_progress) -> Dataset:
    """Read the sources, write the dataset, and return it as it now is on disk.

    Raises `InputError` for what cannot be read (naming file and object), `OutputError` where a dataset exists.
    """
    from cellwright.data.formats import ReadOptions, WriteOptions, coco
    from cellwright.data.formats import read_dataset as read
    from cellwright.data.merge import merge_datasets

    claim_file(plan.out / DATASET_FILE, overwrite=plan.overwrite)
    images = None if plan.images is None else read(plan.images, ReadOptions(track=track))
    options = ReadOptions(class_names=plan.class_names, rle_order=plan.rle_order, images=images, track=track)
    parts = [read(source, options, name=plan.format) for source in plan.sources]
    dataset = parts[0] if len(parts) == 1 else merge_datasets(parts)
    if not len(dataset):
        raise InputError(
            "these sources hold no image",
            where=", ".join(map(str, plan.sources)),
            got="0 images",
            remedy="name a folder or file that data convert reads: docs/formats.md",
        )
    coco.write(dataset, plan.out, WriteOptions(copy_images=plan.copy_images, track=track))
    return read_dataset(plan.out)


def one_line(dataset: Dataset) -> str:
    """``"24 images, 1 class (nucleus), splits train, val: work/vrdl"``."""
    n = len(dataset.class_names)
    classes = f"{n} class{'' if n == 1 else 'es'} ({', '.join(dataset.class_names)})"
    splits = f", splits {', '.join(dataset.splits)}" if dataset.splits else ""
    return f"{len(dataset)} images, {classes}{splits}: {dataset.root}"


def info_tables(path: Path, split: str | None = None, track: Track = no_progress) -> list[Table]:
    """The table of ``data info``."""
    from cellwright.data.info import describe_dataset

    dataset = of_split(read_dataset(path), split)
    return [(one_line(dataset), ("what", "value"), describe_dataset(dataset, track=track).rows())]


def check(path: Path, split: str | None = None, track: Track = no_progress) -> list[Finding]:
    """Everything wrong or worth knowing, worst first."""
    from cellwright.data.check import check_dataset

    return check_dataset(of_split(read_dataset(path), split), track=track)


def split(plan: SplitPlan, track: Track = no_progress) -> list[Table]:
    """Set the splits and write the dataset; returns a table of images and objects a split.

    Raises `OutputError` where splits are set already (or ``out`` exists) and ``overwrite`` is not given.
    """
    from cellwright.data.formats import WriteOptions, coco
    from cellwright.data.split import folds, split_dataset

    if plan.alike and plan.group is not None:
        raise UsageError("groups are made in one way", got="--alike and --group", remedy="leave one out")
    if plan.folds is not None and plan.test:
        raise UsageError("folds leave no test split", got=f"--folds and --test {plan.test:g}", remedy="leave one out")
    dataset = read_dataset(plan.dataset)
    if plan.out is None and not is_dataset(plan.dataset):
        raise UsageError("only a dataset folder can be split in place", where=plan.dataset, remedy="give --out")
    if plan.out is None and dataset.splits and not plan.overwrite:
        found = ", ".join(dataset.splits)
        raise OutputError("the splits are set", where=plan.dataset, got=found, remedy="give --overwrite, or an --out")
    if plan.alike:
        from cellwright.data.split import group_alike

        dataset = group_alike(dataset, track)
    if plan.folds is None:
        done = split_dataset(dataset, plan.val, plan.seed, test=plan.test, group=plan.group, track=track)
        target = _claimed(plan, "")
        coco.write(done, target, WriteOptions(track=track))
        return [_split_table(target, "")]
    parts = folds(dataset, plan.folds, plan.seed, group=plan.group, track=track)
    if plan.out is None:
        raise UsageError("folds are datasets of their own", got="--folds without --out", remedy="give --out")
    targets = [_claimed(plan, f"fold_{k}") for k in range(len(parts))]
    for part, target in zip(parts, targets, strict=True):
        coco.write(part, target, WriteOptions(track=track))
    return [_split_table(target, target.name) for target in targets]


def merge(plan: MergePlan, track: Track = no_progress) -> tuple[Dataset, Table]:
    """Write the merged dataset; returns it as it now is on disk, and the table of objects per class and split.

    Raises `UsageError` for a map or a class that fits no dataset, `OutputError` where a dataset exists.
    """
    from cellwright.data.formats import ReadOptions, WriteOptions, coco
    from cellwright.data.formats import read_dataset as read
    from cellwright.data.merge import keep_classes, merge_datasets

    if plan.out.resolve() in [source.resolve() for source in plan.sources]:
        remedy = "choose another --out: the sources stay as they are"
        raise UsageError("a dataset cannot be merged into itself", where=plan.out, remedy=remedy)
    claim_file(plan.out / DATASET_FILE, overwrite=plan.overwrite)
    class_map = read_class_map(plan.class_map)
    merged = merge_datasets([read(source, ReadOptions(track=track)) for source in plan.sources], class_map)
    merged = keep_classes(merged, plan.keep) if plan.keep else merged
    coco.write(merged, plan.out, WriteOptions(track=track))
    written = read_dataset(plan.out)
    return written, _class_table(written)


def read_class_map(words: Sequence[str]) -> dict[str, str | None]:
    """Old class name -> new one (None leaves it out) from ``old=new`` and from YAML files of ``old: new``.

    Raises `UsageError` for another word or a class named twice, `FormatError` for a file that holds no such pairs.
    """
    found: dict[str, str | None] = {}
    for word in words:
        if word.lower().endswith((".yaml", ".yml", ".json")) and "=" not in word:
            pairs = _map_file(Path(word))
        else:
            old, equals, new = word.partition("=")
            if not old.strip() or not equals:
                raise UsageError("this is no class map", got=repr(word), expected="old=new, old=, or a YAML file")
            pairs = {old.strip(): new.strip() or None}
        twice = sorted(set(pairs) & set(found))
        if twice:
            raise UsageError("a class is mapped twice", got=twice[0], remedy="give each class one --map")
        found |= pairs
    return found


def _map_file(path: Path) -> dict[str, str | None]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error, "class map") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(
            "this class map is no YAML",
            where=path,
            got=str(error).replace("\n", " "),
            remedy="write one line a class: old name: new name",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, str | None) for v in content.values()):
        raise FormatError(
            "this is no class map", where=path, got=str(content)[:80], expected="lines old: new (nothing: leave out)"
        )
    return {str(old): new for old, new in content.items()}


def _class_table(dataset: Dataset) -> Table:
    """Objects of every class, split by split."""
    splits = (*dataset.splits, *((None,) if any(one.split is None for one in dataset) else ()))
    counts = {split: np.zeros(len(dataset.class_names), np.int64) for split in splits}
    for sample in dataset:
        counts[sample.split] += np.bincount(sample.read_instances().class_ids, minlength=len(dataset.class_names))
    rows = [
        (name, *(int(counts[split][k]) for split in splits), int(sum(counts[split][k] for split in splits)))
        for k, name in enumerate(dataset.class_names)
    ]
    columns = ("class", *("no split" if split is None else split for split in splits), "all")
    return f"objects in {len(dataset)} images", columns, rows


def of_split(dataset: Dataset, split: str | None) -> Dataset:
    """The samples of ``split``; None: all."""
    return dataset if split is None else dataset.with_split(split)


def _claimed(plan: SplitPlan, name: str) -> Path:
    if plan.out is None:
        return plan.dataset
    out = plan.out / name
    claim_file(out / DATASET_FILE, overwrite=plan.overwrite)
    return out


def _split_table(folder: Path, title: str) -> Table:
    dataset, rows = read_dataset(folder), []
    for name in dataset.splits:
        part = dataset.with_split(name)
        rows.append((name, len(part), sum(len(sample.read_instances()) for sample in part)))
    return title, ("split", "images", "objects"), rows
