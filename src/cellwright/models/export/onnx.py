"""Networks as ONNX files: torch traces a graph, and ONNX Runtime must agree with torch before the file is written.

Needs the extra ``onnx``. A graph may be any module from tensors to tensors.
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
from cellwright.models.export.program import TOLERANCE

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20


@dataclass(frozen=True)
class Axis:
    """A dimension whose size may differ from call to call.

    Attributes:
        name: in the file.
        multiple: the size must be a multiple of it.
        smallest: a small but sensible size; larger sizes are tested. 0 if any size is valid.
    """

    name: str
    multiple: int = 1
    smallest: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A network, or a part of one, that is written to one file.

    Attributes:
        name: of the file, without suffix.
        module: ``forward(*inputs)`` returns one or several FloatTensors.
        inputs: name and shape of each FloatTensor.
        outputs: the same, in order; a size that is not a number is text for the reader, such as "height/4".
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[int | Axis, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]

    def axes(self) -> list[Axis]:
        """The axes of the inputs, each once, in order."""
        return list(dict.fromkeys(size for shape in self.inputs.values() for size in shape if isinstance(size, Axis)))

    def random_inputs(self, counts: Sequence[int], seed: int) -> tuple[Tensor, ...]:
        """Standard normal inputs; each of `axes` is ``counts`` multiples larger than its smallest size."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {axis: axis.smallest + axis.multiple * count for axis, count in zip(self.axes(), counts, strict=True)}
        shapes = ([sizes[s] if isinstance(s, Axis) else s for s in shape] for shape in self.inputs.values())
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def write_graph(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write ``<name>.onnx`` into a folder, after ONNX Runtime has agreed with torch for inputs of two other sizes.

    The module must be on the CPU, and is set to evaluation mode.

    Returns:
        Its entry in ``export.json``: file, opset, inputs, outputs, and the largest difference.

    Raises:
        UsageError: the extra is not installed.
        ModelError: the module cannot be traced, or ONNX Runtime cannot run it or disagrees with torch.
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
    """Raise `UsageError` if a package of the extra ``onnx`` is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = 'pip install "cellwright[onnx]"'
        raise UsageError("ONNX export needs another package", got=f"no {error.name}", remedy=remedy) from error


def trace(graph: Graph) -> ModelProto:
    """The graph as an ONNX model with named axes. Raises `ModelError` if torch cannot trace it."""
    graph.module.eval()
    sizes: dict[str, Any] = {}
    for axis in graph.axes():
        # torch names the factor, from which the size follows.
        count = torch.export.Dim(axis.name if axis.multiple == 1 else f"{axis.name}_{axis.multiple}", min=1)
        sizes[axis.name] = count if axis.multiple == 1 else axis.multiple * count
    dynamic = tuple(
        {index: sizes[size.name] for index, size in enumerate(shape) if isinstance(size, Axis)}
        for shape in graph.inputs.values()
    )
    # Sizes 2, 3, 4, ...: torch could take equal sizes for one axis, and a size of 1 for a constant.
    example = graph.random_inputs([2 + index for index in range(len(graph.axes()))], seed=0)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Two inputs may share an axis on purpose.
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
        raise ModelError(
            "this part of the network cannot be exported to ONNX",
            where=graph.name,
            got=_first_line(error),
            remedy="predict with cellwright itself, and report this network",
        ) from error
    assert program is not None
    model = program.model_proto
    _name_axes(model, graph)
    _remove_source_locations(model)
    return model


def _name_axes(model: ModelProto, graph: Graph) -> None:
    """Replace torch's symbols by the names of the axes."""
    shapes = {name: tuple(s.name if isinstance(s, Axis) else s for s in shape) for name, shape in graph.inputs.items()}
    shapes |= graph.outputs
    for value in [*model.graph.input, *model.graph.output]:
        for dimension, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
    del model.graph.value_info[:]


def _remove_source_locations(model: ModelProto) -> None:
    """Remove what tracing records for every node: lines of Python code with local paths."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def largest_difference(graph: Graph, data: bytes) -> float:
    """The largest difference between ONNX Runtime and torch over two random inputs, relative as in `TOLERANCE`.

    Raises:
        ModelError: it exceeds `TOLERANCE`, or ONNX Runtime cannot run the model ``data``.
    """
    largest = 0.0
    n_axes = len(graph.axes())
    for seed, counts in enumerate([[1, 3, 5, 7][:n_axes], [5, 2, 3, 1][:n_axes]], start=1):
        inputs = graph.random_inputs(counts, seed)
        with torch.no_grad():
            outputs = graph.module(*inputs)
        references = [outputs] if isinstance(outputs, Tensor) else outputs
        for name, reference, output in zip(graph.outputs, references, _run(graph, data, inputs), strict=True):
            if reference.shape != output.shape:
                expected = f"shape {tuple(reference.shape)}"
                raise _differs(graph, name, got=f"shape {tuple(output.shape)}", expected=expected)
            scale = max(float(reference.abs().max()), torch.finfo(reference.dtype).tiny)
            difference = float((reference - output).abs().max()) / scale
            if not difference <= TOLERANCE:  # true for NaN, too
                raise _differs(graph, name, got=f"{difference:.2g} of its largest value", expected=f"<= {TOLERANCE:g}")
            largest = max(largest, difference)
    return largest


def _differs(graph: Graph, name: str, *, got: str, expected: str) -> ModelError:
    return ModelError(
        "ONNX Runtime and torch give different results", where=f"{graph.name}, {name}", got=got, expected=expected
    )


def _run(graph: Graph, data: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures  # type: ignore[attr-defined]

    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)})
    except (failures.Fail, failures.InvalidArgument, failures.InvalidGraph, failures.NotImplemented) as error:
        raise ModelError(
            "ONNX Runtime cannot run this part of the network",
            where=graph.name,
            got=_first_line(error),
            remedy='install a newer version: pip install --upgrade "cellwright[onnx]"',
        ) from error
    return [torch.from_numpy(output) for output in outputs]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
