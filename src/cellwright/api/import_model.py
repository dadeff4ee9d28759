"""``model import``: weights from torchvision, Detectron2, Cellpose or StarDist as a model folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cellwright.api.inspect_model import published_settings, shown_value
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.config import recipe as recipes
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import InputError, ModelError, RecipeError, UsageError
from cellwright.core.files import write_text
from cellwright.core.needs_torch import require_torch
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.text import count

if TYPE_CHECKING:
    from cellwright.models.contract import Network
    from cellwright.models.weights.foreign import LoadReport
    from cellwright.models.weights.sources import Weights

REPORT = "import_report.txt"


@Parameter(name="*")
@dataclass(frozen=True)
class ImportPlan:
    """Import weights from torchvision, Detectron2, Cellpose or StarDist as a model folder."""

    source: str
    """A file of weights (.pth, .pkl, .safetensors; Cellpose), the folder of a StarDist model, or torchvision:NAME. No
    code in it is executed. Check its licence."""
    _: KW_ONLY
    recipe: str | None = None
    """A shipped recipe or a YAML file for the same network; `model inspect` lists its keys. Omit it for Cellpose
    and StarDist."""
    set: tuple[str, ...] = ()
    """Keys of the recipe to change, such as classes=80."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the class ids, or a text file with one name per line; by default class_1, ... or
    cell."""
    out: Path
    """Folder to write: the model, and import_report.txt with one line per tensor."""
    overwrite: bool = False
    """Replace an existing model."""


@dataclass(frozen=True)
class Imported:
    """A model folder made from foreign weights, and a report about every tensor."""

    folder: Path
    class_names: tuple[str, ...]
    report: LoadReport


def run(plan: ImportPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Imported | None:
    """Write a model folder: weights, ``model.json``, the card, and the report ``import_report.txt``.

    Returns None after a dry run. Raises `ModelError` for a file that cannot be read or does not fit the recipe,
    `RecipeError`, `InputError` for the class names, and `OutputError`.
    """
    require_torch("importing a model")
    import torch

    from cellwright.models.build import build_network
    from cellwright.models.weights.architecture import architecture, class_count
    from cellwright.models.weights.foreign import load_foreign, matched_names, shapes_of
    from cellwright.models.weights.model_folder import CARD, INFO, WEIGHTS
    from cellwright.models.weights.peers import is_peer
    from cellwright.models.weights.sources import find_weights

    earlier = earlier_output("model import", INFO, WEIGHTS, CARD, REPORT)
    output = FolderOutput(plan.out, "model import", inputs=(plan.source,), overwrite=plan.overwrite, earlier=earlier)
    weights = find_weights(plan.source)
    if is_peer(weights):
        return _import_peer(plan, weights, output, screen, dry_run=dry_run)
    recipe = _recipe_of(plan)
    shapes = shapes_of(weights.tensors, matched_names(weights.tensors, weights.framework, plan.source))
    if "kind" not in architecture(shapes, plan.source):
        init = _as_init(plan.source, weights)
        raise ModelError(
            "these weights contain only a backbone, which cannot segment anything",
            where=plan.source,
            remedy=f'start training from them: cellwright train with `init="{init}"`',
        )
    assert isinstance(recipe.model, RCNNConfig)
    names = _class_names(plan, recipe, class_count(shapes))
    torch.manual_seed(recipe.train.seed)
    network = build_network(recipe, len(names))
    report = load_foreign(network, weights.tensors, weights.framework, fresh=recipe.model.init_fresh, where=plan.source)
    if not output.exists:
        screen.note(f"will write {plan.out}/: weights.safetensors, model.json, README.md, {REPORT}")
    if dry_run:
        return None
    if plan.classes is None:
        screen.note(f"note: without `classes`, the classes are called class_1 to class_{len(names)}")
    for note in conflicts_with_published(recipe, weights, architecture(shapes)):
        screen.note(f"note: {note}")
    if report.fresh:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in report.fresh))
        screen.note(
            f"note: {count(len(report.fresh), 'tensor')} initialised randomly ({parts}): train the model before you "
            'predict, or, if the file contains them, import with `set="model.init_fresh=[]"`'
        )
    imported = Imported(plan.out, names, report)
    _write(output, network, recipe, weights, imported)
    if output.is_complete:
        screen.note(output.text)
    return imported


def _import_peer(
    plan: ImportPlan, weights: Weights, output: FolderOutput, screen: ProgressReporter, *, dry_run: bool
) -> Imported | None:
    """A network that brings its recipe along; see `run`."""
    import torch

    from cellwright.models.build import build_network
    from cellwright.models.dense.dense import DenseNetwork
    from cellwright.models.weights.peers import TITLES, load_peer, read_peer

    title = TITLES[weights.framework]
    if plan.recipe is not None:
        remedy = 'omit `recipe`; change keys with `set`, such as `set="model.target.flow_threshold=0.6"`'
        raise UsageError(f"weights of {title} bring their recipe along", got=f"`recipe={plan.recipe}`", remedy=remedy)
    peer = read_peer(weights, plan.source)
    recipe = recipes.from_dict(peer.values, plan.source, plan.set)
    names = ("cell",) if plan.classes is None else _listed_names(plan.classes)
    if len(names) != 1:
        raise InputError("the class names do not fit these weights", got=count(len(names), "name"), expected="1 name")
    torch.manual_seed(recipe.train.seed)
    network = build_network(recipe, len(names))
    assert isinstance(network, DenseNetwork)
    imported = Imported(plan.out, names, load_peer(network, peer, where=plan.source))
    if not output.exists:
        screen.note(f"will write {plan.out}/: weights.safetensors, model.json, README.md, {REPORT}")
    if dry_run:
        return None
    for note in notes_of(recipe):
        screen.note(f"note: {note}")
    _write(output, network, recipe, weights, imported, peer.channels)
    if output.is_complete:
        screen.note(output.text)
    return imported


def notes_of(recipe: Recipe) -> list[str]:
    """What prediction with a network of another tool will assume about images."""
    own, notes = recipe.input, []
    if own.default_diameter_px is not None:
        notes.append(
            f"objects are taken to have a median diameter of {own.default_diameter_px:g} px, as in the training images "
            "of this network, unless you give `diameter`"
        )
    return notes


def _write(
    output: FolderOutput,
    network: Network,
    recipe: Recipe,
    weights: Weights,
    imported: Imported,
    channels: tuple[str, ...] = (),
) -> None:
    """The files of the model folder. channels: see `ModelInfo`."""
    from cellwright import __version__
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.models.weights.torch_io import save_model

    info = ModelInfo(
        kind=recipe.model.kind,
        recipe=recipe.to_dict(),
        class_names=imported.class_names,
        normalisation=recipe.input.model_dump(mode="json"),
        channels=channels,
        origin=weights.origin,
        version=__version__,
    )
    with output.write() as folder:
        write_text(folder / REPORT, f"{weights.origin} as recipe {recipe.name}\n{imported.report.text()}")
        save_model(folder, network.state_dict(), info)


def _recipe_of(plan: ImportPlan) -> Recipe:
    if plan.recipe is None:
        raise UsageError(
            "these weights need a recipe for the same network",
            where=plan.source,
            remedy="give `recipe`, a shipped recipe or a YAML file; cellwright model inspect lists its keys",
        )
    recipe = recipes.load(plan.recipe, plan.set)
    if not isinstance(recipe.model, RCNNConfig):
        raise RecipeError(
            "weights can be imported for models of the R-CNN family only",
            where=recipe.name,
            got=recipe.model.kind,
            remedy="choose a recipe of the R-CNN family: cellwright recipes list",
        )
    return recipe.resolved()


def _class_names(plan: ImportPlan, recipe: Recipe, in_file: int | None) -> tuple[str, ...]:
    assert isinstance(recipe.model, RCNNConfig)
    n_classes = recipe.classes or in_file
    if n_classes is None:
        remedy = 'give their number: `set="classes=N"`'
        raise ModelError("these weights do not show how many classes there are", where=plan.source, remedy=remedy)
    if in_file is not None and n_classes != in_file and not {"classes", "box_head"} & set(recipe.model.init_fresh):
        raise ModelError(
            "the class count of the recipe differs from that of these weights",
            where=plan.source,
            got=f"{in_file} in the file, {n_classes} in the recipe",
            remedy=f'use `set="classes={in_file}"`, or `set="model.init_fresh=[classes]"` and train the new layers',
        )
    if plan.classes is None:
        return tuple(f"class_{k + 1}" for k in range(n_classes))
    names = _listed_names(plan.classes)
    if len(names) != n_classes or len(set(names)) != len(names):
        raise InputError(
            "the class names do not fit these weights",
            where="`classes`",
            got=f"{count(len(names), 'name')}, {len(set(names))} different",
            expected=f"{n_classes} different names, in the order of the class ids",
        )
    return names


def _listed_names(words: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as given, or from a text file."""
    path = Path(words[0])
    if len(words) > 1 or not (path.is_file() or path.suffix == ".txt"):
        return words
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give the names themselves, or a text file with one name per line"
        raise InputError("cannot read these class names", where=path, got=str(error), remedy=remedy) from error
    return tuple(line.strip() for line in lines if line.strip())


def _as_init(source: str, weights: Weights) -> str:
    if ":" in source or weights.framework == "cellwright":
        return source
    return f"{'torchvision' if weights.framework == 'torchvision' else 'detectron2'}:{source}"


def conflicts_with_published(recipe: Recipe, weights: Weights, built: Mapping[str, object]) -> list[str]:
    """Notes about recipe keys that the tensors do not show and that differ from the published weights."""
    values: Any = recipe.to_dict()
    notes = []
    for key, published in published_settings(weights, built).items():
        value = values
        for step in key.split("."):
            value = value[step]
        same = value == published
        if isinstance(published, tuple):
            same = len(value) == len(published) and all(
                math.isclose(a, b, rel_tol=0.01) for a, b in zip(value, published, strict=True)
            )
        if not same:
            notes.append(
                f"{key} is {shown_value(value)} in the recipe, but such weights were published with "
                f"{shown_value(published)}"
            )
    return notes
