"""Damaged files of every format: a clean error or a result, never a traceback, a crash, a hang or gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import conformance as suite
import imagecodecs
import numpy as np
import pytest
import tifffile

from cellwright.data.formats import FORMATS, WriteOptions

CHILD = Path(__file__).with_name("fuzz_child.py")
LABELS = suite.draw(1, n=5, image_hw=(23, 31), overlaps=False, scored=False).masks.to_label_map()
XML = """<Annotations MicronsPerPixel="0.25">
<Annotation Id="1" Name="a"><Regions>
<Region Id="1" Type="0"><Vertices><Vertex X="1.5" Y="2.25"/><Vertex X="9" Y="2"/><Vertex X="8" Y="9.5"/></Vertices>
</Region><Region Id="2" Type="0" NegativeROA="1">
<Vertices><Vertex X="6" Y="4"/><Vertex X="7" Y="4"/><Vertex X="7" Y="5"/>
</Vertices></Region></Regions></Annotation></Annotations>
"""


def small(name, k):
    truth = suite.CARRIES[name].truth
    n_classes = 2 if suite.CARRIES[name].classes else 1
    return suite.draw(k, n=5, image_hw=(23, 31), overlaps=False, scored=not truth, n_classes=n_classes)


def from_writers(folder):
    """A seed for every writer: its output with the files worth damaging."""
    for name, carries in suite.CARRIES.items():
        dataset = suite.dataset_of(folder / "in", {"a": small(name, 1)}, 2 if carries.classes else 1)
        FORMATS[name].write(dataset, folder / name / carries.out, WriteOptions(copy_images=True))
        files = [path.relative_to(folder / name) for path in (folder / name).rglob("*") if path.is_file()]
        worth = [path for path in files if path.suffix != ".index" and not path.name.startswith(("a.png", "image."))]
        worth = [path for path in worth if "images" not in path.parts]
        for stale in (folder / name).rglob("*.index"):
            stale.unlink()
        yield {"format": name, "folder": name, "path": carries.out, "files": [str(path) for path in worth]}


def by_hand(folder):
    """Seeds for what is only read, and for layouts that no writer makes."""
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
    found = [*from_writers(folder), *by_hand(folder)]
    assert {seed["format"] for seed in found} == set(FORMATS)
    (folder / "seeds.json").write_text(json.dumps(found))
    truth = suite.dataset_of(folder / "in", {"a": small("coco", 1)})
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
    assert child.returncode == 0, f"the child ended with {child.returncode} at {last}"
    results = [line for line in lines if line["outcome"] != "begun"]
    assert len(results) == count
    return results


def check(results):
    bad = [one for one in results if one["outcome"] in ("traceback", "slow")]
    places = "\n".join(f"case {one['case']}, {one['format']}, {one['file']}: {one['text'][-1500:]}" for one in bad[:5])
    assert not bad, f"{len(bad)} of {len(results)} damaged files were not handled:\n{places}"
    refused = [one for one in results if one["outcome"] == "refused"]
    assert len(refused) > len(results) / 4
    for one in refused:
        assert "where:" in one["text"], one


def test_300_damaged_files(seeds, tmp_path):
    check(fuzz(seeds, tmp_path, 0, 300, timeout=120))


@pytest.mark.slow
def test_10000_damaged_files(seeds, tmp_path):
    for first in range(1000, 11000, 1000):
        check(fuzz(seeds, tmp_path, first, 1000, timeout=900))
