"""What a verb will write is announced after the request has been checked; ``--dry-run`` stops there."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn import draw_mask_folder, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn annotations, and the dataset made from them."""
    root = tmp_path_factory.mktemp("dry")
    draw_mask_folder(root / "source", 3)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    return root


# Words, and the file below OUT that shows that the output exists.
REQUESTS = {
    "convert": (("data", "convert", "SOURCE", "--out", "OUT"), "dataset.json"),
    "split": (("data", "split", "DATA", "--out", "OUT"), "dataset.json"),
    "folds": (("data", "split", "DATA", "--folds", "3", "--out", "OUT"), "fold_1/dataset.json"),
    "merge": (("data", "merge", "DATA", "--map", "cell=nucleus", "--out", "OUT"), "dataset.json"),
    "check": (("data", "check", "DATA", "--out", "OUT/suspects.csv"), "suspects.png"),
    "export": (("export", "DATA", "--to", "coco", "--out", "OUT"), "annotations.json"),
    "model export": (("model", "export", "nuclei@1", "--to", "half", "--out", "OUT"), "model.json"),
    "recipes copy": (("recipes", "copy", "vrdl_nuclei/quick", "--out", "OUT/quick.yaml"), "quick.yaml"),
    "plan": (("plan", "DATA", "--init", "none", "--out", "OUT/recipe.yaml"), "recipe.yaml"),
    "demo": (("demo", "--out", "OUT"), "predictions/predictions.json"),
}


def words_of(name: str, folder: Path, out: Path) -> list[str]:
    places = {"SOURCE": folder / "source", "DATA": folder / "data"}
    return [str(places.get(word, word)).replace("OUT", str(out)) for word in REQUESTS[name][0]]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_dry_run_announces_and_writes_nothing(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(*words_of(name, folder, out), "--dry-run") == 0
    printed = capsys.readouterr()
    assert f"will write {out}" in printed.err
    assert printed.out == ""
    assert not out.exists()


@pytest.mark.parametrize("name", REQUESTS)
def test_an_existing_output_is_an_error_before_anything_is_announced(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "out" / REQUESTS[name][1]
    existing.parent.mkdir(parents=True)
    existing.write_text("mine")
    assert run(*words_of(name, folder, tmp_path / "out")) == 2
    message = capsys.readouterr().err
    assert "will write" not in message
    assert "--out" in message
    assert "`" not in message
    assert existing.read_text() == "mine"


def test_wrong_input_is_an_error_before_anything_is_announced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("data", "convert", tmp_path / "nowhere"),
        ("data", "split", folder / "data", "--val", "2", "--out", tmp_path / "out", "--folds", "1"),
        ("data", "split", folder / "data", "--group", "(", "--out", tmp_path / "out"),
        ("data", "merge", folder / "data", "--map", "nobody=cell", "--out", tmp_path / "out"),
        ("data", "show", folder / "data", "--split", "val", "--out", tmp_path / "out.png"),
        ("export", folder / "data", "--to", "geo", "--out", tmp_path / "out"),
        ("model", "export", tmp_path, "--to", "half", "--out", tmp_path / "out"),
        ("recipes", "copy", "vrdl_nuclei/quik", "--out", tmp_path / "out"),
    ):
        assert run(*words) == 2, words
        message = capsys.readouterr().err
        assert message.startswith("error: "), words
        assert "will write" not in message, words
    assert list(tmp_path.iterdir()) == []
