"""The U-Net of OpenVINO gives the maps of that of PyTorch, whatever the recipe and the size; nothing is sent.

In int8, the rounding is what it says, on every processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from drawn import run
from torch import nn

from cellwright.api.models import identity_of, load_model
from cellwright.config.model_dense import FlowTarget, SemanticTarget, StarsTarget, UNetConfig, WatershedTarget
from cellwright.core.errors import ModelError, UsageError
from cellwright.core.files import read_json, write_png
from cellwright.data.synthetic import FieldLook, draw_field
from cellwright.models.dense import openvino_network, prediction
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.dense.openvino_network import ObservedNetwork, OpenVINONetwork, differences
from cellwright.models.dense.prediction import DensePrediction
from cellwright.models.openvino_graph import CompiledGraph, Precision, has_bf16, warm_up
from cellwright.prediction.backends.load import backend_of

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


@pytest.mark.parametrize(
    ("threads", "precision"),
    [
        (1, "f32"),
        (2, "f32"),
        pytest.param(2, "bf16", marks=pytest.mark.skipif(not has_bf16(), reason="the processor has no bf16")),
    ],
)
def test_a_window_has_the_bits_of_the_whole_image(threads: int, precision: Precision) -> None:
    """So that tiles, and windows where memory is short, do not change a label image."""
    _, network = both("residual", threads=threads, precision=precision)
    images, margin = images_for(network, (160, 200), 1), 48
    whole = network.maps(images)
    for y, x, h, w in ((0, 0, 112, 104), (16, 40, 144, 160), (48, 96, 112, 104)):
        part = network.maps(images[:, :, y : y + h, x : x + w])
        top, left = (margin if y else 0), (margin if x else 0)
        bottom, right = (h if y + h == 160 else h - margin), (w if x + w == 200 else w - margin)
        inside = whole[:, :, y + top : y + bottom, x + left : x + right]
        assert np.array_equal(part[:, :, top:bottom, left:right], inside)
    assert np.array_equal(network.maps(np.concatenate([images, images]))[1], whole[0])


def test_the_windows_of_a_large_image_share_memory_that_is_freed_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = both("residual", threads=1)
    images, events = images_for(network, (160, 200), 1), []
    whole = network.maps(images)
    monkeypatch.setattr(prediction, "WINDOW_SIDES", (64,))
    monkeypatch.setattr(prediction, "LARGEST_BYTES", 1)
    for name in ("__call__", "release_memory"):
        method = getattr(CompiledGraph, name)
        monkeypatch.setattr(
            CompiledGraph, name, lambda *args, name=name, method=method: [events.append(name), method(*args)][1]
        )
    assert np.array_equal(network.maps(images), whole)
    assert events == ["__call__"] * 12
    monkeypatch.setattr(openvino_network, "KEPT_PX", 160 * 200 - 1)
    assert np.array_equal(network.maps(images), whole)
    assert events[12:] == [*["__call__"] * 12, "release_memory"]


def test_weights_do_not_become_lists_of_numbers() -> None:
    config = UNetConfig(width=64, depth=2, target=FlowTarget())
    sizes = {"in_channels": 1, "n_classes": 1}
    shapes = openvino_network.shapes_of(config, 1, len(openvino_network.target_of(config.target).channels))
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes}
    largest = max(array.nbytes for array in arrays.values())
    warm_up()
    tracemalloc.start()
    try:
        OpenVINONetwork(config, arrays, **sizes).nodes()
        (_, peak) = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * largest  # two float64 and one float32 array while batch norm is folded in; 8 more as a list


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


def in_int8(name: str, n: int = 1) -> tuple[OpenVINONetwork, OpenVINONetwork, dict[str, tuple[float, float]]]:
    """A network in int8 and in float32, and the ranges, which were observed on ``n`` images."""
    (config, sizes), (_, exact) = NETWORKS[name], both(name)
    observed = ObservedNetwork(config, exact._arrays, **sizes)
    for image in images_for(exact, n=n):
        observed.maps(image[None])
    ranges = observed.observed
    return OpenVINONetwork(config, exact._arrays, **sizes, threads=1, ranges=ranges), exact, ranges


def test_numbers_are_rounded_as_described() -> None:
    """Against PyTorch, whose layers are given the rounded numbers."""
    network, exact, ranges = in_int8("plain")
    reference, _ = both("plain")

    def round_input(name: str):
        low, high = ranges[name]
        step = max(high / 127, -low / 128) if low < 0 else high / 255
        steps = (-128, 127) if low < 0 else (0, 255)
        return lambda _, given: (torch.clamp(torch.round(given[0] / step), *steps) * step,)

    layers = {name.removesuffix(".conv"): layer for name, layer in reference.named_modules()}
    for name, layer in reference.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_pre_hook(round_input(name.removesuffix(".conv")))
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            most = layer.weight.abs().amax(dim=[k for k in range(4) if k != axis], keepdim=True)
            layer.weight.data = torch.round(layer.weight / most * 63) * most / 63
    assert set(ranges) <= set(layers)
    images = images_for(network, n=1)
    expected, maps, unrounded = reference.maps(torch.from_numpy(images)), network.maps(images), exact.maps(images)
    off = np.abs(maps - expected)
    assert np.quantile(off, 0.95) < 1e-3 * np.abs(expected).max(), "rounding of ties and of sums may differ"
    assert off.mean() < 0.1 * np.abs(unrounded - expected).mean()


@pytest.mark.parametrize("name", ["residual", "nested"])
def test_maps_are_near_those_of_float32(name: str) -> None:
    network, exact, ranges = in_int8(name, n=2)
    images = images_for(network)
    maps, expected = network.maps(images), exact.maps(images)
    assert 0 < np.abs(maps - expected).mean() < 0.06 * expected.std()
    assert all(low < high for low, high in ranges.values())
    assert min(low for low, _ in ranges.values()) < 0, "what is upsampled has both signs"
    assert not any(name.endswith("shortcut") for name in ranges), "it has the input of the first convolution"


def test_a_window_has_the_bits_of_the_whole_image_in_int8() -> None:
    network, _, _ = in_int8("residual")
    images = images_for(network, (160, 200), 1)
    whole, part = network.maps(images), network.maps(images[:, :, 16:160, 40:200])
    assert np.array_equal(part[:, :, 48:, 48:], whole[:, :, 64:, 88:])
    assert np.array_equal(network.maps(np.concatenate([images, images]))[1], whole[0])


def test_all_processors_compute_the_same(tmp_path: Path) -> None:
    """Without instructions for 8-bit numbers, OpenVINO adds products in 16 bits, where weights of 8 bits overflow."""
    _, exact = both("residual")
    inputs = {f"array {name}": array for name, array in exact._arrays.items()}
    inputs |= {f"range {name}": np.array(ends) for name, ends in in_int8("residual")[2].items()}
    # As large as the inputs may be, where sums are largest.
    inputs["images"] = np.where(images_for(exact, (64, 64)) > 0.3, 5, 0).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", **inputs)
    code = """
import sys, numpy as np
from cellwright.config.model_dense import UNetConfig, WatershedTarget
from cellwright.models.dense.openvino_network import OpenVINONetwork
config = UNetConfig(width=4, depth=3, style="residual", deep_supervision=True, target=WatershedTarget())
given = np.load(sys.argv[1])
arrays, ranges = ({name[6:]: given[name] for name in given if name.startswith(kind)} for kind in ("array ", "range "))
network = OpenVINONetwork(config, arrays, in_channels=1, n_classes=3, threads=1, ranges=ranges)
sys.stdout.buffer.write(network.maps(given["images"]).tobytes())
"""
    maps = []
    for kind in ("AVX2", "ALL"):
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": kind}
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "inputs.npz")],
            env=environment,
            capture_output=True,
            check=False,
        )
        maps.append(np.frombuffer(done.stdout, np.float32))
        assert len(maps[-1]), done.stderr.decode()
    assert np.array_equal(*maps)


def test_a_model_is_prepared_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, truth = draw_field(2, (96, 112), 12, FieldLook(stain="fluorescence"))
    write_png(tmp_path / "images" / "a.png", image.data)
    images, unprepared, model, out = (str(tmp_path / name) for name in ("images", "old", "new", "found"))
    int8 = ("--backend", "openvino-int8")
    assert run("model", "export", "nuclei@1", "--to", "half", "--out", unprepared) == 0
    assert run("predict", images, "--model", unprepared, *int8, "--out", out) == 2
    said = capsys.readouterr().err
    assert "was not prepared for int8" in said
    assert "make a copy that is: cellwright model export" in said
    assert run("model", "export", unprepared, "--to", "int8", "--out", model) == 2
    assert "needs images" in capsys.readouterr().err
    write_png(tmp_path / "blank" / "a.png", 0 * image.data)
    assert run("model", "export", unprepared, "--to", "int8", "--data", tmp_path / "blank", "--out", model) == 2
    assert "the images are blank" in capsys.readouterr().err
    assert run("model", "export", unprepared, "--to", "int8", "--data", images, "--out", model) == 0
    assert run("predict", images, "--model", model, *int8, "--out", out) == 0
    assert read_json(Path(out) / "predictions.json")["info"]["made_by"]["backend"] == "openvino-int8"
    write_png(tmp_path / "data" / "a.png", image.data)
    tifffile.imwrite(tmp_path / "data" / "a_masks.tif", truth.masks.to_label_map().astype(np.uint16))
    words = ("--data", tmp_path / "data", "--pictures", 0, "--out", tmp_path / "evaluated")
    assert run("evaluate", model, *int8, *words) == 0
    assert read_json(tmp_path / "evaluated" / "metrics.json")["made_by"]["backend"] == "openvino-int8"
    assert "openvino-int8" in (tmp_path / "evaluated" / "report.html").read_text()
    exact, fast = (load_model(model, backend=own) for own in ("openvino", "openvino-int8"))  # type: ignore[arg-type]
    found, expected = fast.predict(image), exact.predict(image)
    assert len(found) == len(expected) > 8
    assert 0 < (found.masks.foreground() != expected.masks.foreground()).mean() < 0.02
    assert identity_of([exact]) != identity_of([fast]), "an interrupted job is not resumed with other numbers"


@pytest.mark.skipif(not has_bf16(), reason="the processor has no bf16")
def test_in_bf16_the_same_objects_with_other_edges(tmp_path: Path) -> None:
    image, _ = draw_field(2, (96, 112), 12, FieldLook(stain="fluorescence"))
    write_png(tmp_path / "a.png", image.data)
    bf16 = ("--backend", "openvino-bf16", "--model", "nuclei@1", "--diameter", 20)
    assert run("predict", tmp_path / "a.png", *bf16, "--out", tmp_path / "out") == 0
    assert read_json(tmp_path / "out" / "predictions.json")["info"]["made_by"]["backend"] == "openvino-bf16"
    exact, fast = (load_model("nuclei@1", device="cpu", backend=own) for own in ("openvino", "openvino-bf16"))  # type: ignore[arg-type]
    found, expected = (model.with_options(diameter=20).predict(image) for model in (fast, exact))
    assert len(found) == len(expected) > 8
    assert 0 < (found.masks.foreground() != expected.masks.foreground()).mean() < 0.02
    assert identity_of([exact]) != identity_of([fast]), "an interrupted job is not resumed with other numbers"


def test_the_bundled_models_are_prepared() -> None:
    fast, exact = (load_model("nuclei", device="cpu", backend=own) for own in ("openvino-int8", "openvino"))  # type: ignore[arg-type]
    assert backend_of(fast.predictor) == "openvino-int8"
    for stain in ("he", "fluorescence"):
        image = draw_field(3, (90, 110), 12, FieldLook(stain=stain))[0]
        found, expected = (model.with_options(diameter=20).predict(image) for model in (fast, exact))
        assert abs(len(found) - len(expected)) <= 1, "one has a score at the threshold"
        assert len(found) > 8
    with pytest.raises(ModelError, match="not prepared for int8"):
        load_model("nuclei@1", backend="openvino-int8")
    with pytest.raises(UsageError, match="needs PyTorch"):
        load_model("nuclei", device="cuda", backend="openvino-int8")
