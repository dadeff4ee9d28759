"""A finished command typed again unchanged is complete and exits with 0; a really different one exits with 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from drawn import draw_mask_folder, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn annotations, the dataset made from them with splits, and predictions of its images."""
    root = tmp_path_factory.mktemp("again")
    draw_mask_folder(root / "source", 4)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", ".25", "--quiet") == 0
    words = ("--model", "classical", "--save", "masks", "--out", root / "pred", "--quiet")
    assert run("predict", root / "data", *words) == 0
    return root


# Words (names in capitals stand for paths), and words to add for something different. OUT does not exist at first.
COMMANDS = {
    "convert": (("data", "convert", "SOURCE", "--out", "OUT"), ("--classes", "nucleus")),
    "convert with copies": (("data", "convert", "SOURCE", "--copy-images", "--out", "OUT"), ("--classes", "nucleus")),
    "split": (("data", "split", "DATA", "--out", "OUT"), ("--seed", "1")),
    "folds": (("data", "split", "DATA", "--folds", "2", "--out", "OUT"), ("--seed", "1")),
    "merge": (("data", "merge", "DATA", "--out", "OUT"), ("--map", "cell=nucleus")),
    "check": (("data", "check", "DATA", "--out", "OUT.csv"), ("--split", "val")),
    "evaluate": (("evaluate", "PRED", "--data", "DATA", "--out", "OUT"), ("--split", "val")),
    "two evaluated": (("evaluate", "PRED", "DATA", "--data", "DATA", "--out", "OUT"), ("--pictures", "0")),
    "fuse": (("fuse", "PRED", "DATA", "--save", "masks", "--out", "OUT"), ("--iou", ".4")),
    "measure": (("measure", "PRED", "--out", "OUT.csv"), ("--ring", "3")),
    "export coco": (("export", "PRED", "--to", "coco", "--out", "OUT"), None),
    "export csv": (("export", "PRED", "--to", "rle_csv_submission", "--out", "OUT.csv"), None),
    "export zip": (("export", "PRED", "--to", "coco_results", "--out", "OUT.zip"), None),
    "recipes copy": (("recipes", "copy", "vrdl_nuclei/quick", "--out", "OUT.yaml"), None),
    "model export": (("model", "export", "nuclei@1", "--to", "half", "--out", "OUT"), None),
    "demo": (("demo", "--out", "OUT"), None),
}


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".index"]
    return {path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_finished_command_typed_again(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, changes = COMMANDS[name]
    places = {"SOURCE": folder / "source", "DATA": folder / "data", "PRED": folder / "pred"}
    out = tmp_path / "out"
    typed = [str(places.get(word, word.replace("OUT", str(out)))) for word in words]
    assert run(*typed) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert run(*typed) == 0
    assert "already complete: " in capsys.readouterr().err
    after = contents(tmp_path)
    if name == "demo":  # its images and its evaluation are written again, with the same content
        assert {key: value for key, (_, value) in after.items()} == {key: value for key, (_, value) in before.items()}
    else:
        assert after == before, "nothing was written"
    if changes is not None:
        assert run(*typed, *changes) == 2
        message = capsys.readouterr().err
        assert "--overwrite" in message
        assert "choose another --out" in message
        assert contents(tmp_path) == before
        assert run(*typed, *changes, "--overwrite") == 0
        assert contents(tmp_path) != before


def test_a_whole_pipeline_typed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split is set in the dataset itself, so convert finds another file than it wrote."""
    draw_mask_folder(tmp_path / "source", 4)
    data, pred = tmp_path / "data", tmp_path / "pred"
    pipeline = (
        ("data", "convert", tmp_path / "source", "--out", data),
        ("data", "split", data, "--val", ".25"),
        ("predict", data, "--split", "val", "--model", "classical", "--save", "masks", "--out", pred),
        ("evaluate", pred, "--data", data, "--split", "val", "--pictures", "0", "--out", tmp_path / "eval"),
        ("export", pred, "--to", "rle_csv_submission", "--out", tmp_path / "answer.csv"),
    )
    for words in pipeline:
        assert run(*words) == 0
    capsys.readouterr()
    for words in pipeline:
        assert run(*words) == 0, words
        assert "already complete: " in capsys.readouterr().err, words
    assert run("data", "split", data, "--val", ".5") == 2
    assert "already has splits" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "source" / "field 0" / "masks")
    assert run(*pipeline[0]) == 2, "the annotations changed"


def test_changed_ground_truth_is_another_evaluation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", folder / "pred", "--data", tmp_path / "data", "--pictures", "0", "--out", tmp_path / "eval")
    shutil.copytree(folder / "data", tmp_path / "data")
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(folder / "data" / image["file_name"])
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    assert run(*words) == 0
    del content["annotations"][0]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert run(*words) == 2
    assert "changed since: the ground truth" in capsys.readouterr().err
