"""``cellwright predict FOLDER`` in several processes, and as shards: the same bytes as with one."""

from __future__ import annotations

import csv
import multiprocessing
import threading
import time
from pathlib import Path

import cv2
import pytest
from drawn import run

from cellwright.core.claim import CONTROL
from cellwright.data.synthetic import draw_field
from cellwright.models.classical import ClassicalSegmenter
from cellwright.prediction.run_folder import PredictionFolder

N_IMAGES = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images on two wells, of which one is damaged; ``whole/`` beside them has the predictions of one process."""
    root = tmp_path_factory.mktemp("many") / "images"
    root.mkdir()
    for k in range(N_IMAGES):
        cv2.imwrite(str(root / f"{k}_A0{1 + k % 2}.png"), draw_field(k, (96, 96), 6)[0].data)
    (root / "2_A01.png").write_bytes((root / "2_A01.png").read_bytes()[:200])
    assert predict(root, root.parent / "whole") == 3
    return root


def predict(images: Path, out: Path, *more: object) -> int:
    return run("predict", images, "--model=classical", "--quiet", "--out", out, *more)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and CONTROL not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_of_which_one_is_killed_write_the_same_bytes(images: Path) -> None:
    out, killed = images.parent / "killed", list[int | None]()

    def kill() -> None:
        until = time.monotonic() + 60
        while not list(out.glob(f"{CONTROL}/progress/*.done")) and time.monotonic() < until:
            time.sleep(0.005)
        for worker in multiprocessing.active_children()[:1]:
            worker.kill()
            killed.append(worker.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    assert predict(images, out, "--workers=2") == 3
    killer.join()
    assert killed
    assert content(out) == content(images.parent / "whole")
    assert not list(out.rglob("*.partial*"))


def test_shards_at_the_same_time_write_the_same_bytes(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Shard 2 runs as a whole while shard 1 predicts its first image; shard 3 was stopped, and comes last."""
    segment, others, out = ClassicalSegmenter.predict, ["2/3"], images.parent / "together"

    def segment_meanwhile(segmenter, given):
        if others:
            assert predict(images, out, f"--shard={others.pop()}") == 0
        return segment(segmenter, given)

    monkeypatch.setattr(ClassicalSegmenter, "predict", segment_meanwhile)
    assert predict(images, out, "--shard=1/3") == 0
    assert "2 images left to other shards" in capsys.readouterr().out
    assert not (out / "predictions.json").exists()
    assert predict(images, out, "--shard=3/3") == 3
    assert content(out) == content(images.parent / "whole")
    with (out / "failures.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["2_A01"]


def test_a_failure_in_one_shard_is_told_by_the_last(images: Path) -> None:
    out = images.parent / "failed"
    assert predict(images, out, "--shard=3/3") == 3
    assert [predict(images, out, f"--shard={k}/3") for k in (1, 2)] == [0, 3]
    assert content(out) == content(images.parent / "whole")
    whole = (images / "2_A01.png").read_bytes()
    try:
        cv2.imwrite(str(images / "2_A01.png"), draw_field(2, (96, 96), 6)[0].data)
        assert predict(images, out, "--shard=3/3") == 0
    finally:
        (images / "2_A01.png").write_bytes(whole)
    assert len((out / "failures.csv").read_text().splitlines()) == 1
    assert (out / "2_A01_masks.tif").is_file()


def test_shards_neither_replace_nor_stop(images: Path, capsys: pytest.CaptureFixture) -> None:
    for option, text in (("--overwrite", "cannot replace a result"), ("--fail-fast", "go on after a failure")):
        assert predict(images, images.parent / "refused", "--shard=1/2", option) == 2
        assert text in capsys.readouterr().err
    for option in ("--tile=256", "--roi=0,0,9,9", "--tissue=auto", "--level=1", "--labels=tiff"):
        assert predict(images, images.parent / "refused", option) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{option.partition('=')[0]} is for one image, which is predicted tile by tile" in said
    assert not (images.parent / "refused").exists()


def test_objects_are_read_one_image_at_a_time_at_the_end(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finishing holds the objects of one image, not those of all."""
    finish, sizes = PredictionFolder.finish, list[int]()

    def finish_counted(folder: PredictionFolder):
        import gc

        from cellwright.core.instances import Instances
        from cellwright.data.formats import coco

        annotations_of = coco.annotations_of

        def counted(instances, *args):
            sizes.append(sum(type(one) is Instances for one in gc.get_objects()))
            return annotations_of(instances, *args)

        monkeypatch.setattr(coco, "annotations_of", counted)
        return finish(folder)

    monkeypatch.setattr(PredictionFolder, "finish", finish_counted)
    assert predict(images, images.parent / "finished") == 3
    assert len(sizes) == N_IMAGES - 1
    assert max(sizes) - min(sizes) <= 1
