"""``model export --to int8``: a model with the ranges of the numbers in its network, observed on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cellwright.api.export_parts import Exported, ExportModelPlan, model_output
from cellwright.api.models import load_model
from cellwright.api.predict import find_sources
from cellwright.api.read import is_dataset, read_dataset
from cellwright.core.errors import InputError, UsageError
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count
from cellwright.data.images.channels import ChannelChoice
from cellwright.data.images.reading import Reading
from cellwright.models.dense.openvino_network import ObservedNetwork
from cellwright.models.weights.model_folder import INFO, copy_model, model_folder, read_model_info, recipe_of
from cellwright.prediction.backends.load import chosen_backend, openvino_unet
from cellwright.prediction.network import NetworkPredictor
from cellwright.prediction.sources import Source, read_and_choose
from cellwright.prediction.summaries import evenly_chosen

N_IMAGES = 24


def run(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    """Export the model, see `export_model.run`."""
    if plan.data is None:
        remedy = "name the training data, or a folder of images like them, with `data`"
        raise UsageError("int8 needs images on which the network is observed", got="no `data`", remedy=remedy)
    if plan.pruned_to is not None:
        remedy = 'prune it first, with `to="half"`'
        raise UsageError("`pruned_to` is not for int8", got=f"`pruned_to={plan.pruned_to}`", remedy=remedy)
    output, info = model_output(plan), read_model_info(plan.model)
    sources, reading = images_to_observe(plan.data, plan.split, plan.channel)
    if not output.exists:
        screen.note(f"will write {plan.out}/: the model for int8, observed on {count(len(sources), 'image')}")
    if dry_run:
        return None
    with output.write() as folder:
        info = dataclasses.replace(info, int8_ranges=observed_ranges(plan.model, sources, reading, screen))
        copy_model(plan.model, folder, info)
    if output.is_complete:
        screen.note(output.text)
    rows = [(name, f"{low:.3g}", f"{high:.3g}") for name, (low, high) in (info.int8_ranges or {}).items()]
    table = Table(f"input of each layer, {count(len(sources), 'image')}", ("layer", "least", "greatest"), rows)
    text = f'model: {plan.out}; predict with `backend="openvino-int8"`'
    return Exported(plan.out, dataclasses.asdict(info), table, text)


def images_to_observe(
    data: Path, split: str | None = None, channel: ChannelChoice | None = None
) -> tuple[list[Source], Reading]:
    """Up to ``N_IMAGES`` images of a folder or of a dataset, evenly chosen, and which part of each is used.

    split: of a dataset; None: train where there is that split, else all. Raises `InputError` without images.
    """
    if split is None and is_dataset(data) and "train" in {sample.split for sample in read_dataset(data)}:
        split = "train"
    sources, recorded = find_sources([data], split)
    chosen = [sources[k] for k in evenly_chosen(len(sources), N_IMAGES)]
    return chosen, Reading(() if channel is None else channel).over(recorded)


def observed_ranges(
    model: Path | str, sources: Sequence[Source], reading: Reading, screen: ProgressReporter = SILENT
) -> dict[str, tuple[float, float]]:
    """The least and greatest number that each convolution of a U-Net gets while it predicts images.

    Raises `UsageError` for another network, `InputError` if all images are blank, and the error of an image that cannot
    be read.
    """
    info = read_model_info(model)
    recipe = recipe_of(info, where=model_folder(model) / INFO)
    chosen_backend(recipe, "openvino-int8", "cpu")
    network = openvino_unet(model, recipe, info, make=ObservedNetwork)
    given = load_model(model, backend="openvino", device="cpu").predictor
    assert isinstance(network, ObservedNetwork)
    assert isinstance(given, NetworkPredictor)
    predictor = dataclasses.replace(given, network=network)
    for source in screen.track(sources, "observe", len(sources)):
        if source.error is not None:
            raise source.error
        predictor.predict([read_and_choose(source, predictor, reading)[1]])
    low, high = next(iter(network.observed.values()), (0.0, 0.0))  # what the network sees of the images
    if low == high:
        remedy = "name images like those of the training, in which there are objects"
        raise InputError("nothing could be observed: the images are blank, or there are none", remedy=remedy)
    return network.observed
