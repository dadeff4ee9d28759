"""What the terminal shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from drawn import run

from cellwright.api.recipes import START_HERE
from cellwright.cli import console
from cellwright.cli.console import Show
from cellwright.config.recipe import shipped_names


def test_brackets_in_tables_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    Show().table("[title]", ("name",), [("[red]a[1].png[/red]",)])
    text = capsys.readouterr().out
    assert "[title]" in text
    assert "[red]a[1].png[/red]" in text


def test_notes_name_parameters_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    Show(options={"min_area": "--min-area"}).note("try `min_area=30`")
    assert capsys.readouterr().err == "try --min-area 30\n"


def test_recipes_start_with_those_to_begin_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", "list") == 0
    text = capsys.readouterr().out
    places = [text.index(name) for name in ("start here", *START_HERE, "all other recipes", "cells4/")]
    assert places == sorted(places)
    assert set(START_HERE) < set(shipped_names())
    assert max(map(len, text.splitlines())) <= 80


def test_doctor_says_how_to_see_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    printed = capsys.readouterr()
    assert "cellwright doctor --device" in printed.err
    assert "model nuclei" in printed.out


def test_tables_name_parameters_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    Show(options={"min_area": "--min-area"}).table("", ("remedy",), [("try `min_area=30`",)])
    assert "try --min-area 30" in capsys.readouterr().out


def test_progress_without_a_terminal_ends_with_the_last_item(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short work prints nothing; once a line was printed, the last one counts all items."""
    assert list(Show().track("abc", "reading")) == list("abc")
    assert capsys.readouterr().err == ""
    now, found = [0.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def letters() -> Iterator[str]:
        for letter, now[0] in zip("abcd", (1, 11, 12, 13), strict=True):
            yield letter

    found.extend(Show().track(letters(), lambda: f"reading ({len(found)} found)", 4))
    assert found == list("abcd")
    assert capsys.readouterr().err == "reading (2 found): 2/4, about 11 s left\nreading (4 found): 4/4\n"


GARBAGE = """
import atexit, gc, sys
atexit.register(lambda: print("at exit", gc.get_freeze_count() > 50_000))  # run last: after what `main` registers
from cellwright.cli import app
app.keep_in_cache_folder = lambda: print("command", gc.isenabled(), gc.get_freeze_count() > 1000)
from cellwright.__main__ import main
sys.argv = ["cellwright", "recipes", "list", "--quiet"]
main()
"""


def test_garbage_is_collected_while_a_command_runs_but_not_at_exit() -> None:
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith(("command", "at exit"))] == [
        "command True True",
        "at exit True",
    ]
