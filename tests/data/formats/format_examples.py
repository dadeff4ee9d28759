"""A small example of each format that is read only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import tifffile

from cellwright.prediction.tiling.label_writers import write_label_zarr
from cellwright.testing.objects import draw_objects


def write_label_folder(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    for name in ("x", "y"):
        tifffile.imwrite(folder / f"{name}.tif", labels.astype(np.uint16), compression="zlib")
    return folder


def write_xml_outlines(folder: Path) -> Path:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((1.5, 2.25), (9, 2), (8, 9.5)))
    region = f'<Region Id="1" Type="0"><Vertices>{vertices}</Vertices></Region>'
    (folder / "x.xml").write_text(f'<Annotations><Annotation Name="a">{region}</Annotation></Annotations>')
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder / "x.xml"


def write_labelme(folder: Path) -> Path:
    points = [[1.5, 2.25], [9, 2], [8, 9.5]]
    shapes = [{"label": "a", "points": points, "group_id": None, "shape_type": "polygon"}]
    content = {"shapes": shapes, "imagePath": "x.png", "imageData": None, "imageHeight": 23, "imageWidth": 31}
    (folder / "x.json").write_text(json.dumps(content))
    (folder / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder / "x.json"


def write_case(case: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = Path(__file__).parents[2] / "cases" / "masks" / "49_other_layouts" / case
        shutil.copytree(source, folder / case)
        return folder / case

    return write


def write_voc(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    for name, array in (("SegmentationObject", labels), ("SegmentationClass", (labels > 0) * 3)):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(imagecodecs.png_encode(array.astype(np.uint8)))
    (folder / "JPEGImages").mkdir()
    (folder / "JPEGImages" / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
    return folder


def write_stacks(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    masks = np.zeros((2, 23, 31, 6))
    masks[0, :, :, 0], masks[1, :, :, 3] = labels, labels
    np.save(folder / "masks.npy", masks)
    np.save(folder / "images.npy", np.zeros((2, 23, 31, 3)))
    return folder


def write_label_zarr_(folder: Path) -> Path:
    labels = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
    write_label_zarr(folder / "x.zarr", (23, 31), lambda window: window.of(labels.astype(np.uint32)))
    return folder / "x.zarr"


def write_tile_job(folder: Path) -> Path:
    """A finished job whose tiles were removed."""
    objects = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=True)
    table = pd.DataFrame({"label": objects.ids, "class": "cell", "score": objects.scores})
    for side, values in zip(("x0", "y0", "x1", "y1"), objects.masks.boxes.T, strict=True):
        table[f"bbox_{side}_px"] = values
    source = {"path": "x.png", "fingerprint": "", "image_hw": [23, 31], "pixel_size_um": None}
    record = {"schema_version": 1, "source": source, "request": {"options": {}}, "class_names": ["cell"]}
    job = folder / "job"
    job.mkdir()
    (job / "job.json").write_text(json.dumps(record))
    table.to_csv(job / "objects.csv.gz", index=False, compression={"method": "gzip", "mtime": 0})
    labels = objects.to_label_map().astype(np.uint32)
    tifffile.imwrite(job / "labels.tif", labels, tile=(16, 16), compression="zlib")
    return job


EXAMPLES = {
    "npy_stacks": write_stacks,
    "nuinsseg": write_case("nuinsseg"),
    "inst_maps": write_case("consep"),
    "voc": write_voc,
    "label_folder": write_label_folder,
    "xml_outlines": write_xml_outlines,
    "labelme": write_labelme,
    "tile_job": write_tile_job,
}
if find_spec("zarr") is not None:
    EXAMPLES["label_zarr"] = write_label_zarr_
