"""The plugin in napari itself, without a display: read, predict, save."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytestmark = pytest.mark.filterwarnings("ignore")  # napari and Qt give their own
napari = pytest.importorskip("napari", exc_type=ImportError)

import cellwright as cw  # noqa: E402
import cellwright.plugin_napari  # noqa: E402
from cellwright.data.synthetic import draw_field  # noqa: E402

MANIFEST = Path(cellwright.plugin_napari.__file__).with_name("napari.yaml")


@pytest.fixture(scope="module")
def plugins() -> Any:
    """The plugins of napari, with this one; a Qt application runs without a display."""
    try:
        from npe2 import PluginManager, PluginManifest
        from qtpy.QtWidgets import QApplication

        app = QApplication.instance() or QApplication([])
    except Exception as error:
        pytest.skip(f"napari does not work here: {error}")
    manager = PluginManager.instance()
    if "cellwright" not in manager:
        manifest = PluginManifest.from_file(MANIFEST)
        manifest.validate_imports()
        manager.register(manifest)
    if "napari" not in manager:
        manager.register(PluginManifest.from_distribution("napari"))
    manager.app = app  # it lives as long
    return manager


@pytest.fixture
def viewer(plugins: Any) -> Any:
    """All of napari but the canvas, which needs OpenGL."""
    from napari.components import ViewerModel

    return ViewerModel()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(2):
        image, _ = draw_field(k, (96, 128), 8)
        cv2.imwrite(str(tmp_path / f"field {k}.png"), image.data[:, :, ::-1])
    return tmp_path


def wait(until: Any) -> None:
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + 30
    while not until() and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)
    assert until()


def test_a_prediction_folder_opens_with_its_measurements(viewer: Any, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions"
    expected = cw.predict_folder(images, model="classical", out=out, save=["masks"])
    viewer.open(out, plugin="cellwright")
    assert [(layer.name, layer.visible) for layer in viewer.layers] == [
        ("field 0", True), ("field 0 objects", True), ("field 1", False), ("field 1 objects", False),
    ]  # fmt: skip
    labels = viewer.layers["field 1 objects"]
    truth = tifffile.imread(out / "field 1_masks.tif")
    np.testing.assert_array_equal(labels.data, truth)
    table = labels.features.set_index("index")
    assert set(table.index) == set(np.unique(truth)) - {0}
    assert table["area_px"].to_dict() == {n: (truth == n).sum() for n in table.index}
    assert set(table["class"]) == {expected.class_names[0]}
    assert viewer.layers["field 0"].rgb
    assert not viewer.open(images / "field 0.png", plugin="napari")[0].multiscale


def test_predict_on_the_active_layer_cancel_and_save(plugins: Any, viewer: Any, images: Path, tmp_path: Path) -> None:
    (contribution,) = plugins.get_manifest("cellwright").contributions.widgets
    from napari.utils._proxies import PublicOnlyProxy  # in which napari wraps what plugins get

    widget = contribution.get_callable()(PublicOnlyProxy(viewer))
    widget.predict()
    assert "not an image" in widget.status.text()
    (layer,) = viewer.open(images / "field 0.png", plugin="napari")
    layer.scale, layer.translate = (0.5, 0.5), (3, 4)
    assert widget.channel.isEnabled()
    widget.model.setCurrentText("classical")
    widget.min_area.setValue(30)
    widget.predict()
    wait(widget.start.isEnabled)
    added = viewer.layers["field 0 classical"]
    expected = cw.load_model("classical").predict(images / "field 0.png", min_area=30)
    np.testing.assert_array_equal(added.data, expected.masks.to_label_map(expected.ids))
    assert (tuple(added.scale), tuple(added.translate)) == ((0.5, 0.5), (3, 4))
    assert widget.status.text().startswith(f"{len(expected)} objects")

    viewer.layers.selection.active = layer
    widget.predict()
    widget.cancel()
    assert widget.status.text() == "cancelled"
    wait(widget.start.isEnabled)
    time.sleep(0.3)
    wait(lambda: len(viewer.layers) == 2)

    for name, objects in (("a_masks.tif", None), ("a.geojson", len(expected)), ("a_rois.zip", len(expected))):
        added.save(str(tmp_path / name), plugin="cellwright")
        assert objects is None or len(cw.read_instances(tmp_path / name)) == objects
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a_masks.tif"), added.data)
    read = cw.read_instances(tmp_path / "a.geojson")
    assert read.ids.tolist() == np.unique(added.data)[1:].tolist()
    added.data[:5, :5] = 77  # drawn by hand: without features
    added.save(str(tmp_path / "b_masks.tif"), plugin="cellwright")
    assert 77 in tifffile.imread(tmp_path / "b_masks.tif")
