"""Which backend runs a network, what is recorded of it, and that both find the same objects."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import network_conformance as suite
import numpy as np
import pytest
import torch
from drawn import run
from torch import nn

from cellwright.api.models import ensemble, load_model
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import CascadeConfig, MaskRCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import UsageError
from cellwright.data.images.source import open_image
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.build import build_network
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model
from cellwright.prediction.backends import load
from cellwright.prediction.backends.load import backend_of, chosen_backend
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.tiling.models import tile_model

UNET, TIMM = (Recipe(name="u", model=UNetConfig(encoder=encoder)) for encoder in (None, "timm:resnet18"))
RCNN, CASCADE = (Recipe(name="r", model=config()) for config in (MaskRCNNConfig, CascadeConfig))


def test_what_runs_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_has_gpu", lambda: False)
    assert [chosen_backend(recipe) for recipe in (UNET, RCNN, TIMM, CASCADE)] == ["openvino"] * 2 + ["torch"] * 2
    assert chosen_backend(UNET, "torch") == chosen_backend(UNET, device="cuda") == chosen_backend(RCNN, "torch")
    reasons = (
        (TIMM, "cpu", "encoder of timm"),
        (CASCADE, "cpu", "networks of the kind cascade_mask_rcnn run in PyTorch"),
        (UNET, "cuda", "PyTorch"),
    )
    for recipe, device, why in reasons:
        with pytest.raises(UsageError, match=why):
            chosen_backend(recipe, "openvino", device)
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        chosen_backend(UNET, "openvin")  # type: ignore[arg-type]
    monkeypatch.setattr(load.openvino_graph, "has_bf16", lambda: True)
    assert [chosen_backend(recipe, "openvino-bf16") for recipe in (UNET, RCNN)] == ["openvino-bf16"] * 2
    monkeypatch.setattr(load.openvino_graph, "has_bf16", lambda: False)
    with pytest.raises(UsageError, match="this processor has no bf16"):
        chosen_backend(UNET, "openvino-bf16")
    monkeypatch.setattr(load, "_has_gpu", lambda: True)
    assert chosen_backend(UNET) == "torch"
    assert chosen_backend(UNET, device="cpu") == chosen_backend(UNET, "openvino") == "openvino"
    monkeypatch.setattr(load.openvino_graph, "is_installed", lambda: False)
    assert chosen_backend(UNET, device="cpu") == "torch"
    with pytest.raises(UsageError, match="not installed"):
        chosen_backend(UNET, "openvino")
    monkeypatch.setattr("cellwright.core.needs_torch.torch_is_installed", lambda: False)
    for is_installed in (False, True):
        monkeypatch.setattr(load.openvino_graph, "is_installed", lambda own=is_installed: own)
        with pytest.raises(UsageError, match=r"needs PyTorch(.|\n)*cellwright\[train\]"):
            chosen_backend(RCNN, device="cpu")


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


def test_mask_rcnn_finds_the_same_objects_whole_and_in_tiles(tmp_path: Path) -> None:
    name = saved_rcnn(tmp_path)
    image = draw_field(2, (90, 110), 14, FieldLook(stain="he"))[0]
    own, expected = (load_model(name, device="cpu", backend=backend) for backend in ("auto", "torch"))
    assert (backend_of(own.filtered), backend_of(expected.filtered)) == ("openvino", "torch")
    for options in ({}, {"views": "mirror"}):
        found, there = (model.with_options(score=0, **options).predictions(image) for model in (own, expected))
        assert len(found.instances) == len(there.instances) > 5
        assert (found.instances.masks.foreground() != there.instances.masks.foreground()).mean() < 1e-3
        np.testing.assert_allclose(found.instances.scores, there.instances.scores, atol=1e-3)
    source, objects = open_image(image), []
    for model in (own, expected):
        tiles = tile_model(model.predictor)
        facts = tiles.facts(source)
        (tile,) = tiles.grid(facts, 2048)
        objects.append(tiles.objects(source, facts, tile))
    assert len(objects[0]) == len(objects[1]) > 5
    assert (objects[0].masks.foreground() != objects[1].masks.foreground()).mean() < 1e-3


def saved_rcnn(folder: Path) -> Path:
    """A small network of random weights, which finds objects everywhere."""
    recipe = suite.CASES["fpn_r18"].recipe()
    torch.manual_seed(0)
    network = build_network(recipe, 1).eval()
    with torch.no_grad():
        for predictor in (network.box_head[0].class_logits, network.box_head[0].deltas, network.mask_head.logits):
            nn.init.normal_(predictor.weight, std=0.3)
    values = {"recipe": recipe.to_dict(), "normalisation": recipe.input.model_dump(mode="json")}
    info = ModelInfo(kind="mask_rcnn", class_names=("nucleus",), **values)
    return save_model(folder / "model", network.state_dict(), info)


def test_the_command_records_what_ran(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), draw_field(2, (60, 70), 6, FieldLook(stain="fluorescence"))[0].data)
    for backend in ("openvino", "torch"):
        words = ["predict", tmp_path / "a.png", "--device", "cpu", "--backend", backend, "--save", "masks"]
        assert run(*words, "--out", tmp_path / backend) == 0
        made_by = json.loads((tmp_path / backend / "predictions.json").read_text())["info"]["made_by"]
        assert made_by["backend"] == backend
        assert made_by["versions"]["openvino"]


def test_masks_are_computed_of_the_objects_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved_rcnn(tmp_path)
    image = draw_field(2, (90, 110), 14, FieldLook(stain="he"))[0]
    for backend in ("openvino", "torch"):
        model = load_model(name, device="cpu", backend=backend)
        regions: list[int] = []
        model.predictor.network.mask_head.register_forward_hook(lambda _, given, __, n=regions: n.append(len(given[0])))
        everything = model.with_options(score=0.0).predictions(image)
        assert sum(regions) >= len(everything.instances) > 10
        score = float(np.median(everything.instances.scores))
        regions.clear()
        expected = model.with_options(score=score).predictions(image)
        n_all = sum(regions)
        regions.clear()
        objects = model.predict(image, score=score)
        assert 0 < len(objects) <= sum(regions) < n_all
        assert objects.masks == expected.instances.masks
        assert objects.ids.tolist() == expected.instances.ids.tolist()
        own = model.with_options(score=score, no_candidates=True).predictions(image)
        assert own.candidates is own.instances
        assert own.n_low_score >= expected.n_low_score > 0
        assert own.model_cap == expected.model_cap


def test_average_precision_without_candidates_is_said_to_lack_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), draw_field(2, (90, 110), 14, FieldLook(stain="he"))[0].data)
    shared = [tmp_path / "a.png", "--model", saved_rcnn(tmp_path), "--device", "cpu", "--save", "masks"]
    scores = {}
    for name, options in {"with": (), "without": ("--no-candidates",)}.items():
        assert run("predict", *shared, "--score", 0.63, *options, "--out", tmp_path / name) == 0
        written = json.loads((tmp_path / name / "predictions.json").read_text())
        scores[name] = [one["score"] for one in written["annotations"]]
        assert run("export", tmp_path / name, "--to", "coco_results", "--out", tmp_path / f"{name}.json") == 0
        assert ("no objects below their score threshold" in capsys.readouterr().err) == (name == "without")
    assert [score for score in scores["with"] if score >= 0.63] == scores["without"]
    assert min(scores["with"]) < 0.63
