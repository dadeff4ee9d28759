"""A U-Net with nested skips, pruned for prediction: on the command line, tile by tile, in a process and exported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import run
from PIL import Image as PILImage
from torch import nn

import cellwright as cw
from cellwright.config.recipe import Recipe
from cellwright.models.build import build_network
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model
from cellwright.prediction.tiling.models import with_networks, without_networks

RECIPE = {
    "name": "small",
    "classes": 1,
    "input": {"channels": 1, "normalise": "percentile"},
    "model": {
        "kind": "unet", "width": 4, "depth": 3, "skips": "nested", "deep_supervision": True,
        "target": {"kind": "semantic"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights, of which each column detects a fifth of noise, and an image."""
    root, recipe = tmp_path_factory.mktemp("nested"), Recipe.model_validate(RECIPE)
    torch.manual_seed(1)
    network = build_network(recipe, 1).eval()
    assert isinstance(network, DenseNetwork)
    noise = np.random.default_rng(0).integers(0, 255, (75, 301), np.uint8)
    with torch.no_grad():
        for column in (1, 2, 3):
            layer = network.unet.maps[str(column)]  # type: ignore[index]
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            layer.weight *= 100
            shown = torch.from_numpy(noise[:72, :296] / np.float32(255))[None, None]
            layer.bias -= network.pruned(column).unet(shown)[0].quantile(0.8)
    info = ModelInfo(
        kind="unet",
        recipe=recipe.to_dict(),
        class_names=("nucleus",),
        normalisation=recipe.input.model_dump(mode="json"),
        thresholds={"score/nucleus": 0.0},
        tuned_on={"split": "val", "metric": "pq"},
    )
    save_model(root / "model", network.state_dict(), info)
    PILImage.fromarray(noise).save(root / "noise.png")
    return root


def test_a_pruned_model_predicts_alike_everywhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, of_model = folder / "noise.png", ("--model", folder / "model", "--device", "cpu")
    whole = cw.load_model(folder / "model", device="cpu")
    pruned = whole.with_options(pruned_to=1)
    assert "pruned_to=1" in repr(pruned)
    expected = pruned.predict(image)
    assert len(expected) > 5
    assert expected.masks != whole.predict(image).masks
    command = ("predict", image, *of_model, "--save", "masks", "--out", folder / "out")
    assert run(*command, "--pruned-to", 1) == 0
    assert "tuned with all levels of its network" in capsys.readouterr().err
    masks = cw.read_instances(folder / "out" / "noise_masks.tif").masks
    assert np.array_equal(masks.to_label_map(), expected.to_label_map())
    made_by = json.loads((folder / "out" / "predictions.json").read_text())["info"]["made_by"]
    assert made_by["options"]["pruned_to"] == 1
    assert run(*command, "--pruned-to", 2) == 2
    assert "`pruned_to`" not in (message := capsys.readouterr().err)
    assert "--pruned-to 2 instead of 1" in message
    tiles = (
        "predict",
        image,
        *of_model,
        "--tile",
        128,
        "--labels",
        "tiff",
        "--pruned-to",
        1,
        "--out",
        folder / "tiles",
    )
    assert run(*tiles) == 0
    tiled = cw.read_instances(folder / "tiles" / "labels.tif").masks
    assert np.array_equal(tiled.to_label_map() > 0, expected.masks.foreground())
    sent = pickle.dumps(without_networks(pruned.predictor, iter([str(folder / "model")])))
    (elsewhere,) = with_networks(pickle.loads(sent), "cpu").predict([cw.read_image(image)])
    assert elsewhere.instances.masks == expected.masks


def test_an_exported_pruned_model_is_a_smaller_model(folder: Path) -> None:
    exported = folder / "exported"
    assert run("model", "export", folder / "model", "--to", "half", "--pruned-to", 2, "--out", exported) == 0
    model, image = cw.load_model(exported, device="cpu"), folder / "noise.png"
    whole = cw.load_model(folder / "model", device="cpu")
    assert model.recipe is not None
    assert model.recipe.model.depth == 2  # type: ignore[union-attr]
    assert model.tuned_on is None
    sizes = [(path / "weights.safetensors").stat().st_size for path in (exported, folder / "model")]
    assert sizes[0] < sizes[1] / 4
    there, here, full = (
        one.predict(image, score=0.0).masks.foreground() for one in (model, whole.with_options(pruned_to=2), whole)
    )
    assert (there != here).mean() < 0.01, "weights are rounded"
    assert (full != here).mean() > 0.1


def test_other_models_are_not_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, got in (("nuclei", "model.skips: plain"), ("classical", "ClassicalSegmenter")):
        command = ("predict", folder / "noise.png", "--model", model, "--out", folder / "none", "--pruned-to", 2)
        assert run(*command) == 2
        message = capsys.readouterr().err
        assert "cannot be pruned" in message
        assert got in message
        assert "omit --pruned-to" in message
    assert run("model", "export", folder / "model", "--to", "half", "--pruned-to", 9, "--out", folder / "none") == 2
    assert "1 to 3, the depth of the network" in capsys.readouterr().err
