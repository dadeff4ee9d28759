"""`Recipe`: all choices of one experiment in one validated, frozen object; and recipes as YAML files."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from cellwright.config.conventions import CONVENTIONS, ConventionsName
from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_dense import CellposeConfig, StarDistConfig, UNetConfig
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig, RCNNConfig
from cellwright.config.section import Section
from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError, did_you_mean
from cellwright.core.safe_yaml import MAX_BYTES, parse_yaml

SCHEMA_VERSION = 1
# How much of an invalid recipe a message shows: problems, characters of a value, and of what is wrong with it.
_N_PROBLEMS, _N_SHOWN, _N_MESSAGE = 20, 200, 600
ModelConfig = Annotated[
    MaskRCNNConfig
    | C4Config
    | CascadeConfig
    | PointRendConfig
    | UNetConfig
    | CellposeConfig
    | StarDistConfig
    | ClassicalConfig,
    Field(discriminator="kind"),
]


class EvaluateConfig(Section):
    """Evaluation during training."""

    split: str = Field(default="val", description="Split to evaluate.")
    metrics: tuple[str, ...] = Field(
        default=("coco_ap", "accuracy"), description="Groups of metrics; see docs/metrics.md."
    )
    max_images: int | None = Field(
        default=None, ge=1, description="Evaluate only the first images of the split. null: all."
    )


class PredictConfig(Section):
    """Which of the model's objects are kept in a result."""

    score_threshold: float = Field(default=0.5, ge=0, le=1, description="Objects with a lower score are omitted.")
    min_area_px: int = Field(default=0, ge=0, description="Smaller objects are omitted, pixels of the image.")


class Recipe(Section):
    """All choices of one experiment. A model kind ignores the sections that do not apply to it."""

    name: str = Field(description="Name of the recipe in tables.")
    description: str = Field(default="", description="What the experiment is, and published results.")
    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Version of this schema.")
    classes: int | None = Field(default=None, ge=1, description="Number of object classes. null: as in the dataset.")
    conventions: ConventionsName = Field(
        default="torchvision", description="Whose choices apply where torchvision and Detectron2 differ."
    )
    input: InputConfig = Field(default=InputConfig(), description="How an image becomes network input.")
    model: ModelConfig = Field(description="The network, or the classical method.")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Random changes of training samples.")
    data: DataConfig = Field(default=DataConfig(), description="Which objects are trained on, and how they are loaded.")
    train: TrainConfig = Field(default=TrainConfig(), description="Optimiser and schedule.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Evaluation during training.")
    predict: PredictConfig = Field(default=PredictConfig(), description="Which objects are kept in a result.")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.augment.crop_px is not None and self.augment.crop_px < 64 and isinstance(self.model, RCNNConfig):
            raise ValueError(
                f"augment.crop_px ({self.augment.crop_px}) must be at least 64, the stride of the coarsest FPN level"
            )
        crop, stride = self.augment.crop_px, 0
        if isinstance(self.model, UNetConfig) and self.model.norm == "batch_norm":
            stride = 2**self.model.depth
        if crop is not None and crop <= stride and self.train.batch_size == 1:
            raise ValueError(
                f"augment.crop_px ({crop}) must be above {stride} (2 to the power of model.depth), or train.batch_size "
                "above 1: batch_norm needs more than one value per channel"
            )
        own_ranges = self.input.normalise == "percentile" and self.input.percentiles_of != "image"
        if own_ranges and (self.augment.stain or self.augment.stain_shift):
            raise ValueError(
                f"augment.stain ({self.augment.stain}) and augment.stain_shift ({self.augment.stain_shift}) need light "
                "intensities: set input.percentiles_of to image, input.normalise to fixed, or both to 0"
            )
        return self

    def resolved(self) -> Recipe:
        """This recipe with every None that ``conventions`` decides filled in, as it is saved beside a result."""
        if not isinstance(self.model, RCNNConfig):
            return self
        return self.model_copy(update={"model": self.model.resolved(CONVENTIONS[self.conventions])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to YAML and JSON; tuples become lists."""
        return self.model_dump(mode="json")


def shipped_names() -> list[str]:
    """Sorted names of the shipped recipes, such as ``vrdl_nuclei/quick``."""
    root = resources.files("cellwright") / "recipes"
    return sorted(
        f"{folder.name}/{Path(file.name).stem}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def read_text(name_or_path: str) -> tuple[str, str]:
    """Text and location of a recipe: an existing file, else a shipped name. `RecipeError` suggests the closest name."""
    path = Path(name_or_path)
    if path.is_file():
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                expected = f"at most {MAX_BYTES} bytes of YAML"
                raise RecipeError("this is not a recipe", where=path, got=f"{size} bytes", expected=expected)
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "cannot read this recipe", where=path, got=str(error), remedy="check the file and its permissions"
            ) from error
    names = shipped_names()
    if name_or_path in names:
        return (resources.files("cellwright") / "recipes" / f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
    raise RecipeError(
        "no such recipe",
        got=repr(name_or_path),
        expected="a file or the name of a shipped recipe",
        remedy=did_you_mean(name_or_path, names),
    )


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with the one that it extends, apply ``key.sub=value`` overrides, and validate the whole.

    Raises a `RecipeError` that names the file and the key, and suggests a known key for an unknown one.

    >>> load("vrdl_nuclei/quick", ["train.lr=2e-4"]).train.lr
    0.0002
    """
    text, place = read_text(name_or_path)
    values = parse(text, place)
    base_name = values.pop("extends", None)
    if base_name is not None:
        base_text, base_place = read_text(_base_of(place, str(base_name)))
        base = parse(base_text, base_place)
        if "extends" in base:
            raise RecipeError(
                "this recipe extends a recipe that itself extends another",
                where=f"{place} -> {base_place}",
                remedy=f"extend {base['extends']} and copy the keys of {base_name}",
            )
        values = _merged(base, values)
    return from_dict(values, place, overrides)


def parse(text: str, place: str) -> dict[str, Any]:
    """A recipe's values before validation; ``place`` is its location in a `RecipeError`."""
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            "this recipe is not valid YAML",
            where=place,
            got=" ".join(str(error).split())[:300],
            remedy="fix the line named above",
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(
            "a recipe must be a mapping of keys to values and sections",
            where=place,
            got=type(values).__name__,
            remedy="start from a shipped recipe: cellwright recipes copy NAME",
        )
    return values


def from_dict(values: Mapping[str, Any], place: str, overrides: Sequence[str] = ()) -> Recipe:
    """Validate plain values with ``key.sub=value`` overrides; ``place`` is their location in a `RecipeError`."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                "an override has no value", got=repr(override), expected="key=value, such as train.lr=2e-4"
            )
        values = _merged(values, _nested(key.strip().split("."), _scalar(value, override)))
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise _recipe_error(error, place) from error


def with_channel(recipe: Recipe, channel: tuple[str | int, ...]) -> Recipe:
    """The recipe of a network for these channels; one channel is repeated for a network of three."""
    if not channel:
        return recipe
    values = recipe.to_dict()
    n_channels = recipe.input.channels if len(channel) == 1 else len(channel)
    values["input"] |= {"channel": list(channel), "channels": n_channels}
    return from_dict(values, recipe.name)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, including all defaults."""
    return yaml.safe_dump(recipe.resolved().to_dict(), sort_keys=False, allow_unicode=True, width=110)


def _base_of(place: str, name: str) -> str:
    """The recipe that ``extends: name`` means at ``place``: a file beside it, else a shipped name."""
    beside = Path(place).parent / name
    if beside.with_suffix(".yaml").is_file():
        return str(beside.with_suffix(".yaml"))
    return beside.as_posix() if beside.as_posix() in shipped_names() else name


def _scalar(text: str, override: str) -> Any:
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            "the value of an override is not valid YAML",
            got=repr(override)[:200],
            remedy="write key=value, such as train.lr=2e-4",
        ) from error
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` updated with ``over``, section by section; another ``kind`` replaces the whole section."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = value
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            other_kind = value.get("kind", below.get("kind")) != below.get("kind")
            out[key] = value if other_kind else _merged(below, value)
    return out


def _recipe_error(error: ValidationError, place: str) -> RecipeError:
    """One error for all that is wrong: each key, its value, and what is valid there."""
    return RecipeError(
        "the recipe is not valid",
        where=place,
        got=_problems(error),
        remedy="correct the keys named above; see docs/recipes.md, or a shipped recipe: cellwright recipes copy NAME",
    )


def _problems(error: ValidationError) -> str:
    """A line per problem, of the first ones."""
    found = error.errors()
    lines = [_problem(details) for details in found[:_N_PROBLEMS]]
    more = [f"and {len(found) - _N_PROBLEMS} more"] if len(found) > _N_PROBLEMS else []
    return "\n       ".join([*lines, *more])


def _short(value: object) -> str:
    """The representation of a value, cut short."""
    text = repr(value)
    return text if len(text) <= _N_SHOWN else f"{text[:_N_SHOWN]}..."


# What users of other tools type, and the keys that mean it here.
OTHER_NAMES = {
    "steps": "train.length, such as 2000 steps",
    "max_iter": "train.length, such as 2000 steps",
    "iterations": "train.length, such as 2000 steps",
    "max_steps": "train.length, such as 2000 steps",
    "total_steps": "train.length, such as 2000 steps",
    "epochs": "train.length, such as 50 epochs",
    "n_epochs": "train.length, such as 50 epochs",
    "num_epochs": "train.length, such as 50 epochs",
    "max_epochs": "train.length, such as 50 epochs",
    "learning_rate": "train.lr",
    "learningrate": "train.lr",
    "base_lr": "train.lr",
    "lr0": "train.lr",
    "num_classes": "classes",
    "weights": "model.init",
    "pretrained": "model.init",
    "crop_size": "augment.crop_px",
    "batch": "train.batch_size",
    "ims_per_batch": "train.batch_size",
    "warmup_steps": "train.warmup, such as 200 steps",
    "min_size": "input.short_side, or model.target.min_area_px for the smallest object",
    "diameter": "input.diameter_px",
    "flow_threshold": "model.target.max_error",
    "cellprob_threshold": "model.target.body_threshold, a probability",
    "prob_thresh": "model.target.probability_threshold, or predict.score_threshold",
    "nms_thresh": "model.target.max_overlap of target stars, or model.box_head.nms_iou",
    "amp": "train.precision",
    "mixed_precision": "train.precision",
}


def _problem(details: ErrorDetails) -> str:
    """One line about one of pydantic's errors."""
    section, path = _walk(details["loc"])
    key = ".".join(path)[:_N_SHOWN]
    match details["type"]:
        case "extra_forbidden":
            if (other := OTHER_NAMES.get(path[-1].lower())) is not None:
                return f"unknown key {key!r}: use {other}"
            if elsewhere := [place for place in _places_of(path[-1]) if place != key]:
                return f"unknown key {key!r}: use {' or '.join(elsewhere[:3])}"
            return f"unknown key {key!r}: {did_you_mean(path[-1], [] if section is None else section.model_fields)}"
        case "missing":
            return f"{key}: this key is required"
        case "union_tag_invalid":
            context = details.get("ctx", {})
            kinds = str(context["expected_tags"]).replace("'", "").split(", ")
            return f"{key}.kind: unknown kind {context['tag']!r}: {did_you_mean(context['tag'], kinds)}"
        case "model_type" | "model_attributes_type":
            shown = _short(details["input"])
            return f"{key}: must be a section with keys of its own, got {shown}{_keys_of(section, path)}"
    message = details["msg"].removeprefix("Value error, ")[:_N_MESSAGE]
    named = details["type"] == "value_error"  # our own messages name the value
    shown = "" if named or isinstance(details["input"], dict | BaseModel) else f", got {_short(details['input'])}"
    return f"{key or 'recipe'}: {message}{shown}"


def _places_of(name: str) -> list[str]:
    """The full names of the keys called ``name`` in all sections, each once."""

    def search(section: type[BaseModel], prefix: str, depth: int) -> list[str]:
        own = [f"{prefix}{name}"] if name in section.model_fields else []
        below = [
            place
            for field_name, field in section.model_fields.items()
            for model in (_models_in(field.annotation) if depth else [])
            for place in search(model, f"{prefix}{field_name}.", depth - 1)
        ]
        return [*own, *below]

    return list(dict.fromkeys(search(Recipe, "", 3)))


def _keys_of(parent: type[BaseModel] | None, path: list[str]) -> str:
    """The keys of the section at ``path``, for a message; "" if it is not known."""
    field = None if parent is None else parent.model_fields.get(path[-1])
    models = [] if field is None else _models_in(field.annotation)
    if not models:
        return ""
    keys = list(dict.fromkeys(key for model in models for key in model.model_fields))
    return f"; its keys: {', '.join(keys)}, such as {'.'.join(path)}.{keys[0]}"


def _walk(loc: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section class that holds the last key of a pydantic location, and the path as the user wrote it."""
    model: type[BaseModel] | None = Recipe
    parent: type[BaseModel] | None = Recipe
    path: list[str] = []
    union: dict[str, type[BaseModel]] = {}
    for step in loc:
        if str(step) in union:  # the tag of a union is not part of the file
            model, union = union[str(step)], {}
            continue
        path.append(str(step))
        parent = model
        field = model.model_fields.get(str(step)) if model is not None else None
        models = _models_in(field.annotation) if field is not None else []
        union = {str(member.model_fields["kind"].default): member for member in models if "kind" in member.model_fields}
        model = models[0] if len(models) == 1 else None
    return parent, path


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []
