"""A U-Net that runs in OpenVINO, built from the arrays of a model folder: no PyTorch, no exported file.

    config -> names and shapes of the arrays (`shapes_of`) -> OpenVINO's graph (`_Graph`), batch norm folded in

The result equals that of `DenseNetwork` to rounding: convolutions are computed in float32 on all processors. It is the
same to the bit whatever the size of the image, so that windows and tiles give the maps of the whole image.

In int8, the weights and the input of each convolution are rounded to whole numbers: about three times as fast where the
processor multiplies those (AVX512-VNNI), and the same numbers on all processors. The ranges of the inputs are observed
on images, see `ObservedNetwork`.

Shape shorthand: B images, C channels, D maps of the target, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from cellwright.config.model_dense import AnyDenseConfig, UNetConfig
from cellwright.models.dense.prediction import RAY_UNIT_PX, DensePrediction
from cellwright.models.dense.target import target_of
from cellwright.models.openvino_graph import CompiledGraph, Layers, Nodes, Precision, constant

# OpenVINO keeps the memory of the largest image; after a larger one than this it is freed, which costs a fifth of the
# time of the next one.
KEPT_PX = 1 << 21
# See `prediction.BYTES_PER_CHANNEL`; as measured, of all maps at once.
BYTES_PER_CHANNEL = {"plain": 26.0, "nested": 56.0}
Shape = tuple[int, ...]
Ranges = Mapping[str, Sequence[float]]


def supports(config: AnyDenseConfig) -> bool:
    """Whether this module can build the network: all U-Nets of our own but those with an encoder of timm."""
    return isinstance(config, UNetConfig) and config.encoder is None


class OpenVINONetwork(DensePrediction):
    """A U-Net in evaluation mode. OpenVINO is imported and compiles the network when it is first used.

    Args:
        arrays: of a model folder, by the names of `DenseNetwork`; any floating-point type.
        threads: see `CompiledGraph`.
        ranges: least and greatest number in the input of each layer, by its name, for int8; None computes in
            ``precision``. A layer that is not named does too.
        precision: see `CompiledGraph`.

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
        ranges: Ranges | None = None,
        precision: Precision = "f32",
    ) -> None:
        self.config = self._unet = config
        self.target, self.n_classes = target_of(config.target), n_classes
        self.in_channels, self.threads, self._arrays = in_channels, threads, arrays
        self.ranges, self.precision = ranges, precision
        self._compiled = CompiledGraph(self.nodes, threads, precision)

    @property
    def backend(self) -> str:
        """The name of what runs it, see `Backend`."""
        if self.ranges is not None:
            return "openvino-int8"
        return "openvino" if self.precision == "f32" else "openvino-bf16"

    @property
    def stride(self) -> int:
        """See `DensePrediction`."""
        return 2**self._unet.depth

    @property
    def reach_px(self) -> int:
        """See `DensePrediction`; as in `unet.UNet`."""
        return 2 * (2 * self.stride - 1) + 2 * (self.stride - 1) + self.stride

    @property
    def bytes_of_channels(self) -> float:
        """See `DensePrediction`."""
        return BYTES_PER_CHANNEL[self._unet.skips] * self._unet.width

    def pruned(self, depth: int) -> OpenVINONetwork:
        """See `Prunes`; it shares its weights."""
        sizes = {"in_channels": self.in_channels, "n_classes": self.n_classes, "threads": self.threads}
        how = {"ranges": self.ranges, "precision": self.precision}
        return OpenVINONetwork(self.pruned_config(depth), self._arrays, **sizes, **how)

    def compute(self, images: np.ndarray) -> np.ndarray:
        """See `DensePrediction`."""
        (maps,) = self._compiled(images)
        return maps

    def maps(self, images: np.ndarray, image_hws: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """See `DensePrediction`; the windows of a large image share their memory."""
        maps = super().maps(images, image_hws)
        if images.shape[0] * images.shape[2] * images.shape[3] > KEPT_PX:
            self._compiled.release_memory()
        return maps

    def nodes(self) -> Nodes:
        """The graph: images (B, C, H, W) -> `maps`."""
        graph = _Graph(self._unet, self._arrays, self.ranges)
        images = graph.images(self.in_channels)
        return [graph.activated(graph.maps(images), self.target.channels, self.n_classes)], images


class ObservedNetwork(OpenVINONetwork):
    """The network in float32, which remembers the ranges of the numbers that its layers get."""

    @cached_property
    def observed(self) -> dict[str, tuple[float, float]]:
        """Least and greatest number in the input of each layer so far, by its name."""
        return {}

    def compute(self, images: np.ndarray) -> np.ndarray:
        """See `DensePrediction`."""
        maps, *ends = self._compiled(images)
        for name, (low, high) in zip(self._names, np.reshape(ends, (-1, 2)).tolist(), strict=True):
            least, most = self.observed.get(name, (low, high))
            self.observed[name] = (min(least, low), max(most, high))
        return maps

    def nodes(self) -> Nodes:
        """The graph; after the maps, it returns the least and greatest number of each input."""
        graph = _Graph(self._unet, self._arrays)
        images = graph.images(self.in_channels)
        maps = graph.activated(graph.maps(images), self.target.channels, self.n_classes)
        self._names = list(graph.inputs)
        axes = np.arange(4)
        ends = [end(x, axes) for x in graph.inputs.values() for end in (graph.op.reduce_min, graph.op.reduce_max)]
        return [maps, *ends], images


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


class _Graph(Layers):
    """Makes OpenVINO's nodes of a U-Net, see `unet` and `nested`.

    inputs: of the layers by their names; layers with the same input have one entry.
    """

    def __init__(self, config: UNetConfig, arrays: Mapping[str, np.ndarray], ranges: Ranges | None = None) -> None:
        super().__init__(arrays)
        self.config, self.ranges = config, ranges or {}
        self.inputs: dict[str, Any] = {}
        self._rounded: dict[str, Any] = {}

    def operands(self, name: str, x: Any, weight: np.ndarray, axis: int) -> tuple[Any, Any]:
        """See `Layers`; rounded to whole numbers if the range of the input is known."""
        name = next((own for own, known in self.inputs.items() if known is x), name)
        self.inputs[name] = x
        if name not in self.ranges:
            return x, constant(weight)
        if name not in self._rounded:
            self._rounded[name] = self._rounded_input(x, *self.ranges[name])
        return self._rounded[name], self._rounded_weight(weight, axis)

    def _rounded_input(self, x: Any, low: float, high: float) -> Any:
        """(B, C, H, W) with 256 different values: from 0, or, if there are negative ones, around 0."""
        if low < 0:
            high = max(high, -low * 127 / 128)
        ends = np.float32(-high * 128 / 127 if low < 0 else 0), np.float32(high)
        return self.op.fake_quantize(x, *ends, *ends, 256)

    def _rounded_weight(self, weight: np.ndarray, axis: int) -> Any:
        """A weight as whole numbers from -63 to 63 and a factor per output channel. Processors without instructions for
        8-bit numbers add pairs of products in 16 bits, in which eight bits overflow: other results, silently."""
        others = tuple(k for k in range(weight.ndim) if k != axis)
        most = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12)
        ends = constant(-most * 127 / 63), constant(most * 127 / 63)  # of 255 values, the middle 127 are used
        return self.op.fake_quantize(constant(weight), *ends, *ends, 255)

    def maps(self, images: Any) -> Any:
        """(B, C, H, W) -> (B, D + K, H, W), before any activation."""
        encoded = [self.block("unet.encoder.0", images)]
        for level in range(1, self.config.depth + 1):
            encoded.append(self.block(f"unet.encoder.{level}", self.max_pool(encoded[-1], 2)))
        if self.config.skips == "nested":
            rows = [[x] for x in encoded]
            for column in range(1, self.config.depth + 1):
                for level in range(self.config.depth - column + 1):
                    name, coarser = f"{level}_{column}", rows[level + 1][column - 1]
                    finer = self.double_size(f"unet.decoder.upsample.{name}", coarser)
                    rows[level].append(self.block(f"unet.decoder.blocks.{name}", self.joined([*rows[level], finer])))
            return self.convolution(f"unet.maps.{self.config.depth}", rows[0][-1])
        x = encoded.pop()
        for k in range(self.config.depth):
            x = self.joined([encoded.pop(), self.double_size(f"unet.upsample.{k}", x)])
            x = self.block(f"unet.decoder.{k}", x)
        return self.convolution(f"unet.maps.{self.config.depth - 1 if self.config.deep_supervision else 0}", x)

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
        hidden = self.conv_norm(f"{name}.conv2", self.conv_norm(f"{name}.conv1", x, relu=True), relu=False)
        if self.config.style == "residual":
            shortcut, has_one = f"{name}.shortcut", f"{name}.shortcut.conv.weight" in self.arrays
            hidden = self.op.add(hidden, self.conv_norm(shortcut, x, relu=False) if has_one else x)
        return self.op.relu(hidden)
