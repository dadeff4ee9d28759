"""``data show``: images with their objects outlined, or with random variants as a recipe's training sees them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cyclopts import Parameter

from cellwright.api.outputs import FileOutput, write_once
from cellwright.api.read import images_only_note, of_split, read_annotations
from cellwright.api.shared_options import Channel, FormatName, Planes, Series, TimePoint, reading_of
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import write_png
from cellwright.core.geometry import Window
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.result_folders import is_job_folder
from cellwright.core.text import count
from cellwright.data.images.reading import Reading

if TYPE_CHECKING:
    from cellwright.config.recipe import Recipe
    from cellwright.data.labels import Labels

TILE_PX = 480
VARIANT_TILE_PX = 320
REGION_PX = 8192  # the largest side of a region that is drawn at full size


@Parameter(name="*")
@dataclass(frozen=True)
class ShowPlan:
    """Draw images with their objects, or the augmentation of a recipe."""

    dataset: Path
    """A dataset folder, anything that `data convert` reads, or images without annotations."""
    _: KW_ONLY
    split: str | None = None
    """Only this split."""
    format: FormatName = None
    channel: Channel = ()
    z: Planes = None
    t: TimePoint = None
    series: Series = None
    max_images: int | None = None
    """Number of images, evenly spread over the dataset; by default 24, or 6 with an augmentation."""
    augment: str | None = None
    """A recipe: show each image in a row with random variants of it, as training with this recipe sees them."""
    variants: int = 5
    """Variants per image."""
    roi: tuple[int, ...] = ()
    """Draw this region of one image, at full size: y0,x0,height,width in pixels."""
    cores: bool = False
    """With a region of a tile job: draw the borders between tiles."""
    out: Path = Path("work/contact_sheet.png")
    """PNG file to write."""
    overwrite: bool = False
    """Replace an existing file."""


def run(plan: ShowPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Path | None:
    """Write the contact sheet and return its path; None after a dry run.

    Variants are drawn with the recipe's seed, so that the same plan gives the same picture. Raises `RecipeError` for
    the recipe, `InputError` for an image, `UsageError` for a split or a number of variants below 1.
    """
    from cellwright.config.recipe import load

    if plan.augment is not None and plan.variants < 1:
        raise UsageError("there is nothing to draw", got=f"`variants={plan.variants}`", expected="at least 1")
    _check_region(plan)
    output = FileOutput(plan.out, inputs=(plan.dataset,), overwrite=plan.overwrite, suffixes=(".png",))
    recipe = None if plan.augment is None else load(plan.augment)
    dataset = of_split(
        read_annotations(plan.dataset, reading_of(plan), screen, format=plan.format, no_objects=True), plan.split
    )
    for note in images_only_note(dataset):
        screen.note(note)

    def write(folder: Path) -> None:
        if plan.roi:
            picture = _region_picture(plan, dataset)
        elif recipe is None:
            picture = _image_sheet(plan, dataset, screen)
        else:
            picture = _variant_sheet(plan, dataset, recipe, screen)
        write_png(folder / plan.out.name, picture)

    return plan.out if write_once(output, write, str(plan.out), screen, dry_run=dry_run) else None


def _check_region(plan: ShowPlan) -> None:
    if plan.roi and (len(plan.roi) != 4 or min(plan.roi) < 0 or 0 in plan.roi[2:] or max(plan.roi[2:]) > REGION_PX):
        expected = f"y0,x0,height,width in pixels, at most {REGION_PX:,} high and wide"
        raise UsageError("invalid `roi`", got=",".join(map(str, plan.roi)), expected=expected)
    if plan.roi and plan.augment is not None:
        raise UsageError("`roi` shows an image as it is", got="`augment`", remedy="omit one of them")
    if plan.cores and not (plan.roi and is_job_folder(plan.dataset)):
        raise UsageError("`cores` is for a region of a tile job", got=str(plan.dataset), remedy="omit it")


def _region_picture(plan: ShowPlan, dataset: Dataset) -> np.ndarray:
    """A region of the only image, with the objects in it."""
    from cellwright.report.draw import draw_picture, enlargement

    if len(dataset) != 1:
        got, remedy = count(len(dataset), "image"), "give one image, or a tile job"
        raise UsageError("`roi` is for one image", got=got, remedy=remedy)
    sample = dataset[0]
    (height, width), (y0, x0, h, w) = sample.image_hw, plan.roi
    window = Window(y0, x0, min(y0 + h, height), min(x0 + w, width))
    if min(window.hw) <= 0:
        raise UsageError("`roi` lies outside the image", got=f"{y0},{x0},{h},{w}", expected=f"{height} x {width} px")
    reading = Reading.recorded(dataset.info).of(sample)
    image = reading.open(_image_path(sample, dataset), chosen=True).read(y0, x0, *window.hw)
    cells = sample.read_instances()
    masks = cells.masks.window(*window)
    inside = masks.areas > 0
    objects = Instances.from_masks(
        masks[inside], ids=cells.ids[inside], class_ids=cells.class_ids[inside], ignore=cells.ignore[inside]
    )
    caption = f"{sample.id}: {window.hw[0]} x {window.hw[1]} px from y {y0}, x {x0}"
    picture = draw_picture(image, objects, class_names=dataset.class_names, caption=caption)
    if plan.cores:
        _draw_cores(picture, plan.dataset, window, enlargement(window.hw))
    return picture


def _draw_cores(picture: np.ndarray, job: Path, window: Window, factor: int) -> None:
    """Draw the borders of the cores of tiles into the picture of a window, as lines of black and white dashes."""
    from cellwright.prediction.tiling.job import JobFacts

    grid = JobFacts.read(job).grid
    (height, width), scales = window.hw, grid.scale_yx
    y_edges, x_edges = ({round(edge / scales[axis]) for tile in grid for edge in tile.core[axis::2]} for axis in (0, 1))
    picture = picture[: height * factor, : width * factor]
    for edges, first, length, lines in (
        (y_edges, window.y0, height, picture),
        (x_edges, window.x0, width, picture.swapaxes(0, 1)),
    ):
        dashes = np.where(np.arange(lines.shape[1]) // 6 % 2, 255, 0).astype(np.uint8)[:, None]
        for edge in edges:
            if 0 < edge - first < length:
                lines[(edge - first) * factor] = dashes


def _image_sheet(plan: ShowPlan, dataset: Dataset, screen: ProgressReporter) -> np.ndarray:
    """One tile per image, with its objects outlined."""
    import cv2

    from cellwright.prediction.summaries import evenly_chosen
    from cellwright.report.colours import class_styles
    from cellwright.report.display import channel_colours
    from cellwright.report.draw import contact_sheet, draw_overlay

    has_only_images = bool(images_only_note(dataset))
    picked = evenly_chosen(len(dataset), 24 if plan.max_images is None else plan.max_images)
    tiles, colours = [], dict[str, None]()
    for k in screen.track(picked, "drawing", len(picked)):
        sample = dataset[k]
        cells = sample.read_instances()
        scale = min(TILE_PX / max(sample.image_hw), 1.0)
        image = Reading.recorded(dataset.info).of(sample).chosen(_image_path(sample, dataset))
        colours |= dict.fromkeys(channel_colours(image))
        # A line of one pixel would vanish when a large image shrinks to a tile.
        outline_px = max(round(1.5 / scale), 1)
        overlay = draw_overlay(image, cells, class_names=dataset.class_names, outline_px=outline_px, legend=False)
        size_wh = max(round(overlay.shape[1] * scale), 1), max(round(overlay.shape[0] * scale), 1)
        caption = sample.id if has_only_images else f"{sample.id}: {count(int((~cells.ignore).sum()), 'object')}"
        tiles.append((caption, cv2.resize(overlay, size_wh, interpolation=cv2.INTER_AREA)))
    title = ", ".join([f"{len(picked)} of {count(len(dataset), 'image')}", *colours])
    styles = class_styles(dataset.class_names) if len(dataset.class_names) > 1 else ()
    return contact_sheet(tiles, title=title, styles=styles)


def _variant_sheet(plan: ShowPlan, dataset: Dataset, recipe: Recipe, screen: ProgressReporter) -> np.ndarray:
    """One row per image: the image, then its variants."""
    from cellwright.prediction.summaries import evenly_chosen
    from cellwright.report.draw import contact_sheet

    tiles = []
    picked = evenly_chosen(len(dataset), 6 if plan.max_images is None else plan.max_images)
    for place, k in enumerate(screen.track(picked, "drawing", len(picked))):
        tiles += _row(dataset, dataset[k], place, recipe, plan.variants)
    title = f"{recipe.name}: {count(plan.variants, 'variant')} of each image"
    return contact_sheet(tiles, columns=1 + plan.variants, tile_px=VARIANT_TILE_PX, title=title)


def _row(dataset: Dataset, sample: Sample, place: int, recipe: Recipe, n_variants: int) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures of the image and its variants."""
    from cellwright.config.conventions import CONVENTIONS
    from cellwright.config.recipe import with_channel
    from cellwright.data.augment import augment
    from cellwright.data.decode import decode_sample, frame_of
    from cellwright.data.loader import augment_rng
    from cellwright.report.draw import draw_overlay

    reading, class_names = Reading.recorded(dataset.info), dataset.class_names
    if reading.channels:
        recipe = with_channel(recipe, reading.channels)
    decoded = decode_sample(sample, recipe.input, recipe.data, reading)
    frame = frame_of(decoded, recipe.input, CONVENTIONS[recipe.conventions].resize_rule)

    def tile(name: str, pixels: np.ndarray, labels: Labels) -> tuple[str, np.ndarray]:
        height, width = pixels.shape[:2]
        objects = _instances(labels)
        if decoded.is_normalised and recipe.input.colour_order == "bgr":
            pixels = pixels[:, :, ::-1]
        channels = ("R", "G", "B") if pixels.shape[2] == 3 else decoded.channels
        # A line of one pixel would vanish when a large image shrinks to a tile.
        line_px = max(1, round(max(height, width) / VARIANT_TILE_PX))
        overlay = draw_overlay(
            Image(np.ascontiguousarray(pixels), channels),
            objects,
            class_names=class_names,
            outline_px=line_px,
            legend=len(class_names) > 1,
        )
        return f"{name}: {count(len(objects), 'object')}, {width} x {height} px", overlay

    row = [tile(sample.id, decoded.pixels, decoded.labels)]
    for step in range(n_variants):
        rng = augment_rng(recipe.train.seed, step, place)
        row.append(tile(f"variant {step + 1}", *augment(decoded.pixels, decoded.labels, recipe.augment, rng, frame)))
    return row


def _instances(labels: Labels) -> Instances:
    masks, numbers = MaskSet.from_layers(labels.layers)
    return Instances.from_masks(masks, class_ids=labels.class_ids[numbers - 1], ignore=labels.ignore[numbers - 1])


def _image_path(sample: Sample, dataset: Dataset) -> Path:
    if sample.image_path is None:
        raise InputError(
            "a sample has no image",
            where=f"{dataset.root}, sample {sample.id}",
            remedy="convert the dataset again, with its images",
        )
    return sample.image_path
