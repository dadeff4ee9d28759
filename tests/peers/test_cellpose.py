"""Networks of Cellpose 3 against what Cellpose 3.1 computed with the same weights; see ``make_cellpose.py``."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from drawn import draw_mask_folder, run  # of tests/cli

from cellwright import read_instances
from cellwright.config.model_dense import CellposeConfig, FlowTarget, UNetConfig
from cellwright.core.geometry import Window
from cellwright.models.dense import cellpose, fixed_tiles
from cellwright.models.dense.labels import Place
from cellwright.models.weights import cellpose as layout
from cellwright.models.weights.torch_io import load_network
from peers import drawn

STORED = dict(np.load(Path(__file__).with_name("cellpose.npz")))
STEP = 3
DECODER = ({}, {"flow_threshold": 0.8, "cellprob_threshold": 1.0, "min_size": 40})
# Cellpose drops an object in place of a smaller one here: after it has dropped others for their flow, it takes the
# sizes of objects for those of their neighbours. So it does in 1 of 44 real images.
LOST = {(0, 3), (1, 3)}


def their_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of Cellpose's U-Net, as in its files."""
    widths, shapes = (32, 64, 128, 256), {}

    def norm(name: str, n: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (n,)

    def convolution(name: str, a: int, b: int, size: int = 3, at: int = 2) -> None:
        norm(f"{name}.0", a)
        shapes[f"{name}.{at}.weight"], shapes[f"{name}.{at}.bias"] = (b, a, size, size), (b,)

    for n, (a, b) in enumerate(zip((channels, *widths[:-1]), widths, strict=True)):
        convolution(f"downsample.down.res_down_{n}.proj", a, b, 1, at=1)
        for k in range(4):
            convolution(f"downsample.down.res_down_{n}.conv.conv_{k}", b if k else a, b)
    for n, (a, b) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True)):
        name = f"upsample.up.res_up_{n}"
        convolution(f"{name}.proj", a, b, 1, at=1)
        convolution(f"{name}.conv.conv_0", a, b)
        for k in range(1, 4):
            convolution(f"{name}.conv.conv_{k}.conv", b, b)
            shapes[f"{name}.conv.conv_{k}.full.weight"], shapes[f"{name}.conv.conv_{k}.full.bias"] = (b, 256), (b,)
    convolution("output", 32, 3, 1)
    return shapes


def write_network(path: Path, **more: object) -> Path:
    """A file as Cellpose writes it, with drawn weights."""
    weights = drawn.cellpose_weights(their_shapes(2))
    state: dict[str, object] = {name: torch.from_numpy(array) for name, array in weights.items()}
    steps = {name.replace("running_var", "num_batches_tracked") for name in state if name.endswith("running_var")}
    state |= {name: torch.tensor(0) for name in steps}
    torch.save(state | {"diam_mean": torch.tensor([30.0]), "diam_labels": torch.tensor([25.0])} | more, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The imported network, through the command line; every object of its flows is kept."""
    folder = tmp_path_factory.mktemp("cellpose")
    file = write_network(folder / "cyto3")
    words = ["model", "import", file, "--set", "model.target.flow_threshold=0", "--out", folder / "model", "--quiet"]
    assert run(*words) == 0
    return folder / "model"


def same_objects(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two label maps have the same objects, whatever their numbers."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.int64), axis=1)
    return pairs.shape[1] == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", DECODER)
def test_the_decoder_finds_the_objects_that_cellpose_finds(seed: int, options: dict[str, float]) -> None:
    maps, theirs = drawn.flow_maps(seed), STORED[f"decoded_{seed}_{len(options)}"]
    maps[:2] /= 5
    labels, scores = cellpose.decode(maps, **options)
    assert labels.max() == len(scores) >= 5
    assert scores.min() > 0
    if (seed, len(options)) in LOST:
        assert labels.max() == theirs.max() + 1
        labels = np.where(theirs > 0, labels, 0)
    assert same_objects(labels, theirs)


def test_a_window_gives_the_objects_of_the_whole_image() -> None:
    maps = drawn.flow_maps(1)
    maps[:2] /= 5
    whole, _ = cellpose.decode(maps)
    part, _ = cellpose.decode(maps[:, 10:130, 7:170], place=Place((10, 7), maps.shape[1:]))
    inside = np.unique(whole[10:130, 7:170])
    cut = np.unique(
        np.concatenate([whole[:14].ravel(), whole[126:].ravel(), whole[:, :11].ravel(), whole[:, 166:].ravel()])
    )
    kept = np.isin(whole[10:130, 7:170], np.setdiff1d(inside, cut))
    assert kept.sum() > 500
    assert same_objects(np.where(kept, whole[10:130, 7:170], 0), np.where(kept, part, 0))


@pytest.mark.parametrize(("name", "diameter"), [("image", ()), ("small", ("--diameter", "30"))])
def test_an_imported_network_predicts_what_cellpose_predicts(
    model: Path, name: str, diameter: tuple[str, ...], tmp_path: Path
) -> None:
    """Tiles of 224 px with tapered averages, padding, percentiles, the diameter of its training images, and labels."""
    theirs = STORED[f"{name}_labels"]
    tifffile.imwrite(
        tmp_path / "a.tif", drawn.image(3, theirs.shape, 2), planarconfig="contig", photometric="minisblack"
    )
    words = ["predict", tmp_path / "a.tif", "--model", model, "--channel", "0", "--channel", "1", "--quiet"]
    assert run(*words, *diameter, "--out", tmp_path / "whole") == 0
    labels = tifffile.imread(tmp_path / "whole" / "a_masks.tif")
    assert theirs.max() >= 5
    assert same_objects(labels, theirs)
    if name == "image":
        assert run(*words, "--tile", "256", "--out", tmp_path / "tiles") == 0
        assert same_objects(read_instances(tmp_path / "tiles" / "labels.zarr").to_label_map(), theirs)


def test_the_maps_are_those_of_cellpose(model: Path) -> None:
    network, _ = load_network(model)
    stored = STORED["small_maps"]
    pixels = drawn.image(3, (70, 90), 2).astype(np.float32).transpose(2, 0, 1)
    low, high = np.percentile(pixels, (1, 99), axis=(1, 2))[..., None, None]
    maps = network.maps(((pixels - low) / (high - low))[None])[0]  # type: ignore[operator]
    maps[:2] *= 5
    assert np.abs(maps[:, ::STEP, ::STEP] - stored).max() < 1e-5 * np.abs(stored).max()


def test_tiles_cover_the_image_as_in_cellpose() -> None:
    """Maps of a region are those of the whole image; where all tiles agree, so does their average."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 301, 260)).astype(np.float32)
    whole, region = Window(0, 0, 301, 260), Window(40, 130, 290, 260)

    def of(window: Window) -> np.ndarray:
        return window.of(pixels)

    maps = fixed_tiles.maps_of_region(of, whole.hw, whole, lambda tiles: np.concatenate([tiles, tiles**2], axis=1))
    np.testing.assert_allclose(maps, np.concatenate([pixels, pixels**2]), rtol=1e-6)
    by_tile = fixed_tiles.maps_of_region(
        of, whole.hw, whole, lambda tiles: tiles + tiles.mean((1, 2, 3), keepdims=True)
    )
    part = fixed_tiles.maps_of_region(of, whole.hw, region, lambda tiles: tiles + tiles.mean((1, 2, 3), keepdims=True))
    assert np.array_equal(region.of(by_tile), part)
    assert doctest.testmod(fixed_tiles).failed == 0
    assert doctest.testmod(cellpose).failed == 0


def test_the_import_names_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_network(tmp_path / "CP_20260101")
    assert run("model", "inspect", file, "--tensors") == 0
    shown = capsys.readouterr().out
    assert "U-Net of Cellpose 3, 2 channels, 3 maps" in shown
    assert "6,610,430" in shown
    assert "313: 311 used" in shown
    for words, message in (
        (("--recipe", "nuclei/finetune"), "omit --recipe"),
        (("--classes", "a", "b"), "expected: 1 name"),
    ):
        assert run("model", "import", file, *words, "--out", tmp_path / "model") == 2
        assert message in capsys.readouterr().err
    for more, message in (
        ({"output.2.weight": torch.zeros(1, 32, 1, 1)}, "does not predict flows"),
        ({"W2": torch.zeros(1), "output.2.weight": None}, "Cellpose 4"),
        ({"upsample.more": torch.zeros(1)}, "unknown tensors"),
        ({"output.2.bias": torch.zeros(4)}, "do not match"),
    ):
        assert run("model", "import", write_network(tmp_path / "other", **more), "--out", tmp_path / "model") == 2
        assert message in capsys.readouterr().err
    assert (
        layout.recipe_values({**_state(), "diam_mean": torch.tensor([30.0])}, "x/nucleitorch_0")["input"]["diameter_px"]
        == 17
    )
    with pytest.raises(ValueError, match="model.kind cellpose"):
        UNetConfig.model_validate({"target": {"kind": "cellpose"}})
    with pytest.raises(ValueError, match="cellpose or flow"):
        CellposeConfig.model_validate({"target": {"kind": "stars"}})
    assert CellposeConfig(target=FlowTarget()).target.kind == "flow"


def test_fine_tuning_at_another_diameter_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_mask_folder(tmp_path / "drawn", 2)
    data = tmp_path / "data"
    assert run("data", "convert", tmp_path / "drawn", "--out", data, "--quiet") == 0
    words = ("cellpose/finetune", "--data", data, "--out", tmp_path / "run", "--dry-run")
    seen = "the initial weights saw images with input.diameter_px 17.0, this recipe has 30.0"
    for diameter, more, expected in ((30, (), False), (17, (), True), (17, ("--set", "input.diameter_px=17"), False)):
        file = write_network(tmp_path / f"network_{diameter}.pth", diam_mean=torch.tensor([float(diameter)]))
        for init in (f"cellpose:{file}", file):
            capsys.readouterr()
            assert run("train", *words, "--init", init, *more) == 0
            assert (seen in " ".join(capsys.readouterr().err.split())) == expected


def _state() -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in their_shapes(2).items()}
