"""Datasets in the folders in which they are published, through the command line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from drawn import run
from PIL import Image as Pillow
from scipy.io import savemat

LABELS = np.zeros((40, 60), np.int32)
LABELS[4:14, 4:14], LABELS[20:34, 30:50], LABELS[2:8, 40:52] = 1, 2, 4


def draw(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)


def save_73(path: Path, content: dict[str, np.ndarray]) -> None:
    """A file as MATLAB 7.3 writes it: a header of 512 bytes, then HDF5 with the axes in reverse order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in content.items():
            file[name] = values.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def converted(source: Path, out: Path, *options: str) -> dict[str, tuple[str | None, list[str]]]:
    """Split and sorted classes of the objects of each sample, without crowd regions."""
    assert run("data", "convert", source, "--out", out, *options) == 0
    content = json.loads((out / "dataset.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    return {
        image["sample_id"]: (
            image.get("split"),
            sorted(
                names[annotation["category_id"]]
                for annotation in content["annotations"]
                if annotation["image_id"] == image["id"] and not annotation["iscrowd"]
            ),
        )
        for image in content["images"]
    }


def test_lizard(tmp_path, capsys):
    root = tmp_path / "in"
    draw(root / "lizard_images1/Lizard_Images1/consep_1.png")
    draw(root / "lizard_images2/Lizard_Images2/dpath_1.png", 1)
    labels = root / "lizard_labels/Lizard_Labels/Labels"
    labels.mkdir(parents=True)
    numbers = np.array([[1], [2], [4]])
    for name, classes in (("consep_1", [2, 3, 2]), ("dpath_1", [6, 2, 1])):
        content = {"id": numbers, "class": np.array(classes)[:, None], "bbox": np.zeros((3, 4)), "centroid": numbers}
        savemat(labels / f"{name}.mat", {"inst_map": LABELS, **content})
    (labels.parent / "info.csv").write_text("Filename,Source,Split\nconsep_1,consep,1\n")
    assert {name.rpartition("/")[2]: found for name, found in converted(root, tmp_path / "out").items()} == {
        "consep_1": (None, ["epithelial", "epithelial", "lymphocyte"]),
        "dpath_1": (None, ["connective", "epithelial", "neutrophil"]),
    }
    assert "named as in Lizard" in capsys.readouterr().err


def test_consep(tmp_path):
    for split, name in (("Train", "train_1"), ("Test", "test_1")):
        folder = tmp_path / "CoNSeP" / split
        for kind in ("Images", "Overlay"):
            draw(folder / kind / f"{name}.png")
        (folder / "Labels").mkdir()
        content: dict[str, Any] = {"type_map": (LABELS > 0) * 3.0, "inst_type": np.full((3, 1), 3.0)}
        savemat(folder / "Labels" / f"{name}.mat", {"inst_map": LABELS.astype(float), **content})
    found = converted(tmp_path / "CoNSeP", tmp_path / "out")
    assert found == {name: (name.rpartition("_")[0], ["type3"] * 3) for name in ("test_1", "train_1")}
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert all("Images" in image["file_name"] for image in content["images"])


def test_images_of_another_split_are_never_taken(tmp_path, capsys):
    draw(tmp_path / "in/Test/Images/a.png")
    (tmp_path / "in/Train/Labels").mkdir(parents=True)
    savemat(tmp_path / "in/Train/Labels/a.mat", {"inst_map": LABELS})
    assert run("data", "convert", tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "cannot find the annotated image" in capsys.readouterr().err


def test_pannuke_folds(tmp_path):
    root = tmp_path / "in"
    for fold in (1, 2):
        masks = np.zeros((2, 40, 60, 6))
        masks[:, :, :, 1], masks[:, :, :, 5] = LABELS, LABELS == 0
        for kind, array in (("images", np.full((2, 40, 60, 3), 7.0)), ("masks", masks)):
            folder = root / f"Fold {fold}" / kind / f"fold{fold}"
            folder.mkdir(parents=True)
            np.save(folder / f"{kind}.npy", array)
        np.save(root / f"Fold {fold}/images/fold{fold}/types.npy", np.array(["Breast", "Colon"]))
        (root / f"Fold {fold}/masks/by-nc-sa.md").write_text("licence")
    found = converted(root, tmp_path / "out")
    assert list(found) == [f"Fold {fold}_fold{fold}/0000{k}" for fold in (1, 2) for k in (0, 1)]
    assert all(classes == ["Inflammatory"] * 3 for _, classes in found.values())
    assert converted(root / "Fold 1", tmp_path / "one").keys() == {"fold1/00000", "fold1/00001"}
    assert run("data", "split", tmp_path / "one", "--val", 0.5) == 0


def test_monusac(tmp_path, capsys):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((4, 4), (14, 4), (14, 14), (4, 14)))
    name, folder = "TCGA-5P-A9K0-01Z-00-DX1", tmp_path / "in/MoNuSAC_images_and_annotations"
    (folder / name).mkdir(parents=True)
    layers = "".join(
        f'<Annotation Id="{k}" Name=""><Attributes><Attribute Name="{kind}" Id="0" Value=""/></Attributes>'
        f'<Regions><Region Id="1" Type="0"><Vertices>{vertices}</Vertices></Region></Regions></Annotation>'
        for k, kind in enumerate(("Epithelial", "Lymphocyte", "Ambiguous"))
    )
    xml = f'<Annotations MicronsPerPixel="0.25">{layers}</Annotations>'
    (folder / name / f"{name}_1.xml").write_text(xml)
    (folder / name / f"{name}_2.xml.gz").write_bytes(gzip.compress(xml.encode()))
    for k in (1, 2):
        tifffile.imwrite(folder / name / f"{name}_{k}.tif", np.zeros((40, 60, 3), np.uint8))
        tifffile.imwrite(folder / name / f"{name}_{k}.svs.tif", np.zeros((40, 60, 3), np.uint8))
        (folder / name / f"{name}_{k}.svs.tif").rename(folder / name / f"{name}_{k}.svs")
    found = converted(folder, tmp_path / "out")
    assert found == {f"{name}/{name}_{k}": (None, ["Epithelial", "Lymphocyte"]) for k in (1, 2)}
    assert "2 outlines of class Ambiguous read as regions that are not annotated" in capsys.readouterr().err


def test_matlab_7_3(tmp_path, capsys, monkeypatch):
    draw(tmp_path / "in/Images/a.png")
    save_73(tmp_path / "in/Labels/a.mat", {"inst_map": LABELS.astype(float), "type_map": (LABELS > 0) * 2.0})
    assert converted(tmp_path / "in", tmp_path / "out") == {"a": (None, ["type2"] * 3)}
    boxes = [a["bbox"] for a in json.loads((tmp_path / "out/dataset.json").read_text())["annotations"]]
    assert [4, 4, 10, 10] in boxes
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run("data", "convert", tmp_path / "in", "--out", tmp_path / "again") == 2
    error = capsys.readouterr().err
    assert "cellwright[h5py]" in error
    assert "'-v7'" in error


@pytest.mark.parametrize("kind", ["external link", "claimed size", "damaged"])
def test_hostile_hdf5_is_refused(kind, tmp_path, capsys):
    draw(tmp_path / "in/Images/a.png")
    path = tmp_path / "in/Labels/a.mat"
    save_73(path, {"inst_map": LABELS.astype(float)})
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        with h5py.File(path, "r+") as file:
            del file["inst_map"]
            if kind == "external link":
                save_73(tmp_path / "other.mat", {"inst_map": LABELS.astype(float)})
                file["inst_map"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "/inst_map")
            else:
                file.create_dataset("inst_map", (10**6, 10**6), "f8", chunks=(64, 64))
    assert run("data", "convert", tmp_path / "in", "--format", "inst_maps", "--out", tmp_path / "out") == 2
    assert "a.mat" in capsys.readouterr().err
