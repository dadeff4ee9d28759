"""`model export`: what is written runs without cellwright, and gives the objects that cellwright gives."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from tests.cli.drawn import run

import cellwright as cw
from cellwright.config.recipe import Recipe
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.build import build_network
from cellwright.models.weights.model_folder import ModelInfo
from cellwright.models.weights.torch_io import save_model

PACKAGES = "numpy", "scipy", "openvino", "onnxruntime"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NumPy, SciPy and the runtimes, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    for name in (*PACKAGES, "packaging", "flatbuffers", "protobuf"):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(str(metadata.distribution(name).locate_file(top)))
    return folder


def decoded(bare: Path, program: Path, image: np.ndarray, *options: str) -> np.ndarray:
    """The labels that ``decode.py`` writes in a Python that has only the packages of a folder."""
    np.save(program.parent / "image.npy", image)
    start = (
        f"import sys, runpy; sys.path.insert(0, {str(bare)!r}); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); assert 'cellwright' not in sys.modules"
    )
    files = [program, program.parent / "image.npy", program.parent / "labels.npy"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, *map(str, files), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.load(program.parent / "labels.npy")


def test_a_bundled_model_in_openvino_gives_the_same_labels(bare: Path, tmp_path: Path) -> None:
    image, _ = draw_field(5, (150, 190), 20, FieldLook(stain="fluorescence", diameter_px=28))
    cv2.imwrite(str(tmp_path / "a.png"), image.data[:, :, 0])
    assert run("model", "export", "nuclei-fluorescence", "--to", "openvino", "--out", tmp_path / "export") == 0
    predict = "predict", tmp_path / "a.png", "--model", "nuclei-fluorescence", "--diameter", 28, "--out", tmp_path / "p"
    assert run(*predict) == 0
    expected = cw.read_instances(tmp_path / "p" / "a_masks.tif").to_label_map()
    assert expected.max() > 10
    labels = decoded(bare, tmp_path / "export" / "decode.py", image.data, "--diameter", "28")
    np.testing.assert_array_equal(labels, expected)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that finds something."""
    torch.manual_seed(3)
    section = {"kind": "unet", "width": 4, "depth": 2, "target": {"kind": "watershed", "min_area_px": 4}}
    section_of_input = {"channels": 1, "scale": 1.25}
    recipe = Recipe.model_validate({"name": "t/mine", "classes": 2, "input": section_of_input, "model": section})
    network = build_network(recipe, 2)
    with torch.no_grad():
        network.unet.maps[-1].weight *= 3000
    info = ModelInfo(
        kind="unet",
        recipe=recipe.to_dict(),
        class_names=("a", "b"),
        normalisation=recipe.input.model_dump(mode="json"),
        thresholds={"score/a": 0.6, "score/b": 0.58},
        pixel_size_um=0.5,
    )
    return save_model(tmp_path_factory.mktemp("m") / "model", network.state_dict(), info)


@pytest.fixture(scope="module")
def package(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    out = tmp_path_factory.mktemp("package") / "mine.zip"
    credit = "--author", "A. B. (Town)", "--author", "C. D.", "--licence", "CC-BY-4.0"
    assert run("model", "export", model, "--to", "bioimageio", *credit, "--out", out) == 0
    zipfile.ZipFile(out).extractall(out.parent / "files")
    return out.parent / "files"


def test_a_package_in_onnx_gives_the_same_labels(package: Path, model: Path, bare: Path) -> None:
    image, _ = draw_field(6, (90, 120), 12, FieldLook(stain="fluorescence"))
    expected = cw.load_model(model, device="cpu").predict(image).to_label_map()
    assert expected.max() > 5
    labels = decoded(bare, package / "decode.py", image.data)
    # ONNX Runtime rounds otherwise than OpenVINO.
    same = sum(np.array_equal(labels == k, expected == k) for k in range(1, expected.max() + 1))
    assert labels.max() == expected.max()
    assert same >= 0.95 * expected.max()


def test_the_package_says_what_the_spec_asks_for(package: Path) -> None:
    said = yaml.safe_load((package / "rdf.yaml").read_text())
    assert re.fullmatch(r"0\.5\.\d+", said["format_version"])
    assert said["authors"] == [{"name": "A. B.", "affiliation": "Town"}, {"name": "C. D."}]
    assert (said["license"], said["name"]) == ("CC-BY-4.0", "cellwright t mine")
    (image,), (maps,) = said["inputs"], said["outputs"]
    assert [axis["type"] for axis in image["axes"]] == ["batch", "channel", "space", "space"]
    assert image["axes"][2]["size"] == {"min": 64, "step": 4}
    assert (image["axes"][2]["unit"], image["axes"][2]["scale"]) == ("micrometer", 0.4)
    assert image["preprocessing"][0]["kwargs"]["axes"] == ["y", "x"]
    names = ["body", "border", "distance", "a", "b"]
    assert maps["axes"][1]["channel_names"] == names

    def files(value: object) -> list[dict[str, str]]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = [value] if isinstance(value, dict) and "source" in value else []
        return own + [file for part in inner for file in files(part)]

    for file in files(said):
        assert hashlib.sha256((package / file["source"]).read_bytes()).hexdigest() == file["sha256"]
    readme = (package / "README.md").read_text()
    assert "Resize images by the factor 1.25." in readme
    assert "# Validation" in readme
    assert json.loads((package / "export.json").read_text())["graphs"]["maps"]["file"] == "maps.onnx"


def test_the_architecture_file_alone_gives_the_test_output(package: Path) -> None:
    assert not re.search(r"^\s*(from|import) cellwright", (package / "architecture.py").read_text(), re.MULTILINE)
    said = yaml.safe_load((package / "rdf.yaml").read_text())
    parts = runpy.run_path(str(package / "architecture.py"))
    code = said["weights"]["pytorch_state_dict"]["architecture"]
    network = parts[code["callable"]](**code["kwargs"]).eval()
    network.load_state_dict(torch.load(package / "maps.pt", weights_only=True))
    image = np.load(package / "test_input.npy")
    assert image.shape == (1, 1, 256, 256)
    kwargs = said["inputs"][0]["preprocessing"][0]["kwargs"]
    low, high = np.percentile(image, (kwargs["min_percentile"], kwargs["max_percentile"]), axis=(2, 3), keepdims=True)
    with torch.no_grad():
        maps = network(torch.from_numpy(((image - low) / (high - low + kwargs["eps"])).astype(np.float32))).numpy()
    np.testing.assert_allclose(maps, np.load(package / "test_output.npy"), atol=1e-5)
    labels, _ = parts["decode"](maps[0], json.loads((package / "export.json").read_text()))
    assert labels.max() > 5


def test_bioimageio_core_accepts_the_package(package: Path) -> None:
    pytest.importorskip("bioimageio.core", reason="needs bioimageio.core, which is not among our dependencies")
    code = (
        "import sys; from bioimageio.core import test_model; print((s := test_model(sys.argv[1])).status, s.format())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, package / "rdf.yaml"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("passed"), done.stdout


def test_nobody_is_made_up(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "export", model, "--to", "bioimageio", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "no author and no licence of the weights" in error
    assert "--author" in error
    assert not (tmp_path / "out").exists()


def test_openvino_takes_u_nets_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe.model_validate({"name": "t", "model": {"kind": "mask_rcnn"}})
    section = recipe.input.model_dump(mode="json")
    info = ModelInfo(kind="mask_rcnn", recipe=recipe.to_dict(), class_names=("a",), normalisation=section)
    save_model(tmp_path / "m", {}, info)
    assert run("model", "export", tmp_path / "m", "--to", "openvino", "--out", tmp_path / "out") == 2
    assert "--to onnx" in capsys.readouterr().err
