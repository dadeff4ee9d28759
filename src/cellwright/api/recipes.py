"""``recipes``: list the shipped recipes, and copy one to a file to change it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from cellwright.api.outputs import FileOutput, write_once
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table

# The recipes that most people need; most of the others reproduce published experiments.
START_HERE = {
    "nuclei/finetune": "a few images of your own: fine-tunes the bundled pretrained model, minutes on a laptop",
    "vrdl_nuclei/quick": "Mask R-CNN from scratch, for H&E images; about 30 minutes on 2 CPU cores",
    "vrdl_nuclei/flow": "flow U-Net from scratch, for H&E images; up to two hours on 2 CPU cores",
    "vrdl_nuclei/standard": "quick with ten times as many steps; several hours on 2 CPU cores",
    "synthetic/demo": "to try training: a tiny Mask R-CNN for synthetic images; about two minutes on 2 CPU cores",
}


def tables() -> list[Table]:
    """The recipes to start with, and all others with a line each."""
    from cellwright.config.recipe import load, shipped_names

    others = [(name, load(name).description) for name in shipped_names() if name not in START_HERE]
    return [
        Table("start here", ("recipe", "what it is for"), list(START_HERE.items())),
        Table("all other recipes", ("recipe", "what it is"), others),
    ]


@Parameter(name="*")
@dataclass(frozen=True)
class CopyPlan:
    """Copy a shipped recipe to a file, to change it."""

    recipe: str
    """A shipped recipe, such as vrdl_nuclei/quick."""
    _: KW_ONLY
    out: Path | None = None
    """File to write; by default the recipe's name in this folder, such as quick.yaml."""
    overwrite: bool = False
    """Replace an existing file."""


def copy(plan: CopyPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Path | None:
    """Write the recipe as YAML and return the path; None after a dry run. Raises `RecipeError` and `OutputError`."""
    from cellwright.config.recipe import dump, load
    from cellwright.core.files import write_text

    recipe = load(plan.recipe)
    target = plan.out or Path(f"{plan.recipe.rsplit('/', 1)[-1]}.yaml")
    output = FileOutput(target, inputs=(plan.recipe,), overwrite=plan.overwrite, suffixes=(".yaml", ".yml"))

    def write(folder: Path) -> None:
        write_text(folder / target.name, dump(recipe))

    return target if write_once(output, write, str(target), screen, dry_run=dry_run) else None
