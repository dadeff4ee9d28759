"""``predict`` typed again: corrected options, failed images, complete folders; the reasons of failures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn import run

from cellwright.data.synthetic import draw_field


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two grey images, and three of two channels of which neither says that it shows nuclei."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(5):
        image, _ = draw_field(k, (64, 64), 6)
        grey = 255 - image.data[:, :, 1]
        if k < 2:
            tifffile.imwrite(folder / f"grey{k}.tif", grey)
        else:
            both = np.stack([grey, grey[::-1]])
            metadata = {"axes": "CYX", "Channel": {"Name": ["red", "green"]}}
            tifffile.imwrite(folder / f"two{k}.ome.tif", both, metadata=metadata)
    return folder


def predict(images: Path, out: Path, *words: object) -> int:
    return run("predict", images, "--model", "classical", "--save", "masks", "--out", out, *words)


def images_in(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


def test_failed_images_take_a_corrected_channel(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(images, out) == 3
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: 3 images (two2, two3, two4): ")
    assert "0: red, 1: green" in line
    assert "--channel red" in line
    assert images_in(out / "failures.csv") == ["two2", "two3", "two4"]
    before = (out / "grey0_masks.tif").stat().st_mtime_ns
    assert predict(images, out, "--channel", "green") == 0
    assert "2 images done before, 3 to do" in capsys.readouterr().err
    assert (out / "grey0_masks.tif").stat().st_mtime_ns == before
    assert images_in(out / "failures.csv") == []
    assert images_in(out / "summary.csv") == ["grey0", "grey1", "two2", "two3", "two4"]
    assert predict(images, out, "--channel", "green") == 0
    assert f"already complete: {out}/" in capsys.readouterr().err
    assert predict(images, out, "--channel", "red") == 2
    message = capsys.readouterr().err
    assert "--channel red instead of green, which changes 3 images (two2, two3, two4)" in message
    assert "use --overwrite to start again, or choose another --out" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--channel", "rde"), "no such channel"),
        ((), "none was chosen"),
        (("--channel", "red", "--z", 3), "no such plane"),
    ],
)
def test_a_choice_that_no_image_has_is_refused_before_anything_is_announced(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], message: str
) -> None:
    for file in images.glob("grey*"):
        file.unlink()
    assert predict(images, tmp_path / "out", *words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "will write" not in printed
    assert not (tmp_path / "out").exists()


def test_the_reasons_are_printed_with_quiet_and_as_json(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    assert predict(images, tmp_path / "out", "--quiet") == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [" 1 image (broken)", " 3 images (two2, two3, two4)"]
    assert predict(images, tmp_path / "json", "--log-format=json") == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [(event["image"], event["progress"]["done"]) for event in events if event["event"] == "image"]
    assert done == [("grey0", 2), ("grey1", 3)]
    failed = [event for event in events if event["event"] == "failure"]
    assert [event["image"] for event in failed] == ["broken", "two2", "two3", "two4"]
    assert "--channel" in failed[1]["fix"]
    assert all(event["level"] == "warning" for event in failed)
    assert [event["event"] for event in events if event["level"] == "error"] == ["failures", "failures"]


def test_images_that_differ_only_in_their_extension_keep_it(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(images / "grey1.tiff", tifffile.imread(images / "grey0.tif"))
    for path in images.glob("two*"):
        path.unlink()
    assert predict(images, tmp_path / "out") == 0
    shown = capsys.readouterr().err
    assert "2 images: names that differ only in the extension" in shown
    assert "(grey1.tif_masks.tif)" in shown
    names = sorted(path.name for path in (tmp_path / "out").glob("*_masks.tif"))
    assert names == ["grey0_masks.tif", "grey1.tif_masks.tif", "grey1.tiff_masks.tif"]


def test_what_nobody_chose_is_the_models_own(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in images.glob("two*"):
        path.unlink()
    assert predict(images, tmp_path / "out") == 0
    assert predict(images, tmp_path / "out", "--score", "0.6", "--min-area", "9") == 2
    shown = capsys.readouterr().err
    assert "--score 0.6 instead of the model's own 0.3" in shown
    assert "--min-area 9 instead of the model's own 0" in shown
    assert predict(images, tmp_path / "chosen", "--score", "0.6") == 0
    assert predict(images, tmp_path / "chosen") == 2
    assert "--score the model's own 0.3 instead of 0.6" in capsys.readouterr().err
