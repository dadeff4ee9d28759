"""``--log-format json``: every line is strict JSON with time, level and event, whatever happens."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from drawn import TINY, draw_mask_folder, run

from cellwright.core.events import emit

JSON = "--log-format=json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn annotations, the dataset made from them with splits, and images of which one is broken."""
    root = tmp_path_factory.mktemp("lines")
    draw_mask_folder(root / "source", 4)
    assert run("data", "convert", root / "source", "--out", root / "data", "--quiet") == 0
    assert run("data", "split", root / "data", "--val", ".25", "--quiet") == 0
    (root / "images").mkdir()
    for file in sorted((root / "source").glob("*/images/*.png"))[:2]:
        (root / "images" / file.name).write_bytes(file.read_bytes())
    (root / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    return root


def refused(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def events(printed: str) -> list[dict[str, Any]]:
    """The events of the lines, each of which is parsed strictly."""
    lines = [json.loads(line, parse_constant=refused) for line in printed.splitlines()]
    for line in lines:
        assert list(line)[:3] == ["time", "level", "event"]
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["level"] in ("info", "warning", "error")
        assert isinstance(line["text"], str)
    return lines


# Words (DATA, IMAGES and OUT stand for paths), the exit code, and the last event.
COMMANDS = {
    "convert": (("data", "convert", "SOURCE", "--out", "OUT"), 0, "result"),
    "info": (("data", "info", "DATA"), 0, "table"),
    "check": (("data", "check", "DATA"), 0, "result"),
    "split": (("data", "split", "DATA", "--out", "OUT"), 0, "table"),
    "predict": (("predict", "IMAGES", "--model", "classical", "--out", "OUT"), 3, "result"),
    "evaluate": (("evaluate", "DATA", "--data", "DATA", "--out", "OUT"), 0, "result"),
    "export": (("export", "DATA", "--to", "coco", "--out", "OUT"), 0, "result"),
    "recipes": (("recipes", "list"), 0, "table"),
    "models": (("model", "list"), 0, "table"),
    "doctor": (("doctor",), 0, "note"),
    "dry run": (("export", "DATA", "--to", "coco", "--out", "OUT", "--dry-run"), 0, "note"),
    "no such option": (("predict", "IMAGES", "--no-such-option", "3"), 2, "error"),
    "no such verb": (("frobnicate",), 2, "error"),
    "a missing argument": (("export", "--to", "coco", "--out", "OUT"), 2, "error"),
    "a value of the wrong type": (("predict", "IMAGES", "--score", "high"), 2, "error"),
    "a missing folder": (("data", "info", "OUT"), 2, "error"),
    "a wrong recipe": (("train", "synthetic/demo", "--data", "DATA", "--set", "train.lrr=1"), 2, "error"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_line_is_strict_json(name: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words, code, last = COMMANDS[name]
    places = {
        "SOURCE": folder / "source",
        "DATA": folder / "data",
        "IMAGES": folder / "images",
        "OUT": tmp_path / "out",
    }
    assert run(*(places.get(word, word) for word in words), JSON) == code
    printed = capfd.readouterr()
    lines = events(printed.out)
    assert lines[-1]["event"] == last
    assert printed.err == ""
    if code == 2:
        assert (lines[-1]["level"], lines[-1]["exit_code"]) == ("error", 2)


def test_an_error_has_the_parts_of_its_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.yaml").write_text("mine")
    assert run("export", tmp_path, "--to", "coc", "--out", tmp_path / "out.json", "--log-format", "json") == 2
    (error,) = events(capsys.readouterr().out)
    assert error["kind"] == "UsageError"
    assert (error["problem"], error["got"]) == ("unknown export format", "coc")
    assert error["fix"] == "did you mean 'coco'?"
    assert run("recipes", "copy", "vrdl_nuclei/quick", "--out", tmp_path / "out.yaml", JSON) == 2
    (error,) = events(capsys.readouterr().out)
    assert "--overwrite" in error["fix"]
    assert "`" not in error["text"]


def test_steps_and_evaluations_of_a_training(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "synthetic/demo", "--data", folder / "data", "--out", tmp_path / "out", *TINY, JSON) == 0
    lines = events(capsys.readouterr().out)
    steps = [line for line in lines if line["event"] == "step"]
    assert steps[-1]["progress"] == {"done": 4, "total": 4}
    (evaluation,) = [line for line in lines if line["event"] == "evaluation"]
    assert evaluation["step"] == 4
    assert "AP50@all" in evaluation["metrics"]


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [(ZeroDivisionError("a bug of ours"), 1, "bug"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_bugs_and_interruptions_are_events(
    error: BaseException, code: int, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(plan: object) -> list[tuple[str, str]]:
        raise error

    monkeypatch.setattr("cellwright.api.doctor.facts", broken)
    assert run("doctor", JSON) == code
    (line,) = events(capsys.readouterr().out)
    assert (line["kind"], line["exit_code"]) == (kind, code)
    if kind == "bug":
        Path(line["report"]).unlink()


def test_quiet_leaves_results_and_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("export", folder / "data", "--to", "coco", "--out", tmp_path / "out", "--quiet", JSON)
    assert run(*words) == 0
    assert [line["event"] for line in events(capsys.readouterr().out)] == ["result"]
    assert run(*words[:3], "label_images", *words[4:]) == 2
    assert [line["event"] for line in events(capsys.readouterr().out)] == ["error"]


def test_warnings_of_the_library_are_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def facts(plan: object) -> list[tuple[str, str]]:
        emit("note", "warning: something to know")
        logging.getLogger("cellwright.data.formats").warning("see `device`")
        return []

    monkeypatch.setattr("cellwright.api.doctor.facts", facts)
    assert run("doctor", "--device", JSON) == 0
    warnings = [line for line in events(capsys.readouterr().out) if line["level"] == "warning"]
    assert [line["text"] for line in warnings] == ["something to know", "see --device"]
    assert run("doctor", "--device") == 0
    assert capsys.readouterr().err == "warning: something to know\nwarning: see --device\n"
    assert run("doctor", "--device", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_the_library_logs_and_shows_nothing_by_itself(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    import cellwright as cw

    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("cellwright").handlers)
    with caplog.at_level(logging.INFO, "cellwright"):
        cw.train("synthetic/demo", folder / "data", out=tmp_path / "run", set=[word[6:] for word in TINY], device="cpu")
    texts = [record.getMessage() for record in caplog.records]
    assert any(text.startswith("recipe synthetic/demo") for text in texts)
    assert any(text.startswith("step 4: ") for text in texts)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
