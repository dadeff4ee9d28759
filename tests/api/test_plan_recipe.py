"""Recipes planned from drawn datasets, for each of which the right choice is obvious."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

import cellwright as cw
from cellwright.api import plan_recipe
from cellwright.api.pacing import fitted_steps
from cellwright.api.recipe_choices import Trial
from cellwright.config import recipe as recipes
from cellwright.core.dataset import Loaded
from cellwright.core.files import write_png
from cellwright.core.ignored import with_regions
from cellwright.data.synthetic import draw_field

HW = (192, 192)


def ellipses(centres: Sequence[tuple[float, float]], axes: tuple[float, float], hw: tuple[int, int] = HW) -> np.ndarray:
    """Masks (N, H, W) of upright ellipses with these diameters (y, x)."""
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    return np.array([((y - b) / axes[0]) ** 2 + ((x - a) / axes[1]) ** 2 < 0.25 for b, a in centres])


def grid(step: float, hw: tuple[int, int] = HW) -> list[tuple[float, float]]:
    return [(y, x) for y in np.arange(step, hw[0] - step / 2, step) for x in np.arange(step, hw[1] - step / 2, step)]


TOUCHING = ellipses(grid(14), (14.5, 14.5))
OVERLAPPING = ellipses(grid(14), (20, 20))
THIN = ellipses([(y, x) for y in (50, 140) for x in range(10, 190, 12)], (80, 7))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., cw.Dataset]:
    """Makes a dataset of images drawn from masks: a sequence of (masks, class ids or None)."""

    def dataset(
        images: Sequence[np.ndarray],
        class_ids: Sequence[np.ndarray] | None = None,
        pixels: Sequence[np.ndarray] | None = None,
        names: tuple[str, ...] = ("cell",),
    ) -> cw.Dataset:
        samples = []
        for k, masks in enumerate(images):
            shown = 20 + 180 * masks.any(axis=0).astype(np.uint8) if pixels is None else pixels[k]
            path = tmp_path / f"images/{len(list(tmp_path.glob('images/*')))}.png"
            write_png(path, shown)
            cells = cw.Instances.from_masks(
                cw.MaskSet.from_dense(masks), class_ids=None if class_ids is None else class_ids[k]
            )
            samples.append(cw.Sample(path.stem, path, masks.shape[1:], Loaded(cells)))
        return cw.Dataset(tuple(samples), names)

    return dataset


def planned(dataset: cw.Dataset, **options) -> cw.PlannedRecipe:
    return cw.plan(dataset, init=options.pop("init", "none"), device="cpu", **options)


def test_touching_round_objects(write) -> None:
    """A flow U-Net at their own size; the file says why, and is the recipe."""
    result = planned(write([TOUCHING] * 4))
    recipe = result.recipe
    assert (recipe.model.kind, recipe.model.target.kind, recipe.model.init) == ("unet", "flow", None)
    assert (recipe.input.scale, recipe.input.diameter_px, recipe.input.channels) == (1, None, 3)
    assert recipe.input.normalise == "percentile"
    assert (recipe.augment.invert, recipe.augment.hue, recipe.augment.gamma) == (0, 0, 0.5)  # fluorescence
    assert 140 <= recipe.augment.crop_px <= 160
    reasons = {choice.name: choice.why for choice in result.choices}
    assert "0% of the objects overlap" in reasons["model"]
    assert "14.5" in reasons["size"]
    for choice in result.choices:
        assert choice.why in " ".join(result.text.replace("\n", " ").replace("# ", " ").split())
    assert recipes.from_dict(yaml.safe_load(result.text), "plan") == recipe
    assert any("without validation images" in line for line in result.unknown)
    assert planned(write([TOUCHING] * 4)).text == result.text


def test_overlapping_objects(write) -> None:
    """Mask R-CNN; anchors from the boxes, caps from the density."""
    recipe = planned(write([OVERLAPPING] * 4)).recipe
    assert recipe.model.kind == "mask_rcnn"
    sizes = [size for level in recipe.model.anchors.sizes_px for size in level]
    assert sizes[0] == pytest.approx(20, abs=1)
    assert sizes == sorted(sizes)
    assert recipe.model.anchors.ratios == (1.0,)
    assert 1.5 * len(OVERLAPPING) <= recipe.model.box_head.detections_per_image <= 1.8 * len(OVERLAPPING)
    assert recipe.model.rpn.post_nms_test >= recipe.model.box_head.detections_per_image


def test_classes_of_different_and_of_similar_size(write) -> None:
    small, large = ellipses(grid(24)[:20], (10, 10)), ellipses([(150, 50), (150, 120)], (50, 50))
    masks, ids = np.concatenate([small, large]), np.repeat([0, 1], [20, 2])
    result = planned(write([masks] * 4, [ids] * 4, names=("dot", "cell")))
    assert (result.recipe.model.kind, result.recipe.classes) == ("mask_rcnn", 2)
    assert "dot 10.1 px" in result.choices[0].why
    half = np.arange(len(TOUCHING)) % 2
    assert planned(write([TOUCHING] * 4, [half] * 4, names=("a", "b"))).recipe.model.kind == "unet"


def test_thin_objects_fit_into_the_crop(write) -> None:
    recipe = planned(write([THIN] * 4)).recipe
    assert recipe.model.kind == "unet"
    assert recipe.augment.crop_px == 192  # the image; 3 * 80 px would be more


def test_images_of_different_sizes_are_resized_to_their_objects(write) -> None:
    images = [ellipses(grid(60), (48, 48)), TOUCHING, ellipses(grid(12), (9, 9))]
    result = planned(write(images))
    assert result.recipe.input.diameter_px is not None
    assert (result.recipe.augment.scale_min, result.recipe.augment.scale_max) == (0.6, 1.67)


@pytest.mark.parametrize("step", [12, 8], ids=["flow", "rcnn"])
def test_numbers_follow_when_the_data_are_twice_as_large(write, step: float) -> None:
    masks = ellipses(grid(step), (12, 12))  # overlapping if they are 8 px apart
    once, twice = (planned(write([np.kron(masks, np.ones((1, k, k), bool))] * 2)).recipe for k in (1, 2))
    assert once.input.scale == twice.input.scale == 1
    assert twice.augment.crop_px == pytest.approx(2 * once.augment.crop_px, abs=32)
    if once.model.kind == "mask_rcnn":
        pairs = zip(np.ravel(once.model.anchors.sizes_px), np.ravel(twice.model.anchors.sizes_px), strict=True)
        assert all(second == pytest.approx(2 * first, abs=1.5) for first, second in pairs)
        assert once.model.box_head.detections_per_image == twice.model.box_head.detections_per_image
    else:
        assert twice.model.target.min_area_px == pytest.approx(4 * once.model.target.min_area_px, abs=4)


def test_what_is_not_annotated_counts_for_nothing(write) -> None:
    """The annotated half is as dense as the whole image was."""
    whole = write([OVERLAPPING])
    left = np.zeros((1, *HW), bool)
    left[:, :, :96] = True
    inside = OVERLAPPING[[mask[:, :96].sum() > mask.sum() / 2 for mask in OVERLAPPING]]
    part = write([inside])
    cells = with_regions(part[0].load(), cw.MaskSet.empty(HW), cw.MaskSet.from_dense(left))
    result = planned(cw.Dataset((cw.Sample("a", part[0].image_path, HW, Loaded(cells)),), ("cell",)))
    caps = [recipe.model.box_head.detections_per_image for recipe in (planned(whole).recipe, result.recipe)]
    assert caps[1] == pytest.approx(caps[0], rel=0.15)
    assert any("of the pixels that are not annotated" in line for line in result.unknown)


def test_batch_and_crop_fit_into_memory(write, monkeypatch: pytest.MonkeyPatch) -> None:
    large = write([ellipses(grid(40, (512, 512)), (30, 30), (512, 512))])
    sizes = []
    for memory in ("8", "0.9", "0.15"):
        monkeypatch.setenv("CELLWRIGHT_MEMORY_GB", memory)
        recipe = planned(large).recipe
        sizes.append((recipe.train.batch_size, recipe.augment.crop_px))
    assert sizes == [(2, 256), (1, 256), (1, 128)]


def test_what_the_images_look_like_decides_their_changes(write) -> None:
    image, truth = draw_field(0, (128, 128), 20)
    stained = planned(write([truth.masks.to_dense()] * 2, pixels=[image.data] * 2)).recipe
    assert (stained.input.normalise, len(stained.input.mean), stained.input.channels) == ("fixed", 3, 3)
    assert stained.augment.hue > 0
    rng = np.random.default_rng(0)
    inside = ellipses(grid(40), (30, 30))
    phase = (120 + inside.any(axis=0) * rng.normal(0, 40, HW)).clip(0, 255).astype(np.uint8)
    grey = planned(write([inside] * 2, pixels=[phase] * 2))
    assert grey.recipe.input.normalise == "percentile"
    assert (grey.recipe.augment.invert, grey.recipe.augment.noise, grey.recipe.augment.hue) == (0, 0, 0)
    mixed = planned(
        write(
            [truth.masks.to_dense(), inside], pixels=[image.data, np.where(inside.any(axis=0), 200, 9).astype(np.uint8)]
        )
    )
    assert mixed.recipe.augment.invert > 0
    assert any("one network suits all kinds" in line for line in mixed.unknown)


@pytest.mark.parametrize(
    ("n_images", "accuracy", "starts"), [(8, 0.6, True), (8, 0.3, False), (2, 0.3, True), (2, 0.1, False)]
)
def test_the_data_are_asked_where_to_start(
    write, monkeypatch: pytest.MonkeyPatch, n_images: int, accuracy: float, starts: bool
) -> None:
    monkeypatch.setattr(plan_recipe, "_tried", lambda *_: Trial(min(n_images, 4), 100, accuracy))
    result = planned(write([TOUCHING] * n_images), init=None)
    assert result.recipe.model.init == ("nuclei" if starts else None)
    assert result.recipe.input.diameter_px == (24 if starts else None)
    assert f"{accuracy:.2f}" in {choice.name: choice.why for choice in result.choices}["starting weights"]
    assert planned(write([TOUCHING] * n_images), init="nuclei").recipe.model.init == "nuclei"


def test_the_length_fits_into_the_minutes(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_recipe, "measured_pace", lambda *_, **__: (0.5, 40.0))
    samples = write([TOUCHING] * 10).samples
    split = [
        cw.Sample(s.id, s.image_path, s.image_hw, s.load, split="val" if k > 1 else "train")
        for k, s in enumerate(samples)
    ]
    recipe = planned(cw.Dataset(tuple(split), ("cell",)), minutes=5).recipe
    assert recipe.evaluate.max_images == 3  # 4 evaluations of 8 images would take more than half of the time
    assert str(recipe.train.length) == f"{fitted_steps(300, 0.5, 15)} steps"


def test_what_cannot_be_planned(write, tmp_path: Path) -> None:
    with pytest.raises(cw.InputError, match="no annotated objects"):
        planned(write([np.zeros((0, 32, 32), bool)]))
    samples = [cw.Sample(s.id, s.image_path, s.image_hw, s.load, split="test") for s in write([TOUCHING])]
    with pytest.raises(cw.InputError, match="no training images"):
        planned(cw.Dataset(tuple(samples), ("cell",)))
    with pytest.raises(cw.UsageError, match="invalid time"):
        planned(write([TOUCHING]), minutes=0)
    import tifffile

    for k, names in enumerate((["DAPI", "GFP"], ["Hoechst", "GFP"])):
        stack = np.zeros((2, 32, 32), np.uint8) + 10 * k
        tifffile.imwrite(
            tmp_path / f"{k}.ome.tif", stack, metadata={"axes": "CYX", "Channel": {"Name": names}}, ome=True
        )
    cells = Loaded(cw.Instances.from_masks(cw.MaskSet.from_dense(TOUCHING[:1, :32, :32])))
    samples = [cw.Sample(str(k), tmp_path / f"{k}.ome.tif", (32, 32), cells) for k in range(2)]
    with pytest.raises(cw.InputError, match="different channels"):
        planned(cw.Dataset(tuple(samples), ("cell",)))
