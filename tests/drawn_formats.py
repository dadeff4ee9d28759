"""Tiny drawn datasets in the formats of published data, written without cellwright's writers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import tifffile

from cellwright.data.synthetic import draw_field

IMAGE_HW = (128, 160)
N_IMAGES, N_OBJECTS = 2, 14
SARTORIUS_CLASSES = ("shsy5y", "astro", "cort")


def draw(seed: int, n_classes: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 RGB (128, 160, 3), masks (N, 128, 160) bool, class ids (N,); every class occurs."""
    image, truth = draw_field(seed, IMAGE_HW, N_OBJECTS)
    masks = truth.masks.to_dense().astype(bool)
    return image.data, masks, np.arange(len(masks)) % n_classes


def write_mask_folder(root: Path, *, alpha: bool = False) -> Path:
    """VRDL's layout, or DSB2018's with ``alpha``: ``<id>/images/<id>.png``, one PNG per object in ``<id>/masks``."""
    for k in range(N_IMAGES):
        rgb, masks, _ = draw(k)
        folder = root / f"field{k}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        pixels = np.dstack([rgb[:, :, ::-1], np.full(IMAGE_HW, 255, np.uint8)]) if alpha else rgb[:, :, ::-1]
        cv2.imwrite(str(folder / "images" / f"field{k}.png"), pixels)
        for i, mask in enumerate(masks):
            cv2.imwrite(str(folder / "masks" / f"{i}.png"), 255 * mask.astype(np.uint8))
    return root


def write_sartorius(root: Path) -> Path:
    """``train.csv`` (one row per cell, runs along rows, counted from 1) next to grey images in ``train/``."""
    (root / "train").mkdir(parents=True)
    with (root / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "annotation", "width", "height", "cell_type"])
        for k in range(N_IMAGES):
            rgb, masks, class_ids = draw(k, len(SARTORIUS_CLASSES))
            cv2.imwrite(str(root / "train" / f"field{k}.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
            for mask, class_id in zip(masks, class_ids, strict=True):
                edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(), [0]]).astype(np.int8)))
                runs = " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))
                name = SARTORIUS_CLASSES[class_id]
                table.writerow([f"field{k}", runs, IMAGE_HW[1], IMAGE_HW[0], name])
    return root


def write_livecell(root: Path) -> Path:
    """The layout of LIVECell: a COCO file of polygons with the class "cell", whose path is returned, and the images."""
    root.mkdir()
    images, annotations = [], []
    for k in range(N_IMAGES):
        rgb, masks, _ = draw(k)
        cv2.imwrite(str(root / f"field{k}.tif"), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
        images.append({"id": k + 1, "file_name": f"field{k}.tif", "height": IMAGE_HW[0], "width": IMAGE_HW[1]})
        for mask in masks:
            (outline, *_), _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            x, y, width, height = cv2.boundingRect(outline)
            if len(outline) >= 3:
                annotation = {"id": len(annotations) + 1, "image_id": k + 1, "category_id": 1, "iscrowd": 0}
                rings = [outline.ravel().tolist()]
                annotation |= {"segmentation": rings, "bbox": [x, y, width, height], "area": int(mask.sum())}
                annotations.append(annotation)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (root / "livecell_coco_train.json").write_text(json.dumps(content))
    return root / "livecell_coco_train.json"


def write_cells4(root: Path) -> Path:
    """Four classes: ``<id>/image.tif`` beside ``class1.tif`` .. ``class4.tif``, label maps in float64."""
    for k in range(N_IMAGES):
        rgb, masks, class_ids = draw(k, 4)
        folder = root / f"field{k}"
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "image.tif", rgb)
        for class_id in range(4):
            labels = np.zeros(IMAGE_HW, np.float64)
            for i in np.flatnonzero(class_ids == class_id):
                labels[masks[i]] = i + 1
            tifffile.imwrite(folder / f"class{class_id + 1}.tif", labels)
    return root
