"""Synthetic microscopy images of touching and overlapping nuclei, with exact ground truth, from a seed.

The project contains no patient images: the demo, the tests and the figures of the documentation use these images. The
shapes and positions of the nuclei come from one random stream and their appearance from another, so that a seed gives
the same nuclei in every stain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import UsageError
from cellwright.core.files import write_png
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet

Stain = Literal["he", "fluorescence"]

# Optical densities in red, green and blue. Haematoxylin is that of Ruifrok & Johnston (2001). Their eosin
# (0.07, 0.99, 0.11) looks magenta on a screen; this one absorbs more red and blue, like the images of slide scanners.
HAEMATOXYLIN_OD = np.array([0.65, 0.70, 0.29], dtype=np.float32)
EOSIN_OD = np.array([0.12, 0.80, 0.42], dtype=np.float32)

_MIN_VISIBLE_PX = 12  # a nucleus with fewer pixels inside the image is not drawn
_TRIES = 40  # positions tried for each nucleus


@dataclass(frozen=True)
class FieldLook:
    """The appearance of a synthetic image.

    stain: "he" (RGB, dark nuclei on pink tissue) or "fluorescence" (one channel, bright nuclei on black).
    diameter_px: median diameter of the nuclei; ``diameter_spread`` is the standard deviation of its logarithm.
    touching: share of the nuclei that are placed next to another nucleus, in [0, 1].
    overlap: largest share of the area of a nucleus that may overlap others, in [0, 1]; 0 for no overlaps.
    blur_px: standard deviation of the optical blur. noise: standard deviation of the noise, as a share of full range.
    bit_depth: 8, or 16 for fluorescence.

    Raises `UsageError` that names the invalid field.
    """

    stain: Stain = "he"
    diameter_px: float = 22.0
    diameter_spread: float = 0.18
    touching: float = 0.6
    overlap: float = 0.12
    blur_px: float = 0.8
    noise: float = 0.02
    bit_depth: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.stain not in ("he", "fluorescence"):
            raise UsageError("unknown stain", where="stain", got=self.stain, expected="'he' or 'fluorescence'")
        if not self.diameter_px >= 4:
            raise UsageError("the nuclei are too small", where="diameter_px", got=self.diameter_px, expected=">= 4")
        if self.bit_depth not in (8, 16) or (self.bit_depth == 16 and self.stain == "he"):
            raise UsageError(
                "unsupported bit depth for this stain",
                where="bit_depth",
                got=f"{self.bit_depth} with stain {self.stain!r}",
                expected="8, or 16 with stain 'fluorescence'",
            )


def draw_field(seed: int, image_hw: tuple[int, int], n: int, look: FieldLook | None = None) -> tuple[Image, Instances]:
    """A synthetic image and its objects, a pure function of the arguments.

    n: number of nuclei; fewer are drawn if there is no free position for some of them. 0 gives background only.

    Returns the image, uint8 (H, W, 3) R, G, B or uint8/uint16 (H, W, 1) DAPI, and the ground truth with ids 1..N and
    class 0. A pixel belongs to at most two nuclei.

    >>> image, cells = draw_field(seed=0, image_hw=(96, 128), n=12)
    >>> image, cells
    (Image(96 x 128, uint8, 3 channels (R, G, B)), Instances(12 objects, 96 x 128 px, class 0, ground truth))
    """
    look = FieldLook() if look is None else look
    boxes, crops = _place_nuclei(np.random.default_rng([seed, 0]), image_hw, n, look)
    rng = np.random.default_rng([seed, 1])
    density = _paint_nuclei(rng, image_hw, boxes, crops, look)
    if look.stain == "he":
        image = Image(_paint_he(rng, density, look), ("R", "G", "B"))
    else:
        image = Image(_paint_fluorescence(rng, density, look)[:, :, None], ("DAPI",))
    return image, Instances.from_masks(MaskSet.from_crops(boxes, crops, image_hw))


def write_demo_dataset(
    out: Path,
    *,
    seed: int = 0,
    splits: Sequence[tuple[str, int]] = (("train", 8), ("val", 2)),
    image_hw: tuple[int, int] = (256, 256),
    n_objects: int = 60,
    look: FieldLook | None = None,
) -> Dataset:
    """Draw images, write them as ``out/images/field_000.png`` etc., and return them as a dataset.

    splits: (name, number of images) in order. Each image has its own random stream, so that it does not depend on the
    number of images. Raises `OutputError` if ``out`` cannot be written.
    """
    names = [split for split, n_images in splits for _ in range(n_images)]
    samples = []
    for index, split in enumerate(names):
        image, truth = draw_field(seed * 100_003 + index, image_hw, n_objects, look)
        relative = Path("images") / f"field_{index:03d}.png"
        write_png(out / relative, image.data[:, :, 0] if image.n_channels == 1 else image.data)
        samples.append(
            Sample(
                id=relative.with_suffix("").as_posix(),
                image_path=out / relative,
                image_hw=image_hw,
                load=Loaded(truth),
                image_id=index + 1,
                split=split,
                group=None,
                pixel_size_um=None,
                source="synthetic",
            )
        )
    info = {"description": "synthetic nuclei drawn by cellwright", "seed": seed}
    return Dataset(tuple(samples), ("nucleus",), root=out, licence="CC0-1.0", info=info)


# --- positions and shapes ---------------------------------------------------------------------------------------------


def _blob(rng: np.random.Generator, look: FieldLook) -> np.ndarray:
    """One nucleus as a bool crop (h, w): an ellipse whose radius varies smoothly with the angle."""
    radius = 0.5 * look.diameter_px * np.exp(look.diameter_spread * np.clip(rng.standard_normal(), -2.5, 2.5))
    aspect = rng.uniform(1.0, 1.7)
    turn, phases = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 4)
    variation = rng.normal(0, 1, 4) * np.array([0.05, 0.045, 0.025, 0.015])
    half = int(np.ceil(radius * np.sqrt(aspect) * 1.35)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1] + rng.uniform(-0.5, 0.5, 2)[:, None, None]
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    angle = np.arctan2(v, u)
    edge = 1.0 + sum(variation[k] * np.cos((k + 2) * angle + phases[k]) for k in range(4))
    inside = np.hypot(u / np.sqrt(aspect), v * np.sqrt(aspect)) < radius * edge
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place_nuclei(
    rng: np.random.Generator, image_hw: tuple[int, int], n: int, look: FieldLook
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Boxes (N, 4) int32 and bool crops of up to n nuclei that overlap by at most ``look.overlap``."""
    height, width = image_hw
    owner = np.zeros(image_hw, dtype=np.int32)  # 0: free, k + 1: nucleus k, -1: shared by two
    budget: list[float] = []  # number of pixels that each nucleus may still share
    boxes: list[tuple[int, int, int, int]] = []
    crops: list[np.ndarray] = []
    for _ in range(n):
        blob = _blob(rng, look)
        for _ in range(_TRIES):
            centre_y, centre_x = _propose_centre(rng, image_hw, boxes, blob.shape, look)
            top, left = int(centre_y - blob.shape[0] / 2), int(centre_x - blob.shape[1] / 2)
            y0, x0 = max(top, 0), max(left, 0)
            y1, x1 = min(top + blob.shape[0], height), min(left + blob.shape[1], width)
            crop = blob[y0 - top : max(y1 - top, 0), x0 - left : max(x1 - left, 0)]
            area = int(crop.sum())
            if area < _MIN_VISIBLE_PX:
                continue
            under = owner[y0:y1, x0:x1]
            labels, counts = np.unique(under[crop & (under != 0)], return_counts=True)
            if (labels.size and labels[0] == -1) or counts.sum() > look.overlap * area:
                continue
            if any(n_shared > budget[label - 1] for label, n_shared in zip(labels, counts, strict=True)):
                continue
            for label, n_shared in zip(labels, counts, strict=True):
                budget[label - 1] -= n_shared
            budget.append(look.overlap * area - counts.sum())
            under[crop] = np.where(under[crop] == 0, len(boxes) + 1, -1)
            boxes.append((x0, y0, x1, y1))
            crops.append(crop)
            break
    return np.array(boxes, dtype=np.int32).reshape(-1, 4), crops


def _propose_centre(
    rng: np.random.Generator,
    image_hw: tuple[int, int],
    boxes: list[tuple[int, int, int, int]],
    blob_hw: tuple[int, ...],
    look: FieldLook,
) -> tuple[float, float]:
    """A centre (y, x): anywhere in the image, or next to one of the nuclei that have been placed."""
    if not boxes or rng.random() >= look.touching:
        return float(rng.uniform(0, image_hw[0])), float(rng.uniform(0, image_hw[1]))
    x0, y0, x1, y1 = boxes[rng.integers(len(boxes))]
    reach = 0.25 * (x1 - x0 + y1 - y0 + blob_hw[0] + blob_hw[1]) * rng.uniform(0.8, 1.1)
    angle = rng.uniform(0, 2 * np.pi)
    return 0.5 * (y0 + y1) + reach * float(np.sin(angle)), 0.5 * (x0 + x1) + reach * float(np.cos(angle))


# --- appearance -------------------------------------------------------------------------------------------------------


def _noise(
    rng: np.random.Generator, image_hw: tuple[int, int], scale_yx: tuple[float, float], octaves: int = 1
) -> np.ndarray:
    """Smooth noise (H, W) float32 with mean 0, standard deviation 1 and features of ``scale_yx`` pixels."""
    total = np.zeros(image_hw, dtype=np.float32)
    for octave in range(octaves):
        step_y, step_x = (max(scale / 2**octave, 1.0) for scale in scale_yx)
        grid_hw = (int(np.ceil(image_hw[0] / step_y)) + 3, int(np.ceil(image_hw[1] / step_x)) + 3)
        grid = rng.standard_normal(grid_hw).astype(np.float32)
        size_wh = (int(np.ceil(grid_hw[1] * step_x)), int(np.ceil(grid_hw[0] * step_y)))
        layer = cv2.resize(grid, size_wh, interpolation=cv2.INTER_CUBIC)
        total += layer[: image_hw[0], : image_hw[1]] * 0.6**octave
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _bend(rng: np.random.Generator, field: np.ndarray, diameter_px: float) -> np.ndarray:
    """``field`` (H, W) deformed smoothly on the scale of several nuclei, so that textures do not follow the axes."""
    y, x = np.mgrid[: field.shape[0], : field.shape[1]].astype(np.float32)
    reach, scale = 2.5 * diameter_px, (7 * diameter_px, 7 * diameter_px)
    y, x = y + reach * _noise(rng, field.shape, scale), x + reach * _noise(rng, field.shape, scale)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _paint_nuclei(
    rng: np.random.Generator, image_hw: tuple[int, int], boxes: np.ndarray, crops: list[np.ndarray], look: FieldLook
) -> np.ndarray:
    """The amount of nuclear stain (H, W) float32: about 1 inside a nucleus, 0 outside; overlapping nuclei add up."""
    density = np.zeros(image_hw, dtype=np.float32)
    for (x0, y0, x1, y1), crop in zip(boxes, crops, strict=True):
        depth = cv2.distanceTransform(np.pad(crop, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        rim = np.exp(-((depth - 1.0) ** 2) / (0.06 * look.diameter_px) ** 2)
        shade = rng.uniform(0.55, 1.2) * np.ones(crop.shape, dtype=np.float32)
        shade *= 1.0 + 0.25 * (rim if look.stain == "he" else -1.6 * rim)
        y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
        for _ in range(rng.integers(0, 3)):  # nucleoli: darker in haematoxylin, dim in DAPI
            spot_y, spot_x = rng.uniform(0.3, 0.7, 2) * crop.shape
            spot = np.exp(-((y - spot_y) ** 2 + (x - spot_x) ** 2) / (2 * (0.07 * look.diameter_px) ** 2))
            shade *= 1.0 + spot * (0.5 if look.stain == "he" else -0.45)
        density[y0:y1, x0:x1] += shade * crop
    grain = max(look.diameter_px / 7, 1.5)
    chromatin = 1.0 + 0.22 * _noise(rng, image_hw, (grain, grain), octaves=2)
    return density * np.clip(chromatin, 0.4, 1.8)


def _paint_he(rng: np.random.Generator, density: np.ndarray, look: FieldLook) -> np.ndarray:
    """Light transmitted through haematoxylin and eosin (Beer-Lambert law), with blur and noise: uint8 (H, W, 3)."""
    hw, d = density.shape, look.diameter_px
    uneven = 1.0 + 0.12 * _noise(rng, hw, (12 * d, 12 * d))
    cells = cv2.GaussianBlur((density > 0).astype(np.float32), (0, 0), 0.6 * d)
    fibres = _bend(rng, _noise(rng, hw, (0.35 * d, 3 * d), octaves=2), d)
    fibres = fibres + _noise(rng, hw, (1.5 * d, 1.5 * d), octaves=3)
    lumen = _bend(rng, _noise(rng, hw, (5 * d, 5 * d), octaves=3), d)
    holes = 1.0 / (1.0 + np.exp(-8.0 * (lumen - 0.7 - 2.5 * cells)))
    tissue = 1.0 - holes * (1.0 - np.clip(3 * cells, 0, 1))
    eosin = tissue * np.clip(0.34 + 0.06 * fibres + 0.22 * cells, 0.03, 1.2)
    eosin *= np.where(density > 0, 0.7, 1.0)
    haematoxylin = 0.95 * density + tissue * np.clip(0.05 + 0.03 * fibres + 0.12 * cells, 0, 1)
    haematoxylin, eosin = haematoxylin * uneven, eosin * (2.0 - uneven)
    optical_density = haematoxylin[..., None] * HAEMATOXYLIN_OD + eosin[..., None] * EOSIN_OD
    light = np.exp(-optical_density) * np.array([0.97, 0.96, 0.97], dtype=np.float32)
    light = cv2.GaussianBlur(light.astype(np.float32), (0, 0), max(look.blur_px, 0.01))
    light += look.noise * rng.standard_normal(light.shape).astype(np.float32)
    return np.round(np.clip(light, 0, 1) * 255).astype(np.uint8)


def _paint_fluorescence(rng: np.random.Generator, density: np.ndarray, look: FieldLook) -> np.ndarray:
    """Nuclei with out-of-focus light, uneven illumination, shot noise and read noise: uint8 or uint16 (H, W)."""
    hw, d = density.shape, look.diameter_px
    lamp = np.clip(1.0 + 0.15 * _noise(rng, hw, (14 * d, 14 * d)), 0.5, 1.5)
    sharp = cv2.GaussianBlur(density, (0, 0), max(look.blur_px, 0.01))
    haze = cv2.GaussianBlur(density, (0, 0), 0.9 * d)
    light = lamp * (0.45 * sharp + 0.10 * haze) + 0.05
    sigma = look.noise * np.sqrt(0.25 + 3.0 * light)  # shot noise grows with the square root of the light
    light = light + sigma * rng.standard_normal(hw).astype(np.float32)
    full = 255 if look.bit_depth == 8 else 65535
    return np.round(np.clip(light, 0, 1) * full).astype(np.uint8 if look.bit_depth == 8 else np.uint16)
