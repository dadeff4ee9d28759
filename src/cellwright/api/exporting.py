"""Exporting a model to another runtime: its graphs, and one file that says how to run them."""

from __future__ import annotations

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
    from cellwright.models.checkpoint import ModelInfo
    from cellwright.models.contract import Network

SCHEMA_VERSION = 1
MANIFEST = "export.json"
TARGETS = ("onnx",)
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
    """The folder on disk and what its ``export.json`` says."""

    folder: Path
    manifest: dict[str, Any]

    def table(self) -> Table:
        """A row a graph."""
        rows = [
            (one["file"], ", ".join(one["inputs"]), ", ".join(one["outputs"]), f"{one['largest_difference']:.1e}")
            for one in self.manifest["graphs"].values()
        ]
        return "checked with ONNX Runtime against torch", ("file", "inputs", "outputs", "largest difference"), rows


def run_plan(plan: ExportPlan, screen: Screen = SILENT) -> Exported:
    """Carry out a plan: the folder is whole or absent.

    Raises `UsageError` for an unknown target, a model without a network, or where the extra ``onnx`` is not installed,
    `ModelError` where ONNX cannot hold the network or gives other numbers, `OutputError` where ``plan.out`` exists.
    """
    if plan.to not in TARGETS:
        raise UsageError("cannot export to this", got=repr(plan.to), remedy=did_you_mean(plan.to, TARGETS))
    if str(plan.model) == "classical":
        remedy = "train a model first: cellwright train"
        raise UsageError("the classical method has no network to export", got="classical", remedy=remedy)
    from cellwright.models.checkpoint import load_network
    from cellwright.models.export import require_tools, write_graph

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
    return Exported(plan.out, manifest)


def _parts(network: Network):
    """The graphs of a network, and what ``export.json`` says of the way between them: one case a family."""
    from cellwright.models import export_dense
    from cellwright.models.dense import DenseNetwork
    from cellwright.models.export_rcnn import graphs_of, rules_of, steps_of
    from cellwright.models.mask_rcnn import MaskRCNN

    match network:
        case MaskRCNN():
            return graphs_of(network), {**rules_of(network), "steps": steps_of(network)}
        case DenseNetwork():
            return [export_dense.graph_of(network)], export_dense.rules_of(network)
        case other:
            raise UsageError("this kind of model cannot be exported yet", got=type(other).__name__)


def _head(network: Network, info: ModelInfo) -> dict[str, Any]:
    """What holds for every family: how images are made, and which objects become a result."""
    from cellwright.models.checkpoint import recipe_of
    from cellwright.models.export import TOLERANCE

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
