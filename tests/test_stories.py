"""The three stories at the beginning of docs/guide.md run as written, on small drawn data."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

import cellwright as cw
from cellwright.cli.app import main
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.synthetic import draw_field

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
HW = (128, 160)
SHORT_UNET = (
    "--set=train.length=2 steps",
    "--set=train.warmup=1 step",
    "--set=train.evaluate_every=2 steps",
    "--set=augment.crop_px=96",
)
SHORT_RCNN = (
    *SHORT_UNET,
    "--set=train.checkpoint_every=2 steps",
    "--set=model.box_head.score_threshold=0.0",
    "--set=model.backbone.width=8",
    "--set=model.fpn.channels=16",
    "--set=model.rpn.post_nms_test=300",
    "--set=model.box_head.detections_per_image=100",
)


def story(title: str) -> str:
    """The text below the heading that starts with ``title``."""
    stories = GUIDE[GUIDE.index("## Three stories") : GUIDE.index("## All commands")]
    sections = [text for text in stories.split("\n### ")[1:] if text.startswith(title)]
    assert len(sections) == 1
    return sections[0]


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, comments included."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(*words: object) -> int:
    """Exit code of ``cellwright words...``."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def tell(title: str, short: tuple[str, ...] = (), edit: Callable[[], None] | None = None) -> None:
    """Run the commands of a story in the working folder; ``edit`` is what its comment asks for."""
    for line in commands(story(title)):
        if line.startswith("#"):
            assert edit is not None, line
            edit()
            continue
        words = shlex.split(line)
        assert words[0] == "cellwright"
        assert run(*words[1:], *(short if words[1] == "train" else ())) == 0, line


def write_two_channels(path: Path, seed: int) -> Instances:
    """A 16-bit OME-TIFF with bright nuclei in DAPI and their surroundings in GFP."""
    _, truth = draw_field(seed, HW, 12)
    rng = np.random.default_rng(seed)
    inside = truth.masks.foreground().astype(np.float32)
    around = cv2.GaussianBlur(cv2.dilate(inside, np.ones((9, 9))), (0, 0), 2)
    dapi = 400 + 3000 * cv2.GaussianBlur(inside, (0, 0), 1.2) * (1 + 0.1 * rng.standard_normal(HW))
    pixels = np.stack([dapi, 300 + 800 * around]) + 30 * rng.standard_normal((2, *HW))
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}, "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(
        path, pixels.clip(0, 65535).astype(np.uint16), ome=True, photometric="minisblack", metadata=metadata
    )
    return truth


def test_the_biologist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("A01", "A02", "B01", "B02")):
        write_two_channels(Path("my_images", f"{name}.ome.tif"), 20 + k)
    drawn: dict[str, int] = {}

    def correct() -> None:
        path = Path("work/first/A01_masks.tif")
        labels = tifffile.imread(path)
        drawn["before"] = len(np.unique(labels)) - 1
        first = int(labels[labels > 0].min())
        labels[labels == first] = 0
        labels[2:14, 2:14] = labels.max() + 1
        tifffile.imwrite(path, labels)
        drawn["after"] = len(np.unique(labels)) - 1

    tell("Biologist", SHORT_UNET, correct)
    printed = capsys.readouterr()
    assert "A01_masks.tif was edited, so its objects were read" in printed.err
    corrected = {sample.id: sample.read_instances() for sample in cw.read_dataset("work/corrected")}
    assert len(corrected["A01"]) == drawn["after"]
    assert (corrected["A01"].to_label_map()[2:14, 2:14] > 0).all()
    table = pd.read_csv("work/second/measurements.csv")
    assert set(table["image"]) <= {"A01", "A02", "B01", "B02"}
    assert {"intensity_mean_DAPI", "intensity_mean_GFP", "area_um2"} <= set(table)
    assert (table["intensity_mean_DAPI"] > table["intensity_mean_GFP"]).mean() > 0.9
    assert pd.read_csv("work/first/wells.csv")["well"].tolist() == ["A01", "A02", "B01", "B02"]
    for name in ("work/look.png", "work/first/plate.png", "work/first/counts.png", "work/better/report.md"):
        assert Path(name).is_file(), name


def test_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(6):
        image, truth = draw_field(k, HW, 12)
        folder = Path("contest/train", f"case{k}")
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        cv2.imwrite(str(folder / "images" / f"case{k}.png"), image.data[:, :, ::-1])
        for i, mask in enumerate(truth.masks.to_dense()):
            cv2.imwrite(str(folder / "masks" / f"mask_{i:04d}.png"), mask.astype(np.uint8) * 255)
    Path("contest/test").mkdir()
    listed = []
    for k in range(3):
        cv2.imwrite(f"contest/test/new{k}.png", draw_field(50 + k, HW, 12)[0].data[:, :, ::-1])
        listed.append({"id": 100 + 7 * k, "file_name": f"new{k}.png", "height": HW[0], "width": HW[1]})
    Path("contest/test_img_ids.json").write_text(json.dumps(listed))
    tell("Student", SHORT_RCNN)
    printed = capsys.readouterr()
    with zipfile.ZipFile("work/answer.zip") as archive:
        entries = json.loads(archive.read(archive.namelist()[0]))
    assert {entry["image_id"] for entry in entries} <= {100, 107, 114}
    assert f"1 file with {len(entries):,} objects in 3 images (coco_results)" in printed.out
    assert "were tuned on" not in printed.err  # results are from other images than the thresholds
    dataset = cw.read_dataset("work/contest")
    assert {sample.split for sample in dataset} == {"train", "val", "test"}


def test_the_engineer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "tool_a", "tool_b"):
        Path(name).mkdir()
    for k, name in enumerate("abcdef"):
        image, truth = draw_field(k, HW, 12)
        cv2.imwrite(f"images/{name}.png", image.data[:, :, ::-1])
        cw.save(truth, f"images/{name}.geojson", image=Image(image.data, image.channels, path=f"images/{name}.png"))
        labels = truth.to_label_map()
        tifffile.imwrite(f"tool_a/{name}.tif", np.where(labels == 1, 0, labels).astype(np.uint16))
        tifffile.imwrite(f"tool_b/{name}.tif", np.where(labels > 8, 0, np.roll(labels, 2, 1)).astype(np.uint16))
    tell("Engineer")
    printed = capsys.readouterr()
    # The last command printed JSON lines only, and every line before it was text.
    lines = [json.loads(line) for line in printed.out.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines][-1] == "result"
    metrics = json.loads(Path("work/nightly/metrics.json").read_text())
    assert metrics["values"]["accuracy@0.5"] > 0.7
    comparison = pd.read_csv("work/compared/comparison.csv").set_index("metric")
    assert comparison.loc["accuracy@0.5", "difference"] < 0
    assert comparison.loc["accuracy@0.5", "p"] <= 1
    assert len(list(Path("work/geojson").glob("*.geojson"))) == 6
    for name in ("work/fused/measurements.csv", "work/tool_a.csv"):
        assert set(pd.read_csv(name)["image"]) == set("abcdef")
    (code,) = re.findall(r"```python\n(.*?)```", story("Engineer"), flags=re.DOTALL)
    exec(compile(code, "guide.md", "exec"), {})
    pq, n_objects = capsys.readouterr().out.split()
    assert 0.7 < float(pq) < 1
    assert int(n_objects) > 5


def test_the_exit_codes_of_the_engineer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    cv2.imwrite("images/a.png", draw_field(0, HW, 5)[0].data)
    Path("images/b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    words = ("predict", "images", "--model", "classical", "--save", "masks", "--log-format", "json")
    assert run(*words, "--out", "work/a") == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["image"] for event in events if event["event"] == "failure"] == ["b"]
    assert run("evaluate", "nothing", "--data", "images", "--log-format", "json") == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["exit_code"] == 2
