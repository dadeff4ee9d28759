"""``data split`` and ``data merge`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from drawn import draw_mask_folder, run

from cellwright.api.read import read_dataset


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source``: 6 images with masks. ``data``: the dataset, with two splits."""
    root = tmp_path_factory.mktemp("merge")
    draw_mask_folder(root / "source", 6)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", "0.5") == 0
    return root


def test_three_splits_with_similar_images_grouped(job: Path, tmp_path: Path) -> None:
    words = ["--val", "0.2", "--test", "0.2", "--alike", "--out", tmp_path / "three", "--quiet"]
    assert run("data", "split", job / "data", *words) == 0
    dataset = read_dataset(tmp_path / "three")
    assert set(dataset.splits) == {"train", "val", "test"}
    assert all(sample.group for sample in dataset)
    assert run("data", "split", job / "data", "--alike", "--group", "a", "--out", tmp_path / "no") == 2
    assert run("data", "split", job / "data", "--folds", "2", "--test", "0.2", "--out", tmp_path / "no") == 2


def test_a_group_too_large_for_a_split_is_said(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ("data", "split", job / "data", "--val", "0.5", "--out")
    assert run(*split, tmp_path / "most", "--group", "(field) [0-4]") == 0
    err = capsys.readouterr().err
    assert "val has 1 image, not about 3: 5 images of 6 are one group (the group field) and stay together" in err
    assert run(*split, tmp_path / "pairs", "--group", "field [0-5]") == 0
    assert "stay together" not in capsys.readouterr().err


def test_merging_renames_combines_and_counts(job: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = ["data", "convert", job / "source", "--classes", "nucleus", "--out", other, "--quiet"]
    assert run(*words) == 0
    data = read_dataset(job / "data")
    n = {split: sum(len(s.read_instances()) for s in data.with_split(split)) for split in data.splits}
    (name,) = data.class_names
    capsys.readouterr()
    words = ["data", "merge", job / "data", other, "--log-format", "json"]
    assert run(*words, "--out", tmp_path / "merged") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (table,) = [event["rows"] for event in events if event["event"] == "table"]
    total = sum(n.values())
    counted = {row["class"]: row for row in table}
    assert counted["nucleus"]["no split"] == counted["nucleus"]["all"] == total
    assert {split: counted[name][split] for split in n} == n
    assert counted[name]["all"] == total
    merged = read_dataset(tmp_path / "merged")
    assert len(merged) == 12
    assert all("/" in sample.id for sample in merged)
    map_file = tmp_path / "map.yaml"
    map_file.write_text(f"{name}: nuclear thing\n")
    assert run(*words, "--map", map_file, "--map", "nucleus=nuclear thing", "--out", tmp_path / "renamed") == 0
    assert read_dataset(tmp_path / "renamed").class_names == ("nuclear thing",)
    assert run(*words, "--keep", "nucleus", "--out", tmp_path / "kept") == 0
    assert sum(len(sample.read_instances()) for sample in read_dataset(tmp_path / "kept")) == total


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "nothing"], "invalid class map"),
        (["--map", "no such=x"], "no such class"),
        (["--map", "absent.yaml"], "cannot read this class map"),
        (["--keep", "no such"], "no such class"),
        (["--map", "LIST"], "invalid class map"),
    ],
)
def test_invalid_class_maps(
    job: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    words = [str(tmp_path / "list.yaml") if word == "LIST" else word for word in words]
    assert run("data", "merge", job / "data", *words, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert run("data", "merge", job / "data", "--out", job / "data", "--overwrite") == 2
