"""`devices` of a training: which devices, and a whole run on two."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

import cellwright as cw
from cellwright.api.train_devices import device_of, team_of
from cellwright.core.errors import RecipeError, UsageError
from cellwright.data.synthetic import write_demo_dataset

SMALL = (
    *("train.length=2 steps", "train.warmup=null", "train.batch_size=2", "train.threads=1", "augment.crop_px=64"),
    *("model.backbone.width=8", "model.backbone.norm=group_norm", "model.fpn.channels=16"),
)


def rows_of(run: cw.Run) -> list[dict[str, str]]:
    with (run.folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(sys.platform == "win32", reason="not tried there")
def test_a_run_on_two_devices_has_the_losses_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_demo_dataset(tmp_path, splits=(("train", 3), ("val", 1)), image_hw=(64, 80), n_objects=5)
    one = cw.train("synthetic/demo", data, out=tmp_path / "one", set=SMALL, device="cpu")
    two = cw.train("synthetic/demo", data, out=tmp_path / "two", set=SMALL, device="cpu", devices=2)
    assert one.finished
    assert two.finished
    assert not torch.distributed.is_initialized()
    for own, shared in zip(rows_of(one), rows_of(two), strict=True):
        losses = [name for name in own if "loss_" in name and name != "val_loss"]
        assert len(losses) == 5
        for name in [*losses, "gradient_norm", "lr"]:
            assert float(shared[name]) == pytest.approx(float(own[name]), rel=1e-4), name
    environments = [json.loads((run.folder / "environment.json").read_text()) for run in (one, two)]
    assert [environment["devices"] for environment in environments] == [1, 2]
    with pytest.raises(RecipeError, match="3 devices cannot share this batch"):
        cw.train("synthetic/demo", data, out=tmp_path / "three", set=SMALL, device="cpu", devices=3)
    assert not (tmp_path / "three").exists()


def test_devices_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu", 2, 1) == torch.device("cpu")
    with pytest.raises(UsageError, match="invalid number of devices"), team_of("cpu", 0):
        pass
    monkeypatch.setattr("cellwright.prediction.backends.torch.resolve_device", torch.device)
    assert device_of("cuda", 2, 1) == torch.device("cuda", 1)
    assert device_of("cuda:1", 1, 0) == torch.device("cuda", 1)
    for name in ("cuda:1", "mps"):
        with pytest.raises(UsageError, match="several devices are all GPUs"):
            device_of(name, 2, 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(UsageError, match=r"(?s)there are not so many GPUs.*2, where this machine has 1"),
        team_of("cuda", 2),
    ):
        pass
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="the processes that torchrun has started"), team_of("cpu", 2):
        pass
