"""The index of a COCO file: writing and reading give the same one, changes are noticed, and it takes little memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellwright.core.dataset import Dataset, Loaded, Sample
from cellwright.core.errors import FormatError
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.formats import coco_index
from cellwright.data.formats.coco import Coco
from cellwright.data.formats.coco_index import CocoIndex, build_index, open_index, read_sidecar, sidecar_path
from cellwright.data.formats.contract import ReadOptions, WriteOptions

HW = (16, 16)


def write_dataset(out: Path, n_images: int, n_objects: int) -> Path:
    masks = MaskSet.from_dense(np.tile(np.eye(16, dtype=bool), (n_objects, 1, 1)))
    samples = [Sample(f"s{k}", None, HW, Loaded(Instances.from_masks(masks))) for k in range(n_images)]
    return Coco().write(Dataset(tuple(samples), ("cell",)), out, WriteOptions())[0]


def assert_same(first: CocoIndex, second: CocoIndex) -> None:
    for field in dataclasses.fields(CocoIndex):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


@pytest.mark.parametrize("n_objects", [0, 1, 5])
def test_the_index_from_writing_equals_the_index_from_reading(tmp_path: Path, n_objects: int) -> None:
    path = write_dataset(tmp_path, 4, n_objects)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert_same(sidecar, build_index(path))


def test_annotations_in_any_order_are_grouped_by_image_in_file_order(tmp_path: Path) -> None:
    image_ids = [5, 9, 5, 2, 9, 5]
    outline = [[1, 1, 5, 1, 5, 5]]
    annotations = [{"id": k, "image_id": i, "category_id": 1, "segmentation": outline} for k, i in enumerate(image_ids)]
    content = {
        "annotations": annotations,
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (9, 2, 5, 4)],
        "categories": [{"id": 1, "name": "a"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=2))
    index, text = build_index(path), path.read_bytes()
    ids = [[json.loads(text[a:b])["id"] for a, b in index.spans_of(k).tolist()] for k in range(4)]
    assert ids == [[1, 4], [3], [0, 2, 5], []]


def test_the_sidecar_of_a_changed_file_is_not_used(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 3, 2)
    text = path.read_text()
    path.write_text(text.replace('"sample_id": "s1"', '"sample_id": "t1"'))  # the same length
    assert read_sidecar(path) is None
    assert [sample.id for sample in Coco().read(tmp_path, ReadOptions(require_images=False))] == ["s0", "t1", "s2"]
    path.write_text(text + "\n")
    assert read_sidecar(path) is None


def test_a_damaged_sidecar_is_not_used(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 3, 2)
    sidecar, rng = sidecar_path(path), np.random.default_rng(0)
    content = sidecar.read_bytes()
    damaged = [b"", b"rubbish" * 40, content[:-8], content + b"\0" * 16, content[:64]]
    for at in rng.integers(0, len(content), 60):
        damaged.append(content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :])
    for changed in damaged:
        sidecar.write_bytes(changed)
        used = read_sidecar(path)
        assert used is None or changed[:24] + changed[64:] == content[:24] + content[64:]
    assert_same(open_index(path), build_index(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda head, starts, spans: head.update(images=[{}] * 3),
        lambda head, starts, spans: head.update(images={"a": 1, "b": 2, "c": 3}),
        lambda head, starts, spans: head["images"][0].update(width=2**40),
        lambda head, starts, spans: head.update(categories=[{"id": "x", "name": "a"}]),
        lambda head, starts, spans: head.update(sections=[]),
        lambda head, starts, spans: starts.__setitem__(1, 10**9),
        lambda head, starts, spans: spans.__setitem__((0, 0), -5),
        lambda head, starts, spans: spans.__setitem__((1, 1), 2**60),
    ],
)
def test_a_forged_sidecar_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    path = write_dataset(tmp_path, 3, 2)
    index = build_index(path)
    head = {"images": index.images, "categories": index.categories, "sections": index.sections, "scored": index.scored}
    starts, spans = index.starts.copy(), index.spans.copy()
    change(head, starts, spans)
    forged = dataclasses.replace(index, starts=starts, spans=spans, **head)
    monkeypatch.setattr(coco_index, "_outside_digest", lambda *_: "")
    coco_index.write_sidecar(forged)
    assert read_sidecar(path) is None


def test_a_file_that_changes_after_opening_is_noticed(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 3, 2)
    dataset = Coco().read(tmp_path, ReadOptions(require_images=False))
    text = path.read_bytes()
    path.write_bytes(text[:100] + b" " + text[100:])
    with pytest.raises(FormatError, match=r"has changed since it was opened(.|\n)*delete that file first"):
        dataset[2].read_instances()


def test_duplicate_image_ids_and_category_names(tmp_path: Path) -> None:
    image, category = {"id": 1, "file_name": "a.png"}, {"id": 1, "name": "a"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [image, image], "annotations": [], "categories": [category]}))
    with pytest.raises(FormatError, match=r"two images have the same id(.|\n)*got: 1"):
        build_index(path)
    categories = [category, {"id": 2, "name": "a"}]
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": categories}))
    with pytest.raises(FormatError, match="two categories have the same name"):
        build_index(path)


MEASURE = """
import resource, sys
from pathlib import Path
from cellwright.data.formats.coco_index import build_index
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = build_index(Path(sys.argv[1]))
print(len(index.spans), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_gigabyte_is_indexed_in_little_memory(tmp_path: Path) -> None:
    """1 GB of polygons like LIVECell's, 1.2 million annotations."""
    path = tmp_path / "dataset.json"
    polygon = ", ".join(f"{v:.2f}" for v in np.random.default_rng(0).uniform(0, 500, 100))
    n_images, n_each = 3000, 400
    with path.open("w") as file:
        images = [{"id": k, "file_name": f"{k}.png", "width": 704, "height": 520} for k in range(n_images)]
        file.write('{"categories": [{"id": 1, "name": "cell"}], "images": ' + json.dumps(images) + ', "annotations": [')
        for k in range(n_images * n_each):
            fields = f'"id": {k}, "image_id": {k % n_images}, "category_id": 1, "iscrowd": 0, "area": 7.5'
            file.write(("," if k else "") + f'{{{fields}, "segmentation": [[{polygon}]]}}')
        file.write("]}")
    assert path.stat().st_size > 0.9e9
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    n_spans, used_mb = done.stdout.split()
    assert int(n_spans) == n_images * n_each
    assert float(used_mb) < 400


def test_many_objects_open_quickly(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, 200, 100)
    start = time.perf_counter()
    index = open_index(path)
    assert time.perf_counter() - start < 0.5
    assert len(index.spans) == 20_000
