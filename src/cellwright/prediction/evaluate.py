"""Evaluate a predictor on a dataset, and find out what happened to the objects it missed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.core.candidates import DROPPED_BY, no_candidates, with_steps
from cellwright.core.dataset import Dataset, Loaded
from cellwright.core.instances import Instances
from cellwright.core.progress import Track, no_progress
from cellwright.core.scores import reaches_threshold
from cellwright.data.images.reading import Reading
from cellwright.evaluation.evaluate import evaluate_images
from cellwright.evaluation.lost_recall import unmatched
from cellwright.evaluation.matching import PairOptions, pair_image
from cellwright.evaluation.pairing import LazyInstances, PairedImages, pair_datasets
from cellwright.evaluation.report import Report
from cellwright.prediction.record import Prediction
from cellwright.prediction.sources import Source, read_and_choose, seen_by, sources_of_dataset

if TYPE_CHECKING:
    from cellwright.prediction.predictor import FilteredPredictor


def evaluate_dataset(
    predictor: FilteredPredictor,
    dataset: Dataset,
    class_names: Sequence[str],
    *,
    metrics: Iterable[str] | None = None,
    reading: Reading | None = None,
    track: Track = no_progress,
) -> Report:
    """Predict on the images of a dataset and evaluate the predictions against its annotations.

    class_names: of the predictor. metrics: see `evaluate_pairs`. Predictions below the predictor's score threshold are
    used for AP and ranking only. reading: see `predict_images`. Raises `InputError` if an image cannot be used.
    """
    predicted = predict_dataset(predictor, dataset, class_names, reading=reading, track=track)
    return evaluate_images(pair_datasets("predictions", predicted, dataset), metrics, track=track)


def predict_dataset(
    predictor: FilteredPredictor,
    dataset: Dataset,
    class_names: Sequence[str],
    *,
    seen: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
    track: Track = no_progress,
) -> Dataset:
    """The predictions for the images of a dataset, in memory, as a dataset.

    Predictions below the predictor's score threshold are included, since average precision uses them; the threshold is
    recorded in ``info``. seen: what the predictor was trained and tuned on, for ``info``. reading: see
    `predict_images`. What was assumed about the images is in the ``notes``.
    """
    options = dataclasses.replace(predictor.options, score_threshold=0.0)
    predictions = predict_images(dataclasses.replace(predictor, options=options), dataset, track, reading=reading)
    samples = [
        dataclasses.replace(sample, load=Loaded(prediction.instances))
        for sample, prediction in zip(dataset, predictions, strict=True)
    ]
    notes = tuple(note for prediction in predictions for note in prediction.notes)
    info = {"score_threshold": predictor.options.score_threshold} | dict(seen or {})
    return Dataset(tuple(samples), tuple(class_names), None, info=info, notes=notes)


def predict_images(
    predictor: FilteredPredictor, dataset: Dataset, track: Track = no_progress, *, reading: Reading | None = None
) -> list[Prediction]:
    """The prediction for every image of a dataset, in order, with all notes about the image.

    reading: which part of each image is used; None: as the dataset records it.
    """
    reading = Reading.recorded(dataset.info) if reading is None else reading
    return [
        _predict(predictor, source, reading)
        for source in track(sources_of_dataset(dataset), "predicting", len(dataset))
    ]


def _predict(predictor: FilteredPredictor, source: Source, reading: Reading) -> Prediction:
    if source.error is not None:
        raise source.error
    _, seen = read_and_choose(source, predictor, reading)
    (prediction,) = predictor.predict([seen])
    notes = [dataclasses.replace(note, where=source.id) for note in (*seen.notes, *prediction.notes)]
    return dataclasses.replace(prediction, notes=tuple(notes))


def candidates_of(
    images: PairedImages, predictor: FilteredPredictor | None = None, reading: Reading | None = None
) -> Sequence[Instances]:
    """The candidates of every image with the step that removed them, computed on indexing.

    They come from the network of ``predictor`` if it can explain its predictions and runs without test-time
    augmentation. Only images with unmatched objects are processed, and only candidates that overlap one of these are
    returned, since no others can explain the loss. Otherwise the candidates are the predictions themselves, including
    those below their score threshold. reading: which part of each image the predictor saw; None: all of it.
    """
    if predictor is None or not predictor.explains:
        load = partial(_predicted_candidates, images)
    else:
        load = partial(_network_candidates, images, predictor, reading or Reading())
    samples = [dataclasses.replace(sample, load=partial(load, k)) for k, sample in enumerate(images.predicted)]
    return LazyInstances(samples)


def _predicted_candidates(images: PairedImages, index: int) -> Instances:
    """All predictions of an image: kept, or removed by the score threshold."""
    predicted = images.predicted[index].read_instances()
    kept = reaches_threshold(predicted.scores, predicted.class_ids, images.score_threshold)
    return with_steps(predicted, np.where(kept, "kept", "threshold"))


def _network_candidates(images: PairedImages, predictor: FilteredPredictor, reading: Reading, index: int) -> Instances:
    """The candidates of the network that overlap an unmatched object of an image."""
    sample = images.truth[index]
    truth, predicted = sample.read_instances(), images.predicted[index].read_instances()
    pairs = pair_image(truth, predicted, sample.id, PairOptions()).above(images.score_threshold)
    lost = truth[unmatched(pairs)]
    if not len(lost):
        return no_candidates(truth.image_hw)
    assert sample.image_path is not None, "it was predicted on"
    image = seen_by(predictor, reading.of(sample).read(sample.image_path), reading.channel)
    return _with_options(predictor.explain(image, lost.masks.boxes), predictor)


def _with_options(candidates: Instances, predictor: FilteredPredictor) -> Instances:
    """The candidates with the steps at which the predictor's options remove them.

    A score or an area below its threshold takes precedence: suppression and cap go by score within a class, so they
    treat the candidates above the threshold as if the others did not exist.
    """
    options = predictor.options
    numbered = dataclasses.replace(candidates, ids=np.arange(1, len(candidates) + 1))
    calibrated = options.calibrated(numbered)
    kept = options.good(calibrated) & options.large(calibrated)
    return with_steps(calibrated, np.where(kept, calibrated.columns[DROPPED_BY], "threshold"))
