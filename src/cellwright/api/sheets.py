"""``data show``: images with their objects, or beside random variants as a recipe's training would see them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellwright.api.data import of_split, read_dataset, read_image
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import InputError, UsageError
from cellwright.core.files import write_png
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.core.progress import Track, no_progress

if TYPE_CHECKING:
    from cellwright.data.labels import Labels

TILE_PX = 480
VARIANT_TILE_PX = 320


@dataclass(frozen=True)
class VariantPlan:
    """What to draw: ``max_images`` images of the dataset, evenly picked, and ``variants`` of each by ``recipe``."""

    dataset: Path
    recipe: str
    out: Path
    split: str | None = None
    max_images: int = 6
    variants: int = 5


def contact_sheet(path: Path, split: str | None, max_images: int, out: Path, track: Track = no_progress) -> None:
    """Draw up to ``max_images`` images, evenly picked, with their objects outlined, into one PNG."""
    import cv2

    from cellwright.report.draw import contact_sheet as lay_out
    from cellwright.report.draw import draw_overlay

    dataset = of_split(read_dataset(path), split)
    picked = _evenly_picked(len(dataset), max_images)
    tiles = []
    for k in track(picked, "drawing", len(picked)):
        sample = dataset[k]
        cells = sample.read_instances()
        scale = min(TILE_PX / max(sample.image_hw), 1.0)
        image = read_image(_image_path(sample, dataset))
        # Lines as wide as the shrinking needs: one pixel of a large image vanishes on a tile.
        overlay = draw_overlay(image, cells, class_names=dataset.class_names, outline_px=round(1 / scale))
        size_wh = max(round(overlay.shape[1] * scale), 1), max(round(overlay.shape[0] * scale), 1)
        tiles.append((f"{sample.id}: {len(cells)}", cv2.resize(overlay, size_wh, interpolation=cv2.INTER_AREA)))
    write_png(out, lay_out(tiles))


def variant_sheet(plan: VariantPlan, track: Track = no_progress) -> None:
    """Write a PNG with a row an image: as it is, then its variants, objects outlined.

    Draws follow the recipe's seed, so that the same command gives the same picture. Raises `RecipeError` for the
    recipe, `InputError` for an image, `UsageError` for a number of variants below 1.
    """
    from cellwright.config.recipe import load
    from cellwright.report.draw import contact_sheet as lay_out

    if plan.variants < 1:
        raise UsageError("there is nothing to draw", got=f"--variants {plan.variants}", expected="at least 1")
    recipe = load(plan.recipe)
    dataset = of_split(read_dataset(plan.dataset), plan.split)
    tiles = []
    picked = _evenly_picked(len(dataset), plan.max_images)
    for place, k in enumerate(track(picked, "drawing", len(picked))):
        tiles += _row(dataset[k], place, recipe, dataset.class_names, plan.variants)
    title = f"{recipe.name}: {plan.variants} variant{'' if plan.variants == 1 else 's'} of each image"
    write_png(plan.out, lay_out(tiles, columns=1 + plan.variants, tile_px=VARIANT_TILE_PX, title=title))


def _row(
    sample: Sample, place: int, recipe: Recipe, class_names: tuple[str, ...], n_variants: int
) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures: the image, then its variants."""
    from cellwright.config.conventions import CONVENTIONS
    from cellwright.data.augment import augment
    from cellwright.data.decode import decode_sample, frame_of
    from cellwright.data.loader import augment_rng
    from cellwright.report.draw import draw_overlay

    decoded = decode_sample(sample, recipe.input, recipe.data)
    frame = frame_of(decoded, recipe.input, CONVENTIONS[recipe.conventions].resize_rule)

    def tile(name: str, pixels: np.ndarray, labels: Labels) -> tuple[str, np.ndarray]:
        height, width = pixels.shape[:2]
        objects = _instances(labels)
        if decoded.is_normalised and recipe.input.colour_order == "bgr":
            pixels = pixels[:, :, ::-1]
        channels = ("R", "G", "B") if pixels.shape[2] == 3 else decoded.channels
        # Lines as wide as the shrinking needs: one pixel of a large image vanishes on a tile.
        line_px = max(1, round(max(height, width) / VARIANT_TILE_PX))
        overlay = draw_overlay(
            Image(np.ascontiguousarray(pixels), channels),
            objects,
            class_names=class_names,
            outline_px=line_px,
            legend=len(class_names) > 1,
        )
        return f"{name}: {len(objects):,} objects, {width} x {height} px", overlay

    row = [tile(sample.id, decoded.pixels, decoded.labels)]
    for step in range(n_variants):
        rng = augment_rng(recipe.train.seed, step, place)
        row.append(tile(f"variant {step + 1}", *augment(decoded.pixels, decoded.labels, recipe.augment, rng, frame)))
    return row


def _instances(labels: Labels) -> Instances:
    masks, numbers = MaskSet.from_layers(labels.layers)
    return Instances.from_masks(masks, class_ids=labels.class_ids[numbers - 1], ignore=labels.ignore[numbers - 1])


def _evenly_picked(n: int, n_most: int) -> list[int]:
    """Up to ``n_most`` of 0..n-1, rising, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n_most, n)).round().astype(int)).tolist()


def _image_path(sample: Sample, dataset: Dataset) -> Path:
    if sample.image_path is None:
        raise InputError(
            "a sample has no image",
            where=f"{dataset.root}, sample {sample.id}",
            remedy="convert the dataset again where its images are",
        )
    return sample.image_path
