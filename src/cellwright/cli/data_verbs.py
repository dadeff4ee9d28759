"""``cellwright data ...`` and ``cellwright recipes ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cellwright.cli.console import Common

PLAIN = Common()
Flag = Annotated[bool, Parameter(negative="")]


def convert(
    source: list[Path],
    /,
    *,
    out: Path = Path("work/dataset"),
    format: str | None = None,  # noqa: A002 - the flag's name is fixed by the interface
    classes: list[str] | None = None,
    copy_images: Flag = False,
    overwrite: Flag = False,
    rle_order: Literal["row", "column"] | None = None,
    images: Path | None = None,
    common: Common = PLAIN,
) -> None:
    """Turn annotations of any known format into a dataset.

    Parameters
    ----------
    source:
        Folders or files to read; several are put together.
    out:
        Dataset folder to write.
    format:
        Name of the source's format; found out when left away.
    classes:
        Class names, where the format has none.
    copy_images:
        Copy the images into the dataset instead of pointing at them.
    overwrite:
        Replace a dataset that exists.
    rle_order:
        How a Kaggle table counts pixels, where its columns do not say.
    images:
        Folder or dataset of the images, where they do not lie beside their annotations.
    """
    from cellwright.api import data

    show = common.show
    names = tuple(classes or ()) or None
    plan = data.ConvertPlan(tuple(source), out, format, names, copy_images, overwrite, rle_order, images)
    show.note(f"reads {', '.join(map(str, source))}; writes {out / 'dataset.json'}")
    if not common.dry_run:
        dataset = data.convert(plan, show.track)
        show.result(data.one_line(dataset), {"out": str(out)})


def info(dataset: Path, /, *, split: str | None = None, common: Common = PLAIN) -> None:
    """Counts, classes, sizes, density, overlaps and bit depth of a dataset.

    Parameters
    ----------
    dataset:
        A dataset folder, or any source that `data convert` reads.
    split:
        Only this split.
    """
    from cellwright.api import data

    for title, columns, rows in data.info_tables(dataset, split, common.show.track):
        common.show.table(title, columns, rows)


def check(
    dataset: Path,
    /,
    *,
    split: str | None = None,
    suspects: int = 20,
    out: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> int:
    """Find what is wrong with a dataset and say what to do; exit code 3 where there are errors.

    Parameters
    ----------
    dataset:
        A dataset folder, or any source that `data convert` reads.
    split:
        Only this split.
    suspects:
        How many of the annotations most likely wrong (merged, split, displaced, tiny, open) to list; 0 for none.
    out:
        CSV for up to 1000 suspects; a contact sheet of the worst 24 goes beside it (.png).
    overwrite:
        Replace --out and its contact sheet where they exist.
    """
    from cellwright.api import data
    from cellwright.api import suspects as doubtful
    from cellwright.data.check import SEVERITIES

    show = common.show
    plan = doubtful.SuspectPlan(dataset, split, out, overwrite)
    doubtful.claim_outputs(plan)
    if out is not None:
        show.note(f"writes {out} and {out.with_suffix('.png')}")
        if common.dry_run:
            return 0
    findings = data.check(dataset, split, show.track)
    found = doubtful.find_suspects(plan, track=show.track) if suspects > 0 or out is not None else []
    listed = [*findings, *doubtful.as_findings(found[: max(suspects, 0)])]
    listed.sort(key=lambda one: SEVERITIES.index(one.severity))
    if listed:
        rows = [(one.severity, one.where, one.what, one.remedy) for one in listed]
        show.table("", ("severity", "where", "what", "remedy"), rows)
    n_errors = sum(one.severity == "error" for one in findings)
    text = f"{n_errors} errors, {len(findings) - n_errors} other findings, {len(found)} suspects"
    show.result(text, {"errors": n_errors, "suspects": len(found), "out": None if out is None else str(out)})
    return 3 if n_errors else 0


def split(
    dataset: Path,
    /,
    *,
    val: float = 0.2,
    test: float = 0.0,
    folds: int | None = None,
    seed: int = 0,
    group: str | None = None,
    alike: Flag = False,
    out: Path | None = None,
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Give every image a split: seeded, even in density and classes, groups kept together.

    Parameters
    ----------
    dataset:
        A dataset folder.
    val:
        Share of the images to validate on, 0 to 1.
    test:
        Share of the images to test on, 0 to 1: never trained or tuned on.
    folds:
        Make k folds (splits fold_0 ... fold_k-1) instead.
    seed:
        Seed of the draw.
    group:
        Regular expression on image ids that names the group an image belongs to; groups never part.
    alike:
        Images of one size that look alike are one group.
    out:
        Dataset folder to write; left away, the dataset's own splits are set anew.
    overwrite:
        Replace a dataset that exists at --out, or splits that are set.
    """
    from cellwright.api import data

    show = common.show
    show.note(f"writes {(out or dataset) / 'dataset.json'}")
    if not common.dry_run:
        plan = data.SplitPlan(dataset, out, val, folds, seed, group, overwrite, test, alike)
        for title, columns, rows in data.split(plan, show.track):
            show.table(title, columns, rows)


def merge(
    dataset: list[Path],
    /,
    *,
    map: list[str] | None = None,  # noqa: A002 - the flag's name is fixed by the interface
    keep: list[str] | None = None,
    out: Path = Path("work/merged"),
    overwrite: Flag = False,
    common: Common = PLAIN,
) -> None:
    """Put datasets together, with classes renamed, united or left out; prints the objects of each class and split.

    Parameters
    ----------
    dataset:
        Dataset folders, or any sources that `data convert` reads; one may be given to change its classes.
    map:
        "old=new" renames a class, the same new name twice unites two, "old=" leaves its objects out; repeatable. Or a
        YAML file of such pairs.
    keep:
        Keep only these classes (new names), numbered in this order; repeatable.
    out:
        Dataset folder to write.
    overwrite:
        Replace a dataset that exists.
    """
    from cellwright.api import data

    screen = common.show
    screen.note(f"merges {', '.join(str(one) for one in dataset)}; writes {out / 'dataset.json'}")
    if not common.dry_run:
        plan = data.MergePlan(tuple(dataset), out, tuple(map or ()), tuple(keep or ()), overwrite)
        merged, table = data.merge(plan, screen.track)
        screen.table(*table)
        screen.result(data.one_line(merged), {"out": str(out)})


def show(
    dataset: Path,
    /,
    *,
    split: str | None = None,
    max_images: int | None = None,
    augment: str | None = None,
    variants: int = 5,
    out: Path = Path("work/contact_sheet.png"),
    common: Common = PLAIN,
) -> None:
    """Draw a contact sheet of images with their objects outlined, or of what a recipe's augmentation makes of them.

    Parameters
    ----------
    dataset:
        A dataset folder, or any source that `data convert` reads.
    split:
        Only this split.
    max_images:
        Images on the sheet, evenly picked; left away, 24, or 6 with --augment.
    augment:
        A recipe: each image in a row with random variants of it, as training with that recipe sees them.
    variants:
        Variants of each image, with --augment.
    out:
        PNG to write (replaced).
    """
    from cellwright.api import sheets

    screen = common.show
    screen.note(f"writes {out}")
    if common.dry_run:
        return
    if augment is None:
        sheets.contact_sheet(dataset, split, 24 if max_images is None else max_images, out, screen.track)
    else:
        n_images = 6 if max_images is None else max_images
        plan = sheets.VariantPlan(dataset, augment, out, split, n_images, variants)
        sheets.variant_sheet(plan, screen.track)
    screen.result(str(out), {"out": str(out)})


def list_recipes(*, common: Common = PLAIN) -> None:
    """The shipped recipes."""
    from cellwright.config.recipe import load, shipped_names

    rows = [(name, load(name).description) for name in shipped_names()]
    common.show.table("", ("recipe", "what it is"), rows)


def copy_recipe(name: str, /, *, out: Path | None = None, common: Common = PLAIN) -> None:
    """Write a shipped recipe to a file, to change it.

    Parameters
    ----------
    name:
        A shipped recipe, such as vrdl_nuclei/quick.
    out:
        File to write; left away, the recipe's own name in this folder.
    """
    from cellwright.config.recipe import dump, load
    from cellwright.core.errors import OutputError
    from cellwright.core.files import write_text

    target = out or Path(f"{name.rsplit('/', 1)[-1]}.yaml")
    if target.exists():
        raise OutputError("this file exists", where=target, remedy="choose another --out")
    if not common.dry_run:
        write_text(target, dump(load(name)))
    common.show.result(str(target), {"out": str(target)})
