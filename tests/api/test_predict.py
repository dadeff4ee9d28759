"""`predict_folder` and the plan of ``predict``: what they accept, check first, write and return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest

import cellwright as cw
from cellwright.api.predict import PredictPlan, predict_folder, run
from cellwright.core.errors import InputError, ModelError, OutputError, UsageError
from cellwright.core.files import write_png
from cellwright.data.synthetic import write_demo_dataset

T = TypeVar("T")


class Notes:
    """A progress reporter that records the notes."""

    quiet = True
    log_format: Literal["text", "json"] = "text"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        return items


class Threshold:
    """A segmenter of the user's own, which refuses dark images."""

    class_names = ("spot",)

    def predict(self, images: Sequence[cw.Image]) -> list[cw.Instances]:
        return [self._objects(image) for image in images]

    def _objects(self, image: cw.Image) -> cw.Instances:
        if not image.data.any():
            raise InputError("this image is dark", where=image.path, expected="some light")
        masks, _ = cw.MaskSet.from_label_map((image.data[:, :, 0] > 100).astype(np.uint8))
        return cw.Instances.from_masks(masks, scores=np.full(len(masks), 0.9))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(2):
        pixels = np.zeros((40, 50), np.uint8)
        pixels[5:15, 5 : 15 + k] = 200
        write_png(tmp_path / "images" / f"{k}.png", pixels)
    return tmp_path / "images"


def test_a_segmenter_of_ones_own_writes_a_prediction_folder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predictions = predict_folder(images, model=Threshold(), out=out)
    assert isinstance(predictions, cw.Dataset)
    assert predictions.class_names == ("spot",)
    assert [sample.read_instances().masks.areas.tolist() for sample in predictions] == [[100], [110]]
    endings = ("_masks.tif", "_overlay.png", ".geojson", "_rois.zip", "_measurements.csv")
    assert {f"{k}{ending}" for k in range(2) for ending in endings} < {path.name for path in out.iterdir()}
    assert "Threshold" in (out / "recipe.yaml").read_text()
    assert str(tmp_path) not in (out / "predictions.json").read_text()
    assert len(predict_folder(images, model=Threshold(), out=out)) == 2, "complete, and left as it is"
    with pytest.raises(OutputError, match=r"other predictions[\s\S]*`save` masks instead of"):
        predict_folder(images, model=Threshold(), out=out, save=["masks"])
    assert len(predict_folder(images / "0.png", model=Threshold(), out=out, overwrite=True, save=["masks"])) == 1
    assert not (out / "0_overlay.png").exists()


def test_paths_lists_and_datasets(images: Path, tmp_path: Path) -> None:
    files = sorted(images.iterdir())
    for k, given in enumerate((images, str(images), files, [str(file) for file in files])):
        assert len(predict_folder(given, model="classical", out=tmp_path / str(k), save=["masks"])) == 2
    drawn = write_demo_dataset(tmp_path / "drawn", splits=(("val", 1),), image_hw=(64, 64), n_objects=3)
    (sample,) = predict_folder(drawn, model=cw.load_model("classical"), out=tmp_path / "d", save=["masks"])
    assert (sample.id, sample.split) == (drawn[0].id, "val")
    with pytest.raises(InputError, match="nowhere"):
        predict_folder(tmp_path / "nowhere", model="classical", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_options_of_the_model_are_those_of_the_folder(images: Path, tmp_path: Path) -> None:
    model = cw.load_model("classical").with_options(score=0.25, min_area=105)
    predictions = predict_folder(images, model=model, out=tmp_path / "out", save=["masks"])
    assert predictions.info["score_threshold"] == 0.25
    assert [len(sample.read_instances()) for sample in predictions] == [0, 1]


def test_images_that_fail_are_reported(images: Path, tmp_path: Path) -> None:
    write_png(images / "dark.png", np.zeros((8, 8), np.uint8))
    with pytest.warns(UserWarning, match=r"1 image could not be predicted: see .*failures\.csv"):
        predictions = predict_folder(images, model=Threshold(), out=tmp_path / "out", save=["masks"])
    assert len(predictions) == 2
    with pytest.raises(InputError, match="this image is dark"):
        predict_folder(images, model=Threshold(), out=tmp_path / "fast", fail_fast=True)


@pytest.mark.parametrize("model", [3, None, Threshold])
def test_what_is_not_a_model(images: Path, tmp_path: Path, model: object) -> None:
    with pytest.raises(UsageError, match="not a model"):
        predict_folder(images, model=model, out=tmp_path / "out")  # type: ignore[arg-type]


def test_a_dry_run_checks_and_announces(images: Path, tmp_path: Path) -> None:
    reporter, out = Notes(), tmp_path / "out"
    plan = PredictPlan((images,), model=("classical",), out=out, save=("masks", "rois"))
    assert run(plan, reporter, dry_run=True) is None
    assert not out.exists()
    assert reporter.notes == [
        f"2 images, model classical: will write {out}/ (predictions.json, summary.csv, masks, rois)"
    ]
    out.mkdir()
    (out / "mine.txt").write_text("")
    for changes, error in (
        ({}, OutputError),
        ({"sources": (tmp_path / "nowhere",)}, InputError),
        ({"model": ("nowhere",)}, ModelError),
        ({"score": 2.0}, UsageError),
        ({"views": "flips"}, UsageError),
        ({"split": "val"}, UsageError),
        ({"weights": (1.0, 2.0)}, UsageError),
    ):
        silent = Notes()
        with pytest.raises(error):
            run(replace(plan, **changes), silent, dry_run=True)
        assert silent.notes == [], "nothing is announced before the request is checked"
