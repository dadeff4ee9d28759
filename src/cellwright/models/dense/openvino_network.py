"""A U-Net that runs in OpenVINO, built from the arrays of a model folder: no PyTorch, no exported file.

    config -> names and shapes of the arrays (`shapes_of`) -> OpenVINO's graph (`_Graph`), batch norm folded in

The result equals that of `DenseNetwork` to rounding: convolutions are computed in float32 on all processors. It is the
same to the bit whatever the size of the image, so that windows and tiles give the maps of the whole image.

Shape shorthand: B images, C channels, D maps of the target, K classes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from cellwright.config.model_dense import UNetConfig
from cellwright.models.dense.prediction import RAY_UNIT_PX, DensePrediction
from cellwright.models.dense.target import target_of

# Of `make_norm` in models/layers.py.
NORM_EPS = 1e-5
# OpenVINO keeps the memory of the largest image; after a larger one than this it is freed, which costs a fifth of the
# time of the next one.
KEPT_PX = 1 << 21
# See `prediction.BYTES_PER_CHANNEL`; as measured, of all maps at once.
BYTES_PER_CHANNEL = {"plain": 26.0, "nested": 56.0}
Shape = tuple[int, ...]


def is_installed() -> bool:
    """Whether OpenVINO is; it is not imported."""
    return find_spec("openvino") is not None


def warm_up() -> None:
    """Import OpenVINO. Raises `ImportError` if it is not installed."""
    _openvino()


def supports(config: UNetConfig) -> bool:
    """Whether this module can build the network: all but those with an encoder of timm."""
    return config.encoder is None


class OpenVINONetwork(DensePrediction):
    """A U-Net in evaluation mode. OpenVINO is imported and compiles the network when it is first used.

    Args:
        arrays: of a model folder, by the names of `DenseNetwork`; any floating-point type.
        threads: of the processor; None leaves that to ``OMP_NUM_THREADS``, or else to OpenVINO, which takes the cores
            that the process may use.

    Raises `ValueError` with the differences if the arrays are not those of this network, see `differences`.
    """

    def __init__(
        self,
        config: UNetConfig,
        arrays: Mapping[str, np.ndarray],
        *,
        in_channels: int,
        n_classes: int,
        threads: int | None = None,
    ) -> None:
        self.config, self.target, self.n_classes = config, target_of(config.target), n_classes
        self.in_channels, self.threads, self._arrays, self._lock = in_channels, threads, arrays, Lock()

    @property
    def stride(self) -> int:
        """See `DensePrediction`."""
        return 2**self.config.depth

    @property
    def reach_px(self) -> int:
        """See `DensePrediction`; as in `unet.UNet`."""
        return 2 * (2 * self.stride - 1) + 2 * (self.stride - 1) + self.stride

    @property
    def bytes_of_channels(self) -> float:
        """See `DensePrediction`."""
        return BYTES_PER_CHANNEL[self.config.skips] * self.config.width

    def pruned(self, depth: int) -> OpenVINONetwork:
        """See `Prunes`; it shares its weights."""
        sizes = {"in_channels": self.in_channels, "n_classes": self.n_classes, "threads": self.threads}
        return OpenVINONetwork(self.pruned_config(depth), self._arrays, **sizes)

    def compute(self, images: np.ndarray) -> np.ndarray:
        """See `DensePrediction`."""
        with self._lock:
            request = self._compiled.create_infer_request() if self._request is None else self._request
            self._request = request
            request.infer({0: np.ascontiguousarray(images, np.float32)}, share_inputs=True)
            maps = np.array(request.get_output_tensor().data)
            if images.shape[0] * images.shape[2] * images.shape[3] > KEPT_PX:
                self._compiled.release_memory()
        return maps

    _request: Any = None

    @cached_property
    def _compiled(self) -> Any:
        """The network, compiled for the processor."""
        openvino = _openvino()
        graph = _Graph(self.config, self._arrays, self.in_channels, self.n_maps)
        images = graph.op.parameter([-1, self.in_channels, -1, -1], openvino.Type.f32, name="images")
        maps = graph.activated(graph.maps(images), self.target.channels, self.n_classes)
        model = openvino.Model([graph.op.result(maps)], [images], "unet")
        threads = self.threads or _threads_of_environment()
        # By default OpenVINO computes in bfloat16 where the processor has it, and ties threads to cores.
        how = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads is not None:
            how["INFERENCE_NUM_THREADS"] = threads
        with _signal_stack_kept():
            return openvino.Core().compile_model(model, "CPU", how)


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


def differences(arrays: Mapping[str, np.ndarray], config: UNetConfig, *, in_channels: int, n_classes: int) -> list[str]:
    """What is wrong with the arrays of a model folder: missing, unknown and other shapes, as text; empty if nothing."""
    n_maps = len(target_of(config.target).channels) + (n_classes if n_classes > 1 else 0)
    own = dict(shapes_of(config, in_channels, n_maps))
    problems = [f"{name} is missing" for name in own if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in own]
    return problems + [
        f"{name} is {arrays[name].shape} in the file, {shape} in the network"
        for name, shape in own.items()
        if name in arrays and arrays[name].shape != shape
    ]


def shapes_of(config: UNetConfig, in_channels: int, n_maps: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of all arrays of the network in training, as in `DenseNetwork.state_dict`."""
    widths = [config.width * 2**level for level in range(config.depth + 1)]
    for level, (before, width) in enumerate(pairwise([in_channels, *widths])):
        yield from _block_shapes(config, f"unet.encoder.{level}", before, width)
    if config.skips == "nested":
        for level in range(config.depth):
            for column in range(1, config.depth - level + 1):
                name, width = f"{level}_{column}", widths[level]
                yield from _convolution(f"unet.decoder.upsample.{name}", (2 * width, width, 2, 2), width)
                yield from _block_shapes(config, f"unet.decoder.blocks.{name}", (column + 1) * width, width)
        columns = range(1 if config.deep_supervision else config.depth, config.depth + 1)
        maps = [(str(column), config.width) for column in columns]
    else:
        finer = widths[-2::-1]
        for k, width in enumerate(finer):
            yield from _convolution(f"unet.upsample.{k}", (2 * width, width, 2, 2), width)
            yield from _block_shapes(config, f"unet.decoder.{k}", 2 * width, width)
        maps = [(str(k), width) for k, width in enumerate(finer if config.deep_supervision else finer[-1:])]
    for name, width in maps:
        yield from _convolution(f"unet.maps.{name}", (n_maps, width, 1, 1), n_maps)


def _block_shapes(config: UNetConfig, name: str, before: int, width: int) -> Iterator[tuple[str, Shape]]:
    convolutions = [("conv1", (width, before, 3, 3)), ("conv2", (width, width, 3, 3))]
    if config.style == "residual" and before != width:
        convolutions.append(("shortcut", (width, before, 1, 1)))
    for part, shape in convolutions:
        if config.norm == "none":
            yield from _convolution(f"{name}.{part}.conv", shape, width)
            continue
        yield f"{name}.{part}.conv.weight", shape
        for own in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}.norm.{own}", (width,)
        yield f"{name}.{part}.norm.num_batches_tracked", ()


def _convolution(name: str, shape: Shape, n_biases: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (n_biases,)


class _Graph:
    """Makes OpenVINO's nodes of the layers of a U-Net, see `unet` and `nested`."""

    def __init__(self, config: UNetConfig, arrays: Mapping[str, np.ndarray], in_channels: int, n_maps: int) -> None:
        self.op, self.config, self.arrays = _openvino().opset13, config, arrays
        self.in_channels, self.n_maps = in_channels, n_maps

    def maps(self, images: Any) -> Any:
        """(B, C, H, W) -> (B, D + K, H, W), before any activation."""
        encoded = [self.block("unet.encoder.0", images)]
        for level in range(1, self.config.depth + 1):
            encoded.append(self.block(f"unet.encoder.{level}", self.half_size(encoded[-1])))
        if self.config.skips == "nested":
            rows = [[x] for x in encoded]
            for column in range(1, self.config.depth + 1):
                for level in range(self.config.depth - column + 1):
                    name, coarser = f"{level}_{column}", rows[level + 1][column - 1]
                    finer = self.double_size(f"unet.decoder.upsample.{name}", coarser)
                    rows[level].append(self.block(f"unet.decoder.blocks.{name}", self.joined([*rows[level], finer])))
            return self.convolution(rows[0][-1], *self.own(f"unet.maps.{self.config.depth}"))
        x = encoded.pop()
        for k in range(self.config.depth):
            x = self.joined([encoded.pop(), self.double_size(f"unet.upsample.{k}", x)])
            x = self.block(f"unet.decoder.{k}", x)
        return self.convolution(
            x, *self.own(f"unet.maps.{self.config.depth - 1 if self.config.deep_supervision else 0}")
        )

    def activated(self, logits: Any, channels: Sequence[str], n_classes: int) -> Any:
        """The maps in the units of the target, and class probabilities; see `DensePrediction.maps`."""
        kinds = ["flow" if c.startswith("flow_") else "ray" if c.startswith("ray_") else "sigmoid" for c in channels]
        kinds += ["softmax"] * (n_classes if n_classes > 1 else 0)
        ends = [k + 1 for k in range(len(kinds)) if k + 1 == len(kinds) or kinds[k + 1] != kinds[k]]
        parts = []
        for start, end in pairwise([0, *ends]):
            part = self.op.slice(logits, *(np.array([value], np.int64) for value in (start, end, 1, 1)))
            match kinds[start]:
                case "sigmoid":
                    part = self.op.sigmoid(part)
                case "softmax":
                    part = self.op.softmax(part, 1)
                case "ray":
                    part = self.op.multiply(part, np.float32(RAY_UNIT_PX))
            parts.append(part)
        return self.joined(parts)

    def block(self, name: str, x: Any) -> Any:
        """See `unet.Block`."""
        hidden = self.op.relu(self.convolution(x, *self.folded(f"{name}.conv1")))
        hidden = self.convolution(hidden, *self.folded(f"{name}.conv2"))
        if self.config.style == "residual":
            shortcut, has_one = f"{name}.shortcut", f"{name}.shortcut.conv.weight" in self.arrays
            hidden = self.op.add(hidden, self.convolution(x, *self.folded(shortcut)) if has_one else x)
        return self.op.relu(hidden)

    def folded(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a `ConvNorm`, its batch norm folded in."""
        if self.config.norm == "none":
            return self.own(f"{name}.conv")
        weight, scale, bias, mean, variance = (
            self.arrays[f"{name}.{part}"].astype(np.float64)
            for part in ("conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        )
        scale = scale / np.sqrt(variance + NORM_EPS)
        return weight * scale[:, None, None, None], bias - mean * scale

    def own(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a convolution."""
        return self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"]

    def convolution(self, x: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
        """Padded, with stride 1."""
        padding = [weight.shape[2] // 2] * 2
        return self.biased(self.op.convolution(x, _constant(weight), [1, 1], padding, padding, [1, 1]), bias)

    def double_size(self, name: str, x: Any) -> Any:
        """A 2x2 transposed convolution with stride 2."""
        weight, bias = self.own(name)
        return self.biased(
            self.op.convolution_backprop_data(x, _constant(weight), strides=[2, 2], pads_begin=[0, 0], pads_end=[0, 0]),
            bias,
        )

    def half_size(self, x: Any) -> Any:
        """Max pooling of 2x2."""
        none, two = [0, 0], [2, 2]
        return self.op.max_pool(x, two, [1, 1], none, none, two, "floor", "explicit").output(0)

    def joined(self, parts: Sequence[Any]) -> Any:
        """Concatenated channels."""
        return self.op.concat(list(parts), 1) if len(parts) > 1 else parts[0]

    def biased(self, x: Any, bias: np.ndarray) -> Any:
        """With a bias per channel."""
        return self.op.add(x, _constant(bias[None, :, None, None]))


def _constant(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
