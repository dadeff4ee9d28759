"""Predictors: images in, one `Prediction` per image out; networks, ensembles and `Segmenter` objects share one
protocol.

NetworkPredictor    a trained network with the input of its recipe (`prediction/network.py`)
SegmenterPredictor  any other method, such as the classical one or a model of the user's own
Ensemble            several predictors whose objects are fused
Choice              two predictors, of which the colours of an image choose one
FilteredPredictor   one of these with the options that decide which of its objects are kept
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, Protocol

import numpy as np

from cellwright.core.errors import UsageError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.data.images.channels import is_stained
from cellwright.data.views import View
from cellwright.models.contract import Segmenter, SparesMasks
from cellwright.prediction.doubt import doubts, nothing_found
from cellwright.prediction.fusion import FusionOptions, fuse
from cellwright.prediction.options import PredictOptions, select
from cellwright.prediction.record import Prediction


class Predictor(Protocol):
    """What every predictor offers. Predictors are immutable: ``with_...`` returns another one."""

    @property
    def uses_diameter(self) -> bool:
        """Whether images are resized by the diameter of their objects."""
        ...

    @property
    def explains(self) -> bool:
        """Whether `explain` is supported."""
        ...

    @property
    def n_channels(self) -> int | None:
        """Channels of the input, see `choose_channels`; None if all channels of an image are passed on."""
        ...

    @property
    def trained_channels(self) -> tuple[str, ...]:
        """Names of the channels that it was trained on, see `choose_channels`; () if they are not known."""
        ...

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """One prediction per image, objects best first; an empty list for no images.

        Raises `InputError` for an image that cannot be used, such as one whose channels do not fit.
        """
        ...

    def with_diameter(self, px: float) -> Predictor:
        """This predictor for images whose objects have the median diameter ``px``, pixels of the image.

        Raises `UsageError` for an invalid diameter, and if no diameter is used.
        """
        ...

    def with_views(self, views: tuple[View, ...]) -> Predictor:
        """This predictor with test-time augmentation: each image is predicted in all views, and the results are merged.

        Raises `UsageError` if views are not supported, and for short sides if a diameter determines the size.
        """
        ...

    def with_pruned_to(self, depth: int) -> Predictor:
        """This predictor with the part of its network that remains when it is pruned to ``depth``.

        Raises `UsageError` if a network cannot be pruned, or not to this depth.
        """
        ...

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """What happened to the candidates that overlap boxes (N, 4): see ``Explains.candidates``.

        Raises `UsageError` if not supported.
        """
        ...


@dataclass(frozen=True, eq=False)
class SegmenterPredictor:
    """Makes a predictor of any `Segmenter`. It uses no diameter and no views."""

    segmenter: Segmenter

    uses_diameter = False
    explains = False

    @property
    def n_channels(self) -> int | None:
        """``segmenter.n_channels`` if it has that; otherwise the segmenter gets all channels."""
        return getattr(self.segmenter, "n_channels", None)

    @property
    def trained_channels(self) -> tuple[str, ...]:
        """``segmenter.trained_channels`` if it has that."""
        return tuple(getattr(self.segmenter, "trained_channels", ()))

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """See `Predictor`. Raises `UsageError` where the segmenter does not return what its protocol says."""
        results = self.segmenter.predict(images)
        if len(results) != len(images):
            self._refuse(f"{len(results)} results for {len(images)} images")
        for image, instances in zip(images, results, strict=True):
            if not isinstance(instances, Instances):
                self._refuse(f"{type(instances).__name__} instead of Instances")
            if instances.image_hw != image.image_hw:
                self._refuse(f"Instances of size {instances.image_hw} for an image of size {image.image_hw}")
            if instances.scores is None:
                self._refuse("Instances without scores")
        return [Prediction.of(instances) for instances in results]

    def with_diameter(self, px: float) -> SegmenterPredictor:
        """Raises `UsageError`."""
        refuse_diameter(px)

    def with_views(self, views: tuple[View, ...]) -> SegmenterPredictor:
        """Raises `UsageError`."""
        raise UsageError(
            "only networks support test-time augmentation",
            got=f"`views` for {type(self.segmenter).__name__}",
            remedy="omit `views`",
        )

    def with_pruned_to(self, depth: int) -> SegmenterPredictor:
        """Raises `UsageError`."""
        refuse_pruning(type(self.segmenter).__name__)

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """Raises `UsageError`."""
        raise UsageError("only networks have candidates", got=type(self.segmenter).__name__, expected="a network")

    def _refuse(self, got: str) -> NoReturn:
        raise UsageError(
            "the segmenter returned an invalid result",
            where=f"{type(self.segmenter).__name__}.predict",
            got=got,
            expected="one Instances per image, at the size of the image, with scores",
        )


@dataclass(frozen=True, eq=False)
class FilteredPredictor:
    """A predictor with the options that decide which of its objects are kept.

    says_doubts: whether predictions say which images to doubt: by calibrated scores, and those without objects.
    """

    predictor: Predictor
    options: PredictOptions = field(default_factory=PredictOptions)
    says_doubts: bool = True

    @property
    def is_calibrated(self) -> bool:
        """Whether scores are the expected IoU."""
        options = self.predictor.options if isinstance(self.predictor, Choice) else (self.options,)
        return all(one.calibration is not None for one in options)

    @property
    def uses_diameter(self) -> bool:
        """See `Predictor`."""
        return self.predictor.uses_diameter

    @property
    def explains(self) -> bool:
        """See `Predictor`."""
        return self.predictor.explains

    @property
    def n_channels(self) -> int | None:
        """See `Predictor`."""
        return self.predictor.n_channels

    @property
    def trained_channels(self) -> tuple[str, ...]:
        """See `Predictor`."""
        return self.predictor.trained_channels

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """See `Predictor`: ids 1..N, with the numbers of omitted objects."""
        predictor = self.predictor
        if not self.options.candidates and isinstance(predictor, SparesMasks):
            predictor = predictor.with_masks_of(self.options.reaches)
        predictions = predictor.predict(images)
        return [self._selected(image, prediction) for image, prediction in zip(images, predictions, strict=True)]

    def _selected(self, image: Image, prediction: Prediction) -> Prediction:
        """The objects that are kept, and a note if there is a reason to doubt them."""
        selected = select(prediction, self.options, image.pixel_size_um, image.path)
        scores = selected.instances.scores
        if not self.says_doubts:
            return selected
        doubt = doubts(scores) if self.is_calibrated and scores is not None else ()
        if not len(selected.instances) and not (selected.diameter is not None and selected.diameter.is_noise):
            omitted = selected.n_low_score, selected.n_small, selected.n_border
            doubt = (nothing_found(*omitted, uses_diameter=self.uses_diameter),)
        return replace(selected, notes=(*selected.notes, *doubt))

    def with_diameter(self, px: float) -> FilteredPredictor:
        """See `Predictor`."""
        return replace(self, predictor=self.predictor.with_diameter(px))

    def with_views(self, views: tuple[View, ...]) -> FilteredPredictor:
        """See `Predictor`."""
        return replace(self, predictor=self.predictor.with_views(views))

    def with_pruned_to(self, depth: int) -> FilteredPredictor:
        """See `Predictor`."""
        return replace(self, predictor=self.predictor.with_pruned_to(depth))

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """See `Predictor`; the options are not applied."""
        return self.predictor.explain(image, near_xyxy)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several predictors with the same classes, whose objects are fused.

    members: at least one. They should return all their objects, with calibrated scores if they are of different
    families.
    options: ``options.weights`` has one weight per member. Raises `UsageError` otherwise.
    """

    members: tuple[Predictor, ...]
    options: FusionOptions

    explains = False

    def __post_init__(self) -> None:
        self.options.weights_of(len(self.members))

    @property
    def uses_diameter(self) -> bool:
        """Whether any member uses a diameter."""
        return any(member.uses_diameter for member in self.members)

    @property
    def n_channels(self) -> int | None:
        """See `Predictor`: that of the first member."""
        return self.members[0].n_channels

    @property
    def trained_channels(self) -> tuple[str, ...]:
        """See `Predictor`: those of the first member."""
        return self.members[0].trained_channels

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """See `Predictor`: the diameter is that of the first member that uses one; views are those of all members."""
        of_members = [member.predict(images) for member in self.members]
        return [self._fused(of_image) for of_image in zip(*of_members, strict=True)]

    def with_diameter(self, px: float) -> Ensemble:
        """See `Predictor`: for the members that use a diameter."""
        if not self.uses_diameter:
            refuse_diameter(px)
        members = (member.with_diameter(px) if member.uses_diameter else member for member in self.members)
        return replace(self, members=tuple(members))

    def with_views(self, views: tuple[View, ...]) -> Ensemble:
        """See `Predictor`: for all members."""
        return replace(self, members=tuple(member.with_views(views) for member in self.members))

    def with_pruned_to(self, depth: int) -> Ensemble:
        """See `Predictor`: for all members."""
        return replace(self, members=tuple(member.with_pruned_to(depth) for member in self.members))

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """Raises `UsageError`."""
        raise UsageError("only a single network reports its candidates", got="an ensemble", expected="one network")

    def _fused(self, of_members: Sequence[Prediction]) -> Prediction:
        diameters = [prediction.diameter for prediction in of_members if prediction.diameter is not None]
        return Prediction.of(
            fuse([prediction.instances for prediction in of_members], self.options),
            diameter=diameters[0] if diameters else None,
            views=tuple(dict.fromkeys(view for prediction in of_members for view in prediction.views)),
            notes=tuple(dict.fromkeys(note for prediction in of_members for note in prediction.notes)),
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """Two networks of which each image gets one: ``stained`` for stained cells and tissue in transmitted light, as
    `is_stained` tells, ``other`` for all other images.

    names: of the two, as recorded in ``Prediction.network``. options: of the two; their calibrations make the scores
    comparable, and nothing is omitted.
    """

    other: Predictor
    stained: Predictor
    names: tuple[str, str]
    options: tuple[PredictOptions, PredictOptions]

    explains = False

    @property
    def members(self) -> tuple[Predictor, Predictor]:
        """Both, ``other`` first."""
        return self.other, self.stained

    @property
    def uses_diameter(self) -> bool:
        """See `Predictor`."""
        return all(member.uses_diameter for member in self.members)

    @property
    def n_channels(self) -> int | None:
        """See `Predictor`."""
        return self.other.n_channels

    @property
    def trained_channels(self) -> tuple[str, ...]:
        """See `Predictor`."""
        return self.other.trained_channels

    def predict(self, images: Sequence[Image]) -> list[Prediction]:
        """See `Predictor`: scores are calibrated."""
        chosen = [int(is_stained(image)) for image in images]
        found = []
        for image, k in zip(images, chosen, strict=True):
            (prediction,) = self.members[k].predict([image])
            found.append(replace(self.calibrated(prediction, k), network=self.names[k]))
        return found

    def calibrated(self, prediction: Prediction, k: int) -> Prediction:
        """All objects of the network ``k``, with calibrated scores."""
        calibrated = self.options[k].calibrated(prediction.candidates)
        return replace(prediction, instances=calibrated, candidates=calibrated)

    def with_diameter(self, px: float) -> Choice:
        """See `Predictor`."""
        return replace(self, other=self.other.with_diameter(px), stained=self.stained.with_diameter(px))

    def with_pruned_to(self, depth: int) -> Choice:
        """See `Predictor`."""
        return replace(self, other=self.other.with_pruned_to(depth), stained=self.stained.with_pruned_to(depth))

    def with_views(self, views: tuple[View, ...]) -> Choice:
        """See `Predictor`."""
        return replace(self, other=self.other.with_views(views), stained=self.stained.with_views(views))

    def explain(self, image: Image, near_xyxy: np.ndarray) -> Instances:
        """Raises `UsageError`."""
        expected = " or ".join(self.names)
        raise UsageError("only a single network reports its candidates", got="two networks", expected=expected)


def refuse_diameter(px: float) -> NoReturn:
    """Raise the error for a predictor that uses no diameter."""
    raise UsageError(
        "this model does not use a diameter: it predicts every image at one scale",
        got=f"`diameter={px:g}`",
        expected="a model whose recipe sets input.diameter_px, such as nuclei",
        remedy="omit `diameter`",
    )


def refuse_pruning(got: str) -> NoReturn:
    """Raise the error for a method that cannot be pruned."""
    expected = "a U-Net that was trained with model.skips: nested and model.deep_supervision: true"
    raise UsageError("this model cannot be pruned", got=got, expected=expected, remedy="omit `pruned_to`")
