"""Which backend runs a network, what is recorded of it, and that both find the same objects."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn import run

from cellwright.api.models import ensemble, load_model
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import MaskRCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import UsageError
from cellwright.data.images.source import open_image
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.prediction.backends import load
from cellwright.prediction.backends.load import backend_of, chosen_backend
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.tiling.models import tile_model

UNET, TIMM = (Recipe(name="u", model=UNetConfig(encoder=encoder)) for encoder in (None, "timm:resnet18"))
RCNN = Recipe(name="r", model=MaskRCNNConfig())


def test_what_runs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_has_gpu", lambda: False)
    assert [chosen_backend(recipe) for recipe in (UNET, TIMM, RCNN)] == ["openvino", "torch", "torch"]
    assert chosen_backend(UNET, "torch") == chosen_backend(UNET, device="cuda") == "torch"
    for recipe, device, why in ((TIMM, "cpu", "encoder of timm"), (RCNN, "cpu", "R-CNN"), (UNET, "cuda", "PyTorch")):
        with pytest.raises(UsageError, match=why):
            chosen_backend(recipe, "openvino", device)
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        chosen_backend(UNET, "openvin")  # type: ignore[arg-type]
    monkeypatch.setattr(load, "_has_gpu", lambda: True)
    assert chosen_backend(UNET) == "torch"
    assert chosen_backend(UNET, device="cpu") == chosen_backend(UNET, "openvino") == "openvino"
    monkeypatch.setattr(load.openvino_network, "is_installed", lambda: False)
    assert chosen_backend(UNET, device="cpu") == "torch"
    with pytest.raises(UsageError, match="not installed"):
        chosen_backend(UNET, "openvino")
    monkeypatch.setattr("cellwright.core.needs_torch.torch_is_installed", lambda: False)
    with pytest.raises(UsageError, match=r"needs PyTorch(.|\n)*cellwright\[train\]"):
        chosen_backend(RCNN)


@pytest.mark.parametrize("stain", ["he", "fluorescence"])
def test_both_find_the_same_objects_whole_in_views_and_in_tiles(stain: str) -> None:
    image = draw_field(2, (90, 110), 14, FieldLook(stain=stain))[0]
    own, expected = (load_model("nuclei", device="cpu", backend=backend) for backend in ("openvino", "torch"))
    assert (backend_of(own.filtered), backend_of(expected.filtered)) == ("openvino", "torch")
    assert backend_of(ensemble([own, expected], FusionOptions()).predictor) == "openvino + torch"
    for options in ({}, {"diameter": 20.0, "views": "mirror"}):
        found, there = (model.with_options(**options).predictions(image) for model in (own, expected))
        assert found.diameter == there.diameter
        assert len(found.instances) == len(there.instances) > 5
        assert (found.instances.masks.foreground() != there.instances.masks.foreground()).mean() < 1e-3
        np.testing.assert_allclose(found.instances.scores, there.instances.scores, atol=1e-3)
    given = own.with_options(diameter=20)
    tiles, source = tile_model(given.predictor), open_image(image)
    facts = tiles.facts(source)
    (tile,) = tiles.grid(facts, 2048)
    (whole,) = given.predictor.predict([image])
    assert tiles.objects(source, facts, tile).masks == whole.instances.masks


def test_the_command_records_what_ran(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), draw_field(2, (60, 70), 6, FieldLook(stain="fluorescence"))[0].data)
    for backend in ("openvino", "torch"):
        words = ["predict", tmp_path / "a.png", "--device", "cpu", "--backend", backend, "--save", "masks"]
        assert run(*words, "--out", tmp_path / backend) == 0
        made_by = json.loads((tmp_path / backend / "predictions.json").read_text())["info"]["made_by"]
        assert made_by["backend"] == backend
        assert made_by["versions"]["openvino"]
