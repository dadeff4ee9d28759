"""``model export``: a model for another runtime or program, with weights in half precision, or prepared for int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwright.api.export_parts import (
    MANIFEST,
    Exported,
    ExportModelPlan,
    head_of,
    model_output,
    network_of,
    output_of,
    pruned,
)
from cellwright.api.outputs import FolderOutput
from cellwright.core.errors import UsageError, did_you_mean
from cellwright.core.files import write_json
from cellwright.core.needs_torch import require_torch
from cellwright.core.progress import SILENT, ProgressReporter
from cellwright.core.table import Table
from cellwright.core.text import count

if TYPE_CHECKING:
    from cellwright.models.weights.model_folder import ModelInfo

TARGETS = ("onnx", "openvino", "bioimageio", "half", "int8")


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
    if plan.to != "half":
        _refuse_imported(plan)
    if plan.to == "int8":
        from cellwright.api.export_int8 import run as to_int8

        return to_int8(plan, screen, dry_run=dry_run)
    if plan.data is not None or plan.split is not None or plan.channel:
        raise UsageError("`data`, `split` and `channel` are for int8", got=f'`to="{plan.to}"`', remedy="omit them")
    match plan.to:
        case "openvino":
            return _to_openvino(plan, screen, dry_run=dry_run)
        case "bioimageio":
            require_torch("exporting a model to BioImage.IO")
            from cellwright.api.export_bioimageio import run as to_bioimageio

            return to_bioimageio(plan, screen, dry_run=dry_run)
        case "half":
            require_torch("exporting a model")
            return _to_half(plan, screen, dry_run=dry_run)
    require_torch("exporting a model to ONNX")
    return _to_onnx(plan, screen, dry_run=dry_run)


def _refuse_imported(plan: ExportModelPlan) -> None:
    """Raise `UsageError` for networks of other tools, whose padding and tiles what is exported does not describe."""
    from cellwright.models.weights.model_folder import read_model_info

    kind = read_model_info(plan.model).kind
    if kind in ("cellpose", "stardist"):
        raise UsageError(
            f"networks of {kind} cannot be exported to other programs yet",
            got=f"model.kind: {kind}",
            expected="a U-Net of cellwright, or a network of the R-CNN family",
            remedy="the tool that it is from runs the original file",
        )


def _to_onnx(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    from cellwright.models.export.networks import graphs_of, rules_of
    from cellwright.models.export.onnx import require_tools, write_graph

    require_tools()
    output = output_of(plan, MANIFEST, "*.onnx")
    network, info = network_of(plan)
    graphs, rules = graphs_of(network), rules_of(network)
    _announce(plan, screen, output, f"{count(len(graphs), 'part')} of the network as ONNX", info)
    if dry_run:
        return None
    with output.write() as folder:
        written = {}
        for graph in screen.track(graphs, "export", len(graphs)):
            written[graph.name] = write_graph(graph, folder)
        manifest = {**head_of(network, info), "graphs": written, **rules}
        _write_rules(folder, manifest, info)
    return _exported(plan, screen, output, manifest, "ONNX Runtime compared with PyTorch")


def _to_openvino(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    from cellwright.models.export.openvino import model_of, write_model
    from cellwright.models.export.program import rules_of_maps

    output = output_of(plan, MANIFEST)
    network, info = model_of(plan.model)
    if plan.pruned_to is not None:
        network, info = pruned(network, info, plan.pruned_to)
    _announce(plan, screen, output, "the network for OpenVINO", info)
    if dry_run:
        return None
    with output.write() as folder:
        graphs = {"maps": write_model(network, folder)}
        manifest = {**head_of(network, info), "graphs": graphs, **rules_of_maps(network)}
        _write_rules(folder, manifest, info)
    return _exported(plan, screen, output, manifest, "OpenVINO's file compared with cellwright")


def _announce(
    plan: ExportModelPlan, screen: ProgressReporter, output: FolderOutput, what: str, info: ModelInfo
) -> None:
    """Say what will be written, and what is left out."""
    from cellwright.models.export.program import PROGRAM, why_no_program
    from cellwright.models.weights.model_folder import recipe_of

    if output.exists:
        return
    recipe = recipe_of(info)
    why = why_no_program(recipe)
    files = f"{MANIFEST}, {PROGRAM}" if why is None else MANIFEST
    screen.note(f"will write {plan.out}/: {files} and {what}")
    if why is not None and recipe.model.kind == "unet":
        screen.note(f"without {PROGRAM}: {why}")
    elif why is None and recipe.input.diameter_px is not None:
        screen.note(f"{PROGRAM} does not estimate diameters: give it that of the objects of each image")


def _write_rules(folder: Path, manifest: dict[str, Any], info: ModelInfo) -> None:
    from cellwright.models.export.program import why_no_program, write_program
    from cellwright.models.weights.model_folder import recipe_of

    write_json(folder / MANIFEST, manifest)
    if why_no_program(recipe_of(info)) is None:
        write_program(folder)


def _exported(
    plan: ExportModelPlan, screen: ProgressReporter, output: FolderOutput, manifest: dict[str, Any], title: str
) -> Exported:
    if output.is_complete:
        screen.note(output.text)
    rows = [
        (part["file"], ", ".join(part["inputs"]), ", ".join(part["outputs"]), f"{part['largest_difference']:.1e}")
        for part in manifest["graphs"].values()
    ]
    table = Table(title, ("file", "inputs", "outputs", "largest difference"), rows)
    return Exported(plan.out, manifest, table, f"how to run them: {plan.out / MANIFEST}")


def _to_half(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    from cellwright.models.weights.model_folder import WEIGHTS, read_model_info
    from cellwright.models.weights.torch_io import in_half_precision, load_network, read_weights, save_model

    output = model_output(plan)
    if plan.pruned_to is None:
        info, half = read_model_info(plan.model), in_half_precision(read_weights(plan.model))
    else:
        network, info = pruned(*load_network(plan.model), plan.pruned_to)
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
