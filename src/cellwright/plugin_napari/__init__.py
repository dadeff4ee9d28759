"""The napari plugin: read datasets and predictions, predict on a layer, save labels. `napari.yaml` is its manifest."""
