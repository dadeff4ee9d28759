"""The page on images and predictions: what it shows, what edits do, and what is on the disk afterwards."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
import zlib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from cellwright.core.instances import Instances
from cellwright.data.synthetic import draw_field

pytest.importorskip("fastapi")
from page_client import PageClient, open_page

import cellwright as cw
from cellwright.serve.actions import Edit, make
from cellwright.serve.project import Project


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images with label images beside them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k, name in enumerate(("a", "b")):
        image, truth = draw_field(k, (600, 700), 40)
        tifffile.imwrite(folder / f"{name}.tif", image.data, photometric="rgb")
        tifffile.imwrite(folder / f"{name}_masks.tif", truth.to_label_map().astype(np.uint16))
    return folder


@pytest.fixture
def client(images: Path, tmp_path: Path) -> Iterator[PageClient]:
    with open_page(images, tmp_path / "project") as client:
        yield client


def labels_of(client: PageClient, image_id: str = "a", level: int = 0) -> np.ndarray:
    """The label image as the page fetches it, tile by tile."""
    hw = client.get(f"/api/images/{image_id}").json()["levels"][level]["hw"]
    labels = np.zeros(hw, np.uint32)
    for row in range(-(-hw[0] // 512)):
        for column in range(-(-hw[1] // 512)):
            answer = client.get(f"/api/images/{image_id}/labels/{level}/{row}/{column}")
            shape = int(answer.headers["x-rows"]), int(answer.headers["x-columns"])
            tile = np.frombuffer(answer.content, "<u4").reshape(shape)
            labels[row * 512 : row * 512 + shape[0], column * 512 : column * 512 + shape[1]] = tile
    return labels


def edit(client: PageClient, op: str, *, image: str = "a", status: int = 200, **fields: Any) -> dict[str, Any]:
    answer = client.post(f"/api/images/{image}/edits", json={"op": op, **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


def test_objects_and_labels_are_those_of_the_folder(client: PageClient, images: Path) -> None:
    expected = tifffile.imread(images / "a_masks.tif")
    assert np.array_equal(labels_of(client), expected)
    assert np.array_equal(labels_of(client, level=1), expected[::2, ::2])
    objects = client.get("/api/images/a/objects").json()
    cells = Instances.from_label_map(expected)
    assert objects["id"] == cells.ids.tolist()
    assert objects["area"] == cells.masks.areas.tolist()
    assert [objects[name] for name in ("x0", "y0", "x1", "y1")] == cells.masks.boxes.T.tolist()
    assert {*objects["score"]} == {None}


def test_a_drawn_object_is_saved_as_a_dataset_and_is_there_when_served_again(images: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    with open_page(images, project) as client:
        before = labels_of(client)
        answer = edit(client, "draw", outline=[[5, 5], [5, 45], [45, 45], [45, 5]], rev=0)
        after = labels_of(client)
        square = np.zeros(before.shape, bool)
        square[5:45, 5:45] = True
        assert np.array_equal(after, np.where(square & (before == 0), before.max() + 1, before))
        (box,) = answer["boxes"]
        pixels = np.frombuffer(zlib.decompress(b64decode(box["labels"])), "<u4").reshape(box["h"], box["w"])
        assert np.array_equal(after[box["y0"] :, box["x0"] :][: box["h"], : box["w"]], pixels)
        edit(client, "delete", ids=[int(before.max())])
        deleted = labels_of(client)
        assert edit(client, "undo")["message"] == "undone: delete 1 object"
        assert np.array_equal(labels_of(client), after)
    with open_page(images, project) as client:
        assert np.array_equal(labels_of(client), after)
        assert client.get("/api/images/a/history").json() == {"undo": ["draw an object"], "redo": ["delete 1 object"]}
        edit(client, "redo")
        assert np.array_equal(labels_of(client), deleted)
    dataset = cw.read_dataset(project / "corrected")
    assert [sample.id for sample in dataset] == ["a"]
    assert np.array_equal(dataset[0].read_instances().to_label_map(), deleted)
    assert np.array_equal(tifffile.imread(project / "corrected" / "a_masks.tif"), deleted)


class Squares:
    """A segmenter that finds squares of 30 px on a grid, whatever the image."""

    class_names = ("square",)

    def predict(self, images: list[Any]) -> list[Instances]:
        results = []
        for image in images:
            labels = np.zeros(image.image_hw, np.uint32)
            for k, (y, x) in enumerate((y, x) for y in range(10, 560, 60) for x in range(10, 640, 60)):
                labels[y : y + 30, x : x + 30] = k + 1
            n = int(labels.max())
            results.append(Instances.from_label_map(labels, scores=np.linspace(0.2, 0.9, n)))
        return results


def test_a_new_prediction_replaces_all_but_what_was_drawn_and_can_be_undone(images: Path, tmp_path: Path) -> None:
    for path in images.glob("*_masks.tif"):
        path.unlink()
    cw.predict_folder(images, model=Squares(), out=tmp_path / "pred", save=["masks"])
    with open_page(images, tmp_path / "project") as client:
        project = client.page.project
        assert [row["state"] for row in client.get("/api/project").json()["images"]] == ["new", "new"]
        edit(client, "draw", outline=[[5, 5], [5, 50], [50, 50], [50, 5]])
        drawn = labels_of(client)
        assert project.adopt(tmp_path / "pred") == ["a", "b"]
        for _ in range(2):
            labels, objects = labels_of(client), client.get("/api/images/a/objects").json()
            assert np.array_equal(labels == 1, drawn == 1)  # the square under it is left out
            assert [objects["origin"].count(kind) for kind in ("manual", "auto")] == [1, 109]
            areas = np.bincount(labels.ravel())
            assert objects["area"] == areas[objects["id"]].tolist()
            edit(client, "undo")
            assert np.array_equal(labels_of(client), drawn)
            edit(client, "redo")
        assert client.get("/api/project").json()["classes"] == ["square"]
        assert np.array_equal(
            labels_of(client, "b"), cw.read_instances(tmp_path / "pred" / "b_masks.tif").to_label_map()
        )
        states = [row["state"] for row in client.get("/api/project").json()["images"]]
        assert states == ["corrected", "predicted"]
        edit(client, "delete", ids=[5], image="b")
        project.adopt(tmp_path / "pred")
        assert [row["state"] for row in client.get("/api/project").json()["images"]] == ["corrected", "predicted"]


def test_two_windows_see_each_others_edits_and_lose_none(client: PageClient) -> None:
    edit(client, "delete", ids=[3], rev=0)
    square = [[5, 5], [5, 45], [45, 45], [45, 5]]
    drawn = edit(client, "draw", outline=square, rev=0)  # of a window that has not seen the first edit
    assert drawn["rev"] == 2
    conflict = edit(client, "smooth", ids=[4, 3], rev=0, status=409)
    assert "changed in another window" in conflict["error"]["message"]
    assert (conflict["rev"], conflict["objects"]["removed"]) == (2, [3])
    assert conflict["objects"]["changed"]["id"] == drawn["objects"]["changed"]["id"]
    assert len(conflict["boxes"]) == 2
    assert edit(client, "undo", rev=1, status=409)["rev"] == 2
    assert edit(client, "undo", rev=2)["message"] == "undone: draw an object"


def test_counts_of_images_that_were_not_opened_and_removal(client: PageClient, tmp_path: Path) -> None:
    for _ in range(200):
        rows = client.get("/api/project").json()["images"]
        if all(row["n_objects"] for row in rows):
            break
        time.sleep(0.02)
    assert [row["n_objects"] for row in rows] == [
        len(client.get(f"/api/images/{k}/objects").json()["id"]) for k in "ab"
    ]
    edit(client, "delete", ids=[3])
    edit(client, "delete", ids=[3], image="b")
    client.page.project.save_corrected()
    assert client.delete("/api/images/a").status_code == 200
    assert client.get("/api/images/a").status_code == 404
    client.page.project.save_corrected()
    assert [sample.id for sample in cw.read_dataset(tmp_path / "project" / "corrected")] == ["b"]
    assert not (tmp_path / "project" / "corrected" / "a_masks.tif").exists()
    assert (tmp_path / "project" / "edits" / "a.removed1").is_file()
    client.post("/api/open", json={"path": str(tmp_path / "images")})
    assert client.get("/api/images/a/history").json() == {"undo": [], "redo": []}


def test_folders_that_can_be_opened(client: PageClient, tmp_path: Path) -> None:
    (tmp_path / "images" / "plate" / "day 1").mkdir(parents=True)
    top = client.get("/api/folders").json()
    assert top["folders"] == [str(tmp_path / "images")]
    inside = client.get("/api/folders", params={"path": top["folders"][0]}).json()
    assert (inside["folders"], inside["n_images"], inside["parent"]) == ([str(tmp_path / "images" / "plate")], 4, "")
    assert client.get("/api/folders", params={"path": str(tmp_path)}).status_code == 422


def test_files_have_the_names_of_the_images_where_these_are_clear(tmp_path: Path) -> None:
    with closing(Project(tmp_path / "project")) as project:
        for name in ("1/field 1", "2/field 1", "2/field 2"):
            path = tmp_path / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.zeros((9, 9), np.uint8))
            project.add(path)
        assert project.file_names() == {"field_1": "field_1", "field_1-2": "field_1-2", "field_2": "field 2"}


def test_after_a_kill_the_dataset_has_all_edits(images: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    with open_page(images, project) as client:
        edit(client, "delete", ids=[3])
        client.page.project.save_corrected()
        edit(client, "delete", ids=[4])
        edit(client, "delete", ids=[5], image="b")
        shutil.copytree(project, tmp_path / "killed" / "project")  # as it is on the disk now
        shutil.copytree(images, tmp_path / "killed" / "images")
    (tmp_path / "killed" / "project" / ".cellwright" / "lock").unlink()
    with open_page(None, tmp_path / "killed" / "project") as client:
        dataset = cw.read_dataset(client.page.project.save_corrected())
        for sample in dataset:
            assert np.array_equal(sample.read_instances().to_label_map(), labels_of(client, sample.id))
        assert [row["state"] for row in client.get("/api/project").json()["images"]] == ["corrected", "corrected"]
    records = json.loads((project / "project.json").read_text())["images"]
    assert [r["journal_bytes"] for r in records] == [(project / "edits" / f"{k}.journal").stat().st_size for k in "ab"]


def test_an_image_that_is_replaced_is_shown_as_it_is_now(client: PageClient, images: Path) -> None:
    first = client.get("/api/images/a/tiles/0/0/0").content
    pixels = tifffile.imread(images / "a.tif")
    tifffile.imwrite(images / "a.tif", 255 - pixels, photometric="rgb", compression="zlib")
    assert client.get("/api/images/a/tiles/0/0/0").content != first
    tifffile.imwrite(images / "a.tif", pixels[:100], photometric="rgb")
    answer = client.get("/api/images/a/tiles/0/0/0")
    assert answer.status_code == 422
    assert "another size than before" in answer.text
    (images / "a.tif").unlink()
    assert client.get("/api/images/a").status_code == 422


def test_a_prediction_of_another_size_is_refused(client: PageClient, images: Path, tmp_path: Path) -> None:
    edit(client, "delete", ids=[3])
    pixels = tifffile.imread(images / "a.tif")
    tifffile.imwrite(images / "a.tif", pixels[:300], photometric="rgb")
    (images / "a_masks.tif").unlink()
    cw.predict_folder(images / "a.tif", model=Squares(), out=tmp_path / "pred", save=["masks"])
    with pytest.raises(cw.InputError, match="of another size"):
        client.page.project.adopt(tmp_path / "pred")


def test_threads_that_edit_images_that_are_closed_and_opened_again_lose_nothing(
    client: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellwright.serve.project._OPEN_ANNOTATIONS", 1)
    project, revs = client.page.project, {"a": 0, "b": 0}
    counted = threading.Lock()

    def draw(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            image, y, x = rng.choice("ab"), rng.uniform(0, 560), rng.uniform(0, 660)
            outline = [(y, x), (y, x + 30), (y + 30, x + 30)]
            with project.locked(image) as annotation:
                before = annotation.rev
                make(annotation, Edit(op="draw", outline=outline), project.classes)
                with counted:
                    revs[image] += annotation.rev - before
                project.edited(image, annotation)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dataset = {sample.id: sample for sample in cw.read_dataset(project.save_corrected())}
    for image, rev in revs.items():
        labels = labels_of(client, image)
        assert client.get(f"/api/images/{image}").json()["rev"] == rev > 10
        objects = client.get(f"/api/images/{image}/objects").json()
        assert objects["area"] == np.bincount(labels.ravel())[objects["id"]].tolist()
        assert np.array_equal(dataset[image].read_instances().to_label_map(), labels)
