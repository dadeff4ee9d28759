"""``train`` typed again: it resumes, says that it is complete, or refuses other inputs and says what changed."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import cv2
import pytest
from drawn import run

from cellwright.core.errors import InputError

CASE = Path(__file__).parents[1] / "cases" / "models" / "03_changed_truth_goes_on"
SMALL = (
    "--device=cpu",
    "--set=train.length=3 steps",
    "--set=train.checkpoint_every=1 step",
    "--set=model.backbone.width=8",
    "--set=model.fpn.channels=16",
)


def make_dataset(source: Path, out: Path) -> None:
    assert run("data", "convert", source, "--out", out, "--quiet") == 0
    assert run("data", "split", out, "--val", ".34", "--seed", "0", "--quiet") == 0


def train(data: Path, out: Path, *words: object) -> int:
    return run("train", CASE / "tiny.yaml", "--data", data, "--out", out, *SMALL, *words)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The dataset of the wrong annotations, and a run on it that was stopped after its first step."""
    shutil.copytree(CASE / "src_wrong", tmp_path / "source")
    make_dataset(tmp_path / "source", tmp_path / "data")
    assert train(tmp_path / "data", tmp_path / "run", "--max-minutes", "0.0001") == 0
    assert not (tmp_path / "run" / "DONE").exists()
    return tmp_path / "data"


def test_corrected_annotations_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The case 03: the masks had been rotated by mistake; ids, sizes, splits and images are the same as before."""
    weights = (tmp_path / "run" / "model" / "weights.safetensors").read_bytes()
    shutil.rmtree(data)
    make_dataset(CASE / "src_right", data)
    capsys.readouterr()
    assert train(data, tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "this run was started with another input (data)" in message
    assert "changed since: the annotations of 5 images (i0, i1, i2, ...)" in message
    assert "choose another --out, or start from scratch with --overwrite" in message
    assert (tmp_path / "run" / "model" / "weights.safetensors").read_bytes() == weights
    # Elsewhere, and with the images moved, the corrected data train as always.
    assert train(data, tmp_path / "other", "--max-minutes", "0.0001") == 0
    data.rename(tmp_path / "moved")
    shutil.copytree(CASE / "src_right", tmp_path / "copies")
    text = (tmp_path / "moved" / "dataset.json").read_text()
    (tmp_path / "moved" / "dataset.json.index").unlink(missing_ok=True)
    images = json.loads(text)["images"]
    for image in images:
        text = text.replace(json.dumps(image["file_name"]), json.dumps(f"../copies/{Path(image['file_name']).name}"))
    (tmp_path / "moved" / "dataset.json").write_text(text)
    assert train(tmp_path / "moved", tmp_path / "other") == 0
    assert "resuming from step 1" in capsys.readouterr().err


def test_images_of_the_same_size_and_validation_objects_count(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "source" / "i1.png"
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    path.write_bytes(cv2.imencode(".png", 255 - pixels)[1].tobytes())
    assert train(data, tmp_path / "run") == 2
    assert "changed since: the pixels of 1 image (i1)" in capsys.readouterr().err
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    content = json.loads((data / "dataset.json").read_text())
    (validation, *_) = [image for image in content["images"] if image["split"] == "val"]
    of_image = [a for a in content["annotations"] if a["image_id"] == validation["id"]]
    content["annotations"] = [a for a in content["annotations"] if a not in of_image[::2]]
    (data / "dataset.json").write_text(json.dumps(content))
    (data / "dataset.json.index").unlink(missing_ok=True)
    assert train(data, tmp_path / "run") == 2
    assert f"the annotations of 1 image ({validation['sample_id']})" in capsys.readouterr().err


def test_a_finished_run_is_complete(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(data, tmp_path / "run") == 0
    capsys.readouterr()
    weights = tmp_path / "run" / "model" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert train(data, tmp_path / "run") == 0
    printed = capsys.readouterr()
    assert f"already complete: {tmp_path / 'run'}" in printed.err
    assert "best model" in printed.out
    assert weights.stat().st_mtime_ns == before
    assert train(data, tmp_path / "run", "--set=train.lr=.5") == 2
    assert "lr: 0.5" in capsys.readouterr().err
    shutil.rmtree(data)
    make_dataset(CASE / "src_right", data)
    assert train(data, tmp_path / "run") == 2
    assert "the annotations of 5 images" in capsys.readouterr().err


def test_finished_seeds_of_a_repeat_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(CASE / "src_wrong", tmp_path / "data")
    assert train(tmp_path / "data", tmp_path / "runs", "--repeat", "1", "--set=train.length=2 steps") == 0
    assert train(tmp_path / "data", tmp_path / "runs", "--repeat", "1", "--set=train.length=2 steps") == 0
    shutil.rmtree(tmp_path / "data")
    make_dataset(CASE / "src_right", tmp_path / "data")
    capsys.readouterr()
    assert train(tmp_path / "data", tmp_path / "runs", "--repeat", "1", "--set=train.length=2 steps") == 2
    assert "the annotations of 5 images" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_step_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(CASE / "src_wrong", tmp_path / "data")
    loop = importlib.import_module("cellwright.training.loop")

    def broken(*arguments: object) -> None:
        raise InputError("cannot read this file", where="i1.png", remedy="copy it again")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", broken)
        assert train(tmp_path / "data", tmp_path / "run", "--set=train.lr=3") == 2
    assert "cannot read this file" in capsys.readouterr().err
    assert train(tmp_path / "data", tmp_path / "run", "--max-minutes", "0.0001") == 0
    assert "lr: 3" not in (tmp_path / "run" / "recipe.yaml").read_text()


def test_without_validation_images_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "convert", CASE / "src_right", "--out", tmp_path / "data", "--quiet") == 0
    assert train(tmp_path / "data", tmp_path / "run", "--set=train.length=2 steps") == 0
    printed = capsys.readouterr()
    assert "none: no objects to validate on" in printed.out
    assert "to choose validation images: cellwright data split" in printed.err


def test_repeats_without_a_finished_seed_give_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(CASE / "src_right", tmp_path / "data")
    capsys.readouterr()
    words = ("--repeat", "2", "--max-minutes", "0.0001")
    assert train(tmp_path / "data", tmp_path / "runs", *words) == 0
    printed = capsys.readouterr().out
    assert printed == "no run has finished yet, of 2: the time was over; train again to resume\n"


def test_fine_tuning_keeps_the_class_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label images have no class names; a name that was given is kept."""
    make_dataset(CASE / "src_right", tmp_path / "data")
    words = ("--data", tmp_path / "data", "--device=cpu", "--max-minutes", ".0001", "--out", tmp_path / "run")
    assert run("train", "nuclei/finetune", *words) == 0
    assert "class cell of the data" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text())["class_names"] == ["nucleus"]
    merged = ("data", "merge", tmp_path / "data", "--map", "cell=astrocyte", "--out", tmp_path / "named", "--quiet")
    assert run(*merged) == 0
    capsys.readouterr()
    assert run("train", "nuclei/finetune", "--data", tmp_path / "named", "--out", tmp_path / "b", "--dry-run") == 0
    assert "class cell" not in capsys.readouterr().err


def test_class_mismatches_name_the_ways_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(CASE / "src_right", tmp_path / "data")
    capsys.readouterr()
    assert train(tmp_path / "data", tmp_path / "run", "--set=classes=2") == 2
    message = capsys.readouterr().err
    assert (
        "use --set classes=1; or rename, combine or drop classes with cellwright data merge (--map, --keep)" in message
    )
    assert "keep only some when converting (--classes" in message


def test_classes_that_no_training_image_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(CASE / "src_right", tmp_path / "data")
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    content["categories"].append({"id": 7, "name": "debris"})
    validation = next(image["id"] for image in content["images"] if image["split"] == "val")
    next(a for a in content["annotations"] if a["image_id"] == validation)["category_id"] = 7
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "data" / "dataset.json.index").unlink(missing_ok=True)
    assert train(tmp_path / "data", tmp_path / "run", "--set=classes=2", "--dry-run") == 0
    assert (
        "warning: no training image has an object of class debris, but the validation images have 1 object"
        in capsys.readouterr().err
    )
