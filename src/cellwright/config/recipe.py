"""`Recipe`: one experiment, every choice of it in one validated, frozen object; and recipes as files."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cellwright.config.conventions import CONVENTIONS, ConventionsName
from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_dense import UNetConfig
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig, RCNNConfig
from cellwright.config.section import Section
from cellwright.config.training import TrainConfig
from cellwright.core.errors import RecipeError, did_you_mean

SCHEMA_VERSION = 1
ModelConfig = Annotated[
    MaskRCNNConfig | C4Config | CascadeConfig | PointRendConfig | UNetConfig | ClassicalConfig,
    Field(discriminator="kind"),
]


class EvaluateConfig(Section):
    """How a model is judged while it trains."""

    split: str = Field(default="val", description="Split that is judged.")
    metrics: tuple[str, ...] = Field(
        default=("coco_ap", "accuracy"), description="Groups of metrics, see docs/metrics.md."
    )
    max_images: int | None = Field(default=None, ge=1, description="Only the first images of the split; none: all.")


class PredictConfig(Section):
    """Which of the model's objects become a result."""

    score_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Objects that score less are left out of a result."
    )
    min_area_px: int = Field(default=0, ge=0, description="Smaller objects are left out, pixels of the image.")


class Recipe(Section):
    """One experiment. Sections that do not apply to a model kind are not read by it."""

    name: str = Field(description="What the recipe is called in tables.")
    description: str = Field(default="", description="What the experiment is, and what was published for it.")
    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Version of this schema.")
    classes: int | None = Field(default=None, ge=1, description="Object classes; none: as many as the dataset has.")
    conventions: ConventionsName = Field(
        default="torchvision", description="Whose habits decide where frameworks differ."
    )
    input: InputConfig = Field(default=InputConfig(), description="From image to network input.")
    model: ModelConfig = Field(description="The network, or the classical method.")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Random changes of training samples.")
    data: DataConfig = Field(default=DataConfig(), description="What is loaded, and how.")
    train: TrainConfig = Field(default=TrainConfig(), description="Optimiser and schedule.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Judging while training.")
    predict: PredictConfig = Field(default=PredictConfig(), description="From detections to a result.")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.augment.crop_px is not None and self.augment.crop_px < 64 and isinstance(self.model, RCNNConfig):
            raise ValueError(f"augment.crop_px ({self.augment.crop_px}) is below 64, the stride of the last FPN level")
        crop, stride = self.augment.crop_px, 0
        if isinstance(self.model, UNetConfig) and self.model.norm == "batch_norm":
            stride = 2**self.model.depth
        if crop is not None and crop <= stride and self.train.batch_size == 1:
            raise ValueError(
                f"augment.crop_px ({crop}) must be above {stride} (2 to the power of model.depth), or train.batch_size "
                "(1) above 1: batch_norm needs more than one value"
            )
        if self.input.normalise == "percentile" and (self.augment.stain or self.augment.stain_shift):
            raise ValueError(
                f"augment.stain ({self.augment.stain}) and augment.stain_shift ({self.augment.stain_shift}) need "
                "intensities of light: input.normalise must be fixed, not percentile"
            )
        return self

    def resolved(self) -> Recipe:
        """This recipe with every None that ``conventions`` decides filled in; what is saved beside a result."""
        if not isinstance(self.model, RCNNConfig):
            return self
        return self.model_copy(update={"model": self.model.resolved(CONVENTIONS[self.conventions])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to YAML and JSON; tuples become lists."""
        return self.model_dump(mode="json")


def shipped_names() -> list[str]:
    """Names of the shipped recipes, such as ``vrdl_nuclei/quick``, sorted."""
    root = resources.files("cellwright") / "recipes"
    return sorted(
        f"{folder.name}/{Path(file.name).stem}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def read_text(name_or_path: str) -> tuple[str, str]:
    """Text and place of a recipe: a path that exists, else a shipped name. `RecipeError` names the nearest one."""
    path = Path(name_or_path)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "cannot read this recipe", where=path, got=str(error), remedy="check the path and its permissions"
            ) from error
    names = shipped_names()
    if name_or_path in names:
        return (resources.files("cellwright") / "recipes" / f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
    hint = did_you_mean(name_or_path, names)
    raise RecipeError("no such recipe", got=repr(name_or_path), expected="a file or a shipped name", remedy=hint)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, extend it at most once, apply ``key.sub=value`` overrides, validate the whole.

    Raises `RecipeError` naming the file and key; an unknown key gets the nearest known one.
    """
    text, place = read_text(name_or_path)
    values = parse(text, place)
    base_name = values.pop("extends", None)
    if base_name is not None:
        base_text, base_place = read_text(_base_of(place, str(base_name)))
        base = parse(base_text, base_place)
        if "extends" in base:
            remedy = "extend the first recipe of the chain, or write the keys out"
            raise RecipeError("a recipe may extend once", where=f"{place} -> {base_place}", remedy=remedy)
        values = _merged(base, values)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise RecipeError("an override has no value", got=repr(override), expected="key.sub=value")
        values = _merged(values, _nested(key.strip().split("."), _scalar(value, override)))
    return from_dict(values, place)


def parse(text: str, place: str) -> dict[str, Any]:
    """A recipe's values as they are written, not validated; ``place`` is named in the `RecipeError`."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            "this recipe is not valid YAML",
            where=place,
            got=str(error).replace("\n", " "),
            remedy="mend the line that is named",
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(
            "a recipe is a mapping of sections",
            where=place,
            got=type(values).__name__,
            remedy="begin from a shipped one: cellwright recipes copy NAME",
        )
    return values


def from_dict(values: Mapping[str, Any], place: str) -> Recipe:
    """Validate plain values; ``place`` is named in the `RecipeError`."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise _recipe_error(error, place) from error


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.resolved().to_dict(), sort_keys=False, allow_unicode=True, width=110)


def _base_of(place: str, name: str) -> str:
    """What ``extends: name`` means in the recipe at ``place``: a neighbour first, then a shipped name."""
    beside = Path(place).parent / name
    if beside.with_suffix(".yaml").is_file():
        return str(beside.with_suffix(".yaml"))
    return beside.as_posix() if beside.as_posix() in shipped_names() else name


def _scalar(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            "an override has a value that is not YAML",
            got=repr(override),
            remedy="write key=value, such as train.lr=2e-4",
        ) from error
    if isinstance(value, str):  # YAML 1.1 reads 2e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, section by section; another model kind replaces the whole section."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        out[key] = value
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            other_kind = value.get("kind", below.get("kind")) != below.get("kind")
            out[key] = value if other_kind else _merged(below, value)
    return out


def _recipe_error(error: ValidationError, place: str) -> RecipeError:
    """One error for everything that is wrong, each with its key, what was found, and what is known there."""
    lines = []
    for item in error.errors():
        model, path = _walk(item["loc"])
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            known = list(model.model_fields) if model is not None else []
            lines.append(f"unknown key {key!r}: {did_you_mean(path[-1], known)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
            lines.append(f"{key or 'recipe'}: {message}{shown}")
    return RecipeError(
        "this recipe does not validate",
        where=place,
        got="\n       ".join(lines),
        remedy="see docs/recipes.md, or: cellwright recipes copy NAME",
    )


def _walk(loc: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section class that holds the last key of a pydantic location, and the path as the user wrote it."""
    model: type[BaseModel] | None = Recipe
    parent: type[BaseModel] | None = Recipe
    path: list[str] = []
    union: dict[str, type[BaseModel]] = {}
    for step in loc:
        if str(step) in union:  # the tag of a union is not written in the file
            model, union = union[str(step)], {}
            continue
        path.append(str(step))
        parent = model
        field = model.model_fields.get(str(step)) if model is not None else None
        models = _models_in(field.annotation) if field is not None else []
        union = {str(one.model_fields["kind"].default): one for one in models if "kind" in one.model_fields}
        model = models[0] if len(models) == 1 and not union else None
        if len(union) == 1:
            model = models[0]
    return parent, path


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []
