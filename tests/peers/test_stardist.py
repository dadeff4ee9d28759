"""A network of StarDist 2-D against what StarDist 0.9.2 computed with the same weights; see ``make_stardist.py``."""

from __future__ import annotations

import contextlib
import doctest
import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from drawn import run  # of tests/cli

from cellwright import read_instances
from cellwright.config.model_dense import StarDistConfig, StarsTarget
from cellwright.core.errors import ModelError
from cellwright.models.dense import stardist_network, stars
from cellwright.models.dense.labels import Place
from cellwright.models.dense.stardist_network import StarDistUNet
from cellwright.models.weights.stardist import read_layers
from cellwright.models.weights.torch_io import load_network
from peers import drawn

FOLDER = Path(__file__).with_name("stardist_model")
STORED = dict(np.load(Path(__file__).with_name("stardist.npz")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The imported network, through the command line."""
    folder = tmp_path_factory.mktemp("stardist")
    assert run("model", "import", FOLDER, "--out", folder / "model", "--quiet") == 0
    return folder / "model"


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the objects of two label maps that are the same to the pixel, whatever their numbers."""
    pairs, counts = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.int64), axis=1, return_counts=True)
    areas = np.bincount(a.ravel())[pairs[0]], np.bincount(b.ravel())[pairs[1]]
    same = (counts == areas[0]) & (counts == areas[1]) & (pairs > 0).all(axis=0)
    return float(same.sum() / max(a.max(), b.max()))


@pytest.mark.parametrize("name", ["odd", "whole"])
def test_an_imported_network_predicts_what_stardist_predicts(model: Path, name: str, tmp_path: Path) -> None:
    """Percentiles, reflected padding, the grid, polygons and their suppression, the edge; on tiles too."""
    theirs = STORED[f"{name}_labels"]
    tifffile.imwrite(tmp_path / "a.tif", drawn.image(7, theirs.shape, 1)[:, :, 0])
    words = ["predict", tmp_path / "a.tif", "--model", model, "--quiet"]
    assert run(*words, "--out", tmp_path / "whole") == 0
    assert theirs.max() >= 50
    # Drawn weights give dense polygons, some of which overlap by almost exactly the threshold.
    labels = tifffile.imread(tmp_path / "whole" / "a_masks.tif")
    assert agreement(labels, theirs) > 0.97
    if name == "whole":
        assert run(*words, "--tile", "128", "--out", tmp_path / "tiles") == 0
        tiles = read_instances(tmp_path / "tiles" / "labels.zarr").to_label_map()
        assert agreement(tiles, labels) > 0.97


def test_the_maps_are_those_of_stardist(model: Path) -> None:
    network, info = load_network(model)
    assert info.recipe["model"]["target"]["probability_threshold"] == 0.55
    pixels = drawn.image(7, (93, 110), 1).astype(np.float32)[None, :, :, 0]
    low, high = np.percentile(pixels, (1, 99.8)).astype(np.float32)
    padded = np.pad((pixels - low) / (high - low), ((0, 0), (0, 3), (0, 2)), mode="reflect")
    assert padded.shape[1] % network.stride == padded.shape[2] % network.stride == 0
    maps = network.maps(torch.from_numpy(padded[None]))[0]  # type: ignore[operator]
    probability, rays = STORED["odd_probability"], STORED["odd_rays"]
    np.testing.assert_allclose(maps[0, ::4, ::4][: len(probability), : probability.shape[1]], probability, atol=1e-5)
    np.testing.assert_allclose(maps[1:, ::12, ::12].transpose(1, 2, 0), rays, atol=1e-5)


def test_the_parts_of_an_image_give_its_maps(model: Path) -> None:
    """As far from a part's edge as the reach of the network says, and no further."""
    network, _ = load_network(model)
    unet = network.unet
    assert isinstance(unet, StarDistUNet)
    images = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[:, :, 128:136, 128:136] = 0
    with torch.no_grad():
        differ = (unet(images)[0] != unet(changed)[0])[0].any(dim=0).nonzero()
    reach = max(128 - int(differ.min()), int(differ.max()) - 135)
    assert unet.reach_px / 2 < reach <= unet.reach_px
    assert doctest.testmod(stardist_network).failed == 0


def test_candidates_lie_on_the_grid_away_from_the_edge() -> None:
    maps = np.zeros((33, 20, 30), np.float32)
    maps[1:] = 3
    for y, x in ((1, 4), (4, 4), (5, 12), (12, 20), (16, 26)):
        maps[0, y, x] = 0.9
    assert len(stars.decode(maps)[1]) == 5
    labels, _ = stars.decode(maps, grid=2, border_px=4)
    assert labels[4, 4] > 0
    assert labels[12, 20] > 0
    assert labels.max() == 2
    padded = Place.whole((20, 30), padded_hw=(24, 32))
    assert stars.decode(maps, grid=2, border_px=4, place=padded)[0].max() == 3
    shifted = Place((1, 0), (21, 30))
    assert stars.decode(maps, grid=2, border_px=4, place=shifted)[0].max() == 1


def test_the_layers_before_the_grid_count_by_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keras counts them through a session; the stored model, written after another one, begins with ``conv2d_2``."""
    shutil.copytree(FOLDER, tmp_path / "again")
    path = tmp_path / "again" / "weights_best.h5"
    with h5py.File(path, "r+") as file:
        assert "conv2d_2" in file
        for k, number in ((3, 10), (2, 9)):
            file.move(f"conv2d_{k}/conv2d_{k}", f"conv2d_{k}/conv2d_{number}")
            file.move(f"conv2d_{k}", f"conv2d_{number}")
    for name, folder in (("a", FOLDER), ("b", tmp_path / "again")):
        assert run("model", "import", f"stardist:{folder}", "--out", tmp_path / name, "--quiet") == 0
    a, b = (load_network(tmp_path / name)[0].state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert run("model", "inspect", tmp_path / "again") == 0
    assert "U-Net of StarDist, 1 channel, 32 rays" in capsys.readouterr().out
    assert run("model", "export", tmp_path / "a", "--to", "onnx", "--out", tmp_path / "onnx") == 2
    assert "networks of stardist cannot be exported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet_batch_norm": True}, "unet_batch_norm: True"),
        ({"n_classes": 3}, "n_classes: 3"),
        ({"grid": [2, 4]}, "grid: [2, 4]"),
        ({"n_rays": 64}, "do not match"),
        ({"unet_n_depth": 3}, "is missing"),
    ],
)
def test_other_networks_are_refused(
    change: dict[str, object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(FOLDER, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert run("model", "import", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_files_that_are_not_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FOLDER, tmp_path / "model")
    path, secret = tmp_path / "model" / "weights_best.h5", tmp_path / "secret.bin"
    secret.write_bytes(bytes(400))
    with h5py.File(path, "r+") as file:
        file.create_dataset("prob/prob/more:0", (100,), "f4", external=[(str(secret), 0, 400)])
    assert run("model", "import", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "more than weights" in capsys.readouterr().err
    path.write_bytes(b"no HDF5")
    assert run("model", "import", tmp_path / "model", "--out", tmp_path / "out") == 2
    assert "cannot read these weights" in capsys.readouterr().err
    whole, rng = (FOLDER / "weights_best.h5").read_bytes(), random.Random(0)
    for _ in range(150):  # h5py has many exceptions for damaged files
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(20)):
            damaged[rng.randrange(min(rng.choice([4096, len(damaged)]), len(damaged)))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ModelError):
            read_layers(path)
    with pytest.raises(ValueError, match="target stars"):
        StarDistConfig.model_validate({"target": {"kind": "flow"}})
    assert StarDistConfig().target == StarsTarget()
