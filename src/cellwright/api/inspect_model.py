"""``model list`` and ``model inspect``: what a name, a model folder or a weight file contains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from cyclopts import Parameter

from cellwright.core.scores import shown_score
from cellwright.core.table import Table
from cellwright.core.text import count

if TYPE_CHECKING:
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.models.weights.sources import Weights

_FRAMEWORKS = {
    "torchvision": "torchvision",
    "detectron2": "Detectron2",
    "caffe2": "Caffe2 (read as Detectron2 does)",
    "cellwright": "cellwright",
}


@Parameter(name="*")
@dataclass(frozen=True)
class InspectPlan:
    """Show what a model or weight file contains: the network, its classes, licence and thresholds."""

    model: str
    """nuclei, a model folder, a run, a file of weights (.pth, .pkl, .safetensors; Cellpose), the folder of a
    StarDist model, or torchvision:NAME."""
    _: KW_ONLY
    tensors: bool = False
    """List all tensors, with their names and shapes."""


def run(plan: InspectPlan) -> list[Table]:
    """The content of a model folder, a run, a weight file or ``torchvision:NAME``. Raises `ModelError`."""
    from cellwright.models.weights.model_folder import CHOICES, is_foreign

    shown = []
    for model in CHOICES.get(plan.model, (plan.model,)):
        is_file = is_foreign(model)
        tables = _foreign_tables(model) if is_file else _model_tables(model)
        shown += tables if plan.tensors else tables[:-1]
    return shown


def _model_tables(model: str) -> list[Table]:
    """What a model folder contains; its tensors come last."""
    from cellwright.models.weights.architecture import summary
    from cellwright.models.weights.model_folder import read_arrays, read_model_info

    info, weights = read_model_info(model), read_arrays(model)
    facts = [
        ("kind", info.kind),
        ("network", summary({key: array.shape for key, array in weights.items()})),
        ("classes", ", ".join(info.class_names)),
        ("recipe", info.recipe.get("name", "")),
        ("conventions", info.recipe.get("conventions", "")),
        ("licence of the training data", info.data_licence or "unknown"),
        *([("imported from", info.origin)] if info.origin else []),
        ("made by", f"cellwright {info.version}, code {info.git_hash or 'not recorded'}"),
        ("parameters", f"{sum(array.size for array in weights.values()):,}, in {count(len(weights), 'tensor')}"),
        *info.metrics.items(),
        *_kept(info, model),
    ]
    if info.trained_on:
        facts.append(("trained on", f"{count(len(info.trained_on), 'image')}, which evaluation recognises"))
    if info.tuned_on is not None:
        facts.append(("tuned", f"on split {info.tuned_on['split']} for {info.tuned_on['metric']}"))
    tensors = [(key, "x".join(map(str, array.shape)), str(array.dtype)) for key, array in weights.items()]
    return [Table(model, ("what", "value"), facts), Table("tensors", ("name", "shape", "dtype"), tensors)]


def _kept(info: ModelInfo, model: str) -> list[tuple[str, str]]:
    """Which objects a model of this name keeps by default, for each class."""
    from cellwright.api.models import options_of

    options = options_of(info, model)
    scores, areas = options.score_threshold, options.min_area_px
    rows = []
    for k, name in enumerate(info.class_names):
        score = scores[k] if isinstance(scores, tuple) else scores
        area = areas[k] if isinstance(areas, tuple) else areas
        raw = info.thresholds.get(f"score/{name}")
        before = "" if options.calibration is None or raw is None else f" ({shown_score(raw)} before calibration)"
        rows += [(f"score of {name}", f"{shown_score(score)} or more{before}")]
        rows += [(f"area of {name}", f"{count(area, 'pixel')} or more")] if area else []
    return rows


def _foreign_tables(source: str) -> list[Table]:
    """Weights of another framework: the network, the keys of a recipe that fits, and what becomes of each tensor."""
    from cellwright.models.weights.architecture import architecture, class_count, summary
    from cellwright.models.weights.foreign import our_names, shapes_of, why_unused
    from cellwright.models.weights.peers import is_peer
    from cellwright.models.weights.sources import find_weights

    weights = find_weights(source)
    if is_peer(weights):
        return _peer_tables(weights, source)
    names = our_names(weights.tensors, weights.framework)
    shapes = shapes_of(weights.tensors, {ours: theirs for theirs, ours in names.items() if ours is not None})
    built = architecture(shapes, source)
    unknown = [theirs for theirs, ours in names.items() if ours is None and why_unused(theirs) is None]
    used = sum(ours is not None for ours in names.values())
    facts = [
        ("tensor names of", _FRAMEWORKS[weights.framework]),
        ("network", summary(shapes)),
        ("tensors", f"{len(names)}: {used} used, {len(names) - used - len(unknown)} not needed"),
        ("size", f"{sum(math.prod(tensor.shape) for tensor in weights.tensors.values()) / 1e6:.2f} M parameters"),
    ]
    if unknown:
        first = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        facts.append(("unknown tensors", f"{len(unknown)}: {first}; the file cannot be imported"))
    keys = [
        (key if key.startswith("input.") else f"model.{key}", shown_value(value), "the tensors")
        for key, value in built.items()
    ]
    if (n_classes := class_count(shapes)) is not None:
        keys.insert(0, ("classes", str(n_classes), "the tensors"))
    published = published_settings(weights, built)
    keys += [(key, shown_value(value), "the published weights of this framework") for key, value in published.items()]
    tensors = [
        (theirs, ours or f"none: {why_unused(theirs) or 'unknown'}", "x".join(map(str, weights.tensors[theirs].shape)))
        for theirs, ours in names.items()
    ]
    return [
        Table(weights.origin, ("what", "value"), facts),
        Table("recipe keys that fit", ("key", "value", "known from"), keys),
        Table("tensors", ("name in the file", "name in cellwright", "shape"), tensors),
    ]


def _peer_tables(weights: Weights, source: str) -> list[Table]:
    """As `_foreign_tables`, of a network that brings its recipe along."""
    from cellwright.models.weights.architecture import summary
    from cellwright.models.weights.peers import TITLES, read_peer

    peer = read_peer(weights, source)
    shapes = {ours: tuple(tensor.shape) for ours, tensor in peer.tensors.items()}
    facts = [
        ("tensor names of", TITLES[weights.framework]),
        ("network", summary(shapes)),
        ("tensors", f"{len(weights.tensors)}: {len(shapes)} used, {len(peer.unused)} recorded in the recipe"),
        ("numbers", f"{sum(math.prod(tensor.shape) for tensor in weights.tensors.values()):,}"),
    ]
    sections = [(name, section) for name, section in peer.values.items() if isinstance(section, Mapping)]
    keys = [
        (f"{name}.{key}", shown_value(value), f"the network of {TITLES[weights.framework]}")
        for name, section in sections
        for key, value in section.items()
    ]
    ours = {theirs: ours for ours, theirs in peer.theirs.items()}
    tensors = [
        (theirs, ours.get(theirs) or f"none: {peer.unused[theirs]}", "x".join(map(str, tensor.shape)))
        for theirs, tensor in weights.tensors.items()
    ]
    return [
        Table(weights.origin, ("what", "value"), facts),
        Table("recipe keys, which import sets", ("key", "value", "known from"), keys),
        Table("tensors", ("name in the file", "name in cellwright", "shape"), tensors),
    ]


def published_settings(weights: Weights, built: Mapping[str, object]) -> dict[str, object]:
    """Recipe keys that the tensors do not show, with the values of the framework's published weights.

    built: the keys that the tensors do show.
    """
    resnext = "backbone.groups" in built
    if weights.framework == "torchvision":
        # torchvision's detectors with frozen batch norm were trained with epsilon 0.
        exact = "kind" in built and built.get("backbone.norm") == "frozen_batch_norm"
        return {
            "conventions": "torchvision",
            **({"model.backbone.norm_eps": 0.0} if exact else {}),
            "input.colour_order": "rgb",
            "input.normalise": "fixed",
            "input.mean": (0.485, 0.456, 0.406),
            "input.std": (0.229, 0.224, 0.225),
        }
    if weights.framework in ("detectron2", "caffe2"):
        scaled = resnext and built.get("backbone.depth") == 101
        return {
            "conventions": "detectron2",
            "model.backbone.stride_in_1x1": not resnext,
            "input.colour_order": "bgr",
            "input.normalise": "fixed",
            "input.mean": (0.406, 0.456, 0.485),
            "input.std": (0.225, 0.224, 0.229) if scaled else (0.00392157,) * 3,
        }
    return {}


def shown_value(value: object) -> str:
    """A recipe value as YAML writes it."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(shown_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
