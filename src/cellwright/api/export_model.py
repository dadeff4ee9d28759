"""``model export``: a model for another runtime, or with weights in half precision."""

from __future__ import annotations

import dataclasses
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from cellwright import __version__
from cellwright.api.outputs import FolderOutput, earlier_output
from cellwright.config.conventions import CONVENTIONS
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.files import write_json
from cellwright.core.needs_torch import require_torch
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count

if TYPE_CHECKING:
    from cellwright.models.contract import Network
    from cellwright.models.weights.model_folder import ModelInfo

SCHEMA_VERSION = 1
MANIFEST = "export.json"
TARGETS = ("onnx", "half")


@Parameter(name="*")
@dataclass(frozen=True)
class ExportModelPlan:
    """Export a model to ONNX or to half precision."""

    model: Path
    """nuclei, a model folder, or a run."""
    _: KW_ONLY
    to: str
    """onnx: the parts of the network, each compared with PyTorch; needs pip install "cellwright[onnx]".
    half: a model folder with weights in float16."""
    pruned_to: int | None = None
    """Keep only so many levels of a U-Net with nested skips (model.skips), 1 to its depth: smaller, faster, less
    accurate. What tune found is left out."""
    out: Path = Path("work/exported_model")
    """Folder to write. For onnx it contains one file per part, and export.json, which says how to run them."""
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


def run(plan: ExportModelPlan, screen: ProgressReporter = SILENT, *, dry_run: bool = False) -> Exported | None:
    """Export the model; the folder is complete or absent. Returns None after a dry run.

    Raises `UsageError` for an unknown target, a model without a network, or if the extra ``onnx`` is not installed,
    `ModelError` if the target cannot represent the network or gives different numbers, `OutputError` if the output
    exists.
    """
    if plan.to not in TARGETS:
        raise UsageError("unknown export target", got=repr(plan.to), remedy=did_you_mean(plan.to, TARGETS))
    if str(plan.model) == "classical":
        remedy = "train a model first: cellwright train"
        raise UsageError("the classical method has no network to export", got="classical", remedy=remedy)
    require_torch("exporting a model")
    if plan.to == "half":
        return _to_half(plan, screen, dry_run=dry_run)
    return _to_onnx(plan, screen, dry_run=dry_run)


def _to_onnx(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    from cellwright.models.export.networks import graphs_of, rules_of
    from cellwright.models.export.onnx import require_tools, write_graph
    from cellwright.models.weights.torch_io import load_network

    require_tools()
    output = _output(plan, MANIFEST, "*.onnx")
    network, info = load_network(plan.model)
    if plan.pruned_to is not None:
        network, info = _pruned(network, info, plan.pruned_to)
    graphs, rules = graphs_of(network), rules_of(network)
    if not output.exists:
        screen.note(f"will write {plan.out}/: {MANIFEST} and {count(len(graphs), 'part')} of the network as ONNX")
    if dry_run:
        return None
    with output.write() as folder:
        written = {}
        for graph in screen.track(graphs, "export", len(graphs)):
            written[graph.name] = write_graph(graph, folder)
        manifest = {**_head(network, info), "graphs": written, **rules}
        write_json(folder / MANIFEST, manifest)
    if output.is_complete:
        screen.note(output.text)
    rows = [
        (part["file"], ", ".join(part["inputs"]), ", ".join(part["outputs"]), f"{part['largest_difference']:.1e}")
        for part in written.values()
    ]
    columns = ("file", "inputs", "outputs", "largest difference")
    table = Table("ONNX Runtime compared with PyTorch", columns, rows)
    return Exported(plan.out, manifest, table, f"how to run them: {plan.out / MANIFEST}")


def _to_half(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    from cellwright.models.weights.model_folder import CARD, INFO, WEIGHTS, model_folder, read_model_info
    from cellwright.models.weights.torch_io import in_half_precision, load_network, read_weights, save_model

    if plan.out.resolve() == model_folder(plan.model).resolve():
        remedy = "choose another `out`"
        raise UsageError("the output folder is the model itself", where=plan.out, remedy=remedy)
    output = _output(plan, INFO, WEIGHTS, CARD)
    if plan.pruned_to is None:
        info, half = read_model_info(plan.model), in_half_precision(read_weights(plan.model))
    else:
        network, info = _pruned(*load_network(plan.model), plan.pruned_to)
        half = in_half_precision(network.state_dict())
    if not output.exists:
        screen.note(f"will write {plan.out}/: the model with weights in half precision")
    if dry_run:
        return None
    with output.write() as folder:
        save_model(folder, half, info)
        size = (folder / WEIGHTS).stat().st_size
    if output.is_complete:
        screen.note(output.text)
    row = (WEIGHTS, len(half), sum(tensor.numel() for tensor in half.values()), f"{size / 1e6:.2f}")
    table = Table("weights in half precision", ("file", "tensors", "parameters", "size (MB)"), [row])
    return Exported(plan.out, dataclasses.asdict(info), table, f"model: {plan.out}")


def _pruned(network: Network, info: ModelInfo, depth: int) -> tuple[Network, ModelInfo]:
    """A network that is pruned to a depth, and its ``model.json`` without what holds for the whole network."""
    from cellwright.models.contract import Prunes
    from cellwright.prediction.predictor import refuse_pruning

    if not isinstance(network, Prunes):
        refuse_pruning(type(network).__name__)
    text = f"{info.recipe.get('description', '')} Pruned to depth {depth}.".strip()
    recipe = {**info.recipe, "description": text, "model": {**info.recipe["model"], "depth": depth}}
    whole = {"thresholds": {}, "calibration": None, "tuned_on": None, "metrics": {}}
    return network.pruned(depth), dataclasses.replace(info, recipe=recipe, **whole)


def _output(plan: ExportModelPlan, marker: str, *names: str) -> FolderOutput:
    earlier = earlier_output("model export", marker, *names)
    return FolderOutput(plan.out, "model export", inputs=(plan.model,), overwrite=plan.overwrite, earlier=earlier)


def _head(network: Network, info: ModelInfo) -> dict[str, Any]:
    """The entries of ``export.json`` for every family: how to prepare images, and which objects are kept."""
    from cellwright.models.export.onnx import TOLERANCE
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
