"""Comparing runs: settings, metrics and costs; runs in every state; what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from safetensors.numpy import save_file

from cellwright.api.compare import ABSENT, ComparePlan, Comparison, differences, run
from cellwright.cli.app import main
from cellwright.config import recipe as recipes
from cellwright.core.errors import CellwrightError, FormatError, InputError, OutputError, RecipeError, UsageError
from cellwright.core.files import write_json, write_text
from cellwright.report.run_record import read_record

COLUMNS = ("step", "lr", "loss", "loss_mask", "step_s", "peak_memory_mb")


def write_run(
    folder: Path,
    *overrides: str,
    steps: int = 10,
    total: int = 10,
    metrics: dict[str, float] | None = None,
    data: str = "aaaa",
    shapes: tuple[tuple[int, ...], ...] = ((3, 4), (5,)),
) -> Path:
    """A run as training writes it: step k took k seconds and k MB, and its loss is 1 / k."""
    changes = (f"train.length={total} steps", "train.warmup=1 step", *overrides)
    write_text(folder / "recipe.yaml", recipes.dump(recipes.load("synthetic/demo", changes)))
    write_json(folder / "environment.json", {"device": "cpu", "threads": 2, "git": None, "inputs": {"data": data}})
    rows = [",".join((*COLUMNS, *(metrics or {})))]
    for k in range(1, steps + 1):
        values = [repr(value) if k == steps else "" for value in (metrics or {}).values()]
        rows.append(",".join([str(k), "0.01", repr(1 / k), "0.5", str(k), str(k), *values]))
    write_text(folder / "log.csv", "\n".join(rows) + "\n")
    best = {"step": steps, "chosen_by": "AP50@all", "metrics": metrics or {}}
    write_json(folder / "metrics.json", {"schema_version": 1, "step": steps, "metrics": metrics or {}, "best": best})
    tensors = {f"t{k}.weight": np.zeros(shape, np.float32) for k, shape in enumerate(shapes)}
    (folder / "model").mkdir()
    save_file({**tensors, "bn.running_mean": np.zeros(7, np.float32)}, folder / "model" / "weights.safetensors")
    if steps == total:
        write_text(folder / "DONE", f"{steps} of {total} steps\n")
    return folder


def compare(runs: tuple[Path, ...], out: Path, *, overwrite: bool = False) -> Comparison:
    comparison = run(ComparePlan(runs, out=out, overwrite=overwrite))
    assert comparison is not None
    return comparison


def facts(comparison: Comparison) -> dict[str, list[str]]:
    _, _, rows = comparison.table()
    return {name: shown for name, *shown in rows}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two finished runs that differ in the learning rate and in the width of the pyramid."""
    metrics = {"AP@all": 0.25, "AP50@all": 0.5}
    first = write_run(tmp_path / "a", metrics=metrics)
    changes = ("train.lr=0.5", "model.fpn.channels=48")
    return first, write_run(tmp_path / "b", *changes, metrics={"AP@all": 0.75}, shapes=((6, 4), (5,)))


def test_the_table_contains_only_settings_that_differ(pair: tuple[Path, Path], tmp_path: Path) -> None:
    table = facts(compare(pair, tmp_path / "out"))
    settings = {name: shown for name, shown in table.items() if "." in name and "@" not in name}
    assert settings == {
        "model.fpn.channels": ["32", "48"],
        "train.lr": ["0.02", "0.5"],
    }
    assert table["state"] == ["finished", "finished"]
    assert table["data"] == ["aaaa", "aaaa"]
    assert (table["AP@all"], table["AP50@all"]) == (["0.2500", "0.7500"], ["0.5000", "-"])
    # 1 + 2 + ... + 10 seconds, their median, and the peak memory; running statistics are not parameters.
    assert table["time in steps (s)"] == ["55 (0:00:55)"] * 2
    assert table["seconds per step (median)"] == ["5.5"] * 2
    assert table["peak memory (MB)"] == ["10"] * 2
    assert table["parameters"] == ["17", "29"]
    assert table["steps"] == ["10"] * 2


def test_files_that_are_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(pair, out)
    assert {path.name for path in out.glob("[!.]*")} == {"compare.md", "compare.csv", "compare.png"}
    with (out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert [float(row["train.lr"]) for row in rows] == [0.02, 0.5]
    assert [row["AP50@all"] for row in rows] == ["0.5", ""]
    page = (out / "compare.md").read_text()
    assert "| train.lr | 0.02 | 0.5 |" in page
    assert "(compare.png)" in page
    assert str(tmp_path) not in page
    with Pillow.open(out / "compare.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]
    written = (out / "compare.png").stat().st_mtime_ns
    compare(pair, out)
    assert (out / "compare.png").stat().st_mtime_ns == written, "it is complete"
    with pytest.raises(OutputError, match="already exists"):
        compare(pair[::-1], out)
    compare(pair[::-1], out, overwrite=True)


def test_runs_in_every_state_and_with_other_data(pair: tuple[Path, Path], tmp_path: Path) -> None:
    going = write_run(tmp_path / "going", steps=4)
    (going / "model" / "weights.safetensors").unlink()
    for name, size in (("step_00000009", 9), ("step_00000010", 11)):
        (going / "checkpoints" / name).mkdir(parents=True)
        tensors = {"w": np.zeros(size, np.float32)}
        save_file(tensors, going / "checkpoints" / name / "weights.safetensors")
    with (going / "log.csv").open("a") as file:
        file.write("5,0.01,0.")  # as while a line is being written
    diverged = write_run(tmp_path / "diverged", steps=3, data="bbbb")
    with (diverged / "log.csv").open("a") as file:
        file.write("4,0.01,nan,0.5,4,4\n")
    started = write_run(tmp_path / "started", "train.length=2 epochs", steps=0)
    for name in ("log.csv", "metrics.json", "model/weights.safetensors"):
        (started / name).unlink()
    comparison = compare((pair[0], going, diverged, started), tmp_path / "out")
    table = facts(comparison)
    assert table["state"] == [
        "finished",
        "stopped at step 4 of 10 steps",
        "diverged at step 4",
        "stopped at step 0 of 2 epochs",
    ]
    assert table["data"] == ["aaaa", "aaaa", "bbbb (other images)", "aaaa"]
    assert table["parameters"] == ["17", "11", "17", "-"]
    assert table["AP@all"] == ["0.2500", "-", "-", "-"]
    assert table["best model at step"] == ["10", "4", "3", "-"]
    assert table["seconds per step (median)"][3] == "-"
    assert comparison.notes == (
        "trained on different images from a, so metrics are not comparable: diverged",
        "not finished: going, diverged, started",
        "no evaluation: going, diverged, started",
    )
    page = (tmp_path / "out" / "compare.md").read_text()
    assert all(f"- {note}" in page for note in comparison.notes)


def test_divergence_and_early_stopping_are_reported(pair: tuple[Path, Path], tmp_path: Path) -> None:
    exploded = write_run(tmp_path / "exploded", "train.max_gradient_norm=100", steps=3)
    for at, norm in (("exploded", 101.0), ("b", 99.0)):
        log = (tmp_path / at / "log.csv").read_text().splitlines()
        lines = [f"{log[0]},gradient_norm", *(f"{line},5" for line in log[1:-1]), f"{log[-1]},{norm}"]
        write_text(tmp_path / at / "log.csv", "\n".join(lines) + "\n")
    write_text(pair[0] / "DONE", "10 of 20 steps; nothing better than step 5\n")
    table = facts(compare((*pair, exploded), tmp_path / "out"))
    assert table["state"] == ["finished: 10 of 20 steps; nothing better than step 5", "finished", "diverged at step 3"]


def test_runs_without_validation_can_be_compared(tmp_path: Path) -> None:
    runs = (write_run(tmp_path / "a"), write_run(tmp_path / "b", "train.lr=0.5"))
    table = facts(compare(runs, tmp_path / "out"))
    assert table["train.lr"] == ["0.02", "0.5"]
    assert not any("AP" in name for name in table)


def test_a_recipe_of_another_version_is_compared_as_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "recipe.yaml"
    path.write_text(path.read_text() + "gone_since: {then: 3}\n")
    comparison = compare(pair, tmp_path / "out")
    assert facts(comparison)["gone_since"] == ["-", "{then: 3}"]
    assert comparison.notes == ("recipe of another version of cellwright, compared without its defaults: b",)


def write_repeat(folder: Path, *scores: float, planned: int, unfinished: bool = False) -> Path:
    """Repeated runs, one per score; the last one may be unfinished."""
    for seed, score in enumerate(scores):
        steps = 4 if unfinished and seed == len(scores) - 1 else 10
        write_run(folder / f"seed_{seed}", f"train.seed={seed}", steps=steps, metrics={"AP@all": score})
    runs = [{"seed": seed, "folder": f"seed_{seed}", "metrics": None} for seed in range(planned)]
    write_json(folder / "repeat.json", {"schema_version": 1, "finished": False, "runs": runs, "metrics": {}})
    return folder


def test_repeated_runs_are_one_entry_with_mean_and_spread(pair: tuple[Path, Path], tmp_path: Path) -> None:
    three = write_repeat(tmp_path / "three", 0.1, 0.2, 0.6, planned=3)
    part = write_repeat(tmp_path / "part", 0.1, 0.3, 0.9, planned=4, unfinished=True)
    comparison = compare((pair[0], three, part), tmp_path / "out")
    table = facts(comparison)
    assert table["AP@all"] == ["0.2500", "0.3000 ± 0.2646", "0.2000 ± 0.1414"]  # of the finished runs
    assert table["state"] == ["finished", "finished", "2 of 4 runs finished"]
    assert table["runs"] == ["1", "3", "2"]
    assert table["train.seed"] == ["0", "[0, 1, 2]", "[0, 1]"]
    assert table["steps"] == ["10", "10", "10"]
    assert comparison.notes == (
        "mean ± standard deviation over seeds: three, part",
        "not finished: part",
    )
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["AP@all"]) for row in rows] == pytest.approx([0.25, 0.3, 0.2])
    assert rows[0]["AP@all std"] == ""
    assert float(rows[1]["AP@all std"]) == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_a_damaged_summary_of_repeated_runs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    three = write_repeat(tmp_path / "three", 0.1, 0.2, planned=2)
    for content, kind in (("{}", FormatError), ('{"runs": [3]}', FormatError), ('{"runs": []}', InputError)):
        (three / "repeat.json").write_text(content)
        with pytest.raises(kind, match="three"):
            compare((pair[0], three), tmp_path / "out")


def test_null_and_a_missing_key_differ() -> None:
    actual = differences(
        [{"a": {"b": 1, "c": None}, "d": [1]}, {"a": {"b": 1}, "d": [1]}, {"a": {"b": 1, "c": {"e": 2}}}]
    )
    assert actual == {"a.c": (None, ABSENT, {"e": 2}), "d": ([1], [1], ABSENT)}
    assert differences([{"a": 1}, {"a": 1}]) == {}


def test_names_are_as_short_as_possible(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "again" / "a")
    comparison = compare((*pair, other), tmp_path / "out")
    assert [entry.name for entry in comparison.entries] == [f"{tmp_path.name}/a", f"{tmp_path.name}/b", "again/a"]


def test_the_output_folder_is_not_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    compare(pair, out)
    again = compare((*pair, out), out, overwrite=True)  # as runs/* matches it
    assert [entry.name for entry in again.entries] == ["a", "b"]


def test_folders_that_cannot_be_compared(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(kind: type[CellwrightError], message: str, *runs: Path) -> None:
        with pytest.raises(kind, match=message):
            compare(runs, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(SystemExit) as done:
            main(["compare", *map(str, runs), "--out", str(tmp_path / "out")])
        assert done.value.code == 2
        assert capsys.readouterr().err.count("error:") == 1

    first, second = pair
    fails(UsageError, "at least two runs", first)
    fails(UsageError, "given twice", first, second, tmp_path / "b" / ".." / "a")
    fails(InputError, "not a run", first, tmp_path)
    fails(InputError, "not a run", first, tmp_path / "nowhere")
    damaged = {
        "log.csv": ("step,loss\n1,0.5\n2,low\n", FormatError, "line 3, column loss"),
        "metrics.json": ('{"best": {"metrics": {"AP@all": "high"}}}', FormatError, "metrics.json"),
        "environment.json": ('{"inputs": []}', FormatError, "environment.json"),
        "recipe.yaml": ("[1", RecipeError, "recipe.yaml"),
        "model/weights.safetensors": ("no weights", FormatError, "weights.safetensors"),
    }
    for name, (text, kind, message) in damaged.items():
        whole = (second / name).read_bytes()
        (second / name).write_text(text)
        fails(kind, message, first, second)
        (second / name).write_bytes(b"\xff\xfe\x00" * 9)
        fails(CellwrightError, Path(name).name, first, second)
        (second / name).write_bytes(whole)
    compare(pair, tmp_path / "out")


def test_the_verb_prints_the_table(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *map(str, pair), "--out", str(tmp_path / "out"), "--log-format", "json"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--dry-run"])
    assert done.value.code == 0
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (table,) = [event["rows"] for event in events if event["event"] == "table"]
    assert {"": "train.lr", "a": "0.02", "b": "0.5"} in table


def test_the_record_of_a_run(pair: tuple[Path, Path]) -> None:
    record = read_record(pair[0])
    assert (record.step, record.best.step, record.best.chosen_by) == (10, 10, "AP50@all")
    assert record.column("step_s").tolist() == list(range(1, 11))
    assert record.column("absent").tolist() == []
    assert math.isclose(record.best.metrics["AP50@all"], 0.5)


def test_the_terminal_shows_figures_first_in_thirty_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    metrics = {"AP@all": 0.25, "AP50@all": 0.5, "pq": 0.4} | {f"AP@all/class{k}": 0.1 * k for k in range(9)}
    first = write_run(tmp_path / "a", metrics=metrics)
    changes = ["train.lr=0.5", "model.fpn.channels=48", "train.seed=7", "train.accumulate=2", "data.cache_mb=50"]
    changes += ["augment.crop_px=96", "augment.flip_vertical=false", "train.weight_decay=0.3", "train.momentum=0.5"]
    known = [change for change in changes if _is_valid(change)]
    assert len(known) >= 4
    second = write_run(tmp_path / "b", *known, metrics=metrics)
    with pytest.raises(SystemExit) as done:
        main(["compare", str(first), str(second), "--out", str(tmp_path / "out")])
    assert done.value.code == 0
    printed = capsys.readouterr()
    assert len((printed.out + printed.err).splitlines()) <= 30
    places = [printed.out.index(name) for name in ("state", "AP@all ", "pq", "time in steps", "train.lr")]
    assert places == sorted(places)
    assert "class3" not in printed.out
    assert "further rows in" in printed.err
    page = (tmp_path / "out" / "compare.md").read_text()
    assert all(name in page for name in (*metrics, "train.lr", "train.seed"))


def _is_valid(change: str) -> bool:
    try:
        recipes.load("synthetic/demo", (change,))
    except CellwrightError:
        return False
    return True
