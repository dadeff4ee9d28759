"""Estimated diameters: a network that works only near its own diameter, on drawn nuclei of known size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import cellwright as cw
from cellwright.config.input import InputConfig
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_dense import UNetConfig
from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.images.source import open_image
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.classical import ClassicalSegmenter
from cellwright.models.dense import flow
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.labels import connected_components
from cellwright.prediction import diameter as module
from cellwright.prediction.backends.torch import TorchPredictor
from cellwright.prediction.diameter import Diameter
from cellwright.prediction.predictor import FilteredPredictor, SegmenterPredictor
from cellwright.prediction.tiling.facts import find_facts

NOMINAL_PX = 24.0
CONFIG = InputConfig(normalise="percentile", percentiles=(0, 100), diameter_px=NOMINAL_PX)
SIZES = {5: ((160, 200), 130), 12: ((240, 300), 90), 24: ((360, 300), 60), 50: ((600, 500), 40), 100: ((800, 900), 20)}


def parts_of(mask: np.ndarray) -> np.ndarray:
    return connected_components(mask)[0]


class NearSighted(nn.Module):
    """In place of a U-Net: bright connected components, with high scores if they are about 24 px wide.

    Wider than 48 px it sees fragments of 12 px, not surely; narrower than 12 px only blurs.
    """

    stride, in_channels, out_channels = 16, 3, 3
    reach_px = None  # it looks at whole components

    def __init__(self) -> None:
        super().__init__()
        self.input_hws: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.input_hws += [(int(images.shape[2]), int(images.shape[3]))] * len(images)
        return [torch.from_numpy(np.stack([self._maps(grey.numpy()) for grey in images.mean(dim=1)]))]

    def _maps(self, grey: np.ndarray) -> np.ndarray:
        bright = parts_of(grey > 0.5)
        diameters = 2 * np.sqrt(np.bincount(bright.ravel()) / np.pi)
        diameters[0] = 0
        narrow, wide = (diameters < NOMINAL_PX / 2)[bright], (diameters > NOMINAL_PX * 2)[bright]
        blurred = parts_of(ndimage.uniform_filter((narrow & (bright > 0)).astype(np.float32), 9) > 0.3)
        rows, columns = np.indices(grey.shape) // 12
        fragments = (rows * 1000 + columns + 1) * wide
        labels = np.where(wide, 10**6 + fragments, np.where(blurred > 0, 10**5 + blurred, bright * ~narrow))
        maps = flow.encode(np.unique(labels, return_inverse=True)[1].reshape(grey.shape))
        sure = np.where(wide | (blurred > 0), 0.6, 0.97).astype(np.float32)
        maps[2] = np.log(np.clip(maps[2] * sure, 1e-6, None) / np.clip(1 - maps[2] * sure, 1e-6, None))
        return maps


def predictor(**changes: object) -> TorchPredictor:
    network = DenseNetwork(UNetConfig(width=4), in_channels=3, n_classes=1)
    network.unet = NearSighted()  # type: ignore[assignment]
    return replace(TorchPredictor(network, CONFIG), **changes)  # type: ignore[arg-type]


def predict_one(own: TorchPredictor, image: Image) -> tuple[Instances, Diameter | None]:
    (prediction,) = own.predict([image])
    return prediction.instances, prediction.diameter


def input_hws_of(own: TorchPredictor) -> list[tuple[int, int]]:
    return own.network.unet.input_hws  # type: ignore[attr-defined]


def drawn(size_px: int, seed: int = 1) -> tuple[Image, Instances, float]:
    """Nuclei that do not touch, with the value 40 on 0; their ground truth; their median diameter."""
    image_hw, n = SIZES[size_px]
    look = FieldLook(stain="fluorescence", diameter_px=size_px, touching=0.0, overlap=0.0)
    _, truth = draw_field(seed, image_hw, n, look)
    parts = parts_of(np.asarray(ndimage.binary_dilation(truth.masks.foreground())))
    # Of two nuclei that would touch, one is omitted.
    first = np.unique([parts[truth.masks[[k]].foreground()][0] for k in range(len(truth))], return_index=True)[1]
    truth = truth[np.sort(first)]
    image = Image.from_array(truth.masks.foreground().astype(np.uint8) * np.uint8(40))
    return image, truth, float(np.median(2 * np.sqrt(truth.masks.areas / np.pi)))


@pytest.mark.parametrize("size_px", SIZES)
def test_nuclei_of_any_size_are_measured_and_detected(size_px: int) -> None:
    image, truth, median_px = drawn(size_px)
    instances, diameter = predict_one(predictor(), image)
    assert diameter is not None
    assert diameter.estimated
    assert diameter.px is not None
    assert diameter.px == pytest.approx(median_px, rel=0.12)
    assert diameter.scale == pytest.approx(NOMINAL_PX / diameter.px)
    assert diameter.requested_scale is None
    assert instances.image_hw == image.image_hw
    report = cw.evaluate([instances], [truth])
    assert report["accuracy@0.5"] > 0.93
    assert report["accuracy@0.75"] > 0.85


def test_without_a_diameter_nuclei_of_other_sizes_are_missed() -> None:
    """Check of the test's network: it depends on the diameter."""
    for size_px in (5, 100):
        image, truth, _ = drawn(size_px)
        plain = predictor(input_config=CONFIG.model_copy(update={"diameter_px": None}))
        instances, diameter = predict_one(plain, image)
        assert diameter is None
        assert len(input_hws_of(plain)) == 1
        assert cw.evaluate([instances], [truth])["accuracy@0.5"] < 0.5


def test_a_given_diameter_is_used() -> None:
    image, _, _ = drawn(50)
    guessing = predictor()
    guessed, diameter = predict_one(guessing, image)
    assert diameter is not None
    assert diameter.px is not None
    assert len(input_hws_of(guessing)) == 4, "two sizes, the one that follows, and the image"
    told = predictor(diameter_px=diameter.px)
    instances, given = predict_one(told, image)
    assert given == replace(diameter, estimated=False)
    assert len(input_hws_of(told)) == 1
    assert instances.masks == guessed.masks
    assert np.array_equal(instances.scores, guessed.scores)  # type: ignore[arg-type]
    _, other = predict_one(predictor(diameter_px=48.0), image)
    assert other == Diameter(48.0, estimated=False, scale=0.5)


def test_each_image_of_a_batch_has_its_own_diameter() -> None:
    images = [drawn(12)[0], drawn(50)[0], Image.from_array(np.zeros((40, 50), np.uint8))]
    for image, together in zip(images, predictor(batch_size=3).predict(images), strict=True):
        expected, diameter = predict_one(predictor(), image)
        assert together.diameter == diameter
        assert together.instances.masks == expected.masks


@pytest.mark.parametrize("pixels", [np.zeros((70, 90), np.uint8), np.full((1, 1), 9, np.uint16)])
def test_an_image_without_objects_has_no_diameter(pixels: np.ndarray) -> None:
    instances, diameter = predict_one(predictor(), Image.from_array(pixels))
    assert len(instances) == 0
    assert instances.image_hw == pixels.shape
    assert diameter == Diameter(None, estimated=True)


def test_bit_depth_and_channels_change_nothing() -> None:
    image, _, _ = drawn(24)
    grey = image.data[:, :, 0]
    expected, diameter = predict_one(predictor(), image)
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    alpha = np.concatenate([rgb, np.random.default_rng(0).integers(0, 255, (*grey.shape, 1), np.uint8)], axis=2)
    for pixels in (grey.astype(np.uint16) * 300, grey.astype(np.float32) / 7, rgb, alpha):
        instances, same = predict_one(predictor(), Image.from_array(pixels))
        assert same == diameter
        assert instances.masks == expected.masks


def test_the_cost_of_an_estimate_does_not_depend_on_the_image_size() -> None:
    """Nuclei in one corner of a large image: the window is placed there."""
    image, truth, median_px = drawn(12)
    large = np.zeros((1500, 2500), np.uint8)
    large[-240:, 2000:2300] = image.data[:, :, 0]
    own = predictor()
    pixels = np.repeat(large[None] / np.float32(40), 3, axis=0)
    estimate = module.estimate_diameter(pixels, NOMINAL_PX, own.detect_input)
    assert estimate.px == pytest.approx(median_px, rel=0.12)
    assert all(max(hw) <= module.WINDOW_SIDE_PX + 16 for hw in input_hws_of(own))
    assert len(truth) > 20


def test_few_large_nuclei_outside_the_shared_window() -> None:
    """A bright speck attracts the shared window; the window for large objects still contains them."""
    y, x = np.mgrid[:400, :400]
    pixels = 0.6 * ((y - 320) ** 2 + (x - 320) ** 2 <= 40**2) + 0.45 * ((y // 2 + x // 2) % 2) * (y < 100) * (x < 100)
    estimate = module.estimate_diameter(
        np.repeat(pixels[None].astype(np.float32), 3, 0), NOMINAL_PX, predictor().detect_input
    )
    assert estimate.px == pytest.approx(80, rel=0.1)


@pytest.mark.parametrize("size_px", [12, 24])
def test_nuclei_in_a_corner_of_a_textured_image(size_px: int) -> None:
    """What varies most shows no object: the search goes on elsewhere."""
    image, truth, median_px = drawn(size_px)
    pixels = np.full((900, 1000), 0.45, np.float32)
    pixels[300:, 300:] = 0.45 * (np.indices((600, 700)).sum(axis=0) // 2 % 2)
    nuclei = image.data[:240, :, 0] > 0
    pixels[:240, : nuclei.shape[1]][nuclei] = 0.55
    own = predictor()
    estimate = module.estimate_diameter(np.repeat(pixels[None], 3, axis=0), NOMINAL_PX, own.detect_input)
    assert estimate.px == pytest.approx(median_px, rel=0.12)
    assert estimate.is_sure
    assert len(truth) > 20
    assert sum(height * width for height, width in input_hws_of(own)) < 6 * (module.WINDOW_SIDE_PX + 16) ** 2


class Shrinking:
    """In place of a network: at any size it finds pieces, half as wide as they should be, less and less surely."""

    def __init__(self) -> None:
        self.score = 0.8

    def __call__(self, pixels: np.ndarray) -> Instances:
        side = int(NOMINAL_PX / 2)
        rows, columns = np.indices(pixels.shape[1:]) // side
        labels = parts_of((rows % 2 == 0) & (columns % 2 == 0))
        self.score *= 0.8
        return Instances.from_label_map(labels, scores=np.full(labels.max(), self.score))


def test_an_uncertain_estimate_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that disagree are said, of whole images and of tiles, unless the diameter is given."""
    image, _, median_px = drawn(24)
    assert not predictor().predict([image])[0].notes
    for px, notes in ((None, 1), (median_px, 0)):
        own = predictor(diameter_px=px)
        shrinking = Shrinking()
        monkeypatch.setattr(TorchPredictor, "detect_input", lambda _, pixels, found=shrinking: found(pixels))
        (prediction,) = own.predict([image])
        facts = find_facts(open_image(image), CONFIG, "torchvision", Shrinking(), diameter_px=px)
        for said in (prediction.notes, facts.notes):
            assert [note.kind for note in said] == [module.UNCERTAIN] * notes
            assert all("give `diameter`" in note.text for note in said)


def test_the_enlargement_of_an_image_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"diameter_px": 24.0})
    assert Diameter.of(6.0, (1000, 1000), config, estimated=False).scale == 4
    large = Diameter.of(6.0, (2048, 2048), config, estimated=True)
    assert (large.scale, large.requested_scale) == (2, 4)
    huge = Diameter.of(6.0, (20000, 20000), config, estimated=True)
    assert (huge.scale, huge.requested_scale) == (1, 4)
    assert Diameter.of(48.0, (20000, 20000), config, estimated=True).scale == 0.5
    tiny = Diameter.of(1.0, (100, 100), config, estimated=False)
    assert (tiny.scale, tiny.requested_scale) == (8, 24)
    monkeypatch.setattr(module, "MAX_ENLARGED_PX", 100 * 100)
    own = predictor(diameter_px=12.0)
    _, diameter = predict_one(own, Image.from_array(np.zeros((80, 80), np.uint8)))
    assert diameter == Diameter(12.0, estimated=False, scale=1.25, requested_scale=2.0)
    assert input_hws_of(own) == [(112, 112)]


def test_predictions_have_the_diameter() -> None:
    image, _, median_px = drawn(24)
    filtered = FilteredPredictor(predictor())
    assert filtered.uses_diameter
    (prediction,) = filtered.predict([image])
    assert prediction.diameter is not None
    assert prediction.diameter.px == pytest.approx(median_px, rel=0.12)
    assert repr(prediction).endswith(f"; diameter {prediction.diameter.px:.1f} px estimated)")
    (given,) = filtered.with_diameter(20).predict([image])
    assert given.diameter == Diameter(20, estimated=False, scale=1.2)
    classical = SegmenterPredictor(ClassicalSegmenter(ClassicalConfig()))
    assert classical.predict([image])[0].diameter is None


@pytest.mark.parametrize("px", [0, -3, float("nan"), float("inf")])
def test_invalid_diameters_are_refused(px: float) -> None:
    with pytest.raises(UsageError, match="invalid `diameter`"):
        predictor().with_diameter(px)


def test_models_that_use_no_diameter_say_so() -> None:
    plain = predictor(input_config=CONFIG.model_copy(update={"diameter_px": None}))
    assert not plain.uses_diameter
    for own in (plain, SegmenterPredictor(ClassicalSegmenter(ClassicalConfig()))):
        with pytest.raises(UsageError, match=r"does not use a diameter[\s\S]*input\.diameter_px[\s\S]*omit"):
            own.with_diameter(20.0)


def test_noise_is_told_from_faint_objects_by_the_pixels() -> None:
    """Blurred noise and its brightest half as objects; faint discs under noise of single pixels, dense or few."""
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (384, 384)), 5).astype(np.float32)
    rgb = np.repeat(noise[None] / noise.std(), 3, axis=0)
    objects = parts_of(ndimage.gaussian_filter(rng.normal(0, 1, noise.shape), 5) > 0.05) > 0
    assert module._skewness(rgb, NOMINAL_PX) < module.LEAST_SKEWNESS
    assert module._contrast(rgb, objects, NOMINAL_PX) < module.LEAST_CONTRAST
    # Even outlines that follow the noise are not enough, as its brightness is distributed normally.
    assert module._is_grey(rgb)
    assert not module._is_grey(rgb * np.float32([[[1]], [[1.01]], [[1]]]))
    assert module._kurtosis(rgb, NOMINAL_PX) < module.LEAST_KURTOSIS
    assert module._kurtosis(rgb**3, NOMINAL_PX) > module.LEAST_KURTOSIS
    y, x = np.mgrid[:384, :384]
    discs = ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2) < 12**2
    grainy = (discs + rng.normal(0, 2, discs.shape)).astype(np.float32)
    assert module._contrast(np.repeat(grainy[None], 3, axis=0), discs, NOMINAL_PX) > 2 * module.LEAST_CONTRAST
    few = grainy * (discs & (y < 64) & (x < 96)) + rng.normal(0, 0.2, discs.shape)
    assert module._skewness(few[None].astype(np.float32), NOMINAL_PX) > module.LEAST_SKEWNESS
    assert module._skewness(np.zeros((1, 9, 9), np.float32), NOMINAL_PX) == 0
    assert module.levels_of(np.dtype(np.uint8), 118, 123) == 5 < module.LEAST_LEVELS
    assert module.LEAST_LEVELS < module.levels_of(np.dtype(np.uint8), 118, 132) == 14 < module.FEW_LEVELS
    assert module.levels_of(np.dtype(np.uint8), 0, 29) > module.FEW_LEVELS
    assert module.levels_of(np.dtype(np.float32), 0, 1) == module.levels_of(np.dtype(np.uint8), 7, 7) == np.inf


def test_objects_with_clear_scores_are_not_noise() -> None:
    """Objects that outline noise well, with the scores that a network gives there, and with clear ones."""
    rng = np.random.default_rng(3)
    plane = ndimage.gaussian_filter(rng.normal(0, 1, (256, 256)), 5).astype(np.float32)
    pixels = np.repeat(plane[None] / plane.std(), 3, axis=0)
    blurred = ndimage.gaussian_filter(rng.normal(0, 5, plane.shape), 5) / plane.std() / 5
    masks, _ = MaskSet.from_label_map(ndimage.label(pixels[0] + blurred > 0.8)[0].astype(np.int32))
    contrast = module._contrast(pixels, masks.to_label_map() > 0, NOMINAL_PX)
    assert module.LEAST_CONTRAST < contrast < module.NORMAL_CONTRAST

    def trial(score: float) -> module._Trial:
        objects = Instances.from_masks(masks, scores=np.full(len(masks), score, np.float32))
        return module._Trial(objects, 1.0, (0, 0, 256, 256), NOMINAL_PX, pixels)

    assert trial(0.6).is_noise()
    assert not trial(0.75).is_noise()
