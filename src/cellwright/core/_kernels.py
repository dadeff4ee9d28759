"""Loops over boxes and crops, compiled by numba on first use and cached. Memory is proportional to the crops.

Shapes: boxes (N, 4) int32 ``x0, y0, x1, y1``; offsets (N + 1,) int64; crops flat uint8 of 0 and 1, where object i is
``crops[offsets[i]:offsets[i + 1]]`` in C order over its box.
"""

from __future__ import annotations

import numpy as np

from cellwright.core.jit import njit


@njit(cache=True)
def box_pairs(a, b):
    """Pairs (i, j) of overlapping boxes a (N, 4), b (M, 4) float64, and how many pairs were compared.

    In each of several strips of columns, a sweep along y with two lists of active boxes. A strip is as wide as the mean
    box, so the cost depends on how densely the boxes lie, not on the number of boxes that share rows.
    """
    left, right, widths, n = np.inf, -np.inf, 0.0, 0
    for boxes in (a, b):
        for k in range(boxes.shape[0]):
            if boxes[k, 2] > boxes[k, 0] and boxes[k, 3] > boxes[k, 1]:
                left, right = min(left, boxes[k, 0]), max(right, boxes[k, 2])
                widths += boxes[k, 2] - boxes[k, 0]
                n += 1
    n_strips, width = 1, right - left
    if n > 0 and np.isfinite(widths):
        n_strips = max(min(int(width * n / widths), n), 1)
        width /= n_strips
    starts_a, listed_a = strips_of(a, left, width, n_strips)
    starts_b, listed_b = strips_of(b, left, width, n_strips)
    active_a, active_b = np.empty(a.shape[0], np.int64), np.empty(b.shape[0], np.int64)
    out_i, out_j = np.empty(256, np.int64), np.empty(256, np.int64)
    n_pairs = n_compared = 0
    for strip in range(n_strips):
        n_a = n_b = 0
        pa, pb = starts_a[strip], starts_b[strip]
        while pa < starts_a[strip + 1] or pb < starts_b[strip + 1]:
            from_a = pb >= starts_b[strip + 1] or (
                pa < starts_a[strip + 1] and a[listed_a[pa], 1] <= b[listed_b[pb], 1]
            )
            k = listed_a[pa] if from_a else listed_b[pb]
            box = a[k] if from_a else b[k]
            others, active, count = (b, active_b, n_b) if from_a else (a, active_a, n_a)
            kept = 0
            n_compared += count
            for t in range(count):
                o = active[t]
                if others[o, 3] <= box[1]:
                    continue
                active[kept] = o
                kept += 1
                if others[o, 0] >= box[2] or box[0] >= others[o, 2]:
                    continue
                if strip_of(max(box[0], others[o, 0]), left, width, n_strips) != strip:
                    continue  # found in the strip where both begin
                if n_pairs == out_i.size:
                    out_i = np.concatenate((out_i, np.empty(n_pairs, np.int64)))
                    out_j = np.concatenate((out_j, np.empty(n_pairs, np.int64)))
                out_i[n_pairs] = k if from_a else o
                out_j[n_pairs] = o if from_a else k
                n_pairs += 1
            if from_a:
                n_b = kept
                active_a[n_a] = k
                n_a += 1
                pa += 1
            else:
                n_a = kept
                active_b[n_b] = k
                n_b += 1
                pb += 1
    return out_i[:n_pairs], out_j[:n_pairs], n_compared


@njit(cache=True)
def strip_of(x, left, width, n_strips):
    """The number of the strip of columns that contains x; the last one includes its right end."""
    return 0 if n_strips == 1 else min(int((x - left) / width), n_strips - 1)


@njit(cache=True)
def strips_of(boxes, left, width, n_strips):
    """The boxes that reach into each strip, without empty ones: ``listed[starts[s]:starts[s + 1]]``, sorted by y0."""
    order = np.argsort(boxes[:, 1])
    starts = np.zeros(n_strips + 1, np.int64)
    listed = np.empty(0, np.int64)
    for fill in range(2):  # counts, then lists
        for k in order:
            x0, y0, x1, y1 = boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3]
            if not (x1 > x0 and y1 > y0):
                continue
            for s in range(strip_of(x0, left, width, n_strips), strip_of(x1, left, width, n_strips) + 1):
                if fill:
                    listed[starts[s]] = k
                    starts[s] += 1
                else:
                    starts[s + 1] += 1
        if not fill:
            for s in range(n_strips):  # `np.cumsum` would import scipy.linalg, see `jit`
                starts[s + 1] += starts[s]
            listed = np.empty(starts[-1], np.int64)
    return np.concatenate((np.zeros(1, np.int64), starts[:-1])), listed


@njit(cache=True)
def label_extents(labels, largest):
    """Boxes (largest + 1, 4) int32 and pixel counts of each label of a (H, W) int32 array; row 0 is not filled."""
    height, width = labels.shape
    boxes = np.empty((largest + 1, 4), np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3] = width, height, 0, 0
    counts = np.zeros(largest + 1, np.int64)
    for y in range(height):
        for x in range(width):
            k = labels[y, x]
            if k > 0:
                counts[k] += 1
                boxes[k, 0] = min(boxes[k, 0], x)
                boxes[k, 1] = min(boxes[k, 1], y)
                boxes[k, 2] = max(boxes[k, 2], x + 1)
                boxes[k, 3] = max(boxes[k, 3], y + 1)
    return boxes, counts


@njit(cache=True)
def cut_labels(labels, ids, boxes, offsets):
    """Crops of the objects ``ids`` (N,) of a label array."""
    crops = np.zeros(offsets[-1], np.uint8)
    for i in range(ids.size):
        at = offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            for x in range(boxes[i, 0], boxes[i, 2]):
                crops[at] = labels[y, x] == ids[i]
                at += 1
    return crops


@njit(cache=True)
def tighten(boxes, offsets, crops):
    """Canonical boxes, offsets and crops: tight boxes, values 0 and 1; an empty object has the box 0, 0, 0, 0."""
    n = boxes.shape[0]
    tight, starts = np.zeros((n, 4), np.int32), np.zeros(n + 1, np.int64)
    for i in range(n):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        x0, y0, x1, y1 = width, height, 0, 0
        at = offsets[i]
        for y in range(height):
            for x in range(width):
                if crops[at] != 0:
                    x0, x1 = min(x0, x), max(x1, x + 1)
                    y0, y1 = min(y0, y), max(y1, y + 1)
                at += 1
        if x1 > x0:
            tight[i, 0], tight[i, 1] = boxes[i, 0] + x0, boxes[i, 1] + y0
            tight[i, 2], tight[i, 3] = boxes[i, 0] + x1, boxes[i, 1] + y1
        starts[i + 1] = starts[i] + max(x1 - x0, 0) * max(y1 - y0, 0)
    out = np.empty(starts[n], np.uint8)
    for i in range(n):
        width = boxes[i, 2] - boxes[i, 0]
        at = starts[i]
        for y in range(tight[i, 1] - boxes[i, 1], tight[i, 3] - boxes[i, 1]):
            row = offsets[i] + y * width - boxes[i, 0]
            for x in range(tight[i, 0], tight[i, 2]):
                out[at] = crops[row + x] != 0
                at += 1
    return tight, starts, out


@njit(cache=True)
def crop_sums(offsets, crops):
    """Number of foreground pixels (N,) int64 of each object."""
    sums = np.zeros(offsets.size - 1, np.int64)
    for i in range(sums.size):
        total = 0
        for at in range(offsets[i], offsets[i + 1]):
            total += crops[at]
        sums[i] = total
    return sums


@njit(cache=True)
def take(index, boxes, offsets, flat):
    """Boxes, offsets and flat bytes of the objects ``index`` (M,), in that order."""
    starts = np.zeros(index.size + 1, np.int64)
    for k in range(index.size):
        starts[k + 1] = starts[k] + offsets[index[k] + 1] - offsets[index[k]]
    out = np.empty(starts[-1], np.uint8)
    taken = np.empty((index.size, 4), boxes.dtype)
    # Loops, because assigning a slice takes 2 s to compile.
    for k in range(index.size):
        for side in range(4):
            taken[k, side] = boxes[index[k], side]
        crop, copied = flat[offsets[index[k]] : offsets[index[k] + 1]], out[starts[k] : starts[k + 1]]
        for at in range(crop.size):
            copied[at] = crop[at]
    return taken, starts, out


@njit(cache=True)
def pair_areas(i, j, boxes_a, offsets_a, crops_a, boxes_b, offsets_b, crops_b):
    """Number of shared pixels (P,) int64 of the pairs (i, j), counted where the two boxes overlap."""
    areas = np.zeros(i.size, np.int64)
    for p in range(i.size):
        a, b = boxes_a[i[p]], boxes_b[j[p]]
        x0, x1 = max(a[0], b[0]), min(a[2], b[2])
        width_a, width_b = a[2] - a[0], b[2] - b[0]
        total = np.int64(0)
        for y in range(max(a[1], b[1]), min(a[3], b[3])):
            at_a = offsets_a[i[p]] + (y - a[1]) * width_a + (x0 - a[0])
            at_b = offsets_b[j[p]] + (y - b[1]) * width_b + (x0 - b[0])
            row = np.int32(0)
            for x in range(x1 - x0):
                row += crops_a[at_a + x] & crops_b[at_b + x]
            total += row
        areas[p] = total
    return areas


@njit(cache=True)
def paint(canvas, values, boxes, offsets, crops):
    """Write ``values[i]`` to the pixels of object i, in reverse order: where objects overlap, the first is on top."""
    for back in range(values.size):
        i = values.size - 1 - back
        at = offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            for x in range(boxes[i, 0], boxes[i, 2]):
                if crops[at]:
                    canvas[y, x] = values[i]
                at += 1


@njit(cache=True)
def paint_layers(canvas, layer_of, values, boxes, offsets, crops):
    """Write ``values[i]`` to the pixels of object i in layer ``layer_of[i]`` of a (L, H, W) canvas."""
    for i in range(values.size):
        layer = canvas[layer_of[i]]
        at = offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            for x in range(boxes[i, 0], boxes[i, 2]):
                if crops[at]:
                    layer[y, x] = values[i]
                at += 1


@njit(cache=True)
def first_fit_layers(n, i, j):
    """Layer (N,) int64 of each object: the lowest without an earlier overlapping object. Pairs are sorted by i."""
    layer_of = np.zeros(n, np.int64)
    taken = np.zeros(n + 1, np.int64)
    p = 0
    for k in range(n):
        while p < i.size and i[p] == k:
            if j[p] < k:
                taken[layer_of[j[p]]] = k + 1
            p += 1
        layer = 0
        while taken[layer] == k + 1:
            layer += 1
        layer_of[k] = layer
    return layer_of


@njit(cache=True)
def unite(group, out_boxes, starts, boxes, offsets, crops):
    """Crops of the union of the objects of each group; ``group`` (N,) is 0-based, ``out_boxes`` enclose its objects."""
    out_crops = np.zeros(starts[-1], np.uint8)
    for i in range(group.size):
        g = group[i]
        width = out_boxes[g, 2] - out_boxes[g, 0]
        at = offsets[i]
        for y in range(boxes[i, 1], boxes[i, 3]):
            row = starts[g] + (y - out_boxes[g, 1]) * width - out_boxes[g, 0]
            for x in range(boxes[i, 0], boxes[i, 2]):
                out_crops[row + x] |= crops[at]
                at += 1
    return out_crops


@njit(cache=True)
def cut_window(x0, y0, x1, y1, boxes, offsets, crops):
    """Boxes (in window coordinates), offsets and crops of the objects clipped to a window; not tight."""
    n = boxes.shape[0]
    out_boxes, starts = np.zeros((n, 4), np.int32), np.zeros(n + 1, np.int64)
    for i in range(n):
        left, top = max(boxes[i, 0], x0), max(boxes[i, 1], y0)
        right, bottom = min(boxes[i, 2], x1), min(boxes[i, 3], y1)
        if right > left and bottom > top:
            out_boxes[i, 0], out_boxes[i, 1] = left - x0, top - y0
            out_boxes[i, 2], out_boxes[i, 3] = right - x0, bottom - y0
            starts[i + 1] = np.int64(right - left) * (bottom - top)
        starts[i + 1] += starts[i]
    out = np.empty(starts[n], np.uint8)
    for i in range(n):
        width = boxes[i, 2] - boxes[i, 0]
        at = starts[i]
        for y in range(out_boxes[i, 1] + y0, out_boxes[i, 3] + y0):
            row = offsets[i] + (y - boxes[i, 1]) * width - boxes[i, 0] + x0
            for x in range(out_boxes[i, 0], out_boxes[i, 2]):
                out[at] = crops[row + x]
                at += 1
    return out_boxes, starts, out


@njit(cache=True)
def dihedral(transpose, flip_y, flip_x, boxes, offsets, flat):
    """Crops transposed, then flipped along y and x; the size of each crop in the flat buffer stays the same."""
    out = np.empty_like(flat)
    for i in range(boxes.shape[0]):
        height, width = boxes[i, 3] - boxes[i, 1], boxes[i, 2] - boxes[i, 0]
        new_h, new_w = (width, height) if transpose else (height, width)
        at = offsets[i]
        for y in range(height):
            for x in range(width):
                ty, tx = (x, y) if transpose else (y, x)
                if flip_y:
                    ty = new_h - 1 - ty
                if flip_x:
                    tx = new_w - 1 - tx
                out[offsets[i] + ty * new_w + tx] = flat[at]
                at += 1
    return out


@njit(cache=True)
def resize_nearest(old_h, old_w, new_h, new_w, boxes, offsets, crops):
    """Boxes, offsets and crops sampled at the centres of the new pixels; not tight."""
    n = boxes.shape[0]
    ratio_y, ratio_x = old_h / new_h, old_w / new_w
    out_boxes, starts = np.zeros((n, 4), np.int32), np.zeros(n + 1, np.int64)
    for i in range(n):
        out_boxes[i, 0] = max(0, int(boxes[i, 0] / ratio_x) - 1)
        out_boxes[i, 1] = max(0, int(boxes[i, 1] / ratio_y) - 1)
        out_boxes[i, 2] = min(new_w, int(boxes[i, 2] / ratio_x) + 2)
        out_boxes[i, 3] = min(new_h, int(boxes[i, 3] / ratio_y) + 2)
        if boxes[i, 2] == boxes[i, 0]:
            out_boxes[i, :] = 0
        area = np.int64(out_boxes[i, 2] - out_boxes[i, 0]) * (out_boxes[i, 3] - out_boxes[i, 1])
        starts[i + 1] = starts[i] + area
    out = np.zeros(starts[n], np.uint8)
    for i in range(n):
        width = boxes[i, 2] - boxes[i, 0]
        at = starts[i]
        for y in range(out_boxes[i, 1], out_boxes[i, 3]):
            old_y = min(int((y + 0.5) * ratio_y), old_h - 1) - boxes[i, 1]
            for x in range(out_boxes[i, 0], out_boxes[i, 2]):
                old_x = min(int((x + 0.5) * ratio_x), old_w - 1) - boxes[i, 0]
                if 0 <= old_y < boxes[i, 3] - boxes[i, 1] and 0 <= old_x < width:
                    out[at] = crops[offsets[i] + old_y * width + old_x]
                at += 1
    return out_boxes, starts, out
