"""Models as users meet them: loaded by name, from a folder or from a run, and asked for the objects of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from cellwright.config.recipe import PredictConfig, Recipe
from cellwright.core.errors import ModelError, UsageError, did_you_mean
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.views import View, as_views

if TYPE_CHECKING:
    import torch

    from cellwright.models.contract import Network
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import Predictor

# What a --model takes by name; a folder of such a name is meant with ./ before it.
NAMED_MODELS = {
    "nuclei": "U-Net with flows, trained on DSB2018; fluorescence, H&E and bright field; finds nuclei only",
    "classical": "threshold and watershed; needs no training, finds nuclei only",
}
DEFAULT_MODEL = "nuclei"
Views = str | Sequence[View]


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model with the thresholds of its recipe.

    name: as it was asked for. class_names: one a class id. recipe: resolved. predictor: all that the model finds.
    options: which of it becomes a result; with what `tune` found, where the model is tuned.
    tuned_on: where that comes from (``ModelInfo.tuned_on``), None for an untuned model.
    """

    name: str
    class_names: tuple[str, ...]
    recipe: Recipe
    predictor: Predictor
    options: PredictOptions
    tuned_on: Mapping[str, Any] | None = None

    @overload
    def predict(
        self, images: Image | np.ndarray, diameter: float | None = None, views: Views | None = None
    ) -> Instances: ...
    @overload
    def predict(
        self, images: Sequence[Image | np.ndarray], diameter: float | None = None, views: Views | None = None
    ) -> list[Instances]: ...
    def predict(self, images, diameter=None, views=None):
        """The objects of an image, best first, ids 1..N; a list of images gives a list.

        A plain array is grey (H, W) or channel-last (H, W, C). diameter: median of the images' objects, px of the
        image, for models that go by one (``nuclei``); None estimates it for each image. views: sizes and orientations
        in which each image is seen, as a text ("flips", "0.8,1,1.25:mirror") or as `View` objects; None is the image
        as it is, for a tuned model the views that it was tuned in. Raises `InputError` where channels do not fit,
        `UsageError` for a diameter or views that are none or that the model has no use for.
        """
        single = isinstance(images, Image | np.ndarray)
        wanted = [images] if single else list(images)
        made = [one if isinstance(one, Image) else Image.from_array(one) for one in wanted]
        predictor = dataclasses.replace(self.predictor, options=self.options)
        predictor = predictor if diameter is None else predictor.with_diameter(diameter)
        found = (predictor if views is None else predictor.with_views(as_views(views))).predict(made)
        return found[0] if single else found


def load_model(name: str | Path, *, device: str = "auto") -> Model:
    """A model by name (``nuclei``, ``classical``), from its folder, or from a run (its best).

    Raises `ModelError` where there is none, `UsageError` where ``device`` is not on this machine.
    """
    from cellwright.config.model_classical import ClassicalConfig
    from cellwright.models.weights.model_folder import recipe_of
    from cellwright.models.weights.torch_io import load_network

    if str(name) == "classical":
        # .3 was picked on the same training images as the method's other defaults.
        return classical_model(
            Recipe(name="classical", model=ClassicalConfig(), predict=PredictConfig(score_threshold=0.3))
        )
    if str(name) not in NAMED_MODELS and not Path(name).exists():
        remedy = did_you_mean(str(name), NAMED_MODELS)
        raise ModelError("no such model", got=str(name), expected="a name, a model folder, or a run", remedy=remedy)
    network, info = load_network(name)
    model = network_model(str(name), network, recipe_of(info), info.class_names, resolve_device(device))
    views = (info.tuned_on or {}).get("views")
    return dataclasses.replace(
        model,
        predictor=model.predictor if views is None else model.predictor.with_views(as_views(views)),
        options=_tuned_options(model.options, info),
        tuned_on=info.tuned_on,
    )


def classical_model(recipe: Recipe) -> Model:
    """The baseline that needs no training."""
    from cellwright.config.model_classical import ClassicalConfig
    from cellwright.models.classical import ClassicalSegmenter
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import Predictor

    if not isinstance(recipe.model, ClassicalConfig):
        raise ModelError("this recipe is not a classical one", got=recipe.model.kind, expected="classical")
    segmenter = ClassicalSegmenter(recipe.model)
    options = PredictOptions(recipe.predict.score_threshold, recipe.predict.min_area_px)
    return Model("classical", ("nucleus",), recipe, Predictor(segmenter), options)


def network_model(
    name: str, network: Network, recipe: Recipe, class_names: Sequence[str], device: torch.device
) -> Model:
    """A trained network as a model; it is moved to ``device``."""
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import network_predictor

    options = PredictOptions(recipe.predict.score_threshold, recipe.predict.min_area_px)
    return Model(name, tuple(class_names), recipe, network_predictor(network, recipe, device), options)


def _tuned_options(plain: PredictOptions, info: ModelInfo) -> PredictOptions:
    """The recipe's options with the thresholds and the calibration of ``model.json``; ``plain`` where it has none."""
    from cellwright.core.scores import Calibration

    if not info.thresholds and info.calibration is None:
        return plain
    try:
        calibration = None
        if info.calibration is not None:
            calibration = Calibration(tuple(info.calibration["scores"]), tuple(info.calibration["expected_iou"]))
        names = info.class_names
        scores = np.array([info.thresholds.get(f"score/{name}", plain.score_threshold) for name in names])
        areas = [info.thresholds.get(f"min_area_px/{name}", plain.min_area_px) for name in names]
        # Thresholds go by what the result shows.
        shown = scores if calibration is None else calibration(scores)
        return dataclasses.replace(
            plain,
            score_threshold=tuple(shown.tolist()),
            min_area_px=tuple(int(area) for area in areas),  # type: ignore[arg-type] - a recipe's is one number
            calibration=calibration,
        )
    except (KeyError, TypeError, UsageError) as error:
        remedy = "tune the model again: cellwright tune"
        raise ModelError("the tuning in this model folder is damaged", got=str(error), remedy=remedy) from error


def resolve_device(device: str) -> torch.device:
    """``auto`` takes CUDA, then mps, then the CPU, whose freed memory is then kept for what comes next.

    `UsageError` for a device that does not answer.
    """
    import torch

    from cellwright.core.memory import keep_freed_memory

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        remedy = "use --device cpu; see cellwright doctor"
        raise UsageError("this device does not answer", got=f"{device}: {first}", remedy=remedy) from error
    if chosen.type == "cpu":
        keep_freed_memory()
    return chosen
