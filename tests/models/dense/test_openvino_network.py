"""The U-Net of OpenVINO gives the maps of that of PyTorch, whatever the recipe and the size; nothing is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.openvino_network import OpenVINONetwork, differences
from cellwright.models.dense.prediction import DensePrediction

NETWORKS: dict[str, tuple[UNetConfig, dict[str, int]]] = {
    "plain": (UNetConfig(width=4, depth=1, norm="none", target=FlowTarget()), {"in_channels": 3, "n_classes": 1}),
    "residual": (
        UNetConfig(width=4, depth=3, style="residual", deep_supervision=True, target=WatershedTarget()),
        {"in_channels": 1, "n_classes": 3},
    ),
    "nested": (
        UNetConfig(width=4, depth=3, skips="nested", deep_supervision=True, target=StarsTarget(n_rays=8)),
        {"in_channels": 4, "n_classes": 2},
    ),
    "nested residual": (
        UNetConfig(width=4, depth=2, skips="nested", style="residual", target=SemanticTarget()),
        {"in_channels": 2, "n_classes": 1},
    ),
}


def both(name: str, **changes: Any) -> tuple[DenseNetwork, OpenVINONetwork]:
    """The same network in PyTorch and in OpenVINO, with norms that are not the identity."""
    config, sizes = NETWORKS[name]
    torch.manual_seed(0)
    network = DenseNetwork(config, **sizes).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    tensor.uniform_(0.5, 2)  # type: ignore[union-attr]
                for tensor in (layer.bias, layer.running_mean):
                    tensor.normal_()  # type: ignore[union-attr]
        for weight in network.unet.maps.parameters():
            weight.mul_(10)
    arrays = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    assert differences(arrays, config, **sizes) == []
    return network, OpenVINONetwork(config, arrays, **{**sizes, **changes})


def images_for(network: DensePrediction, hw: tuple[int, int] = (48, 80), n: int = 2) -> np.ndarray:
    channels = network.in_channels if isinstance(network, OpenVINONetwork) else 0
    return np.random.default_rng(0).random((n, channels, *hw), np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_equal_those_of_pytorch(name: str) -> None:
    expected, network = both(name)
    assert (network.stride, network.reach_px) == (expected.stride, expected.reach_px)
    for hw in ((48, 80), (16, 8)):
        images = images_for(network, hw)
        maps = network.maps(images)
        assert maps.dtype == np.float32
        whole = expected.maps(torch.from_numpy(images))
        np.testing.assert_allclose(maps, whole, atol=1e-4 * max(float(np.abs(whole).max()), 1), rtol=0)
        assert maps.std() > 0.01
    if name == "nested":
        pruned = expected.pruned(2).maps(torch.from_numpy(images_for(network)))
        own = network.pruned(2)
        assert own.stride == 4
        np.testing.assert_allclose(own.maps(images_for(network)), pruned, atol=1e-4 * np.abs(pruned).max(), rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_window_has_the_bits_of_the_whole_image(threads: int) -> None:
    """So that tiles, and windows where memory is short, do not change a label image."""
    _, network = both("residual", threads=threads)
    images, margin = images_for(network, (160, 200), 1), 48
    whole = network.maps(images)
    for y, x, h, w in ((0, 0, 112, 104), (16, 40, 144, 160), (48, 96, 112, 104)):
        part = network.maps(images[:, :, y : y + h, x : x + w])
        top, left = (margin if y else 0), (margin if x else 0)
        bottom, right = (h if y + h == 160 else h - margin), (w if x + w == 200 else w - margin)
        inside = whole[:, :, y + top : y + bottom, x + left : x + right]
        assert np.array_equal(part[:, :, top:bottom, left:right], inside)
    assert np.array_equal(network.maps(np.concatenate([images, images]))[1], whole[0])


def test_arrays_of_another_network_are_named() -> None:
    config, sizes = NETWORKS["residual"]
    expected, _ = both("residual")
    arrays = {key: tensor.numpy() for key, tensor in expected.state_dict().items()}
    arrays["more"] = arrays.pop("unet.maps.2.bias")
    arrays["unet.encoder.0.conv1.conv.weight"] = np.zeros((4, 3, 3, 3), np.float32)
    assert differences(arrays, config, **sizes) == [
        "unet.maps.2.bias is missing",
        "more is unknown",
        "unet.encoder.0.conv1.conv.weight is (4, 3, 3, 3) in the file, (4, 1, 3, 3) in the network",
    ]


def test_nothing_is_sent_and_nothing_is_written_to_the_home_folder(tmp_path: Any) -> None:
    """As it is installed, ``import openvino`` reports its use over the network, from another process."""
    code = """
import sys
seen = []
watched = ("socket.connect", "socket.getaddrinfo", "os.fork", "subprocess.Popen", "os.posix_spawn")
sys.addaudithook(lambda event, args: seen.append((event, args)) if event in watched else None)
from cellwright.models.openvino_graph import warm_up
warm_up()
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
print(seen)
"""
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the stack for signals is that of Linux")
def test_ctrl_c_after_a_network_is_gone() -> None:
    """A signal is handled on the thread's own stack, not on one that OpenVINO has freed."""
    code = """
import ctypes, gc, signal, threading
from cellwright.api.models import load_model
from cellwright.models.openvino_graph import _SignalStack

def stack():
    state = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(state))
    return state.pointer, state.flags, state.size

import faulthandler, numpy
faulthandler.enable()
before, model = stack(), load_model("nuclei@1", device="cpu", backend="openvino")
model.predict(numpy.zeros((32, 32), numpy.uint8), diameter=24)
assert stack() == before, (stack(), before)
del model
threading.Thread(target=gc.collect).start()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
