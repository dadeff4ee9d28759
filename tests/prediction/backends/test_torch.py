"""Test-time augmentation: the inputs of the network, what is refused, and the whole way from a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cellwright as cw
from cellwright.api.predict import PredictPlan, run
from cellwright.config.input import InputConfig
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import OutputError, UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.network_input import to_network
from cellwright.data.views import PLAIN, View, parse_views
from cellwright.models.build import build_network
from cellwright.models.classical import ClassicalSegmenter
from cellwright.models.dense.unet import UNet
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model
from cellwright.prediction.backends.torch import TorchPredictor
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.predictor import Ensemble, SegmenterPredictor

RECIPE = Recipe.model_validate(
    {"name": "tiny", "model": {"kind": "unet", "width": 4, "depth": 1, "target": {"kind": "semantic"}}}
)


class Spy(nn.Module):
    """Predicts background everywhere, and records its inputs."""

    stride, reach_px = 2, 11

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.inputs.append(images.clone())
        return [torch.full((len(images), 1, *images.shape[2:]), -9.0)]


def spied(config: InputConfig, views: str, diameter_px: float | None = None) -> tuple[TorchPredictor, Spy]:
    network, spy = build_network(RECIPE, 1), Spy()
    network.unet = spy  # type: ignore[assignment]
    return TorchPredictor(network, config, diameter_px=diameter_px).with_views(parse_views(views)), spy


def ramp(hw: tuple[int, int]) -> Image:
    """Brighter to the right and downwards, so that every orientation shows."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    return Image.from_array(np.repeat((x + 2 * y)[:, :, None], 3, axis=2).astype(np.uint8))


def noise(hw: tuple[int, int]) -> Image:
    return Image.from_array(np.random.default_rng(0).integers(0, 255, (*hw, 3), dtype=np.uint8))


def test_the_network_gets_every_size_and_orientation() -> None:
    predictor, spy = spied(InputConfig(), "48,64,max90:mirror")
    (prediction,) = predictor.predict([ramp((48, 80))])
    assert (len(prediction.instances), prediction.instances.image_hw) == (0, (48, 80))
    assert prediction.views == parse_views("48,64,max90:mirror")
    assert repr(prediction) == "Prediction(0 objects in 48 x 80 px; 4 views)"
    assert [tuple(pixels.shape[2:]) for pixels in spy.inputs] == [(48, 80), (48, 80), (54, 90), (54, 90)]
    assert torch.equal(spy.inputs[1], spy.inputs[0].flip(-1))
    predictor, spy = spied(InputConfig(), "turns")
    predictor.predict([ramp((48, 80))])
    assert len({(pixels.shape[2], pixels.sum(dim=(0, 1, 3)).numpy().tobytes()) for pixels in spy.inputs}) > 2
    assert [tuple(pixels.shape[2:]) for pixels in spy.inputs] == 2 * [(48, 80), (48, 80), (80, 48), (80, 48)]


def test_factors_multiply_the_scale_of_a_diameter() -> None:
    predictor, spy = spied(InputConfig(diameter_px=24), "0.5,1,1.25:mirror", diameter_px=12)
    (prediction,) = predictor.predict([noise((40, 60))])
    assert [tuple(pixels.shape[2:]) for pixels in spy.inputs] == [(40, 60)] * 2 + [(80, 120)] * 2 + [(100, 150)] * 2
    assert prediction.diameter is not None
    assert (prediction.diameter.px, prediction.diameter.scale) == (12, 2.0)
    predictor, spy = spied(InputConfig(diameter_px=24), "0.5,1")
    (prediction,) = predictor.predict([noise((40, 60))])
    assert prediction.diameter is not None
    assert prediction.diameter.px is None, "nothing to measure"
    assert [tuple(pixels.shape[2:]) for pixels in spy.inputs[-2:]] == [(20, 30), (40, 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a small U-Net with random weights, adjusted to detect a fifth of noise."""
    out = tmp_path_factory.mktemp("views") / "model"
    torch.manual_seed(1)
    network = build_network(RECIPE, 1).eval()
    assert isinstance(network.unet, UNet)
    last = network.unet.maps[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= 100
        shown = torch.from_numpy(to_network(noise((64, 64)), RECIPE.input))[None]
        last.bias -= network.unet(shown)[0].quantile(0.8)
    info = ModelInfo(
        kind="unet",
        recipe=RECIPE.to_dict(),
        class_names=("nucleus",),
        normalisation=RECIPE.input.model_dump(mode="json"),
    )
    save_model(out, network.state_dict(), info)
    return out


def same(first: Instances, second: Instances) -> bool:
    return first.masks == second.masks and np.array_equal(first.scores, second.scores)  # type: ignore[arg-type]


def test_one_plain_view_is_plain_prediction(folder: Path) -> None:
    model, image = cw.load_model(folder, device="cpu"), noise((45, 63))
    plain, flips = model.predict(image), model.predict(image, views="flips")
    assert len(plain) > 3
    assert same(model.predict(image, views="1"), plain)
    assert same(model.predict([image], views=[View()])[0], plain)
    assert same(model.predict(image, views="flips"), flips), "the same again"
    assert not same(flips, plain)


def test_turned_images_give_turned_results(folder: Path) -> None:
    """With all eight orientations, the result does not depend on the orientation of the image."""
    model, image = cw.load_model(folder, device="cpu"), noise((44, 62))
    turned = Image.from_array(np.ascontiguousarray(np.rot90(image.data)))
    upright, rotated = model.predict(image, views="turns"), model.predict(turned, views="turns")
    assert len(upright) > 3
    there, here = rotated.masks.foreground(), np.rot90(upright.masks.foreground())
    assert (there != here).mean() < 0.001, "rounding may turn a pixel"


def test_methods_without_views_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="Classical"):
        SegmenterPredictor(ClassicalSegmenter(ClassicalConfig())).with_views(parse_views("flips"))
    with pytest.raises(UsageError, match="cannot have a short side"):
        spied(InputConfig(diameter_px=24), "400:flips")
    with pytest.raises(UsageError, match="did you mean 'flips'"):
        cw.load_model(folder, device="cpu").predict(noise((32, 32)), views="flip")
    assert cw.load_model(folder, device="cpu").predict([], views="flips") == []


def test_every_member_of_an_ensemble_uses_the_views() -> None:
    (member, first), (other, second) = spied(InputConfig(), "1"), spied(InputConfig(scale=0.5), "1")
    both = Ensemble((member, other), FusionOptions())
    (prediction,) = both.with_views(parse_views("mirror")).predict([ramp((32, 48))])
    assert len(prediction.instances) == 0
    assert prediction.views == parse_views("mirror")
    assert [tuple(pixels.shape[2:]) for pixels in (*first.inputs, *second.inputs)] == [(32, 48)] * 2 + [(16, 24)] * 2
    assert member.views == PLAIN, "the predictor itself is unchanged"


def test_from_a_plan_to_a_folder(folder: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), noise((45, 63)).data)
    plan = PredictPlan((tmp_path / "a.png",), model=(str(folder),), out=tmp_path / "out", device="cpu", views="flips")
    run(plan)
    (sample,) = cw.read_dataset(tmp_path / "out" / "predictions.json")
    model, image = cw.load_model(folder, device="cpu"), cw.read_image(tmp_path / "a.png")
    assert len(sample.read_instances()) >= len(model.predict(image, views="flips")) > 3
    with pytest.raises(OutputError):
        run(replace(plan, views=None))
    with pytest.raises(UsageError, match="invalid `views`"):
        run(replace(plan, views="flop", out=tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()
