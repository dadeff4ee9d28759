"""``model export``: its plan, and what its targets share."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cellwright import __version__
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.api.shared_options import Channel
from cellwright.config.conventions import CONVENTIONS
from cellwright.core.errors import UsageError
from cellwright.core.table import Table

if TYPE_CHECKING:
    from cellwright.models.contract import Network
    from cellwright.models.weights.model_folder import ModelInfo

SCHEMA_VERSION = 2
MANIFEST = "export.json"


@Parameter(name="*")
@dataclass(frozen=True)
class ExportModelPlan:
    """Export a model for other programs (ONNX, OpenVINO, BioImage.IO), in half precision, or for int8."""

    model: Path
    """nuclei, a model folder, or a run."""
    _: KW_ONLY
    to: str
    """onnx: the parts of the network, each compared with PyTorch; needs pip install "cellwright[onnx]".
    openvino: a U-Net for OpenVINO. bioimageio: a package with a U-Net for BioImage.IO; needs the same as onnx.
    half: a model folder with weights in float16.
    int8: the model folder, prepared for prediction with the backend openvino-int8: U-Nets, about twice as fast."""
    data: Path | None = None
    """int8: a dataset or a folder of images like those of the training; the network is observed on up to 24 of them."""
    split: str | None = None
    """int8: split of that dataset (default: train, where there is one)."""
    channel: Channel = ()
    pruned_to: int | None = None
    """Keep only so many levels of a U-Net with nested skips (model.skips), 1 to its depth: smaller, faster, less
    accurate. What tune found is left out."""
    author: tuple[str, ...] = ()
    """bioimageio: names, as "NAME (INSTITUTE)"; by default as lines "- author: NAME" of the model card say."""
    licence: str | None = None
    """bioimageio: that of the weights, as SPDX names it, such as CC-BY-4.0; by default as the line "- licence of the
    weights: NAME" of the model card says."""
    out: Path = Path("work/exported_model")
    """Folder to write; for bioimageio also a .zip. Of a network for another runtime it contains one file per part,
    export.json, which says how to run them, and for U-Nets decode.py, which does so without cellwright."""
    overwrite: bool = False
    """Replace an existing export."""


@dataclass(frozen=True, eq=False)
class Exported:
    """An exported model.

    folder: where it is. manifest: the content of its ``export.json`` or ``model.json``. table: what was written.
    text: a line about it.
    """

    folder: Path
    manifest: dict[str, Any]
    table: Table
    text: str


def network_of(plan: ExportModelPlan) -> tuple[Network, ModelInfo]:
    """The network in PyTorch, pruned if that is asked for, and its ``model.json``."""
    from cellwright.models.weights.torch_io import load_network

    network, info = load_network(plan.model)
    return (network, info) if plan.pruned_to is None else pruned(network, info, plan.pruned_to)


def pruned(network: Any, info: ModelInfo, depth: int) -> tuple[Any, ModelInfo]:
    """A network that is pruned to a depth, and its ``model.json`` without what holds for the whole network."""
    from cellwright.models.contract import Prunes
    from cellwright.prediction.predictor import refuse_pruning

    if not isinstance(network, Prunes):
        refuse_pruning(type(network).__name__)
    text = f"{info.recipe.get('description', '')} Pruned to depth {depth}.".strip()
    recipe = {**info.recipe, "description": text, "model": {**info.recipe["model"], "depth": depth}}
    whole = {"thresholds": {}, "calibration": None, "tuned_on": None, "metrics": {}, "int8_ranges": None}
    return network.pruned(depth), dataclasses.replace(info, recipe=recipe, **whole)


def model_output(plan: ExportModelPlan) -> FolderOutput:
    """The model folder to write. Raises `UsageError` if it is the model itself."""
    from cellwright.models.weights.model_folder import MODEL_FILES, model_folder

    if plan.out.resolve() == model_folder(plan.model).resolve():
        remedy = "choose another `out`"
        raise UsageError("the output folder is the model itself", where=plan.out, remedy=remedy)
    weights, info, card = MODEL_FILES
    return output_of(plan, info, weights, card)


def output_of(plan: ExportModelPlan, marker: str, *names: str) -> FolderOutput:
    """The folder to write; marker, names: see `earlier_output`."""
    earlier = earlier_output("model export", marker, *names)
    return FolderOutput(plan.out, "model export", inputs=(plan.model,), overwrite=plan.overwrite, earlier=earlier)


def head_of(network: Any, info: ModelInfo) -> dict[str, Any]:
    """The entries of ``export.json`` for every family: how to prepare images, and which objects are kept."""
    from cellwright.models.export.program import TOLERANCE
    from cellwright.models.weights.model_folder import recipe_of

    recipe = recipe_of(info)
    return {
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "kind": info.kind,
        "class_names": list(info.class_names),
        "data_licence": info.data_licence,
        "input": {
            **recipe.input.model_dump(mode="json"),
            "resize_rule": CONVENTIONS[recipe.conventions].resize_rule,
            "pad_to_multiple_of": network.stride,
            "layout": "float32 (batch, channel, y, x), zero-padded right and bottom after normalising",
        },
        "result": {
            "score_threshold": recipe.predict.score_threshold,
            "min_area_px": recipe.predict.min_area_px,
            "thresholds": info.thresholds,
            "calibration": info.calibration,
        },
        "tolerance": TOLERANCE,
    }
