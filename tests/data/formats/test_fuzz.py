"""Damaged files of every format: an error of ours or a result, but no other exception, crash, hang or memory blowup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import conformance
import imagecodecs
import numpy as np
import pytest
import tifffile
from format_examples import EXAMPLES

from cellwright.data.formats import FORMATS, WriteOptions
from cellwright.testing.objects import draw_objects, save_dataset

CHILD = Path(__file__).with_name("fuzz_child.py")
LABELS = draw_objects(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
XML = """<Annotations MicronsPerPixel="0.25">
<Annotation Id="1" Name="a"><Regions>
<Region Id="1" Type="0"><Vertices><Vertex X="1.5" Y="2.25"/><Vertex X="9" Y="2"/><Vertex X="8" Y="9.5"/></Vertices>
</Region><Region Id="2" Type="0" NegativeROA="1">
<Vertices><Vertex X="6" Y="4"/><Vertex X="7" Y="4"/><Vertex X="7" Y="5"/>
</Vertices></Region></Regions></Annotation></Annotations>
"""


def small(name, seed):
    return conformance.draw(name, seed, n=5, image_hw=(23, 31))


def from_writers(folder):
    """The output of each writer, and which of its files to damage."""
    for name, carries in conformance.CARRIES.items():
        dataset = save_dataset(folder / "in", {"a": small(name, 1)}, conformance.class_names(name))
        conformance.write(name, dataset, folder / name)
        files = [path.relative_to(folder / name) for path in (folder / name).rglob("*") if path.is_file()]
        chosen = [path for path in files if path.suffix != ".index" and not path.name.startswith(("a.png", "image."))]
        chosen = [path for path in chosen if "images" not in path.parts]
        for sidecar in (folder / name).rglob("*.index"):
            sidecar.unlink()
        yield {"format": name, "folder": name, "path": carries.out, "files": [str(path) for path in chosen]}


COCO = {
    "images": [{"id": "a", "file_name": "a.png", "width": 31, "height": 23}],
    "categories": [{"id": 0, "name": "root"}, {"id": "1", "name": "n", "supercategory": "root"}],
    "annotations": [
        {"id": 1, "image_id": "a", "category_id": 1, "segmentation": [[1, 2], [9, 2], [8, 9]], "iscrowd": "0"},
        {"id": 2, "image_id": "a", "category_id": 1, "segmentation": [[1, 2, 9, 2, 8, 9], [1, 1, 2, 2]], "bbox": []},
        {"id": 3, "image_id": "a", "category_id": 1, "segmentation": [], "bbox": [1, 2, 3, 4]},
    ],
}
QUIRKS = {
    "coco": {"instances.json": json.dumps(COCO)},
    "dsb2018_csv": {"train.csv": "ImageId;EncodedPixels\na.png;1 5 40 3\nb;-1\n"},
    "yolo_seg": {"data.yaml": "train: images\nnames: [a]\n", "labels/a.txt": "0 .1 .1 .5 .2 .2 .7\n0 .1 .1 .2 .3\n"},
}


def quirks(folder):
    """Files as other programs write them."""
    for name, files in QUIRKS.items():
        place = folder / f"quirks_{name}"
        for file, content in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(content)
        for image in ("a", "b"):
            (place / f"{image}.png").write_bytes(imagecodecs.png_encode(np.zeros((23, 31), np.uint8)))
        yield {"format": name, "folder": place.name, "path": ".", "files": list(files)}


def examples(folder):
    """The examples of the conformance tests, and a prediction folder."""
    for name, write in EXAMPLES.items():
        place = folder / f"example_{name}"
        place.mkdir()
        path = write(place)
        files = [str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()]
        yield {
            "format": name,
            "folder": place.name,
            "path": str(path.relative_to(place)),
            "files": list(map(str, files)),
        }
    dataset = save_dataset(folder / "in", {"a": small("coco_results", 1)}, conformance.class_names("coco_results"))
    FORMATS["coco"].write(dataset, folder / "predictions" / "predictions.json", WriteOptions())
    yield {"format": "predictions", "folder": "predictions", "path": ".", "files": ["predictions.json"]}


def by_hand(folder):
    """Files of formats that are read only, and of layouts that no writer makes."""
    pixels = np.random.default_rng(0).integers(0, 255, (23, 31), dtype=np.uint8)
    layouts = {
        "label_images": {
            "x_seg.npy": {"masks": LABELS.astype(np.uint16), "outlines": [[1, 2], [3.5]], "filename": "x"}
        },
        "label_folder": {"x.png": LABELS.astype(np.uint8), "y.tif": LABELS.astype(np.int32)},
        "class_masks": {"image.tif": pixels, "class1.tif": LABELS.astype(np.float64)},
        "xml_outlines": {"x.xml": XML},
        "image_folder": {"x.png": pixels, "y.tif": pixels},
    }
    for name, files in layouts.items():
        place = folder / f"hand_{name}"
        place.mkdir()
        for file, content in files.items():
            path = place / file
            if isinstance(content, str):
                path.write_text(content)
            elif path.suffix == ".npy":
                np.save(path, content)
            elif path.suffix == ".png":
                path.write_bytes(imagecodecs.png_encode(content))
            else:
                tifffile.imwrite(path, content, compression="zlib")
        if name == "xml_outlines":
            tifffile.imwrite(place / "x.tif", pixels)
        yield {"format": name, "folder": place.name, "path": ".", "files": [f for f in files if f != "image.tif"]}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    seeds = [*from_writers(folder), *by_hand(folder), *quirks(folder), *examples(folder)]
    assert {seed["format"] for seed in seeds} == set(FORMATS)
    (folder / "seeds.json").write_text(json.dumps(seeds))
    truth = save_dataset(folder / "in", {"a": small("coco", 1)})
    FORMATS["coco"].write(truth, folder / "truth", WriteOptions())
    return folder


def fuzz(seeds, work, first, count, timeout):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-W", "error", str(CHILD), str(seeds), str(work), str(first), str(count)]
    child = subprocess.run(command, capture_output=True, timeout=timeout, env=environment, check=False)
    lines = [json.loads(line) for line in child.stdout.decode().splitlines() if line.startswith("{")]
    last = f"{lines[-1] if lines else 'nothing was read'}\n{child.stderr.decode(errors='replace')[-3000:]}"
    assert child.returncode == 0, f"the child exited with {child.returncode} at {last}"
    results = [line for line in lines if line["outcome"] != "started"]
    assert len(results) == count
    return results


def check(results):
    bad = [result for result in results if result["outcome"] in ("traceback", "slow")]
    places = "\n".join(
        f"case {result['case']}, {result['format']}, {result['file']}: {result['text'][-1500:]}" for result in bad[:5]
    )
    assert not bad, f"{len(bad)} of {len(results)} damaged files were not handled:\n{places}"
    refused = [result for result in results if result["outcome"] == "refused"]
    assert len(refused) > len(results) / 4
    for result in refused:
        assert "where:" in result["text"], result


def test_300_damaged_files(seeds, tmp_path):
    check(fuzz(seeds, tmp_path, 0, 300, timeout=120))


@pytest.mark.slow
def test_10000_damaged_files(seeds, tmp_path):
    for first in range(1000, 11000, 1000):
        check(fuzz(seeds, tmp_path, first, 1000, timeout=900))
