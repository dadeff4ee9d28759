"""The bundled pretrained model on the command line and in Python, with an untrained network in its place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import draw_mask_folder, run
from safetensors.torch import load_file

import cellwright as cw
from cellwright.api.models import NAMED_MODELS
from cellwright.api.train import _init_fingerprint
from cellwright.config.recipe import Recipe
from cellwright.core.errors import ModelError, UsageError
from cellwright.models.build import build_network
from cellwright.models.weights import model_folder
from cellwright.models.weights.initial import start_from
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import in_half_precision, load_network, save_model

RECIPE = {
    "name": "dsb2018/nuclei",
    "classes": 1,
    "input": {"normalise": "percentile", "diameter_px": 24},
    "model": {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "flow"}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in float32, as training writes it."""
    recipe = Recipe.model_validate(RECIPE).resolved()
    torch.manual_seed(3)
    network = build_network(recipe, 1)
    with torch.no_grad():
        network.unet.maps[0].weight *= 100  # type: ignore[union-attr]
    info = ModelInfo(
        kind="unet",
        recipe=recipe.to_dict(),
        class_names=("nucleus",),
        normalisation=recipe.input.model_dump(mode="json"),
        data_licence="CC0-1.0",
    )
    return save_model(tmp_path_factory.mktemp("run") / "model", network.state_dict(), info)


@pytest.fixture
def bundled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two bundled models of ``nuclei``; the working folder is empty."""
    monkeypatch.setattr(model_folder, "BUNDLED_ROOT", tmp_path / "weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("nuclei_fluorescence", "nuclei_stained"):
        assert run("model", "export", model.parent, "--to", "half", "--out", tmp_path / "weights" / name) == 0
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_mask_folder(root / "source", 2)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", "0.5") == 0
    return root / "data"


def test_weights_are_float16_on_disk_and_float32_in_memory(bundled: Path, model: Path) -> None:
    stored, before = (
        load_file(bundled / "nuclei_fluorescence" / "weights.safetensors"),
        load_file(model / "weights.safetensors"),
    )
    counters = {name for name in stored if name.endswith("num_batches_tracked")}
    assert counters
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.int64 if name in counters else torch.float16)
        torch.testing.assert_close(tensor.to(before[name].dtype), before[name], rtol=1e-3, atol=1e-7)
    names = {path.name for path in (bundled / "nuclei_fluorescence").iterdir()} - {".cellwright"}
    assert names == {"weights.safetensors", "model.json", "README.md"}
    assert (bundled / "nuclei_fluorescence" / "model.json").read_bytes() == (model / "model.json").read_bytes()
    network, _ = load_network("nuclei-fluorescence")
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}


def test_weights_too_large_for_half_precision(model: Path) -> None:
    with pytest.raises(ModelError, match="half precision"):
        in_half_precision({"a": torch.tensor([1e5])})
    assert run("model", "export", model, "--to", "half", "--out", model, "--overwrite") == 2
    assert load_file(model / "weights.safetensors")["unet.maps.0.weight"].dtype == torch.float32


def test_predict_needs_no_model_named(bundled: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", data, "--split", "val", "--out", "a", "--device", "cpu") == 0
    shown = capsys.readouterr().err
    assert "model nuclei (finds nuclei only)" in shown
    assert "diameter" in shown
    (row,) = csv.DictReader(Path("a/summary.csv").read_text().splitlines())
    assert row["diameter_from"] == "estimated"
    assert run("predict", data, "--split", "val", "--out", "b", "--diameter", "12") == 0
    assert "diameter 12.0 px (given)" in capsys.readouterr().err
    (row,) = csv.DictReader(Path("b/summary.csv").read_text().splitlines())
    assert (row["diameter_px"], row["diameter_from"], row["network_scale"]) == ("12.0", "given", "2.0")
    assert row["network_scale_wanted"] == ""
    assert run("predict", data, "--split", "val", "--out", "c", "--diameter", "1") == 0
    assert "1 image could not be enlarged as much as the diameter requires" in capsys.readouterr().err


def test_python(bundled: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 64), np.uint8)
    model = cw.load_model("nuclei", device="cpu")
    assert model.class_names == ("nucleus",)
    cells = model.predict(image, diameter=24)
    assert cells.image_hw == (48, 64)
    (again,) = model.predict([image], diameter=24.0)
    assert again.masks == cells.masks
    with pytest.raises(UsageError, match="invalid `diameter`"):
        model.predict(image, diameter=-1)
    with pytest.raises(UsageError, match="does not use a diameter"):
        cw.load_model("classical").predict(image, diameter=24)


def test_an_invalid_diameter_writes_nothing(bundled: Path, data: Path) -> None:
    assert run("predict", data, "--out", "none", "--diameter", "0") == 2
    assert run("predict", data, "--out", "none", "--diameter", "20", "--model", "classical") == 2
    assert not Path("none").exists()


def test_the_name_works_in_every_verb(bundled: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "list") == 0
    assert "nuclei-stained" in capsys.readouterr().out
    assert run("model", "inspect", "nuclei", "--tensors") == 0
    assert "float16" in capsys.readouterr().out
    common = ["--data", data, "--quiet"]
    assert run("evaluate", "nuclei", *common, "--split", "val", "--pictures", "0", "--metrics", "pq") == 0
    assert run("tune", "nuclei", *common, "--out", "tuned") == 0
    tuned = json.loads(Path("tuned/model.json").read_text())
    assert tuned["tuned_on"]["split"] == "val"
    assert load_file("tuned/weights.safetensors")["unet.maps.0.weight"].dtype == torch.float16
    assert json.loads((bundled / "nuclei_fluorescence" / "model.json").read_text())["tuned_on"] is None, (
        "the bundled model is not changed"
    )


def test_training_starts_from_the_bundled_model(bundled: Path) -> None:
    recipe = Recipe.model_validate(RECIPE)
    network, shipped = build_network(recipe, 1), load_file(bundled / "nuclei_fluorescence" / "weights.safetensors")
    assert not start_from(network, "nuclei-fluorescence").fresh
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, shipped[name].to(tensor.dtype)), name
    with pytest.raises(ModelError, match=r"unet\.maps\.0\.weight[\s\S]*model\.init_fresh=\[maps\]"):
        start_from(build_network(recipe, 2), "nuclei-fluorescence")
    # Other weights under the same name make a different run.
    started = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": "nuclei-fluorescence"})})
    before = _init_fingerprint(started)
    (bundled / "nuclei_fluorescence" / "weights.safetensors").write_bytes(b"others")
    assert before["init"] != _init_fingerprint(started)["init"] != "nuclei-fluorescence"


def test_a_damaged_installation(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = bundled / "nuclei_fluorescence" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    for break_more in (weights.unlink, (bundled / "nuclei_fluorescence" / "model.json").unlink, lambda: None):
        with pytest.raises(ModelError, match="reinstall cellwright"):
            cw.load_model("nuclei")
        break_more()
    with pytest.raises(ModelError, match="did you mean 'nuclei'"):
        cw.load_model("nucle")


def test_a_folder_with_the_name_of_a_model(bundled: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("nuclei").mkdir()
    assert run("evaluate", "nuclei", "--data", data) == 2
    assert "a file or folder here has the same name as a model" in capsys.readouterr().err
    with pytest.raises(ModelError, match="no model here"):
        cw.load_model("./nuclei")


def test_the_wheel_contains_the_models() -> None:
    from hatchling.builders.wheel import WheelBuilder

    root = Path(__file__).parents[2]
    packed = {file.distribution_path for file in WheelBuilder(str(root)).recurse_included_files()}
    assert "cellwright/recipes/dsb2018/nuclei.yaml" in packed
    for folder in model_folder.BUNDLED.values():
        for file in (model_folder.BUNDLED_ROOT / folder).glob("*.*"):
            assert f"cellwright/weights/{folder}/{file.name}" in packed
        assert f"cellwright/weights/{folder}/weights.safetensors" in packed


@pytest.mark.parametrize("name", model_folder.BUNDLED)
def test_the_bundled_models(name: str) -> None:
    folder = model_folder.bundled_model(name)
    assert folder is not None
    assert (folder / "weights.safetensors").stat().st_size <= 6_000_000
    assert {tensor.dtype for tensor in load_file(folder / "weights.safetensors").values()} <= {
        torch.float16,
        torch.int64,
    }
    network, info = load_network(name)
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())
    licences, card = info.data_licence.split(", "), (folder / "README.md").read_text()
    assert {*licences} <= {"CC0-1.0", "CC-BY-4.0", "Apache-2.0"}, "everyone may use the weights"
    assert all(licence in card for licence in licences)
    split = json.loads((folder / "split.json").read_text())
    assert not {*split["val"]} & {*split["test"]}
    assert len(info.trained_on) > 200
    assert not {*info.trained_on} & {*info.tuned_on["images"]}
    assert name in NAMED_MODELS


def test_both_networks_of_nuclei_keep_the_same_objects() -> None:
    """One threshold stands for both, on scores that are the expected IoU."""
    first, second = (cw.load_model(name) for name in model_folder.CHOICES["nuclei"])
    both = cw.load_model("nuclei")
    assert first.options.score_threshold == pytest.approx(second.options.score_threshold, abs=1e-3)
    assert both.options.score_threshold == first.options.score_threshold
    assert both.options.min_area_px == first.options.min_area_px == second.options.min_area_px
    assert both.is_calibrated
