"""Weights of other frameworks as models: what a file holds, and a model folder made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.api.outputs import claim_folder
from cellwright.config import recipe as recipes
from cellwright.config.model_rcnn import RCNNConfig
from cellwright.config.recipe import Recipe
from cellwright.core.errors import InputError, ModelError, RecipeError
from cellwright.core.files import write_text
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    from cellwright.api.models import Table
    from cellwright.models.weights.foreign import LoadReport
    from cellwright.models.weights.sources import Weights

REPORT = "import_report.txt"
_FRAMEWORKS = {
    "torchvision": "torchvision",
    "detectron2": "Detectron2",
    "caffe2": "Caffe2 (read as Detectron2 reads it)",
    "cellwright": "cellwright",
}


@dataclass(frozen=True)
class ImportPlan:
    """What to import. ``source``: a file, or ``torchvision:NAME``; ``classes``: a file with one name a line."""

    source: str
    recipe: str | Recipe
    out: Path
    overrides: tuple[str, ...] = ()
    classes: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Imported:
    """A model folder made of foreign weights, and what became of every tensor."""

    folder: Path
    class_names: tuple[str, ...]
    report: LoadReport


def run_plan(plan: ImportPlan, screen: Screen = SILENT) -> Imported:
    """Make a model folder: weights, ``model.json``, the card, and the tensor report ``import_report.txt``.

    Raises `ModelError` where the file cannot be read or does not fit the recipe, `RecipeError`, `InputError` for the
    class names, and `OutputError`.
    """
    import torch

    from cellwright import __version__
    from cellwright.models.build import build_network
    from cellwright.models.weights.architecture import architecture, class_count
    from cellwright.models.weights.foreign import load_foreign, shapes_of, translate
    from cellwright.models.weights.model_folder import INFO, ModelInfo, save_model
    from cellwright.models.weights.sources import find_weights

    recipe = _recipe_of(plan)
    found = find_weights(plan.source)
    shapes = shapes_of(found.tensors, translate(found.tensors, found.framework, plan.source))
    if "kind" not in architecture(shapes, plan.source):
        raise ModelError(
            "these weights are a backbone alone, which finds nothing",
            where=plan.source,
            remedy=f"train with them: cellwright train RECIPE --data DATA --init {_as_init(plan.source, found)}",
        )
    assert isinstance(recipe.model, RCNNConfig)
    names = _class_names(plan, recipe, class_count(shapes))
    if not plan.overwrite:
        claim_folder(plan.out, INFO, overwrite=False)
    torch.manual_seed(recipe.train.seed)
    network = build_network(recipe, len(names))
    fresh = recipe.model.init_fresh
    report = load_foreign(network, found.tensors, found.framework, fresh=fresh, where=plan.source)
    # An older model goes only now that there is a new one.
    claim_folder(plan.out, INFO, overwrite=plan.overwrite)
    if plan.classes is None:
        screen.note(f"note: no --classes, so the {len(names)} classes are called class_1 to class_{len(names)}")
    for note in _doubts(recipe, found, architecture(shapes)):
        screen.note(f"note: {note}")
    if report.fresh:
        parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in report.fresh))
        screen.note(
            f"note: {len(report.fresh)} tensors start at random ({parts}): train before you predict, "
            "or, where the file has them, import with --set model.init_fresh=[]"
        )
    info = ModelInfo(
        kind=recipe.model.kind,
        recipe=recipe.to_dict(),
        class_names=names,
        normalisation=recipe.input.model_dump(mode="json"),
        origin=found.origin,
        version=__version__,
    )
    write_text(plan.out / REPORT, f"{found.origin} as recipe {recipe.name}\n{report.text()}")
    save_model(plan.out, network.state_dict(), info)
    return Imported(plan.out, names, report)


def describe(plan: ImportPlan) -> str:
    """What will be read and written, in a line."""
    recipe = _recipe_of(plan)
    return (
        f"imports {plan.source} as recipe {recipe.name} ({recipe.model.kind}); writes weights.safetensors, model.json, "
        f"README.md and {REPORT} to {plan.out}/"
    )


def inspect_foreign(source: str) -> list[Table]:
    """What a weight file (or ``torchvision:NAME``) holds, as tables: framework, network, recipe keys, tensors."""
    from cellwright.models.weights.architecture import architecture, class_count, summary
    from cellwright.models.weights.foreign import shapes_of
    from cellwright.models.weights.foreign_names import our_names, why_unused
    from cellwright.models.weights.sources import find_weights

    found = find_weights(source)
    names = our_names(found.tensors, found.framework)
    shapes = shapes_of(found.tensors, {ours: theirs for theirs, ours in names.items() if ours is not None})
    built = architecture(shapes, source)
    unknown = [theirs for theirs, ours in names.items() if ours is None and why_unused(theirs) is None]
    used = sum(ours is not None for ours in names.values())
    facts = [
        ("names of", _FRAMEWORKS[found.framework]),
        ("network", summary(shapes)),
        ("tensors", f"{len(names)}: {used} have a place, {len(names) - used - len(unknown)} are not needed"),
        ("size", f"{sum(math.prod(one.shape) for one in found.tensors.values()) / 1e6:.2f} M values"),
    ]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        facts.append(("no place here", f"{len(unknown)}: {shown}; the file cannot be imported"))
    keys = [(key if key.startswith("input.") else f"model.{key}", _shown(v), "the tensors") for key, v in built.items()]
    if (n_classes := class_count(shapes)) is not None:
        keys.insert(0, ("classes", str(n_classes), "the tensors"))
    keys += [(key, _shown(value), "how it was published") for key, value in _usual(found, built).items()]
    tensors = [
        (theirs, ours or f"none: {why_unused(theirs) or 'unknown'}", "x".join(map(str, found.tensors[theirs].shape)))
        for theirs, ours in names.items()
    ]
    return [
        (found.origin, ("what", "value"), facts),
        ("the recipe that fits", ("key", "value", "known from"), keys),
        ("tensors", ("their name", "our name", "shape"), tensors),
    ]


def _recipe_of(plan: ImportPlan) -> Recipe:
    recipe = plan.recipe if isinstance(plan.recipe, Recipe) else recipes.load(plan.recipe, plan.overrides)
    if not isinstance(recipe.model, RCNNConfig):
        raise RecipeError(
            "this model kind has no weights to import",
            where=recipe.name,
            got=recipe.model.kind,
            remedy="name a recipe of the R-CNN family: cellwright recipes list",
        )
    return recipe.resolved()


def _class_names(plan: ImportPlan, recipe: Recipe, in_file: int | None) -> tuple[str, ...]:
    assert isinstance(recipe.model, RCNNConfig)
    wanted = recipe.classes or in_file
    if wanted is None:
        raise ModelError("these weights do not say how many classes there are", remedy="give --set classes=N")
    if in_file is not None and wanted != in_file and not {"classes", "box_head"} & set(recipe.model.init_fresh):
        raise ModelError(
            "the class count of the recipe differs from that of these weights",
            where=plan.source,
            got=f"{in_file} in the file, {wanted} in the recipe",
            remedy=f"give --set classes={in_file}, or --set model.init_fresh=[classes] and train the new layers",
        )
    if plan.classes is None:
        return tuple(f"class_{k + 1}" for k in range(wanted))
    try:
        lines = plan.classes.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "cannot read these class names",
            where=plan.classes,
            got=str(error),
            remedy="give a text file with one name a line",
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != wanted or len(set(names)) != len(names):
        raise InputError(
            "these class names do not fit",
            where=plan.classes,
            got=f"{len(names)} names, {len(set(names))} different",
            expected=f"{wanted} different names, one a line, in the order of the class ids",
        )
    return names


def _as_init(source: str, found: Weights) -> str:
    if ":" in source or found.framework == "cellwright":
        return source
    return f"{'torchvision' if found.framework == 'torchvision' else 'detectron2'}:{source}"


def _usual(found: Weights, built: Mapping[str, object]) -> dict[str, object]:
    """Keys that no tensor shows, as the framework's published weights of this kind have them."""
    resnext = "backbone.groups" in built
    if found.framework == "torchvision":
        # Its detectors with frozen statistics were trained without anything added to the variance.
        exact = "kind" in built and built.get("backbone.norm") == "frozen_batch_norm"
        return {
            "conventions": "torchvision",
            **({"model.backbone.norm_eps": 0.0} if exact else {}),
            "input.colour_order": "rgb",
            "input.mean": (0.485, 0.456, 0.406),
            "input.std": (0.229, 0.224, 0.225),
        }
    if found.framework in ("detectron2", "caffe2"):
        scaled = resnext and built.get("backbone.depth") == 101
        return {
            "conventions": "detectron2",
            "model.backbone.stride_in_1x1": not resnext,
            "input.colour_order": "bgr",
            "input.mean": (0.406, 0.456, 0.485),
            "input.std": (0.225, 0.224, 0.229) if scaled else (0.00392157,) * 3,
        }
    return {}


def _doubts(recipe: Recipe, found: Weights, built: Mapping[str, object]) -> list[str]:
    """Keys of the recipe that no tensor shows and that differ from what such weights were published with."""
    values: Any = recipe.to_dict()
    notes = []
    for key, usual in _usual(found, built).items():
        own = values
        for step in key.split("."):
            own = own[step]
        near = own == usual
        if isinstance(usual, tuple):
            near = len(own) == len(usual) and all(
                math.isclose(a, b, rel_tol=0.01) for a, b in zip(own, usual, strict=True)
            )
        if not near:
            notes.append(f"{key} is {_shown(own)} in the recipe; such weights were published with {_shown(usual)}")
    return notes


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_shown(one) for one in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
