"""``data merge``: several datasets as one, with classes renamed, combined or dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
from cyclopts import Parameter

from cellwright.api.outputs import dataset_output, write_once
from cellwright.api.read import DATASET_FILE, read_dataset
from cellwright.api.shared_options import FormatName
from cellwright.core.dataset import Dataset
from cellwright.core.errors import FormatError, UsageError
from cellwright.core.files import read_text
from cellwright.core.ignored import counted_objects
from cellwright.core.notes import summarise
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.safe_yaml import parse_yaml
from cellwright.core.table import Table
from cellwright.core.text import count


@Parameter(name="*")
@dataclass(frozen=True)
class MergePlan:
    """Merge datasets; rename, combine or drop classes."""

    datasets: tuple[Path, ...]
    """Dataset folders, or anything that `data convert` reads; a single one to change its classes."""
    _: KW_ONLY
    format: FormatName = None
    map: tuple[str, ...] = ()
    """old=new renames a class, the same new name for two combines them, old= drops its objects; or a YAML file with
    lines old: new."""
    keep: tuple[str, ...] = ()
    """Keep only these classes (new names), numbered in this order."""
    out: Path = Path("work/merged")
    """Dataset folder to write."""
    overwrite: bool = False
    """Replace an existing dataset."""


def run(plan: MergePlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> tuple[Dataset, Table] | None:
    """Write the merged dataset; returns it as it is on disk, and a table of objects per class and split.

    Returns None after a dry run. Raises `UsageError` for a map or a class that matches no dataset, `OutputError` if the
    output exists.
    """
    from cellwright.data.formats import FORMATS, ReadOptions, WriteOptions
    from cellwright.data.formats import read_dataset as read
    from cellwright.data.formats.predictions import as_annotations
    from cellwright.data.merge import keep_classes, merge_datasets

    if plan.out.resolve() in [source.resolve() for source in plan.datasets]:
        raise UsageError("cannot merge a dataset into itself", where=plan.out, remedy="choose another `out`")
    output = dataset_output(plan.out, "data merge", inputs=plan.datasets, overwrite=plan.overwrite)
    class_map = read_class_map(plan.map)
    merged = merge_datasets(
        [as_annotations(read(path, ReadOptions(track=screen.track), format=plan.format)) for path in plan.datasets],
        class_map,
    )
    for line in summarise(merged.notes):
        screen.note(line)
    merged = keep_classes(merged, plan.keep) if plan.keep else merged
    announcement = f"{plan.out / DATASET_FILE}, merged from {count(len(plan.datasets), 'dataset')}"

    def write(folder: Path) -> None:
        FORMATS["coco"].write(merged, folder, WriteOptions(place=output.place, track=screen.track))

    if not write_once(output, write, announcement, screen, dry_run=dry_run):
        return None
    written = read_dataset(plan.out)
    return written, _class_table(written)


def read_class_map(words: Sequence[str]) -> dict[str, str | None]:
    """Old class name -> new name (None drops the class) from ``old=new`` and from YAML files of ``old: new``.

    Raises `UsageError` for another word or a class that is mapped twice, `FormatError` for a file without such pairs.
    """
    class_map: dict[str, str | None] = {}
    for word in words:
        if word.lower().endswith((".yaml", ".yml", ".json")) and "=" not in word:
            pairs = _map_file(Path(word))
        else:
            old, equals, new = word.partition("=")
            if not old.strip() or not equals:
                raise UsageError("invalid class map", got=repr(word), expected="old=new, old=, or a YAML file")
            pairs = {old.strip(): new.strip() or None}
        twice = sorted(set(pairs) & set(class_map))
        if twice:
            raise UsageError("a class is mapped twice", got=twice[0], remedy="map each class once")
        class_map |= pairs
    return class_map


def _map_file(path: Path) -> dict[str, str | None]:
    import yaml

    try:
        content = parse_yaml(read_text(path, "class map"))
    except yaml.YAMLError as error:
        raise FormatError(
            "this class map is not valid YAML",
            where=path,
            got=str(error).replace("\n", " "),
            remedy="write one line per class: old name: new name",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, str | None) for v in content.values()):
        raise FormatError(
            "invalid class map", where=path, got=str(content)[:80], expected="lines old: new (no new name: drop)"
        )
    return {str(old): new for old, new in content.items()}


def _class_table(dataset: Dataset) -> Table:
    """Objects of every class, split by split."""
    splits = (*dataset.splits, *((None,) if any(sample.split is None for sample in dataset) else ()))
    counts = {split: np.zeros(len(dataset.class_names), np.int64) for split in splits}
    for sample in dataset:
        class_ids = counted_objects(sample.read_instances()).class_ids
        counts[sample.split] += np.bincount(class_ids, minlength=len(dataset.class_names))
    rows = [
        (name, *(int(counts[split][k]) for split in splits), int(sum(counts[split][k] for split in splits)))
        for k, name in enumerate(dataset.class_names)
    ]
    columns = ("class", *("no split" if split is None else split for split in splits), "all")
    return Table(f"objects in {count(len(dataset), 'image')}", columns, rows)
