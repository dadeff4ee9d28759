"""The widget of the napari plugin: predict on the active image layer with any model, in a thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from cellwright.api.models import NAMED_MODELS
from cellwright.core.errors import CellwrightError, UsageError
from cellwright.core.image import Image
from cellwright.core.text import count
from cellwright.plugin_napari.layers import RGB, LayerData, features_of, labels_layer

if TYPE_CHECKING:
    import napari

AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Request:
    """What to predict. name: of the layer; place: its scale, units, translation and so on."""

    image: Image
    name: str
    place: dict[str, Any]
    model: str
    channel: str | None = None
    diameter: float | None = None
    score: float | None = None
    min_area: int | None = None

    def run(self) -> tuple[LayerData, str]:
        """The layer of the objects, and what to say about them. Raises what `Model.predict` raises."""
        from cellwright.api.measure import measure
        from cellwright.api.models import load_model

        options = {"diameter": self.diameter, "score": self.score, "min_area": self.min_area}
        model = load_model(self.model).with_options(**options)
        prediction = model.predictions(self.image, channel=self.channel)
        objects = prediction.instances
        table = measure(objects, self.image, class_names=model.class_names)
        name = f"{self.name} {Path(self.model).name}"
        data, values, kind = labels_layer(objects, name, features_of(table))
        notes = [count(len(objects), "object"), *(note.text for note in prediction.notes)]
        return (data, {**values, **self.place}, kind), "\n".join(notes)


class PredictWidget(QWidget):
    """Predict on the active image layer; the objects become a labels layer with their measurements as features."""

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        """napari_viewer: napari fills in a parameter of this name."""
        super().__init__()
        viewer: Any = napari_viewer
        self.viewer = viewer
        self._worker: Any = None
        self.model = QComboBox()
        for name, text in NAMED_MODELS.items():
            self.model.addItem(name)
            self.model.setItemData(self.model.count() - 1, text, 3)  # a tool tip
        self.model.setMinimumContentsLength(12)
        self.model.setEditable(True)  # the folder of a model
        browse = QToolButton()
        browse.setText("...")
        browse.setToolTip("Choose a model folder or a run")
        browse.clicked.connect(self._browse)
        models = QHBoxLayout()
        models.addWidget(self.model, 1)
        models.addWidget(browse)
        self.channel = QComboBox()
        self.diameter = _number(
            QDoubleSpinBox(), 0, 10_000, "estimated", "Median diameter of the objects, pixels, for models that use one"
        )
        self.score = _number(
            QDoubleSpinBox(), 0, 1, "default", "Omit objects with a lower score (default: the threshold of the model)"
        )
        self.score.setSingleStep(0.05)
        self.min_area = _number(
            QSpinBox(), 0, 1_000_000, "default", "Omit smaller objects, pixels (default: the limit of the model)"
        )
        self.start = QPushButton("Predict")
        self.start.clicked.connect(self.predict)
        self.stop = QPushButton("Cancel")
        self.stop.clicked.connect(self.cancel)
        self.progress = QProgressBar()
        self.progress.setRange(0, 0)
        self.status = QLabel()
        self.status.setWordWrap(True)
        form = QFormLayout()
        for title, field in (("Model", models), ("Channel", self.channel), ("Diameter", self.diameter)):
            form.addRow(title, field)
        form.addRow("Smallest score", self.score)
        form.addRow("Smallest area", self.min_area)
        buttons = QHBoxLayout()
        buttons.addWidget(self.start)
        buttons.addWidget(self.stop)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.progress)
        layout.addWidget(self.status)
        layout.addStretch()
        viewer.layers.selection.events.active.connect(self._show_layer)
        self._set_running(None)
        self._show_layer()

    def predict(self) -> None:
        """Start to predict; `cancel` stops it."""
        try:
            request = self.request()
        except CellwrightError as error:
            self.status.setText(str(error))
            return
        from napari.qt.threading import create_worker

        self.status.setText(f"predicting {request.name} ...")
        run: Any = request.run
        worker: Any = create_worker(run, _start_thread=False)
        self._set_running(worker)
        worker.returned.connect(lambda result: self._done(worker, *result))
        worker.errored.connect(lambda error: self._failed(worker, error))
        worker.start()

    def cancel(self) -> None:
        """Stop waiting: the result is not added. What is being computed ends by itself in the background."""
        if self._worker is not None:
            self._set_running(None)
            self.status.setText("cancelled")

    def request(self) -> Request:
        """What the fields and the active layer ask for. Raises `UsageError` without an image layer."""
        layer: Any = self.viewer.layers.selection.active
        image, place = image_of(layer, self.viewer.dims.current_step)
        chosen = self.channel.currentText()
        return Request(
            image,
            layer.name,
            place,
            self.model.currentText().strip(),
            None if chosen in ("", AUTOMATIC) else chosen,
            self.diameter.value() or None,
            self.score.value() or None,
            self.min_area.value() or None,
        )

    def _done(self, worker: Any, layer: LayerData, text: str) -> None:
        if worker is self._worker:
            self._set_running(None)
            self.status.setText(text)
            data, values, _ = layer
            self.viewer.add_labels(data, **values)

    def _failed(self, worker: Any, error: Exception) -> None:
        if worker is self._worker:
            self._set_running(None)
            self.status.setText(str(error))
            if not isinstance(error, CellwrightError):
                raise error

    def _set_running(self, worker: Any) -> None:
        self._worker = worker
        self.start.setEnabled(worker is None)
        self.stop.setEnabled(worker is not None)
        self.progress.setVisible(worker is not None)

    def _show_layer(self) -> None:
        """Offer the channels of the active layer; other layers have one, which is used."""
        layer = self.viewer.layers.selection.active
        self.channel.clear()
        names = RGB if getattr(layer, "rgb", False) else ()
        self.channel.addItems([AUTOMATIC, *names])
        self.channel.setEnabled(bool(names))

    def _browse(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Model folder or run")
        if folder:
            self.model.setCurrentText(folder)


def image_of(layer: Any, step: tuple[int, ...]) -> tuple[Image, dict[str, Any]]:
    """The pixels of an image layer and where they lie; of a stack, the plane that is shown.

    Raises `UsageError` for a layer of another kind.
    """
    from napari.layers import Image as ImageLayer

    if not isinstance(layer, ImageLayer):
        got = "no layer" if layer is None else f"the layer {layer.name}, of another kind"
        raise UsageError("this is not an image", got=got, expected="an image layer, selected in the list of layers")
    data: Any = layer.data[0] if layer.multiscale else layer.data
    n_planes = data.ndim - (3 if layer.rgb else 2)
    plane = tuple(step[len(step) - layer.ndim :][:n_planes])
    pixels = np.asarray(data[plane])
    pixels = pixels if pixels.dtype in (np.uint8, np.uint16, np.float32) else pixels.astype(np.float32)
    place = {"scale": tuple(layer.scale[-2:]), "translate": tuple(layer.translate[-2:]), "units": layer.units[-2:]}
    return Image.from_array(pixels), place


def _number(field: Any, low: float, high: float, text: str, tip: str) -> Any:
    """A field in which the lowest value means ``text``."""
    field.setRange(low, high)
    field.setSpecialValueText(text)
    field.setToolTip(tip)
    return field
