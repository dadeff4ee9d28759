"""Several models as one: what they find on an image is fused before it becomes a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

from cellwright.api.members import joined_tuning, mean_threshold
from cellwright.api.models import Model
from cellwright.config import recipe as recipes
from cellwright.core.errors import UsageError
from cellwright.prediction.fusion import FusionOptions


def fused_model(members: Sequence[Model], options: FusionOptions) -> Model:
    """A model whose objects are the members' fused ones; of one member that member itself.

    Each member gives all that it finds, on calibrated scores where it is tuned, from its own smallest area on. The
    score threshold is the weighted mean of the members'. ``recipe`` is the first one's; `fused_recipe` has them all.
    Raises `UsageError` for members with different classes or another number of weights.
    """
    from cellwright.prediction.fused import FusedSegmenter
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import Predictor

    weights = options.weights_of(len(members))
    first = members[0]
    for one in members[1:]:
        if one.class_names != first.class_names:
            raise UsageError(
                "models with different classes cannot be fused",
                got=f"{one.name}: {', '.join(one.class_names)}",
                expected=f"{', '.join(first.class_names)}, as {first.name}, in this order",
                remedy="predict with each, then fuse what they find: cellwright fuse",
            )
    if len(members) == 1:
        return first
    all_found = [dataclasses.replace(one.options, score_threshold=0.0, max_objects=None) for one in members]
    segmenters = [dataclasses.replace(one.predictor, options=o) for one, o in zip(members, all_found, strict=True)]
    return Model(
        name=" + ".join(one.name for one in members),
        class_names=first.class_names,
        recipe=first.recipe,
        predictor=Predictor(FusedSegmenter(tuple(segmenters), options)),
        options=PredictOptions(mean_threshold([one.options.score_threshold for one in members], weights)),
        tuned_on=joined_tuning([one.tuned_on for one in members]),
    )


def sized(members: Sequence[Model], diameter_px: float) -> list[Model]:
    """The members, those that go by a diameter with this one, px of the image.

    Raises `UsageError` where none does, or that is no size.
    """
    from cellwright.prediction.predictor import NetworkSegmenter

    def goes_by_it(one: Model) -> bool:
        segmenter = one.predictor.segmenter
        return isinstance(segmenter, NetworkSegmenter) and segmenter.input_config.diameter_px is not None

    wanted = [one for one in members if goes_by_it(one)] or members  # which then says why it cannot
    return [
        dataclasses.replace(one, predictor=one.predictor.with_diameter(diameter_px)) if one in wanted else one
        for one in members
    ]


def fused_recipe(members: Sequence[Model], options: FusionOptions) -> str:
    """What goes into ``recipe.yaml``: how members are fused and the recipe of each; of one member its own recipe."""
    if len(members) == 1:
        return recipes.dump(members[0].recipe)
    models = [{"name": _shareable(one.name), "recipe": yaml.safe_load(recipes.dump(one.recipe))} for one in members]
    return yaml.safe_dump({"fuse": options.as_values(len(members)), "models": models}, sort_keys=False)


def _shareable(name: str) -> str:
    """The name of a model for files, which hold no absolute path."""
    return Path(name).name if Path(name).is_absolute() else name


def calibration_note(members: Sequence[Model]) -> str | None:
    """Whose scores are not calibrated, or None where there is nothing to compare or all are."""
    plain = [one.name for one in members if one.options.calibration is None]
    if not plain or len(members) == 1:
        return None
    return (
        f"scores that are not calibrated, and are compared as they are: {', '.join(plain)} (cellwright tune makes them "
        "the IoU to expect)"
    )
