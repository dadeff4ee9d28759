"""Networks as ONNX files: a graph is traced by torch, written, and run by ONNX Runtime against torch before it counts.

Needs the extra ``onnx``. What a graph is made of does not matter: any module that turns tensors into tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cellwright.core.errors import ModelError, UsageError
from cellwright.core.files import write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and torch, as a part of the output's largest value."""


@dataclass(frozen=True)
class Axis:
    """A side that may differ from call to call.

    Attributes:
        name: in the file.
        multiple: of which the side must be one.
        usual: a small side that makes sense, from which on sides are tried; 0 where any does.
    """

    name: str
    multiple: int = 1
    usual: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A network, or a part of one, that becomes one file.

    Attributes:
        name: of the file, without suffix.
        module: ``forward(*inputs)`` gives one FloatTensor or several.
        inputs: each FloatTensor's shape by its name.
        outputs: the same in order; a side that is no number is a text for readers, such as "height/4".
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[int | Axis, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]

    def axes(self) -> list[Axis]:
        """Every axis once, in order."""
        return list(dict.fromkeys(side for shape in self.inputs.values() for side in shape if isinstance(side, Axis)))

    def random_inputs(self, counts: Sequence[int], seed: int) -> tuple[Tensor, ...]:
        """Standard normal inputs whose axes are ``counts`` multiples beyond the usual, in the order of `axes`."""
        generator = torch.Generator().manual_seed(seed)
        sides = {axis: axis.usual + axis.multiple * count for axis, count in zip(self.axes(), counts, strict=True)}
        shapes = ([sides[s] if isinstance(s, Axis) else s for s in shape] for shape in self.inputs.values())
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def write_graph(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write ``<name>.onnx`` into a folder, after ONNX Runtime has agreed with torch at two other sizes.

    The module, on the CPU, is put into evaluation mode.

    Returns:
        What ``export.json`` says of it: file, opset, inputs, outputs, and the largest difference met.

    Raises:
        UsageError: the extra is not installed.
        ModelError: the module cannot be traced, ONNX Runtime cannot run it, or gives something else than torch.
        OutputError: the file cannot be written.
    """
    require_tools()
    data = trace(graph).SerializeToString()
    difference = largest_difference(graph, data)
    file = f"{graph.name}.onnx"
    write_bytes(folder / file, data)
    shapes = {name: [s.name if isinstance(s, Axis) else s for s in shape] for name, shape in graph.inputs.items()}
    outputs = {name: list(shape) for name, shape in graph.outputs.items()}
    return {"file": file, "opset": OPSET, "inputs": shapes, "outputs": outputs, "largest_difference": difference}


def require_tools() -> None:
    """Raise `UsageError` where a package of the extra is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = 'pip install "cellwright[onnx]"'
        raise UsageError("exporting to ONNX needs more packages", got=f"no {error.name}", remedy=remedy) from error


def trace(graph: Graph) -> ModelProto:
    """The graph as an ONNX model with its axes named; `ModelError` where torch cannot trace it."""
    graph.module.eval()
    sides: dict[str, Any] = {}
    for axis in graph.axes():
        # torch names the multiplier; the side itself follows from it.
        count = torch.export.Dim(axis.name if axis.multiple == 1 else f"{axis.name}_{axis.multiple}", min=1)
        sides[axis.name] = count if axis.multiple == 1 else axis.multiple * count
    dynamic = tuple(
        {place: sides[side.name] for place, side in enumerate(shape) if isinstance(side, Axis)}
        for shape in graph.inputs.values()
    )
    # Traced at 2, 3, 4, ...: sides that are equal, or 1, could be taken for the same or for fixed.
    example = graph.random_inputs([2 + place for place in range(len(graph.axes()))], seed=0)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Two inputs may share an axis: that is meant.
            warnings.filterwarnings("ignore", message="# The axis name")
            program = torch.onnx.export(
                graph.module,
                example,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            "this part of the network cannot become ONNX",
            where=graph.name,
            got=first,
            remedy="predict with cellwright itself, and report this network",
        ) from error
    assert program is not None
    model = program.model_proto
    _name_sides(model, graph)
    _forget_the_source(model)
    return model


def _name_sides(model: ModelProto, graph: Graph) -> None:
    """Write the sides' names where torch wrote its own symbols."""
    named = {name: tuple(s.name if isinstance(s, Axis) else s for s in shape) for name, shape in graph.inputs.items()}
    named |= graph.outputs
    for value in [*model.graph.input, *model.graph.output]:
        for place, side in zip(value.type.tensor_type.shape.dim, named[value.name], strict=True):
            if isinstance(side, str):
                place.dim_param = side
    del model.graph.value_info[:]


def _forget_the_source(model: ModelProto) -> None:
    """Take out what tracing notes beside every node: lines of Python, with the paths of this machine."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def largest_difference(graph: Graph, data: bytes) -> float:
    """The largest difference between ONNX Runtime and torch over two random inputs, relative as in ``TOLERANCE``.

    Raises `ModelError` where it is larger than that, or ONNX Runtime cannot run the model ``data``.
    """
    worst = 0.0
    n_axes = len(graph.axes())
    for seed, counts in enumerate([[1, 3, 5, 7][:n_axes], [5, 2, 3, 1][:n_axes]], start=1):
        inputs = graph.random_inputs(counts, seed)
        with torch.no_grad():
            wanted = graph.module(*inputs)
        outputs = _run(graph, data, inputs)
        for name, one, other in zip(
            graph.outputs, [wanted] if isinstance(wanted, Tensor) else wanted, outputs, strict=True
        ):
            if one.shape != other.shape:
                expected = tuple(one.shape)
                raise _differs(graph, name, got=f"shape {tuple(other.shape)}", expected=f"shape {expected}")
            scale = max(float(one.abs().max()), torch.finfo(one.dtype).tiny)
            difference = float((one - other).abs().max()) / scale
            if not difference <= TOLERANCE:  # so that NaN is refused too
                raise _differs(graph, name, got=f"{difference:.2g} of its largest value", expected=f"<= {TOLERANCE:g}")
            worst = max(worst, difference)
    return worst


def _differs(graph: Graph, name: str, *, got: str, expected: str) -> ModelError:
    return ModelError(
        "ONNX Runtime does not give what torch gives", where=f"{graph.name}, {name}", got=got, expected=expected
    )


def _run(graph: Graph, data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures  # type: ignore[attr-defined]

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found = session.run(None, {name: one.numpy() for name, one in zip(graph.inputs, inputs, strict=True)})
    except (failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented) as error:
        first = str(error).strip().splitlines()[0]
        remedy = 'take a newer one: pip install --upgrade "cellwright[onnx]"'
        raise ModelError("ONNX Runtime cannot run this part", where=graph.name, got=first, remedy=remedy) from error
    return [torch.from_numpy(one) for one in found]
