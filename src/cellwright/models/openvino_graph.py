"""Graphs of OpenVINO: the layers of our networks from the arrays of a model folder, compiled and run on the CPU.

A network is a function from `Layers` to nodes; `CompiledGraph` runs it. Batch norm is folded into the convolutions.
Convolutions are computed in float32 on all processors, unless bf16 is asked for, and on the threads that
``OMP_NUM_THREADS`` allows. Importing this module does not import OpenVINO.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Literal

import numpy as np

from cellwright.core.files import output_error

# Of `make_norm` in models/layers.py.
NORM_EPS = 1e-5
Precision = Literal["f32", "bf16"]
Nodes = tuple[list[Any], Any]
"""Of OpenVINO: the results of a graph, and its input, a parameter."""


def is_installed() -> bool:
    """Whether OpenVINO is; it is not imported."""
    return find_spec("openvino") is not None


def warm_up() -> None:
    """Import OpenVINO. Raises `ImportError` if it is not installed."""
    _openvino()


def has_bf16() -> bool:
    """Whether the processor multiplies numbers of 16 bits (bf16: AVX512-BF16, AMX and the like), twice as fast."""
    return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class CompiledGraph:
    """A graph that is built and compiled when it is first run; one run at a time.

    Args:
        build: makes the nodes; it is dropped, with the arrays that it holds, when they are compiled.
        threads: of the processor; None leaves that to ``OMP_NUM_THREADS``, or else to OpenVINO, which takes the cores
            that the process may use.
        precision: of the layers; where the processor has no bf16, that would be slower, see `has_bf16`.
    """

    def __init__(self, build: Callable[[], Nodes], threads: int | None = None, precision: Precision = "f32") -> None:
        self._build: Callable[[], Nodes] | None = build
        self._precision: Precision = precision
        self._threads, self._lock = threads, Lock()
        self._compiled: Any = None
        self._request: Any = None

    def __call__(self, array: np.ndarray) -> list[np.ndarray]:
        """The results for an array. OpenVINO keeps the memory that it needed, see `release_memory`."""
        with self._lock:
            if self._build is not None:
                self._compile()
            self._request.infer({0: np.ascontiguousarray(array, np.float32)}, share_inputs=True)
            return [np.array(self._request.get_output_tensor(k).data) for k in range(len(self._compiled.outputs))]

    def release_memory(self) -> None:
        """Free what OpenVINO needed for its arrays, which costs time the next time."""
        with self._lock:
            if self._compiled is not None:
                self._compiled.release_memory()

    def _compile(self) -> None:
        assert self._build is not None  # dropped below only
        self._compiled = compiled(_model_of(self._build()), self._threads, self._precision)
        with _signal_stack_kept():
            self._request = self._compiled.create_infer_request()
        self._build = None


def _model_of(nodes: Nodes) -> Any:
    openvino = _openvino()
    results, parameter = nodes
    return openvino.Model([openvino.opset13.result(node) for node in results], [parameter], "network")


def compiled(model: Any, threads: int | None = None, precision: Precision = "f32") -> Any:
    """OpenVINO's model, or the path of its file, compiled for the processor. Other arguments: see `CompiledGraph`."""
    threads = threads or _threads_of_environment()
    # By default OpenVINO computes in bf16 where the processor has it, and ties threads to cores.
    how = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    if threads is not None:
        how["INFERENCE_NUM_THREADS"] = threads
    with _signal_stack_kept():
        return _openvino().Core().compile_model(model, "CPU", how)


def save(nodes: Nodes, path: Path) -> None:
    """Write OpenVINO's files: ``path``, .xml, and the weights beside it, .bin, in float32. Raises `OutputError`."""
    try:
        _openvino().save_model(_model_of(nodes), path, compress_to_fp16=False)
    except RuntimeError as error:
        raise output_error(path, OSError(str(error).strip().splitlines()[-1])) from error


class Layers:
    """Makes OpenVINO's nodes of the layers in `models/layers.py`.

    arrays: of a model folder, by the names of the layers; any floating-point type.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.op, self.arrays = _openvino().opset13, arrays

    def images(self, channels: int) -> Any:
        """The input of a graph, (B, C, H, W)."""
        return self.op.parameter([-1, channels, -1, -1], _openvino().Type.f32, name="images")

    def conv_norm(
        self, name: str, x: Any, *, stride: int = 1, groups: int = 1, eps: float = NORM_EPS, relu: bool
    ) -> Any:
        """A `ConvNorm`, its batch norm folded in."""
        has_norm = f"{name}.norm.running_var" in self.arrays
        weight_bias = self._folded(name, eps) if has_norm else self.own(f"{name}.conv")
        x = self.convolution(name, x, weight_bias, stride, groups)
        return self.op.relu(x) if relu else x

    def _folded(self, name: str, eps: float) -> tuple[np.ndarray, np.ndarray]:
        weight, scale, bias, mean, variance = (
            self.arrays[f"{name}.{part}"].astype(np.float64)
            for part in ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        )
        scale = scale / np.sqrt(variance + eps)
        return weight * scale[:, None, None, None], bias - mean * scale

    def own(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a layer."""
        return self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]

    def convolution(
        self,
        name: str,
        x: Any,
        weight_bias: tuple[np.ndarray, np.ndarray] | None = None,
        stride: int = 1,
        groups: int = 1,
    ) -> Any:
        """Padded so that stride 1 keeps the size. weight_bias: None for those of the name."""
        weight, bias = self.own(name) if weight_bias is None else weight_bias
        padding, strides = [(weight.shape[2] - 1) // 2] * 2, [stride] * 2
        if groups > 1:
            parts = constant(weight.reshape(groups, -1, *weight.shape[1:]))
            return self.biased(self.op.group_convolution(x, parts, strides, padding, padding, [1, 1]), bias)
        x, weight = self.operands(name, x, weight, 0)
        return self.biased(self.op.convolution(x, weight, strides, padding, padding, [1, 1]), bias)

    def double_size(self, name: str, x: Any) -> Any:
        """A 2x2 transposed convolution with stride 2."""
        weight, bias = self.own(name)
        x, weight = self.operands(name, x, weight, 1)
        doubled = self.op.convolution_backprop_data(x, weight, strides=[2, 2], pads_begin=[0, 0], pads_end=[0, 0])
        return self.biased(doubled, bias)

    def operands(self, name: str, x: Any, weight: np.ndarray, axis: int) -> tuple[Any, Any]:
        """What a convolution multiplies: its input and its weight. axis: of the weight, that of the output channels."""
        del name, axis
        return x, constant(weight)

    def max_pool(self, x: Any, kernel: int, stride: int = 2) -> Any:
        """Padded as the convolutions are."""
        padding = [(kernel - 1) // 2] * 2
        pooled = self.op.max_pool(x, [stride] * 2, [1, 1], padding, padding, [kernel] * 2, "floor", "explicit")
        return pooled.output(0)

    def linear(self, name: str, x: Any) -> Any:
        """A fully connected layer."""
        weight, bias = self.own(name)
        return self.op.add(self.op.matmul(x, constant(weight), False, True), constant(bias))

    def joined(self, parts: Sequence[Any]) -> Any:
        """Concatenated channels."""
        return self.op.concat(list(parts), 1) if len(parts) > 1 else parts[0]

    def biased(self, x: Any, bias: np.ndarray) -> Any:
        """With a bias per channel."""
        return self.op.add(x, constant(bias[None, :, None, None]))


def constant(array: np.ndarray) -> Any:
    """A node of an array in float32. Given an array, OpenVINO makes a list of its numbers first: slow, and large."""
    return _openvino().opset13.constant(np.ascontiguousarray(array, np.float32))


def _threads_of_environment() -> int | None:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _openvino() -> ModuleType:
    with _without_telemetry():
        import openvino
        import openvino.opset13
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide ``openvino_telemetry``: with it, ``import openvino`` reports its use over the network, and writes a file to
    the home folder. OpenVINO does without, as where that package is not installed."""
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules:  # imported by others: too late, or their wish
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] - how Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Give this thread its stack for signals back: OpenVINO sets one of its own and may free it later, after which the
    next Ctrl-C would end the process with a segmentation fault."""
    if sys.platform != "linux":
        yield
        return
    set_stack, before = ctypes.CDLL(None).sigaltstack, _SignalStack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
