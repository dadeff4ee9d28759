"""What is the same for the options of all verbs: names, lists, help texts, and how errors name them."""

from __future__ import annotations

import inspect
import re
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from cyclopts import App, Parameter, UnknownOptionError
from drawn import run

from cellwright.cli.app import GROUPS, VERBS, build_app
from cellwright.cli.arguments import DEFAULTS, as_typed, option_names, split_lists
from cellwright.core.errors import UsageError

ALL_VERBS = [(verb,) for verb in VERBS] + [(group, verb) for group, (_, verbs) in GROUPS.items() for verb in verbs]


@Parameter(name="*")
@dataclass(frozen=True)
class Plan:
    """A plan with every kind of field."""

    sources: tuple[Path, ...]
    """Files."""
    _: KW_ONLY
    model: tuple[str, ...] = ("nuclei",)
    """Models."""
    save: tuple[Literal["masks", "rois"], ...] = ()
    """Outputs."""
    weights: tuple[float, ...] | None = None
    """Numbers."""
    overrides: tuple[str, ...] = ()
    """Settings."""
    min_area: int | None = None
    """Pixels."""
    overwrite: bool = False
    """Replace."""


def parsed(*words: str) -> Plan:
    app = App(default_parameter=DEFAULTS, config=split_lists)

    def verb(plan: Plan) -> None:
        """Do nothing."""

    app.command(verb, name="verb")
    _, bound, _ = app.parse_args(["verb", *words], print_error=False, exit_on_error=False)
    return bound.arguments["plan"]


def test_lists_take_spaces_commas_or_a_repeated_option() -> None:
    for words in (["--save", "masks,rois"], ["--save", "masks", "rois"], ["--save=masks", "--save=rois"]):
        assert parsed("a.png", *words).save == ("masks", "rois")
    assert parsed("a.png", "--save", "masks,", "rois").save == ("masks", "rois")
    assert parsed("a.png", "--weights", "1,.5").weights == (1, 0.5)
    assert parsed("a.png", "--model", "one,two").model == ("one", "two")


def test_names_may_contain_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed("a.png", "--model", "a,b", "--model", "c").model == ("a,b", "c")
    assert parsed("a,b.png", "c.png").sources == (Path("a,b.png"), Path("c.png"))
    assert parsed("a.png", "--overrides", "train.steps=[1,2]").overrides == ("train.steps=[1,2]",)
    monkeypatch.chdir(tmp_path)
    Path("run,2").mkdir()
    assert parsed("a.png", "--model", "run,2").model == ("run,2",)


def test_positional_arguments_may_follow_a_list_option() -> None:
    plan = parsed("--model", "one", "a.png", "b.png", "--min-area", "3", "--model", "two")
    assert plan == Plan((Path("a.png"), Path("b.png")), model=("one", "two"), min_area=3)
    assert parsed("a.png", "--model", "one", "two").model == ("one", "two")


def test_paths_after_a_list_are_the_positional_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Path(name).write_text("")
    paths = (Path("a.png"), Path("b.png"))
    assert parsed("--model", "one", "two", "a.png", "b.png") == Plan(paths, model=("one", "two"))
    assert parsed("--min-area", "3", "--model", "one,two", "a.png").model == ("one", "two")
    assert parsed("--save", "masks", "rois", "b.png", "--model", "one") == Plan(
        paths[1:], model=("one",), save=("masks", "rois")
    )


@pytest.mark.parametrize("words", [["a", "b", "c", "d"], ["a,b,c,d"], ["a,", "b", "c,d"]])
def test_class_names_take_spaces_or_commas(words: list[str]) -> None:
    for verb in (["data", "convert", "SRC"], ["model", "import", "FILE", "--recipe", "R"]):
        _, bound, _ = build_app().parse_args(
            [*verb, "--classes", *words, "--out", "OUT"], print_error=False, exit_on_error=False
        )
        (plan,) = bound.arguments.values()
        assert plan.classes == ("a", "b", "c", "d")


def test_options_of_other_verbs_are_named_with_their_verb() -> None:
    names = {"data": "--data"}
    assert as_typed('give `foreground="split"`', names) == "give --foreground split of cellwright data convert"
    assert as_typed('`map="my cell=cell"` of cellwright data merge', names) == (
        "--map 'my cell=cell' of cellwright data merge"
    )
    assert as_typed('choose with `channel="DAPI|Hoechst"`', names) == (
        "choose with --channel 'DAPI|Hoechst' of cellwright data convert"
    )
    assert as_typed("`truth` is a list", names) == "`truth` is a list"
    assert as_typed('`channel="DAPI"`', {}) == '`channel="DAPI"`', "no verb is known"


def test_positional_arguments_have_no_option() -> None:
    with pytest.raises(UsageError, match="unknown option --sources"):
        parsed("--sources", "a.png")


@pytest.mark.parametrize("words", ALL_VERBS, ids=" ".join)
def test_every_verb_has_a_readable_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "[default: ]" not in text
    assert "[default: None]" not in text
    assert "('" not in text
    labels = [line[5:].split() for line in text.splitlines() if line.startswith("│ *  ")]
    assert [label[1] for label in labels if label[0].isupper() and label[1].startswith("--")] == []


@pytest.mark.parametrize("words", [(), *((group,) for group in GROUPS)], ids=" ".join)
def test_the_help_of_a_group_lists_its_verbs(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--help") == 0
    text = capsys.readouterr().out
    listed = [line.split()[1] for line in text.splitlines() if re.match(r"│ [a-z]", line)]
    assert listed == ([*VERBS, *sorted(GROUPS)] if not words else list(GROUPS[words[0]][1]))


def test_what_is_positional_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--help") == 0
    assert capsys.readouterr().out.startswith("Usage: cellwright export PREDICTION --to STR --out PATH [OPTIONS]")


@pytest.mark.parametrize("words", ALL_VERBS, ids=" ".join)
def test_the_help_of_a_verb_is_that_of_its_plan(words: tuple[str, ...]) -> None:
    handler, line = VERBS[words[0]] if len(words) == 1 else GROUPS[words[0]][1][words[1]]
    module, _, name = handler.partition(":")
    hints = get_type_hints(getattr(import_module(f"cellwright.cli.{module}"), name))
    assert "plan" in hints or words[-1] == "list"
    if "plan" in hints:
        assert (inspect.getdoc(hints["plan"]) or "").splitlines()[0] == line


@pytest.mark.parametrize("words", ALL_VERBS, ids=" ".join)
def test_no_verb_takes_an_option_without_meaning(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--help") == 0
    names = set(re.findall(r"--([a-z-]+)", capsys.readouterr().out))
    assert not {f"{prefix}-{name}" for name in names for prefix in ("no", "empty")} & names
    for name in names:
        for prefix in ("no", "empty"):
            with pytest.raises(UnknownOptionError, match=f"--{prefix}-{name}"):
                build_app().parse_args([*words, f"--{prefix}-{name}"], print_error=False, exit_on_error=False)


def test_help_names_parameters_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fuse", "--help") == 0
    text = capsys.readouterr().out
    assert "linear (above --iou) or gaussian (of width --sigma)" in " ".join(text.replace("│", " ").split())
    assert "`evaluate`" in text


def test_a_missing_argument_says_where_to_put_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--to", "coco", "--out", "x") == 2
    assert "cellwright export PREDICTION [OPTIONS]" in capsys.readouterr().err


def test_errors_name_parameters_as_they_are_typed() -> None:
    names = option_names(parsed("a.png"))
    assert as_typed("set `overwrite=True`", names) == "set --overwrite"
    assert (
        as_typed("set `min_area=30`, not `save=('masks', 'rois')`", names) == "set --min-area 30, not --save masks rois"
    )
    assert as_typed("`sources` or `model`", names) == "SOURCES or --model"
    assert as_typed("run `cellwright data split`; `other=1`", names) == "run `cellwright data split`; `other=1`"


def test_python_errors_name_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.yaml").write_text("mine")
    assert run("recipes", "copy", "vrdl_nuclei/quick", "--out", tmp_path / "out.yaml") == 2
    assert "use --overwrite, or choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["evaluate", "x"],
            ["--data is missing", "--data: Ground truth: a dataset folder", "evaluate ... --data DATA"],
        ),
        (["evaluate"], ["PREDICTIONS is missing", "PREDICTIONS: A prediction folder", "before the options"]),
        (["predict", "x", "--score"], ["--score needs a value", "0 to 1", "predict ... --score SCORE"]),
        (["predict", "x", "--score", "a"], ['"a" into a number', "Omit objects with a lower score"]),
        (["model", "export", "x"], ["--to is missing", "onnx: "]),
    ],
)
def test_what_is_missing_is_explained(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    shown = capsys.readouterr().err
    assert [part for part in parts if part not in shown] == []
