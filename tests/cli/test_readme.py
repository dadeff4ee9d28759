"""Every command and every line of Python in the README runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import matplotlib as mpl
import pytest
from drawn import TINY, draw_mask_folder, run

from cellwright.data.synthetic import draw_field

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "coins_masks.tif").is_file()


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_mask_folder(tmp_path / "my_annotations", 5)
    (tmp_path / "my_images").mkdir()
    cv2.imwrite("my_images/a.png", draw_field(9, (128, 160), 14)[0].data[:, :, ::-1])
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("cellwright ")]
    assert len(commands) == 8
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        short = TINY if words[0] == "train" else ()
        assert run(*words, *short, "--quiet") == 0, command
    assert (tmp_path / "answer.zip").is_file()


def test_the_first_commands_exist_in_the_dev_script() -> None:
    dev = (ROOT / "dev").read_text()
    assert re.findall(r"^\./dev (\w+)", blocks("sh")[0], flags=re.MULTILINE) == ["demo", "test"]
    assert {"demo)", "test)", "check)"} <= set(dev.split())


def test_links_point_to_existing_files() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
