"""`nuclei` is two networks: each image gets the one for its colours, whole and in tiles, alone and in ensembles."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from drawn import run

import cellwright as cw
from cellwright.api.bundled_choice import network_for
from cellwright.api.models import ensemble, load_model
from cellwright.api.predict_tiles import sendable
from cellwright.core.errors import FormatError, ModelError
from cellwright.core.image import Image
from cellwright.data.images.channels import is_stained
from cellwright.data.images.reading import Reading
from cellwright.data.images.source import open_image
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.weights.model_folder import read_arrays
from cellwright.prediction.fusion import FusionOptions
from cellwright.prediction.predictor import Choice
from cellwright.prediction.record import Prediction
from cellwright.prediction.tiling.facts import ImageFacts
from cellwright.prediction.tiling.models import tile_model, with_networks

NAMES = ("nuclei-fluorescence", "nuclei-stained")


def drawn(stain: str, hw: tuple[int, int] = (150, 170), n: int = 25) -> Image:
    return draw_field(2, hw, n, FieldLook(stain=stain))[0]


def test_what_counts_as_stained() -> None:
    stained, fluorescent = drawn("he"), drawn("fluorescence")
    assert is_stained(stained)
    assert is_stained(replace(stained, data=stained.data.astype(np.uint16) * 200))
    assert is_stained(replace(stained, data=(stained.data // 3)))  # a dark exposure
    few = np.full((600, 600, 3), 245, np.uint8)
    few[:150, :170] = stained.data[:150, :170]
    assert is_stained(Image.from_array(few)), "mostly glass"
    blue = fluorescent.data[..., :1] * np.array([0, 0, 1], np.uint8)
    glass = np.full((90, 90, 3), (240, 243, 238), np.uint8)
    noise = np.random.default_rng(0).normal(0, 20, (150, 170, 3))
    noisy = np.clip(200 - fluorescent.data / 2 + noise, 0, 255).astype(np.uint8)  # by a colour camera
    inverse = 255 - stained.data
    for other in (fluorescent.data, blue, noisy, glass, stained.data[..., 1:2], 0 * glass, inverse):
        assert not is_stained(Image.from_array(other))
    green_stain = stained.data[..., [1, 0, 2]]
    assert is_stained(Image.from_array(green_stain)), "green, and darker than the glass"
    assert not is_stained(Image(stained.data, ("DAPI", "GFP", "RFP")))


def test_each_image_gets_its_network() -> None:
    both = load_model("nuclei").with_options(diameter=20)
    images = [drawn("he", (90, 80), 9), drawn("fluorescence", (90, 80), 9), drawn("he", (80, 90), 9)]
    predictions = both.predictions(images)
    assert [prediction.network for prediction in predictions] == [NAMES[1], NAMES[0], NAMES[1]]
    for image, found in zip(images, predictions, strict=True):
        alone = (
            load_model(found.network).with_options(diameter=20, score=both.options.score_threshold).predictions(image)
        )
        assert len(alone.instances) > 3
        assert found.instances.masks == alone.instances.masks
        np.testing.assert_allclose(found.instances.scores, alone.instances.scores, atol=1e-5)
        assert found.network in repr(found)


@pytest.mark.parametrize("stain", ["he", "fluorescence"])
def test_tiles_get_the_same_network(stain: str) -> None:
    both, image = load_model("nuclei", device="cpu").with_options(diameter=20), drawn(stain, (90, 100), 12)
    source, tiles = open_image(image), tile_model(both.predictor)
    facts = tiles.facts(source)
    assert facts.method == {"network": NAMES[stain == "he"]}
    assert ImageFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    with pytest.raises(FormatError, match="damaged"):
        tiles.grid(replace(facts, method={"network": "another"}), 64)
    (tile,) = tiles.grid(facts, 2048)
    (whole,) = both.predictor.predict([image])
    found = tiles.objects(source, facts, tile)
    assert found.masks == whole.instances.masks
    np.testing.assert_allclose(found.scores, whole.instances.scores, atol=1e-5)
    # The same in another process, where the networks are loaded by their names.
    again = with_networks(sendable(both.predictor, both), "cpu")
    assert isinstance(again, Choice)
    assert again.predict([image])[0].instances.masks == whole.instances.masks


def test_in_an_ensemble_scores_are_comparable_and_nothing_is_doubted_early() -> None:
    members = [load_model(name).with_options(diameter=20) for name in ("nuclei", "nuclei@1")]
    fused = ensemble(members, FusionOptions("wbf"))
    prediction = fused.predictions(drawn("fluorescence", (120, 120), 16))
    assert len(prediction.instances) > 10
    assert not [note for note in prediction.notes if "unlike" in note.text]
    again = with_networks(sendable(fused.predictor, fused), members[1].predictor.device)
    assert isinstance(again.predict([drawn("he", (64, 64), 6)])[0], Prediction)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("he", "fluorescence"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), drawn(name, (100, 110), 14).data[:, :, ::-1])
    return tmp_path / "images"


def test_results_say_which_network(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("predict", images, "--out", out, "--save", "masks", "--diameter", "20") == 0
    assert "nuclei-fluorescence for 1 image, nuclei-stained for 1 image" in capsys.readouterr().err
    rows = {row["image"]: row["network"] for row in csv.DictReader((out / "summary.csv").read_text().splitlines())}
    assert rows == {"he": NAMES[1], "fluorescence": NAMES[0]}
    assert [*yaml.safe_load((out / "recipe.yaml").read_text())["networks"]] == [*NAMES]
    assert run("predict", images / "he.png", "--out", tmp_path / "job", "--tile", "128", "--diameter", "20") == 0
    (row,) = csv.DictReader((tmp_path / "job" / "summary.csv").read_text().splitlines())
    assert row["network"] == NAMES[1]


def test_where_one_network_is_needed_the_images_choose(images: Path, tmp_path: Path, capsys) -> None:
    """Fine-tuning starts from the network that suits the images, and sees them as it did."""
    data = tmp_path / "data"
    assert (
        run("predict", images / "he.png", "--out", tmp_path / "out", "--save", "masks", "--quiet", "--diameter", "20")
        == 0
    )
    assert run("data", "convert", tmp_path / "out", "--out", data, "--quiet") == 0
    capsys.readouterr()
    run_ = ["--data", data, "--out", tmp_path / "run", "--set", "train.length=1 steps", "--set", "train.warmup=null"]
    assert run("train", "nuclei/finetune", *run_, "--set", "train.precision=float32") == 0
    said = capsys.readouterr().err
    assert "nuclei is nuclei-stained here, as the images are stained" in said
    assert "warning: the initial weights" not in said
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recipe["model"]["init"], recipe["input"]["percentiles_of"]) == (NAMES[1], "image")
    weights = read_arrays(tmp_path / "run")
    first = next(name for name in weights if name.endswith("weight"))
    assert np.abs(weights[first] - read_arrays(NAMES[1])[first].astype(np.float32)).max() < 0.02
    assert run("train", "nuclei/finetune", *run_, "--set", "input.percentiles_of=channel", "--dry-run") == 2
    choice = ["--set", "input.percentiles_of=channel", "--out", tmp_path / "other", "--dry-run"]
    assert run("train", "nuclei/finetune", *run_[:2], *choice) == 0
    assert "saw images with input.percentiles_of image, this recipe has channel" in capsys.readouterr().err
    samples = cw.read_dataset(images, no_objects=True).samples
    mixed, note = network_for("nuclei", [*samples, *samples[:1]], Reading())
    assert (mixed, "1 of 3 images" in note) == (NAMES[0], True)
    assert network_for("another", samples, Reading()) == ("another", "")
    with pytest.raises(ModelError, match="nuclei-fluorescence or nuclei-stained"):
        read_arrays("nuclei")
