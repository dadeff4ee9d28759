"""``data split``: splits for training, validation and test, or folds for cross-validation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.outputs import SPLIT_BY, dataset_output, write_once
from cellwright.api.read import DATASET_FILE, is_dataset, read_annotations, read_dataset
from cellwright.api.shared_options import FormatName
from cellwright.core.dataset import Dataset
from cellwright.core.errors import OutputError, UsageError
from cellwright.core.ignored import counted_objects
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count


@Parameter(name="*")
@dataclass(frozen=True)
class SplitPlan:
    """Split a dataset for training, validation and test, or into folds.

    The split is random but reproducible, balanced in object density and classes, and never separates a group.
    """

    dataset: Path
    """A dataset folder; with `out`, anything that `data convert` reads."""
    _: KW_ONLY
    format: FormatName = None
    val: float = 0.2
    """Fraction of the images for validation, 0 to 1."""
    test: float = 0.0
    """Fraction of the images for the final test, 0 to 1; they are never used for training or tuning."""
    folds: int | None = None
    """Make this many folds instead: datasets fold_0, fold_1, ... below the output folder."""
    seed: int = 0
    """Seed of the random split."""
    group: str | None = None
    """Regular expression on image ids; images with the same match stay in one split, such as those of one patient."""
    alike: bool = False
    """Keep images that look alike and have the same size in one split."""
    out: Path | None = None
    """Dataset folder to write; by default the splits are set in the dataset itself."""
    overwrite: bool = False
    """Replace an existing output, or existing splits."""


def run(plan: SplitPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> list[Table]:
    """Set the splits and write the dataset(s); returns one table of images and objects per split for each of them.

    A dataset with the split train but none for validation gets one; its test split stays. Raises `OutputError` if
    splits are set already (or the output exists) without ``overwrite``, `UsageError` for mutually exclusive options or
    fractions that leave a split empty.
    """
    from cellwright.data.formats import FORMATS, WriteOptions
    from cellwright.data.split import folds, split_dataset, with_groups

    if plan.out is not None and plan.out.resolve() == plan.dataset.resolve():
        plan = dataclasses.replace(plan, out=None)
    _check_options(plan)
    in_place, targets = plan.out is None, _targets(plan)
    inputs, overwrite = () if in_place else (plan.dataset,), plan.overwrite and not in_place
    outputs = [dataset_output(target, "data split", inputs=inputs, overwrite=overwrite) for target in targets]
    dataset = read_annotations(plan.dataset, None, screen, format=plan.format)
    options = {"val": plan.val, "test": plan.test, "seed": plan.seed, "group": plan.group, "alike": plan.alike}
    if plan.out is None and not plan.overwrite and dataset.info.get(SPLIT_BY) == options:
        screen.note(f"already complete: {plan.dataset} has these splits")
        return [] if dry_run else [_table(plan.dataset, "")]
    # A dataset that has images for training and perhaps for the test only lacks a validation split, which is made.
    lacks_val = "train" in dataset.splits and set(dataset.splits) <= {"train", "test"}
    if lacks_val:
        screen.note("the split train is divided" + ("; test stays as it is" if "test" in dataset.splits else ""))
    elif plan.out is None and dataset.splits and not plan.overwrite:
        raise OutputError(
            "the dataset already has splits",
            where=plan.dataset,
            got=", ".join(dataset.splits),
            remedy="use `overwrite=True`, or give another `out`",
        )
    dataset = with_groups(dataset, plan.group)
    if dry_run and (in_place or not any(output.exists for output in outputs)):
        screen.note(f"will write {', '.join(str(target / DATASET_FILE) for target in targets)}")
        return []
    if plan.alike:
        from cellwright.data.split import group_alike

        dataset = group_alike(dataset, screen.track)
    parts: tuple[Dataset, ...]
    if plan.folds is None:
        parts = (split_dataset(dataset, plan.val, plan.seed, test=plan.test, track=screen.track),)
    else:
        parts = folds(dataset, plan.folds, plan.seed, track=screen.track)
    _note_large_groups(plan, dataset, parts, screen)
    # What is there is compared before anything is written.
    for output, part in sorted(zip(outputs, parts, strict=True), key=lambda each: not each[0].exists):
        recorded = dataclasses.replace(part, info=part.info | ({SPLIT_BY: options} if plan.folds is None else {}))
        write_options = WriteOptions(place=output.place, track=screen.track)

        def write(folder: Path, recorded: Dataset = recorded, write_options: WriteOptions = write_options) -> None:
            FORMATS["coco"].write(recorded, folder, write_options)

        if in_place:
            screen.note(f"will write {plan.dataset / DATASET_FILE}")
            with output.update((DATASET_FILE, "dataset.index")) as folder:
                write(folder)
        else:
            write_once(output, write, str(output.out / DATASET_FILE), screen, dry_run=dry_run)
    if dry_run:
        return []
    return [_table(target, "" if plan.folds is None else target.name) for target in targets]


def _note_large_groups(plan: SplitPlan, dataset: Dataset, parts: tuple[Dataset, ...], screen: ProgressReporter) -> None:
    """Say which splits are much smaller or larger than asked for, because the images of a group stay together."""
    movable = [sample for sample in dataset if sample.split != "test"]
    groups = Counter(sample.group for sample in movable if sample.group is not None)
    if not groups:
        return
    name, largest = groups.most_common(1)[0]
    group = "images that look alike" if plan.alike else f"the group {name}"
    remedy = "omit `alike`, or name the groups with `group`" if plan.alike else "use smaller groups"
    asked = {"val": 1 / plan.folds} if plan.folds is not None else {"val": plan.val, "test": plan.test}
    for k, part in enumerate(parts):
        for split, share in asked.items():
            got, expected = sum(sample.split == split for sample in part), share * len(movable)
            kept = split == "test" and "test" in dataset.splits
            if kept or abs(got - expected) <= max(expected / 2, 1):
                continue
            where = split if plan.folds is None else f"{split} of fold_{k}"
            screen.note(
                f"{where} has {count(got, 'image')}, not about {expected:.0f}: {count(largest, 'image')} of "
                f"{len(movable)} are one group ({group}) and stay together; {remedy}"
            )


def _check_options(plan: SplitPlan) -> None:
    if plan.alike and plan.group is not None:
        raise UsageError("groups are defined in two ways", got="`alike` and `group`", remedy="use only one of them")
    if plan.folds is not None and plan.test:
        raise UsageError("folds have no test split", got=f"`folds` and `test={plan.test:g}`", remedy="omit one of them")
    if plan.folds is not None and plan.folds < 2:
        raise UsageError("cross-validation needs at least two folds", got=plan.folds, remedy="give `folds=2` or more")
    if plan.folds is not None and plan.out is None:
        raise UsageError("every fold is a dataset of its own", got="`folds` without `out`", remedy="give `out`")
    if plan.out is None and not is_dataset(plan.dataset):
        raise UsageError("only a dataset folder can be split in place", where=plan.dataset, remedy="give `out`")


def _targets(plan: SplitPlan) -> list[Path]:
    """The dataset folders to write."""
    if plan.out is None:
        return [plan.dataset]
    return [plan.out] if plan.folds is None else [plan.out / f"fold_{k}" for k in range(plan.folds)]


def _table(folder: Path, title: str) -> Table:
    dataset, rows = read_dataset(folder), []
    for name in dataset.splits:
        part = dataset.with_split(name)
        rows.append((name, len(part), sum(len(counted_objects(sample.read_instances())) for sample in part)))
    return Table(title, ("split", "images", "objects"), rows)
