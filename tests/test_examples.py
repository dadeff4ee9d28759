"""The examples in the docstrings give the results they show."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text()
)


def examples_of(name: str) -> list[doctest.DocTest]:
    """The examples of a module, of its functions and of its classes, including those marked as public."""
    module = import_module(name)
    source = Path(str(module.__file__)).read_text()
    names = {"np": np, **vars(module)}
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = finder.find(module, name, module, globs=names)
    tested = {example.name for example in examples}
    for attribute, value in vars(module).items():
        # doctest itself skips them, because their module is "cellwright".
        is_defined_here = re.search(rf"^(class|def) {attribute}\b", source, flags=re.MULTILINE)
        is_public = getattr(value, "__module__", None) == "cellwright" and is_defined_here
        if is_public and (inspect.isclass(value) or inspect.isfunction(value)) and f"{name}.{attribute}" not in tested:
            examples += finder.find(value, f"{name}.{attribute}", module=False, globs=names)  # type: ignore[arg-type]
    return [example for example in examples if example.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some examples write files
    examples = examples_of(name)
    assert examples
    for example in examples:
        messages: list[str] = []
        result = doctest.DocTestRunner(verbose=False).run(example, out=messages.append)
        assert result.failed == 0, "".join(messages)
