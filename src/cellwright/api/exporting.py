"""Exporting a model: to another runtime as graphs and a file that says how to run them, or in half precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright import __version__
from cellwright.api.outputs import claim_folder
from cellwright.config.conventions import CONVENTIONS
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.files import atomic_path, write_json
from cellwright.core.progress import SILENT, Screen

if TYPE_CHECKING:
    from cellwright.models.contract import Network
    from cellwright.models.weights.model_folder import ModelInfo

SCHEMA_VERSION = 1
MANIFEST = "export.json"
TARGETS = ("onnx", "half")
Table = tuple[str, tuple[str, ...], Iterable[Sequence[object]]]


@dataclass(frozen=True)
class ExportPlan:
    """Which model goes where."""

    model: Path
    out: Path
    to: str = "onnx"
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Exported:
    """The folder on disk, what its ``export.json`` or ``model.json`` says, a table to show, and one line about it."""

    folder: Path
    manifest: dict[str, Any]
    table: Table
    text: str


def describe(plan: ExportPlan) -> str:
    """What will be written."""
    if plan.to == "half":
        return f"writes {plan.out}: the same model, its weights in half precision"
    return f"writes {plan.out}/{MANIFEST} and the network's parts for {plan.to}"


def run_plan(plan: ExportPlan, screen: Screen = SILENT) -> Exported:
    """Carry out a plan: the folder is whole or absent.

    Raises `UsageError` for an unknown target, a model without a network, or where the extra ``onnx`` is not installed,
    `ModelError` where the target cannot hold the network or gives other numbers, `OutputError` where ``plan.out``
    exists.
    """
    if plan.to not in TARGETS:
        raise UsageError("cannot export to this", got=repr(plan.to), remedy=did_you_mean(plan.to, TARGETS))
    if str(plan.model) == "classical":
        remedy = "train a model first: cellwright train"
        raise UsageError("the classical method has no network to export", got="classical", remedy=remedy)
    return _to_half(plan) if plan.to == "half" else _to_onnx(plan, screen)


def _to_onnx(plan: ExportPlan, screen: Screen) -> Exported:
    from cellwright.models.export.onnx import require_tools, write_graph
    from cellwright.models.weights.model_folder import load_network

    require_tools()
    network, info = load_network(plan.model)
    graphs, rules = _parts(network)
    claim_folder(plan.out, MANIFEST, overwrite=plan.overwrite)
    with atomic_path(plan.out) as folder:
        folder.mkdir()
        written = {}
        for graph in screen.track(graphs, "export", len(graphs)):
            written[graph.name] = write_graph(graph, folder)
        manifest = {**_head(network, info), "graphs": written, **rules}
        write_json(folder / MANIFEST, manifest)
    rows = [
        (one["file"], ", ".join(one["inputs"]), ", ".join(one["outputs"]), f"{one['largest_difference']:.1e}")
        for one in written.values()
    ]
    table = "checked with ONNX Runtime against torch", ("file", "inputs", "outputs", "largest difference"), rows
    return Exported(plan.out, manifest, table, f"how to run them: {plan.out / MANIFEST}")


def _to_half(plan: ExportPlan) -> Exported:
    from cellwright.models.weights.model_folder import (
        INFO,
        WEIGHTS,
        in_half_precision,
        model_folder,
        read_model_info,
        read_weights,
        save_model,
    )

    if plan.out.resolve() == model_folder(plan.model).resolve():
        raise UsageError("a model in half precision is a copy", where=plan.out, remedy="choose another --out")
    info, half = read_model_info(plan.model), in_half_precision(read_weights(plan.model))
    claim_folder(plan.out, INFO, overwrite=plan.overwrite)
    with atomic_path(plan.out) as folder:
        save_model(folder, half, info)
        size = (folder / WEIGHTS).stat().st_size
    row = (WEIGHTS, len(half), sum(one.numel() for one in half.values()), f"{size / 1e6:.2f}")
    table = "weights in half precision", ("file", "tensors", "numbers", "size (MB)"), [row]
    return Exported(plan.out, dataclasses.asdict(info), table, f"model: {plan.out}")


def _parts(network: Network):
    """The graphs of a network, and what ``export.json`` says of the way between them: one case a family."""
    from cellwright.models.dense.dense import DenseNetwork
    from cellwright.models.export import dense as export_dense
    from cellwright.models.export.rcnn import graphs_of, rules_of, steps_of
    from cellwright.models.rcnn.mask_rcnn import MaskRCNN

    match network:
        case MaskRCNN():
            return graphs_of(network), {**rules_of(network), "steps": steps_of(network)}
        case DenseNetwork():
            return [export_dense.graph_of(network)], export_dense.rules_of(network)
        case other:
            raise UsageError(
                "this kind of model cannot be exported yet",
                got=type(other).__name__,
                remedy="export an R-CNN or a U-Net model",
            )


def _head(network: Network, info: ModelInfo) -> dict[str, Any]:
    """What holds for every family: how images are made, and which objects become a result."""
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
