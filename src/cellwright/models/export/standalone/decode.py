"""From an image to labelled objects with the network that was exported beside this file, without cellwright.

    python decode.py IMAGE LABELS --diameter 30

IMAGE is a .npy, TIFF, PNG or JPEG file, LABELS a .npy or TIFF file: 0 is background, 1 the object with the highest
score. In Python: ``labels, scores = predict(image, diameter_px=30)``, or only ``decode(maps, rules)``.

Needs numpy and scipy, onnxruntime or openvino for the network, tifffile or pillow for images other than .npy.
"""

import argparse
import heapq
import json
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

# --- objects: from the maps of the network to labels and scores -------------------------------------------------------


def flow(maps, body_threshold, steps, outline_share, max_error, min_area_px, max_hole_share):
    """Of the maps flow_y, flow_x and body: pixels that follow the flow to one sink are an object."""
    body, pixels = maps[2], np.argwhere(maps[2] >= np.float64(body_threshold))
    moves = follow(np.where(body >= np.float64(body_threshold), maps[:2], np.float32(0)), pixels, steps)

    def objects(chosen, reach):
        labels = components(sinks(moves[chosen], pixels[chosen], body.shape, reach))
        if body_threshold < outline_share:  # dim objects are not cut down to their middle
            highest = np.zeros(labels.max(initial=0) + 1, np.float32)
            np.maximum.at(highest, labels.ravel(), body.ravel())
            labels = components(labels * (body >= np.float32(outline_share) * highest[labels]))
        labels = clean(labels, body, min_area_px, max_hole_share, body_threshold)
        difference = heat_flow(labels) - maps[:2]  # from the flow that the outline would have
        errors = means(labels, difference[0] ** 2 + difference[1] ** 2)
        agree = errors <= (np.inf if max_error is None else max_error)
        scores = (means(labels, body) * (1 - errors / 2))[agree].clip(0, 1).astype(np.float32)
        return renumbered(labels, agree), scores, renumbered(labels, ~agree)

    labels, scores, dropped = objects(slice(None), 2)
    if dropped.any():  # two sinks may have been merged there
        finer, more, _ = objects(dropped[tuple(pixels.T)] > 0, 1)
        labels = np.where((labels == 0) & (finer > 0), finer + len(scores), labels)
        scores = np.concatenate([scores, more])
    return labels, scores


def follow(field, pixels, steps):
    """How far pixels (P, 2) move in so many steps along the field (2, H, W): (P, 2) float32, y and x."""
    last, far = np.array(field.shape[1:]) - 1, 64
    while far < 2 * steps:  # positions are counted from so far away, for rounding that is the same in all of the image
        far *= 2
    origin, at, active, done = pixels - far, np.full(pixels.shape, far, np.float32), np.arange(len(pixels)), 0
    while done < steps and len(active):
        base, here, block = origin[active], at[active], (steps - done) % 8 or 8
        before = here
        for step in range(block):
            before = here if step == max(block - 2, 0) else before
            low = np.minimum(base + here.astype(np.int64), np.maximum(last - 1, 0))
            (y0, x0), (y1, x1), (fy, fx) = (
                low.T,
                np.minimum(low + 1, last).T,
                (here - (low - base).astype(np.float32)).T,
            )
            top = field[:, y0, x0] + fx * (field[:, y0, x1] - field[:, y0, x0])
            bottom = field[:, y1, x0] + fx * (field[:, y1, x1] - field[:, y1, x0])
            here = (here + (top + fy * (bottom - top)).T).clip(np.maximum(-base, 0), last - base).astype(np.float32)
        at[active], done = here, done + block
        if block > 1:  # those that two steps bring back have arrived
            active = active[np.abs(here - before).max(axis=1) > 1e-4]
    return at - np.float32(far)


def sinks(moves, pixels, image_hw, reach):
    """Labels (H, W) of pixels by the peak, in the histogram of where they end, that their end leads to."""
    ends = pixels + np.floor(moves + np.float32(0.5)).astype(np.int64)
    counts = np.zeros(image_hw, np.int64)
    np.add.at(counts, tuple(ends.T), 1)
    sums, n = ndimage.convolve(counts, np.ones((2 * reach - 1,) * 2, np.int64), mode="constant"), counts.size
    rank = np.where(counts > 0, sums * n + n - 1 - np.arange(n).reshape(image_hw), -1)  # the highest, then the first
    peak = n - 1 - (ndimage.maximum_filter(rank, 2 * reach + 1, mode="constant", cval=-1) % n).ravel()
    while (peak[peak] != peak).any():
        peak = peak[peak]
    labels = np.zeros(image_hw, np.int64)
    labels[tuple(pixels.T)] = peak[np.ravel_multi_index(tuple(ends.T), image_hw)] + 1
    return labels


def heat_flow(labels):
    """The flow (2, H, W) float32 of outlines: where heat rises that spreads in each object from its middle."""
    flows = np.zeros((2, *labels.shape), np.float32)
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        own = np.pad(labels[box] == k, 1)
        (y, x), sides = np.nonzero(own), sum(own.shape)
        middle = np.argmin((len(y) * y - y.sum()) ** 2 + (len(x) * x - x.sum()) ** 2)
        heat, share, step = np.zeros(own.shape), own[1:-1, 1:-1] * (1 / 9), 0
        while step < 2 * sides or step % sides or (step - 2 * sides < len(y) and (heat[own] == 0).any()):
            heat[y[middle], x[middle]] += 1
            rows = heat[:, :-2] + heat[:, 1:-1] + heat[:, 2:]
            heat[1:-1, 1:-1] = share * (rows[:-2] + rows[1:-1] + rows[2:])
            step += 1
        slope = np.stack([heat[2:, 1:-1] - heat[:-2, 1:-1], heat[1:-1, 2:] - heat[1:-1, :-2]])
        slope /= np.where((steepest := np.abs(slope).max(axis=0)) > 0, steepest, 1)
        length = np.sqrt(slope[0] ** 2 + slope[1] ** 2)
        flows[:, box[0], box[1]] += (slope / np.where(length > 0, length, 1) * own[1:-1, 1:-1]).astype(np.float32)
    return flows


def watershed(maps, body_threshold, core_threshold, core_distance, peak_distance, min_area_px, max_hole_share):
    """Of the maps body, border and distance: seeds grow over the foreground, first where body minus border is high."""
    body, border, distance = maps
    cost, foreground = border - body, body >= body_threshold
    core = (cost <= -core_threshold) & (distance >= core_distance)
    seeds = components(foreground & (core | (distance >= peak_distance)))
    labels = flood(cost, seeds, foreground)
    unseeded = foreground & (labels == 0)
    labels = np.where(unseeded, components(unseeded) + seeds.max(initial=0), labels)
    labels = clean(labels, body, min_area_px, max_hole_share)
    return labels, means(labels, body).clip(0, 1).astype(np.float32)


def flood(cost, seeds, mask):
    """Labels (H, W) of the mask: the pixel of lowest cost passes on its label next, then the one labelled first."""
    width, padded = seeds.shape[1] + 2, np.pad(seeds, 1)
    free, costs, labels = ((np.pad(mask, 1) & (padded == 0)).ravel().tolist(), np.pad(cost, 1).ravel(), padded.ravel())
    heap = [(costs[at], age, at) for age, at in enumerate(np.flatnonzero(labels).tolist())]
    heapq.heapify(heap)
    age = len(heap)
    while heap:
        _, _, centre = heapq.heappop(heap)
        for step in (-width, -1, 1, width, -width - 1, -width + 1, width - 1, width + 1):
            if free[at := centre + step]:
                free[at], labels[at] = False, labels[centre]
                heapq.heappush(heap, (costs[at], age, at))
                age += 1
    return labels.reshape(padded.shape)[1:-1, 1:-1]


def semantic(maps, body_threshold, min_area_px, max_hole_share):
    """Of the map body: connected foreground is an object."""
    labels = clean(components(maps[0] >= body_threshold), maps[0], min_area_px, max_hole_share)
    return labels, means(labels, maps[0]).clip(0, 1).astype(np.float32)


def components(labels):
    """Connected pixels (by a side or a corner) of one label, numbered in the order of their first pixels."""
    order = np.arange(labels.size).reshape(labels.shape)
    here = np.s_[:, 1:], np.s_[1:], np.s_[1:, 1:], np.s_[1:, :-1]
    there = np.s_[:, :-1], np.s_[:-1], np.s_[:-1, :-1], np.s_[:-1, 1:]
    same = [(labels[a] == labels[b]) & (labels[a] > 0) for a, b in zip(here, there, strict=True)]
    pairs = [np.concatenate([order[a][s] for a, s in zip(side, same, strict=True)]) for side in (here, there)]
    graph = sparse.coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(labels.size, labels.size))
    found = np.where(labels > 0, csgraph.connected_components(graph, directed=False)[1].reshape(labels.shape) + 1, 0)
    values, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(np.where(values > 0, first, -1))) + (values[:1].min(initial=1) > 0)
    return rank[inverse].reshape(labels.shape)


def clean(labels, body, min_area_px, max_hole_share, solid=np.inf):
    """Without small objects; holes that contain no other object are filled if they are small, or body throughout."""
    labels = renumbered(labels, np.bincount(labels.ravel())[1:] >= max(min_area_px, 1))
    areas = np.bincount(labels.ravel())
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        holes, n = ndimage.label(np.pad(labels[box] != k, 1, constant_values=True))
        for hole in range(2, n + 1):  # 1 is the outside
            inside = (holes == hole)[1:-1, 1:-1]
            is_solid = inside.sum() <= max_hole_share * areas[k] or (body[box][inside] >= np.float64(solid)).all()
            if is_solid and not labels[box][inside].any():
                labels[box][inside] = k
    return labels


def renumbered(labels, keep):
    """Only the objects (N,) bool to keep, as 1 to the number of them."""
    return np.concatenate([[0], np.cumsum(keep) * keep])[labels]


def means(labels, values):
    """Mean value (N,) inside each object."""
    return np.bincount(labels.ravel(), values.ravel())[1:] / np.bincount(labels.ravel())[1:]


# --- the whole way from an image --------------------------------------------------------------------------------------


def predict(image, diameter_px=None, scale=None, folder=None):
    """Labels (H, W) uint32 of an image (H, W) or (H, W, C), 0 is background, and scores (N,) float32, highest first.

    diameter_px: median diameter of the objects of this image, for networks that expect one size of objects.
    scale: pixels of the network per pixel of the image, for other networks; by default as the export says.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    rules = json.loads((folder / "export.json").read_text())
    pixels = normalised(image, rules["input"])
    hw = pixels.shape[1:]
    new_hw = network_hw(hw, rules["input"], diameter_px, scale)
    # Networks that resize by a diameter do so with antialiasing, as those with Detectron2's rule.
    antialias = bool(rules["input"]["diameter_px"]) or rules["input"]["resize_rule"] != "torchvision"
    pixels, stride = resized(pixels, new_hw, antialias), rules["stride"]
    padding = [(0, -side % stride) for side in new_hw]
    maps = run(folder / rules["graphs"]["maps"]["file"], np.pad(pixels, [(0, 0), *padding])[None])[0]
    return decode(resized(maps[:, : new_hw[0], : new_hw[1]], hw), rules)


def normalised(image, rules):
    """The image as the network's input (C, H, W) float32, before it is resized."""
    image = np.asarray(image)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.shape[2] == 1:
        image = np.repeat(image, rules["channels"], axis=2)
    if image.shape[2] != rules["channels"]:
        raise ValueError(f"got {image.shape[2]} channels; the network takes {rules['channels']}, or one channel")
    image = image[:, :, ::-1] if rules["colour_order"] == "bgr" else image
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    if rules["normalise"] == "percentile":
        parts = pixels.reshape(1 if rules["percentiles_of"] == "image" else len(pixels), -1)
        low, high = np.percentile(parts, rules["percentiles"], axis=1).astype(np.float32)[:, :, None, None]
        if rules["background"] == "dark":
            pixels, low, high = on_dark(pixels, parts, low, high, rules["percentiles"])
        return (pixels - low) / np.where(high != low, high - low, np.float32(np.inf))
    full = rules["full_range"] or (np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1)
    mean, std = (np.array(rules[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels / np.float32(full) - mean) / std


def on_dark(pixels, parts, low, high, percents):
    """Pixels and what becomes 0 and 1: inverted if the background is bright, dim values lifted if it has no noise."""
    opposite = [100 - percents[0], 100 - percents[1], 0, 50, 100]
    last, first, base, middle, highest = np.percentile(parts, opposite, axis=1).astype(np.float32)[:, :, None, None]
    counted, sign = high > first, 1
    if counted.any() and ((middle - first)[counted] / (high - first)[counted]).mean() > 0.75:
        low, high, base, sign = last, first, highest, -1
    counted = high != low
    if counted.any() and (np.abs(middle - base)[counted] / np.abs(high - base)[counted]).max() < 0.005:
        pixels, low, high = (np.sqrt(np.maximum((values - base) * sign, 0)) for values in (pixels, low, high))
    return pixels, low, high


def network_hw(hw, rules, diameter_px, scale):
    """Size of the network's input for an image of size ``hw``."""
    if rules["diameter_px"]:
        diameter_px = diameter_px or rules["default_diameter_px"]
        if diameter_px is None:
            raise ValueError("this network needs `diameter_px`, the median diameter of the objects, px of the image")
        largest = max((4096**2 / (hw[0] * hw[1])) ** 0.5, 1)  # no image is enlarged to more pixels
        scale = min(max(rules["diameter_px"] / diameter_px, 1 / 8), 8, largest)
    elif scale is None and rules["short_side"]:
        scale = rules["short_side"] / min(hw)
        scale = min(scale, (rules["max_side"] or np.inf) / max(hw))
        return [max(1, int(side * scale)) for side in hw]
    return [max(1, int(side * (scale or rules["scale"]) + 0.5)) for side in hw]


def resized(chw, new_hw, antialias=True):
    """(C, H, W) to (C, h, w) float32: bilinear, at the centres of pixels; antialiased where it becomes smaller."""
    for axis, new in ((2, new_hw[1]), (1, new_hw[0])):
        whole, shape = chw.shape[axis], (-1, 1) if axis == 1 else (-1,)
        if tuple(chw.shape[1:]) == tuple(new_hw):
            break
        ratio = whole / new
        reach, centres = max(ratio, 1.0) if antialias else 1.0, (np.arange(new) + 0.5) * ratio
        first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
        last = np.minimum((centres + reach + 0.5).astype(np.int64), whole)
        taps = first[:, None] + np.arange((last - first).max())
        weights = np.maximum(1 - np.abs((taps - centres[:, None] + 0.5) * (1 / reach)), 0) * (taps < last[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        parts = (
            chw.take(np.minimum(t, whole - 1), axis) * w.reshape(shape) for t, w in zip(taps.T, weights.T, strict=True)
        )
        chw = sum(parts, np.float64(0)).astype(np.float32)
    return chw


def run(file, images):
    """The maps (B, D, H, W) float32 of images (B, C, H, W) float32 whose sides are multiples of the stride."""
    if file.suffix == ".onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]
    import openvino

    # By default OpenVINO computes in bfloat16 where the processor has it.
    return openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]


def decode(maps, rules):
    """Labels and scores, as of `predict`, of the maps (D, H, W) float32 at the size of the image."""
    result, names = rules["result"], rules["class_names"]
    decoder = dict(rules["decoder"])
    n_maps, make = decoder.pop("maps"), {"flow": flow, "watershed": watershed, "semantic": semantic}
    labels, scores = make[decoder.pop("target")](np.ascontiguousarray(maps[:n_maps]), **decoder)
    classes, areas = np.zeros(len(scores), int), np.bincount(labels.ravel(), minlength=len(scores) + 1)[1:]
    if len(maps) > n_maps:  # the class of an object is the most probable one over its pixels
        sums = [np.bincount(labels.ravel(), probability.ravel())[1:] for probability in maps[n_maps:]]
        classes = np.argmax(sums, axis=0) if len(scores) else classes
    limits = [result["thresholds"].get(f"score/{name}", result["score_threshold"]) for name in names]
    smallest = [int(result["thresholds"].get(f"min_area_px/{name}", result["min_area_px"])) for name in names]
    shown, knots = scores, result["calibration"]
    if knots is not None:  # scores are the expected overlap with the true object
        limits, shown = (np.interp(values, knots["scores"], knots["expected_iou"]) for values in (limits, scores))
    limits, shown = np.array(limits, np.float32), shown.astype(np.float32)
    ranked = np.argsort(-scores, kind="stable")
    keep = (shown >= limits[classes]) & (areas >= np.array(smallest)[classes])
    ranked = ranked[keep[ranked]]
    new = np.zeros(len(scores) + 1, np.uint32)
    new[ranked + 1] = np.arange(1, len(ranked) + 1)
    return new[labels], shown[ranked]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--diameter", type=float, help="median diameter of the objects, pixels of the image")
    parser.add_argument("--scale", type=float, help="pixels of the network per pixel of the image")
    given = parser.parse_args()
    if given.image.suffix == ".npy":
        image = np.load(given.image)
    elif given.image.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        image = tifffile.imread(given.image)
    else:
        import PIL.Image

        picture = PIL.Image.open(given.image)
        kinds = {"RGBA": "RGB", "P": "RGB", "LA": "L", "PA": "RGB"}  # without alpha
        image = np.asarray(picture.convert(kinds[picture.mode]) if picture.mode in kinds else picture)
    labels, scores = predict(image, given.diameter, given.scale)
    if given.labels.suffix == ".npy":
        np.save(given.labels, labels)
    else:
        import tifffile

        tifffile.imwrite(given.labels, labels, compression="zlib")
    print(f"{len(scores)} objects: {given.labels}")


if __name__ == "__main__":
    main()
