"""Models: loaded by name, from a folder or from a run, combined into ensembles, and used to predict on images."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from cellwright.api.inputs import ImageLike, as_image, is_list
from cellwright.config.recipe import PredictConfig, Recipe
from cellwright.core.errors import ModelError, UsageError, did_you_mean
from cellwright.core.events import plain
from cellwright.core.instances import Instances
from cellwright.core.notes import summarise
from cellwright.core.public import public
from cellwright.core.scores import shown_score
from cellwright.core.versions import versions
from cellwright.data.views import View, as_views

if TYPE_CHECKING:
    from cellwright.core.image import Image
    from cellwright.data.images.channels import ChannelChoice
    from cellwright.models.contract import Segmenter
    from cellwright.models.weights.model_folder import ModelInfo
    from cellwright.prediction.backends import Backend
    from cellwright.prediction.fusion import FusionOptions
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import FilteredPredictor, Predictor
    from cellwright.prediction.record import Prediction

# Models that have a name; a folder with such a name is given as ./name.
NAMED_MODELS = {
    "nuclei": "finds nuclei: nuclei-stained for stained sections and smears, nuclei-fluorescence for other images",
    "nuclei-fluorescence": "flow U-Net for nuclei in fluorescence and grey images",
    "nuclei-stained": "flow U-Net for nuclei in H&E and other stains, in colour",
    "nuclei@1": "the first version of nuclei, one network for all images",
    "classical": "threshold and watershed; needs no training; finds stained or bright objects such as nuclei",
}
DEFAULT_MODEL = "nuclei"
DEFAULT_CLASSES = ("cell",)
Views = str | Sequence[View]
ModelLike: TypeAlias = "Model | Segmenter | str | Path"


@public
@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model that is ready to predict; `load_model` returns one.

    name: as given to `load_model`. class_names: one per class id. recipe: resolved; None for a `Segmenter` of your own.
    predictor: predicts all objects. options: which of them are kept; `cellwright tune` sets those of a tuned model.
    tuned_on: what a tuned model was tuned on (``ModelInfo.tuned_on``), None for other models. diameter, views,
    pruned_to: as given to `with_options`, and the views of a tuned model. trained_on: digests of its training images,
    as far as known. own: the options before `with_options` changed them; None if it did not. members: names of the
    models of an ensemble.

    >>> import cellwright as cw, numpy as np
    >>> model = cw.load_model("classical")
    >>> model
    Model('classical', classical method, classes: nucleus, score 0.3)
    >>> image = np.zeros((40, 40), np.uint8)
    >>> image[5:15, 5:15] = image[20:32, 18:30] = 200
    >>> instances = model.predict(image)
    >>> len(instances), instances.masks.to_label_map().shape
    (2, (40, 40))
    """

    name: str
    class_names: tuple[str, ...]
    recipe: Recipe | None
    predictor: Predictor
    options: PredictOptions
    tuned_on: Mapping[str, Any] | None = None
    diameter: float | None = None
    views: str | None = None
    trained_on: tuple[str, ...] = ()
    own: PredictOptions | None = None
    members: tuple[str, ...] = ()
    pruned_to: int | None = None

    @overload
    def predict(
        self,
        images: ImageLike,
        diameter: float | None = None,
        views: Views | None = None,
        *,
        channel: ChannelChoice | None = None,
        score: float | None = None,
        min_area: int | None = None,
        max_objects: int | None = None,
        remove_border: bool | None = None,
    ) -> Instances: ...
    @overload
    def predict(
        self,
        images: Iterable[ImageLike],
        diameter: float | None = None,
        views: Views | None = None,
        *,
        channel: ChannelChoice | None = None,
        score: float | None = None,
        min_area: int | None = None,
        max_objects: int | None = None,
        remove_border: bool | None = None,
    ) -> list[Instances]: ...
    def predict(
        self,
        images,
        diameter=None,
        views=None,
        *,
        channel=None,
        score=None,
        min_area=None,
        max_objects=None,
        remove_border=None,
    ):
        """The objects of an image, best first, with ids 1..N and scores in [0, 1]; a list of images gives a list.

        For an image that is larger than memory see `predict_tiles`.

        Args:
            images: an `Image`, an array (H, W) or (H, W, C), a path, a PIL image or a torch tensor; or a list of them.
            diameter: median diameter of the objects, px of the image (that of a circle of the same area), for models
                that use one, such as ``nuclei``; None estimates it for each image.
            views: views of test-time augmentation, as text ("flips", "0.8,1,1.25:mirror") or `View` objects. None: no
                augmentation, or the views of a tuned model.
            channel: name or index of the channel to use ("DAPI|Hoechst" is the first that exists) if an image has
                several and is not RGB; None chooses only if there is no doubt.
            score: omit objects with a lower score, 0 to 1; None takes the model's own threshold.
            min_area: omit smaller objects, px of the image; None takes the model's own limit.
            max_objects: largest number of objects per image, best first; None keeps all.
            remove_border: omit objects that touch the border of the image, which may be cut off.

        Returns:
            `Instances` of the image's size, or a list of them; an image without objects gives `Instances` of length 0.
            A warning says what was assumed about an image: its channel, or the range of its values.

        Raises:
            InputError: the image cannot be read, or its channels do not fit the model.
            UsageError: an option is out of range or not supported by the model.

        Example:
            >>> import cellwright as cw, numpy as np
            >>> image = np.zeros((40, 40), np.uint8)
            >>> image[5:15, 5:15] = image[20:32, 18:30] = 200
            >>> model = cw.load_model("classical")
            >>> len(model.predict(image)), len(model.predict(image, max_objects=1))
            (2, 1)
            >>> [len(instances) for instances in model.predict([image, image[:, :20]])]
            [2, 1]
        """
        from cellwright.prediction.doubt import NOTHING

        model = self.with_options(
            diameter=diameter,
            views=views,
            score=score,
            min_area=min_area,
            max_objects=max_objects,
            remove_border=remove_border,
            no_candidates=True,
        )
        predictions = model.predictions(images, channel=channel)
        notes = [
            note
            for one in (predictions if isinstance(predictions, list) else [predictions])
            for note in one.notes
            if note.kind != NOTHING  # the result says that itself
        ]
        for line in summarise(notes):
            warnings.warn(line, stacklevel=2)
        if isinstance(predictions, list):
            return [prediction.instances for prediction in predictions]
        return predictions.instances

    @overload
    def predictions(self, images: ImageLike, *, channel: ChannelChoice | None = None) -> Prediction: ...
    @overload
    def predictions(self, images: Iterable[ImageLike], *, channel: ChannelChoice | None = None) -> list[Prediction]: ...
    def predictions(self, images, *, channel=None):
        """Like `predict`, but returns a `Prediction` per image: also the omitted objects and the diameter.

        Example:
            >>> import cellwright as cw, numpy as np
            >>> image = np.zeros((40, 40), np.uint8)
            >>> image[5:15, 5:15] = image[20:32, 18:30] = 200
            >>> cw.load_model("classical").with_options(min_area=120).predictions(image)
            Prediction(1 object in 40 x 40 px; omitted: 1 small)
        """
        predictor, several = self.filtered, is_list(images)
        # Wrong types are refused before the work starts; files are read in turn.
        images = [
            image if isinstance(image, str | Path) else as_image(image) for image in (images if several else [images])
        ]
        predictions = [_predict_one(predictor, as_image(image), channel) for image in images]
        return predictions if several else predictions[0]

    def with_options(  # noqa: PLR0913 - the options of the command
        self,
        *,
        diameter: float | None = None,
        views: Views | None = None,
        score: float | None = None,
        min_area: int | None = None,
        max_objects: int | None = None,
        remove_border: bool | None = None,
        smooth: bool | None = None,
        fill_holes: bool | None = None,
        expand: float | str | None = None,
        pruned_to: int | None = None,
        no_candidates: bool | None = None,
    ) -> Model:
        """The model with other options, for every prediction; None leaves an option as it is. See `predict`.

        smooth, fill_holes: smooth the outlines of objects, and fill their holes, before small ones are omitted; see
        `Instances.smooth` and `Instances.fill_holes`.
        expand: pixels, or text such as "5um": predictions also have ``cells``, the objects with the background within
        this distance (see `Instances.expand`), and `predict_folder` writes them.
        pruned_to: use only so many levels of a U-Net with nested skips, 1 to its depth: faster, less accurate.
        no_candidates: predictions have only the objects that reach the score threshold, and an R-CNN computes no
        other masks. Average precision needs the others too.

        Example:
            >>> import cellwright as cw, numpy as np
            >>> image = np.zeros((40, 40), np.uint8)
            >>> image[5:15, 5:15] = image[20:32, 18:30] = 200
            >>> prediction = cw.load_model("classical").with_options(expand=3).predictions(image)
            >>> prediction.cells.ids.tolist(), (prediction.cells.masks.areas > prediction.instances.masks.areas).all()
            ([1, 2], np.True_)
        """
        predictor = self.predictor if diameter is None else self.predictor.with_diameter(diameter)
        predictor = predictor if views is None else predictor.with_views(as_views(views))
        predictor = predictor if pruned_to is None else predictor.with_pruned_to(pruned_to)
        given = {"score_threshold": score, "min_area_px": min_area, "max_objects": max_objects}
        given |= {"remove_border": remove_border, "smooth": smooth, "fill_holes": fill_holes, "expand": expand}
        given |= {"candidates": None if no_candidates is None else not no_candidates}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(
            self,
            predictor=predictor,
            options=dataclasses.replace(self.options, **changes),
            own=self.own_options,
            diameter=self.diameter if diameter is None else diameter,
            views=self.views if views is None else views if isinstance(views, str) else repr(list(views)),
            pruned_to=self.pruned_to if pruned_to is None else pruned_to,
        )

    @property
    def own_options(self) -> PredictOptions:
        """Which objects are kept unless options are chosen."""
        return self.options if self.own is None else self.own

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are the expected IoU."""
        return self.filtered.is_calibrated

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of the models of an ensemble, or its own."""
        return self.members or (self.name,)

    @property
    def seen(self) -> dict[str, Any]:
        """What the model was trained and tuned on, as far as known, recorded with predictions for their evaluation."""
        return joined_seen([{"tuned_on": self.tuned_on, "trained_on": self.trained_on}])

    @property
    def filtered(self) -> FilteredPredictor:
        """The predictor with the model's options."""
        from cellwright.prediction.predictor import FilteredPredictor

        return FilteredPredictor(self.predictor, self.options)

    @staticmethod
    def from_segmenter(segmenter: Segmenter, class_names: Sequence[str] | None = None) -> Model:
        """A `Segmenter` of your own as a model.

        class_names: one per class id; None takes ``segmenter.class_names`` if it has them, otherwise "cell".
        """
        from cellwright.models.contract import Segmenter
        from cellwright.prediction.options import PredictOptions
        from cellwright.prediction.predictor import SegmenterPredictor

        if not isinstance(segmenter, Segmenter) or isinstance(segmenter, type):
            raise UsageError(
                "not a model",
                got=segmenter if isinstance(segmenter, type) else type(segmenter).__name__,
                expected="a Model, a name or folder of a model, or an object with predict(images) -> list[Instances]",
            )
        names = getattr(segmenter, "class_names", DEFAULT_CLASSES) if class_names is None else class_names
        name = type(segmenter).__qualname__
        return Model(name, tuple(names), None, SegmenterPredictor(segmenter), PredictOptions())

    def __repr__(self) -> str:
        kind = "a segmenter of your own" if self.recipe is None else _kind(self.recipe)
        shown = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        parts = [repr(self.name), kind, f"classes: {shown}"]
        score = self.options.score_threshold
        if not isinstance(score, tuple):
            parts.append(f"score {shown_score(score)}")
        parts += [] if self.diameter is None else [f"diameter={self.diameter:g}"]
        parts += [] if self.views is None else [f"views={self.views!r}"]
        parts += [] if self.pruned_to is None else [f"pruned_to={self.pruned_to}"]
        if self.tuned_on is not None:
            parts.append(f"tuned on split {self.tuned_on.get('split')} for {self.tuned_on.get('metric')}")
        return f"Model({', '.join(parts)})"


def _predict_one(predictor: FilteredPredictor, image: Image, channel: ChannelChoice | None) -> Prediction:
    """The prediction for one image, with all notes about it."""
    from cellwright.prediction.sources import seen_by

    seen = seen_by(predictor, image, channel)
    (prediction,) = predictor.predict([seen])
    return dataclasses.replace(prediction, notes=(*seen.notes, *prediction.notes))


def load_model(name: str | Path, *, device: str = "auto", backend: Backend = "auto") -> Model:
    """Load a model by name, from a model folder, or from a run (its best checkpoint).

    Nothing is downloaded, and nothing outside the model changes: `keep_freed_memory` makes prediction with large images
    on a CPU faster, but only if you call it.

    Args:
        name: ``nuclei``, ``classical``, a model folder, or a run folder.
        device: ``auto`` (CUDA, then mps, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        backend: what runs a network: ``openvino`` (on the CPU, U-Nets and the layers of Mask R-CNN),
            ``openvino-int8`` (U-Nets that are prepared for it, as the bundled ones are: about twice as fast, masks
            differ slightly), ``openvino-bf16`` (any of these on processors that have bf16: nearly twice as fast, masks
            differ slightly), ``torch``, or ``auto``: OpenVINO in float32 where it can.

    Returns:
        A `Model`, with the thresholds, calibration and views that `cellwright tune` found if it is a tuned model.

    Raises:
        ModelError: there is no such model, or its folder is damaged.
        UsageError: ``device`` or ``backend`` is not available on this machine, or does not support the network.

    Example:
        >>> import cellwright as cw
        >>> cw.load_model("classical").class_names
        ('nucleus',)
    """
    if str(name) == "classical":
        from cellwright.config.model_classical import ClassicalConfig

        # .3 was chosen on the same training images as the method's other defaults.
        return classical_model(
            Recipe(name="classical", model=ClassicalConfig(), predict=PredictConfig(score_threshold=0.3))
        )
    if str(name) not in NAMED_MODELS and not Path(name).exists():
        remedy = did_you_mean(str(name), NAMED_MODELS)
        raise ModelError("no such model", got=str(name), expected="a name, a model folder, or a run", remedy=remedy)
    from cellwright.models.weights.model_folder import CHOICES, recipe_of
    from cellwright.prediction.backends.load import load_predictor
    from cellwright.prediction.options import PredictOptions

    if str(name) in CHOICES:
        other, stained = (load_model(member, device=device, backend=backend) for member in CHOICES[str(name)])
        return _choice(str(name), other, stained)
    predictor, info = load_predictor(name, backend=backend, device=device)
    recipe = recipe_of(info)
    options = PredictOptions(recipe.predict.score_threshold, recipe.predict.min_area_px)
    model = Model(str(name), info.class_names, recipe, predictor, options)
    model = model.with_options(views=(info.tuned_on or {}).get("views"))
    options = _tuned_options(model.options, info, name)
    return dataclasses.replace(model, options=options, own=None, tuned_on=info.tuned_on, trained_on=info.trained_on)


def as_model(model: ModelLike, *, device: str = "auto") -> Model:
    """A `Model` as it is, a `Segmenter` as a model, or what `load_model` takes, loaded."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | Path):
        return load_model(model, device=device)
    return Model.from_segmenter(model)


def classical_model(recipe: Recipe) -> Model:
    """The classical method, which needs no training."""
    from cellwright.config.model_classical import ClassicalConfig
    from cellwright.models.classical import ClassicalSegmenter
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import SegmenterPredictor

    if not isinstance(recipe.model, ClassicalConfig):
        raise ModelError("not a recipe of the classical method", got=recipe.model.kind, expected="classical")
    predictor = SegmenterPredictor(ClassicalSegmenter(recipe.model))
    options = PredictOptions(recipe.predict.score_threshold, recipe.predict.min_area_px)
    return Model("classical", ("nucleus",), recipe, predictor, options)


def ensemble(members: Sequence[Model], options: FusionOptions) -> Model:
    """A model whose objects are the fused objects of its members; a single member is returned as it is.

    All objects of each member count, with calibrated scores if the member is tuned, down to its own minimum area. The
    score threshold is the weighted mean of the members' thresholds; the recipe is that of the first member.
    Raises `UsageError` for members with different classes, or if the numbers of weights and members differ.
    """
    from cellwright.prediction.fusion import mean_threshold
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import Ensemble

    weights = options.weights_of(len(members))
    first = members[0]
    for member in members[1:]:
        if member.class_names != first.class_names:
            raise UsageError(
                "models with different classes cannot be fused",
                got=f"{member.name}: {', '.join(member.class_names)}",
                expected=f"{', '.join(first.class_names)}, as {first.name}, in this order",
                remedy="predict with each model, then fuse the predictions: cellwright fuse",
            )
    if len(members) == 1:
        return first
    everything = {"score_threshold": 0.0, "max_objects": None, "expand": None, "candidates": True}
    complete = [dataclasses.replace(member.options, **everything) for member in members]
    predictors = [
        dataclasses.replace(m.filtered, options=o, says_doubts=False) for m, o in zip(members, complete, strict=True)
    ]
    seen = joined_seen([member.seen for member in members])
    return Model(
        name=" + ".join(member.name for member in members),
        class_names=first.class_names,
        recipe=first.recipe,
        predictor=Ensemble(tuple(predictors), options),
        options=PredictOptions(mean_threshold([member.options.score_threshold for member in members], weights)),
        tuned_on=seen.get("tuned_on"),
        views=seen.get("tuned_on", {}).get("views"),
        trained_on=tuple(seen.get("trained_on", ())),
        members=tuple(member.name for member in members),
    )


def _choice(name: str, other: Model, stained: Model) -> Model:
    """The model that predicts stained images with the second, other images with the first."""
    from cellwright.prediction.options import PredictOptions
    from cellwright.prediction.predictor import Choice

    members = (other, stained)
    options = tuple(PredictOptions(calibration=member.options.calibration) for member in members)
    return dataclasses.replace(
        other,
        name=name,
        predictor=Choice(other.predictor, stained.predictor, (other.name, stained.name), (options[0], options[1])),
        options=dataclasses.replace(other.options, calibration=None),
        tuned_on=_joined_tuning([member.tuned_on for member in members]),
        trained_on=tuple(sorted({*other.trained_on, *stained.trained_on})),
    )


def made_by(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """What reports say about how a prediction was made: models, the chosen options by their names, and versions.

    options: of the command; those of the model are added, unless they are its own.
    """
    from cellwright.prediction.backends.load import backend_of
    from cellwright.prediction.predictor import Ensemble

    now, own = model.options.as_values(), model.own_options.as_values()
    names = ("score", "min_area", "max_objects", "remove_border", "smooth", "fill_holes", "expand")
    chosen = {name: now.get(name) for name in names if now.get(name) != own.get(name)}
    views = None if model.views == (model.tuned_on or {}).get("views") else model.views
    chosen |= {"diameter": model.diameter, "views": views, "pruned_to": model.pruned_to}
    if isinstance(model.predictor, Ensemble):
        fusion = model.predictor.options
        chosen |= {"fuse": fusion.method, "weights": fusion.weights}
    shown = {name: _single(value) for name, value in {**chosen, **options}.items()}
    names = [Path(name).name or name for name in model.member_names]
    known = {name: value for name, value in shown.items() if value not in (None, False, [])}
    backend = backend_of(model.predictor)
    ran = {} if backend is None else {"backend": backend}
    return {"verb": "predict", "model": names, "options": plain(known), **ran, "versions": versions()}


def _single(value: Any) -> Any:
    """A value that is the same for all classes, once."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0] if len(values) > 0 and all(one == values[0] for one in values) else values


def joined_seen(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the members of an ensemble were trained and tuned on, so that evaluation can warn; what is known of it."""
    tuned = _joined_tuning([member.get("tuned_on") for member in members])
    recorded = [member.get("trained_on") for member in members]
    trained = sorted({str(digest) for digests in recorded if isinstance(digests, list | tuple) for digest in digests})
    return ({} if tuned is None else {"tuned_on": tuned}) | ({"trained_on": trained} if trained else {})


def _joined_tuning(members: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    tuned = [member for member in members if member]
    if not tuned:
        return None
    views = {"views": ", ".join(dict.fromkeys(str(member.get("views", "none")) for member in tuned))}
    return (views if any("views" in member for member in tuned) else {}) | {
        "split": ", ".join(dict.fromkeys(str(member.get("split")) for member in tuned)),
        "metric": ", ".join(dict.fromkeys(str(member.get("metric")) for member in tuned)),
        "images": sorted({digest for member in tuned for digest in member.get("images", ())}),
    }


def options_of(info: ModelInfo, where: object) -> PredictOptions:
    """Which objects a model keeps by default: as it was tuned, or else as its recipe says. where: for messages."""
    from cellwright.models.weights.model_folder import recipe_of
    from cellwright.prediction.options import PredictOptions

    predict = recipe_of(info, where=where).predict
    return _tuned_options(PredictOptions(predict.score_threshold, predict.min_area_px), info, where)


def _tuned_options(plain: PredictOptions, info: ModelInfo, where: object) -> PredictOptions:
    """The recipe's options with the thresholds and the calibration of ``model.json``, if it has them."""
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
        # Thresholds apply to the scores that are shown.
        shown = scores if calibration is None else calibration(scores)
        return dataclasses.replace(
            plain,
            score_threshold=tuple(shown.tolist()),
            min_area_px=tuple(int(area) for area in areas),  # type: ignore[arg-type] - a recipe has one number
            calibration=calibration,
        )
    except (KeyError, TypeError, UsageError) as error:
        remedy = "tune the model again: cellwright tune"
        raise ModelError(
            "the tuning in this model folder is damaged", where=where, got=str(error), remedy=remedy
        ) from error


def _kind(recipe: Recipe) -> str:
    """``"unet (flow), objects resized to 24 px"`` and the like."""
    model = recipe.model
    if model.kind == "classical":
        return "classical method"
    target = getattr(model, "target", None)
    text = model.kind if target is None else f"{model.kind} ({target.kind})"
    return text + ("" if recipe.input.diameter_px is None else f", objects resized to {recipe.input.diameter_px:g} px")


def identity_of(members: Sequence[Model]) -> str:
    """Identifies the weights of one or several models."""
    return " ".join(map(_identity, members))


def _identity(model: Model) -> str:
    """Identifies the numbers of a model: the hash of its weights, and of how they are rounded; or a name if there are
    none."""
    import hashlib

    from cellwright.models.weights.model_folder import CHOICES, WEIGHTS, model_folder, read_model_info
    from cellwright.prediction.backends.load import backend_of
    from cellwright.prediction.predictor import SegmenterPredictor

    if isinstance(model.predictor, SegmenterPredictor):
        segmenter = type(model.predictor.segmenter)
        return model.name if model.recipe is not None else f"{segmenter.__module__}.{segmenter.__qualname__}"
    folders = map(model_folder, CHOICES.get(model.name, (model.name,)))
    numbers = b"".join((folder / WEIGHTS).read_bytes() for folder in folders)
    match backend_of(model.predictor):
        case "openvino-int8":
            names = CHOICES.get(model.name, (model.name,))
            numbers += repr([read_model_info(name).int8_ranges for name in names]).encode()
        case "openvino-bf16" as rounded:
            numbers += rounded.encode()
    return hashlib.sha256(numbers).hexdigest()
