"""Loops of the evaluation, compiled by numba on first use and cached."""

from __future__ import annotations

import heapq

import numpy as np

from cellwright.core.jit import njit

# What a prediction counts as, at one IoU threshold and in one size band.
FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


@njit(cache=True)
def greedy_codes(order, start, pair_truth, pair_iou, truth_ignored, truth_crowd, outside, thresholds):
    """COCO's greedy matching in one image, for A size bands and T thresholds.

    order: (D,) predictions, highest score first. start: (D + 1,) and pair_truth, pair_iou (P,): the pairs of prediction
    d are ``start[d]:start[d + 1]``, by ascending object. truth_ignored: (A, G). truth_crowd: (G,), may be matched more
    than once. outside: (A, D), the size of the prediction is outside the band. Returns codes (A, T, D) uint8.

    A prediction takes the free object with the highest IoU, the last of equal ones. It takes an ignored object only if
    no object that counts is free, and is then ignored itself.
    """
    n_bands, n_thresholds, n = outside.shape[0], thresholds.size, order.size
    codes = np.zeros((n_bands, n_thresholds, n), np.uint8)
    taken = np.zeros(truth_crowd.size, np.bool_)
    for a in range(n_bands):
        for t in range(n_thresholds):
            taken[:] = False
            for d in order:
                best, best_ignored = -1, -1
                iou = iou_ignored = thresholds[t]
                for p in range(start[d], start[d + 1]):
                    g = pair_truth[p]
                    if taken[g] and not truth_crowd[g]:
                        continue
                    if truth_ignored[a, g]:
                        if pair_iou[p] >= iou_ignored:
                            best_ignored, iou_ignored = g, pair_iou[p]
                    elif pair_iou[p] >= iou:
                        best, iou = g, pair_iou[p]
                if best >= 0:
                    taken[best] = True
                    codes[a, t, d] = TRUE_POSITIVE
                elif best_ignored >= 0:
                    taken[best_ignored] = True
                    codes[a, t, d] = IGNORED
                elif outside[a, d]:
                    codes[a, t, d] = IGNORED
    return codes


@njit(cache=True)
def precision_recall(codes, rank, caps, n_truth, recall_points):
    """Interpolated precision (A, M, T, R) and final recall (A, M, T) of one class.

    codes: (A, T, D) by descending score over all images. rank: (D,) rank among the predictions of the same image and
    class. caps: (M,) maximum number of these. n_truth: (A,) objects; a band without objects is NaN.
    """
    n_bands, n_thresholds, n = codes.shape
    precision = np.full((n_bands, caps.size, n_thresholds, recall_points.size), np.nan)
    recall = np.full((n_bands, caps.size, n_thresholds), np.nan)
    reached, exact = np.empty(n), np.empty(n)
    for a in range(n_bands):
        if n_truth[a] == 0:
            continue
        for m in range(caps.size):
            for t in range(n_thresholds):
                count, tp, fp = 0, 0.0, 0.0
                for d in range(n):
                    if rank[d] >= caps[m]:
                        continue
                    tp += codes[a, t, d] == TRUE_POSITIVE
                    fp += codes[a, t, d] == FALSE_POSITIVE
                    reached[count] = tp / n_truth[a]
                    exact[count] = tp / (fp + tp + 2.220446049250313e-16)  # np.spacing(1), as in the COCO API
                    count += 1
                recall[a, m, t] = reached[count - 1] if count else 0.0
                _envelope(exact, reached, count, recall_points, precision[a, m, t])
    return precision, recall


@njit(cache=True)
def _envelope(exact, reached, count, recall_points, out):
    """The highest precision at each recall point or any higher recall; 0 if the recall is not reached."""
    for d in range(count - 1, 0, -1):
        exact[d - 1] = max(exact[d - 1], exact[d])
    d = 0
    for r in range(recall_points.size):
        while d < count and reached[d] < recall_points[r]:
            d += 1
        out[r] = exact[d] if d < count else 0.0


@njit(cache=True)
def resampled_ap(codes, image, weights, truth_per_image, recall_points):
    """AP (B,) of one class, mean over T thresholds, if image i is in resample b ``weights[b, i]`` times.

    codes: (T, D) by descending score. image: (D,). weights: (B, I). truth_per_image: (I,). NaN for a resample without
    objects. Counting a prediction w times equals w copies of its image, whose predictions would be next to each other.
    """
    n_thresholds, n = codes.shape
    result = np.full(weights.shape[0], np.nan)
    reached, exact, row = np.empty(n), np.empty(n), np.empty(recall_points.size)
    for b in range(weights.shape[0]):
        n_truth = 0
        for i in range(truth_per_image.size):
            n_truth += weights[b, i] * truth_per_image[i]
        if n_truth == 0:
            continue
        total = 0.0
        for t in range(n_thresholds):
            tp = fp = 0.0
            for d in range(n):
                if codes[t, d] == TRUE_POSITIVE:
                    tp += weights[b, image[d]]
                elif codes[t, d] == FALSE_POSITIVE:
                    fp += weights[b, image[d]]
                reached[d] = tp / n_truth
                exact[d] = tp / (fp + tp + 2.220446049250313e-16)
            _envelope(exact, reached, n, recall_points, row)
            mean = 0.0
            for r in range(row.size):
                mean += row[r]
            total += mean / row.size
        result[b] = total / n_thresholds
    return result


@njit(cache=True)
def inner_bands(boxes, offsets, crops, distance):
    """Crops of the pixels within ``distance`` (chessboard metric) of the outside of their mask."""
    bands = np.zeros(crops.size, np.uint8)
    for k in range(boxes.shape[0]):
        height, width = boxes[k, 3] - boxes[k, 1], boxes[k, 2] - boxes[k, 0]
        depth = np.zeros((height + 2, width + 2), np.int32)  # padded by background: a mask ends where its box does
        at = offsets[k]
        for y in range(1, height + 1):
            for x in range(1, width + 1):
                if crops[at + (y - 1) * width + x - 1]:
                    above = min(depth[y - 1, x - 1], depth[y - 1, x], depth[y - 1, x + 1])
                    depth[y, x] = 1 + min(above, depth[y, x - 1])
        for y in range(height, 0, -1):
            for x in range(width, 0, -1):
                if depth[y, x]:
                    below = min(depth[y + 1, x - 1], depth[y + 1, x], depth[y + 1, x + 1])
                    depth[y, x] = min(depth[y, x], 1 + min(below, depth[y, x + 1]))
                    bands[at + (y - 1) * width + x - 1] = depth[y, x] <= distance
    return bands


@njit(cache=True)
def pool_adjacent_violators(values, weights):
    """The non-decreasing sequence (N,) closest to ``values`` by weighted least squares (PAVA)."""
    level, mass, size = np.empty(values.size), np.empty(values.size), np.empty(values.size, np.int64)
    blocks = 0
    for i in range(values.size):
        level[blocks], mass[blocks], size[blocks] = values[i], weights[i], 1
        blocks += 1
        while blocks > 1 and level[blocks - 2] >= level[blocks - 1]:
            joint = mass[blocks - 2] + mass[blocks - 1]
            level[blocks - 2] = (level[blocks - 2] * mass[blocks - 2] + level[blocks - 1] * mass[blocks - 1]) / joint
            mass[blocks - 2] = joint
            size[blocks - 2] += size[blocks - 1]
            blocks -= 1
    return np.repeat(level[:blocks], size[:blocks])


@njit(cache=True)
def heaviest_edges(start, columns, weight, n_columns):
    """For each of R rows, its edge in the one-to-one matching with the largest total weight, (R,) int64, or -1.

    start: (R + 1,) and columns, weight (E,): row r has the edges ``start[r]:start[r + 1]``; weights are positive. Uses
    shortest augmenting paths with potentials (Jonker & Volgenant 1987) on the sparse graph. Each row has an additional
    column ``n_columns + r`` that means "unmatched", so that every path ends. The cost depends on the number of rows
    that compete for columns.
    """
    n_rows = start.size - 1
    top = 0.0
    for e in range(weight.size):
        top = max(top, weight[e])
    row_potential, column_potential = np.zeros(n_rows), np.zeros(n_columns + n_rows)
    row_of = np.full(n_columns + n_rows, -1)
    edge_of = np.full(n_columns + n_rows, -1)  # the edge between a taken column and its row; -1 for "unmatched"
    distance, done = np.full(n_columns + n_rows, np.inf), np.zeros(n_columns + n_rows, np.bool_)
    from_row, from_edge = np.empty(n_columns + n_rows, np.int64), np.empty(n_columns + n_rows, np.int64)
    for source in range(n_rows):
        row, walked, end = source, 0.0, -1
        heap = [(0.0, np.int64(-1))]
        heap.clear()
        touched = [np.int64(-1)]
        touched.clear()
        while end < 0:
            for e in range(start[row], start[row + 1] + 1):
                last = e == start[row + 1]  # after its edges, the row's "unmatched" column
                column = n_columns + row if last else columns[e]
                if done[column]:
                    continue
                cost = top if last else top - weight[e]
                there = walked + max(cost - row_potential[row] - column_potential[column], 0.0)
                if there < distance[column]:
                    if distance[column] == np.inf:
                        touched.append(np.int64(column))
                    distance[column] = there
                    from_row[column], from_edge[column] = row, -1 if last else e
                    heapq.heappush(heap, (there, np.int64(column)))
            walked, column = heapq.heappop(heap)
            while done[column]:
                walked, column = heapq.heappop(heap)
            done[column] = True
            if row_of[column] < 0:
                end = column
            else:
                row = row_of[column]
        row_potential[source] += walked
        for column in touched:
            if done[column] and column != end:
                row_potential[row_of[column]] += walked - distance[column]
                column_potential[column] -= walked - distance[column]
        for column in touched:
            distance[column], done[column] = np.inf, False
        while end >= 0:  # walk back, and assign every column on the path to its new row
            row = from_row[end]
            previous = -1
            if row != source:
                previous = matched_column(row, start, columns, row_of, n_columns)
            row_of[end], edge_of[end] = row, from_edge[end]
            end = previous
    result = np.full(n_rows, -1)
    for column in range(n_columns):
        if row_of[column] >= 0:
            result[row_of[column]] = edge_of[column]
    return result


@njit(cache=True)
def matched_column(row, start, columns, row_of, n_columns):
    """The column assigned to ``row``."""
    for e in range(start[row], start[row + 1]):
        if row_of[columns[e]] == row:
            return columns[e]
    return n_columns + row
