"""Options that the command line has, used from Python: channel, remove_border, models to evaluate, tune, ensembles."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

import cellwright as cw
from cellwright.core.errors import UsageError

HW = (60, 80)


def square(top: int, left: int, side: int = 12) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[max(top, 0) : top + side, max(left, 0) : left + side] = True
    return mask


NUCLEI = np.where(square(20, 20), 1, 0) + np.where(square(-3, 40), 2, 0) + np.where(square(40, 60), 3, 0)


@pytest.fixture
def data(tmp_path: Path) -> cw.Dataset:
    """Two images of two channels; the nuclei are in the second one, and one of them is at the border."""
    for name in "ab":
        pixels = np.stack([np.full(HW, 50), np.where(NUCLEI > 0, 200, 10)]).astype(np.uint8)
        axes = {"axes": "CYX", "Channel": {"Name": ["GFP", "Cy5"]}}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", pixels, metadata=axes, ome=True)
        tifffile.imwrite(tmp_path / f"{name}_masks.tif", NUCLEI.astype(np.uint16))
    return cw.read_dataset(tmp_path)


def test_objects_at_the_border_can_be_left_out() -> None:
    predicted = np.where(NUCLEI == 2, 0, NUCLEI)
    assert cw.evaluate(predicted, NUCLEI)["accuracy@0.5"] == pytest.approx(2 / 3)
    report = cw.evaluate([predicted, NUCLEI], [NUCLEI, NUCLEI], remove_border=True)
    assert report["accuracy@0.5"] == report["precision@0.5"] == 1
    assert any("border" in note for note in report.notes)


def test_a_model_is_evaluated_on_a_dataset(data: cw.Dataset) -> None:
    model = cw.load_model("classical")
    report = cw.evaluate(model, data, channel="cy5", metrics=["accuracy"])
    assert (report["accuracy@0.5"], report["n_truth"]) == (1, 6)
    assert cw.evaluate("classical", data, channel=1, score=1.0, metrics=["accuracy"])["accuracy@0.5"] == 0
    with pytest.raises(UsageError, match="a model needs a dataset"):
        cw.evaluate(model, NUCLEI)
    with pytest.raises(UsageError, match="needs a model that predicts"):
        cw.evaluate(NUCLEI, NUCLEI, channel="Cy5")
    with pytest.raises(UsageError, match="`truth` is a model"):
        cw.evaluate(NUCLEI, "classical")


def test_several_models_are_fused_and_a_ring_is_measured(data: cw.Dataset, tmp_path: Path) -> None:
    class Shifted:
        class_names = ("nucleus",)

        def predict(self, images: list) -> list[cw.Instances]:
            masks = cw.MaskSet.from_label_map(np.roll(NUCLEI, 1, axis=1))[0]
            return [cw.Instances.from_masks(masks, scores=np.full(len(masks), 0.9, np.float32)) for _ in images]

    out = tmp_path / "p"
    models = ["classical", Shifted()]
    done = cw.predict_folder(
        data, model=models, fuse="mask_vote", weights=[1, 2], channel="Cy5", ring=3, save=["measurements"], out=out
    )
    assert [len(sample.read_instances()) for sample in done] == [3, 3]
    rows = list(csv.DictReader((out / "measurements.csv").read_text().splitlines()))
    assert float(rows[0]["ring_mean_GFP"]) == 50
    with pytest.raises(UsageError, match="different numbers of weights"):
        cw.predict_folder(data, model=models, weights=[1], out=tmp_path / "q")


def test_one_channel_is_measured(data: cw.Dataset) -> None:
    path = data[0].image_path
    assert path is not None
    table = cw.measure(NUCLEI, path, channel="cy5")
    assert table["intensity_mean_Cy5"].tolist() == [200] * 3
    assert "intensity_mean_GFP" not in table
    with pytest.raises(UsageError, match="intensities need an image"):
        cw.measure(NUCLEI, channel="cy5")


def test_details_of_fusion() -> None:
    small = np.where(square(22, 22, 4), 1, 0)
    assert len(cw.fuse([NUCLEI, small], method="mask_nms")) == 4
    assert len(cw.fuse([NUCLEI, small], method="mask_nms", over_smaller=True)) == 3
    fused = cw.fuse([NUCLEI, small], method="mask_nms", resolve_overlaps=True)
    assert fused.masks.areas.sum() == fused.masks.foreground().sum()
    scores = [cw.fuse([NUCLEI, NUCLEI], method="soft_nms", sigma=sigma).scores.sum() for sigma in (0.2, 2.0)]
    assert scores[0] < scores[1]


def test_train_takes_the_channel(data: cw.Dataset, tmp_path: Path) -> None:
    small = ["model.backbone.width=8", "model.fpn.channels=16", "augment.crop_px=64", "train.batch_size=1"]
    short = ["train.length=1 step", "train.warmup=null"]
    run = cw.train("synthetic/demo", data, out=tmp_path / "r", channel="cy5", set=small + short, device="cpu")
    assert run.model.predictor.trained_channels == ("cy5",)
    with pytest.raises(cw.OutputError):
        cw.train("synthetic/demo", data, out=tmp_path / "r", channel="GFP", set=small + short, device="cpu")
