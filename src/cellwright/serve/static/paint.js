// The label layer in screen pixels: which object lies under every pixel of the canvas, then outlines and fills.
// Work follows the pixels of the canvas, not the number of objects; lines are equally thick at every zoom.

import { DOOMED, HOVERED, MANUAL, SELECTED, SHOWN } from "./objects.js";

const MARGIN = 3; // pixels around what is drawn that outlines look at
const SQUARES_FROM = 8; // canvas pixels per label pixel: from here on edges follow the pixels exactly
const HALO = 0x78000000; // dark line around objects, for bright images
const WHITE = 0xffffffff,
  RED = 0xff3a5cff;

let ids = new Uint32Array(0); // of the canvas pixels
let part = new Uint32Array(0); // of the label pixels below them

/**
 * Draw a rectangle of the canvas.
 *
 * view: {level, scale, k (canvas pixels per label pixel), ox, oy (label coordinates of the canvas corner), width, height,
 * thick, tiny (objects: lines of two pixels, no lines)}. rect: [x0, y0, x1, y1] in canvas pixels. mode: "outlines" | "filled".
 * Returns the keys of the tiles that are seen.
 */
export function paint(context, tiles, objects, view, rect, mode, opacity) {
  const [x0, y0, x1, y1] = [
    Math.max(0, rect[0]),
    Math.max(0, rect[1]),
    Math.min(view.width, rect[2]),
    Math.min(view.height, rect[3]),
  ];
  const width = x1 - x0,
    height = y1 - y0;
  const seen = new Set();
  if (width <= 0 || height <= 0) return seen;
  const stride = width + 2 * MARGIN,
    rows = height + 2 * MARGIN;
  if (ids.length < stride * rows) ids = new Uint32Array(stride * rows);
  sample(tiles, view, x0 - MARGIN, y0 - MARGIN, stride, rows, seen);
  const pixels = context.createImageData(width, height);
  colour(new Uint32Array(pixels.data.buffer), width, height, stride, objects, mode, opacity, [x0, y0], view);
  context.putImageData(pixels, x0, y0);
  return seen;
}

/** Fill `ids` for a rectangle of canvas pixels: the nearest label pixel, or, moderately enlarged, with smooth edges. */
function sample(tiles, view, left, top, width, height, seen) {
  const { level, k, ox, oy } = view,
    smooth = k > 1.3 && k < SQUARES_FROM;
  const c0 = Math.floor((left + 0.5) / k + ox) - 1,
    c1 = Math.floor((left + width - 0.5) / k + ox) + 2;
  const r0 = Math.floor((top + 0.5) / k + oy) - 1,
    r1 = Math.floor((top + height - 0.5) / k + oy) + 2;
  const wide = c1 - c0;
  if (part.length < wide * (r1 - r0)) part = new Uint32Array(wide * (r1 - r0));
  copyLabels(tiles, level, r0, c0, r1, c1, seen);
  const shift = smooth ? 0.5 : 0; // between the middles of four pixels
  const columns = new Int32Array(width),
    weights = new Float32Array(width);
  for (let i = 0; i < width; i++) {
    const c = (left + i + 0.5) / k + ox - shift;
    columns[i] = Math.floor(c) - c0;
    weights[i] = c - Math.floor(c);
  }
  let previous = -1;
  for (let j = 0; j < height; j++) {
    const r = (top + j + 0.5) / k + oy - shift,
      row = Math.floor(r) - r0,
      target = j * width;
    const base = row * wide;
    if (smooth) smoothRow(target, base, wide, columns, weights, r - Math.floor(r));
    else if (row === previous) ids.copyWithin(target, target - width, target);
    else for (let i = 0; i < width; i++) ids[target + i] = part[base + columns[i]];
    previous = row;
  }
}

/** One row of canvas pixels: of the four label pixels around each, the id with the largest share. */
function smoothRow(target, base, wide, columns, weights, down) {
  const up = 1 - down,
    below = base + wide;
  for (let i = 0; i < columns.length; i++) {
    const c = columns[i],
      a = part[base + c],
      b = part[base + c + 1],
      d = part[below + c],
      e = part[below + c + 1];
    if (a === b && a === d && a === e) {
      ids[target + i] = a;
      continue;
    }
    const right = weights[i],
      left = 1 - right;
    const wa = left * up + (b === a ? right * up : 0) + (d === a ? left * down : 0) + (e === a ? right * down : 0);
    let id = a,
      most = wa;
    if (b !== a) {
      const w = right * up + (d === b ? left * down : 0) + (e === b ? right * down : 0);
      if (w > most) {
        id = b;
        most = w;
      }
    }
    if (d !== a && d !== b) {
      const w = left * down + (e === d ? right * down : 0);
      if (w > most) {
        id = d;
        most = w;
      }
    }
    if (e !== a && e !== b && e !== d && right * down > most) id = e;
    ids[target + i] = id;
  }
}

/** Copy label pixels of a level into `part`, row by row from the tiles; 0 outside and where no tile is here yet. */
function copyLabels(tiles, level, r0, c0, r1, c1, seen) {
  const side = tiles.tilePx,
    wide = c1 - c0,
    [rows, cols] = tiles.levels[level].hw;
  part.fill(0, 0, wide * (r1 - r0));
  const rFirst = Math.max(r0, 0),
    rLast = Math.min(r1, rows),
    cFirst = Math.max(c0, 0),
    cLast = Math.min(c1, cols);
  if (rFirst >= rLast || cFirst >= cLast) return;
  for (let row = Math.floor(rFirst / side); row * side < rLast; row++) {
    for (let column = Math.floor(cFirst / side); column * side < cLast; column++) {
      seen.add(tiles.key(level, row, column));
      const from = Math.max(cFirst, column * side),
        to = Math.min(cLast, (column + 1) * side);
      const first = Math.max(rFirst, row * side),
        last = Math.min(rLast, (row + 1) * side);
      const tile = tiles.want(level, row, column);
      if (tile) {
        for (let r = first; r < last; r++) {
          const start = (r - row * side) * tile.columns - column * side;
          part.set(tile.data.subarray(start + from, start + to), (r - r0) * wide + from - c0);
        }
      } else copyCoarse(tiles, level, row, column, [first, from, last, to], [r0, c0, wide]);
    }
  }
}

/** A tile that is not here yet: from a coarser one. */
function copyCoarse(tiles, level, row, column, [first, from, last, to], [r0, c0, wide]) {
  const tile = tiles.coarser(level, row, column);
  if (!tile) return;
  const side = tiles.tilePx,
    ratio = tiles.levels[level].scale / tiles.levels[tile.level].scale;
  for (let r = first; r < last; r++) {
    const start = (Math.floor(r * ratio) - tile.row * side) * tile.columns - tile.column * side;
    for (let c = from; c < to; c++) part[(r - r0) * wide + c - c0] = tile.data[start + Math.floor(c * ratio)] ?? 0;
  }
}

const withAlpha = (value, alpha) => ((value & 0xffffff) | (alpha << 24)) >>> 0;

function colour(out, width, height, stride, objects, mode, opacity, [left, top], view) {
  const { flags, colours, capacity } = objects,
    { thick, tiny } = view;
  const line = Math.round(255 * Math.min(1, 0.35 + opacity * 0.65)),
    soft = line >> 1,
    second = Math.round(line * 0.72);
  const fill = mode === "filled" || tiny ? Math.round(255 * opacity * (tiny ? 0.5 : 0.62)) : 0;
  for (let j = 0; j < height; j++) {
    let p = (j + MARGIN) * stride + MARGIN,
      q = j * width;
    for (let i = 0; i < width; i++, p++, q++) {
      const id = ids[p];
      const l = ids[p - 1],
        r = ids[p + 1],
        u = ids[p - stride],
        d = ids[p + stride];
      if (id === 0) {
        if (!tiny && (l | r | u | d) !== 0 && shown(flags, l) | shown(flags, r) | shown(flags, u) | shown(flags, d))
          out[q] = HALO;
        continue;
      }
      if (id >= capacity) continue;
      const flag = flags[id];
      if (flag === 0) {
        if (
          (l !== id && shown(flags, l)) ||
          (r !== id && shown(flags, r)) ||
          (u !== id && shown(flags, u)) ||
          (d !== id && shown(flags, d))
        )
          out[q] = HALO;
        continue;
      }
      const edge = l !== id || r !== id || u !== id || d !== id;
      if (flag === SHOWN) {
        // automatic, nothing special: the common case
        if (tiny)
          out[q] = withAlpha(colours[id], fill); // too small for outlines
        else if (edge) out[q] = withAlpha(colours[id], line);
        else if (
          thick &&
          (ids[p - 2] !== id || ids[p + 2] !== id || ids[p - 2 * stride] !== id || ids[p + 2 * stride] !== id)
        )
          out[q] = withAlpha(colours[id], second);
        else if (
          ids[p - stride - 1] !== id ||
          ids[p - stride + 1] !== id ||
          ids[p + stride - 1] !== id ||
          ids[p + stride + 1] !== id
        )
          out[q] = withAlpha(colours[id], soft);
        else if (fill) out[q] = withAlpha(colours[id], fill);
        continue;
      }
      out[q] = special(id, flag, edge, p, stride, i + left, j + top, view, objects, line, fill);
    }
  }
}

const shown = (flags, id) => (id !== 0 && id < flags.length ? flags[id] & SHOWN : 0);

/** One pixel of an object that is drawn by hand, selected, under the pointer or about to be deleted. */
function special(id, flag, edge, p, stride, x, y, view, objects, line, fill) {
  const second =
    edge || ids[p - 2] !== id || ids[p + 2] !== id || ids[p - 2 * stride] !== id || ids[p + 2 * stride] !== id;
  const value = objects.colours[id];
  if (flag & DOOMED) return second ? RED : withAlpha(RED, 90);
  if (flag & SELECTED) return second ? WHITE : withAlpha(value, Math.max(fill, 95));
  if (edge && flag & MANUAL) return dash(id, x, y, view, objects) ? withAlpha(value, line) : withAlpha(0, 190);
  if (second && flag & MANUAL) return dash(id, x, y, view, objects) ? withAlpha(value, line >> 1) : 0;
  if (edge) return withAlpha(value, 255);
  if (flag & HOVERED) return withAlpha(value, Math.max(fill, 60));
  return fill ? withAlpha(value, fill) : 0;
}

/** Dashes of about 7 pixels along the outline of an object: by the angle around the middle of its box. */
function dash(id, x, y, { k, ox, oy, scale }, objects) {
  const index = objects.rows.get(id);
  if (index === undefined) return true;
  const zoom = k / scale,
    cx = (objects.x0[index] + objects.x1[index]) / 2,
    cy = (objects.y0[index] + objects.y1[index]) / 2;
  const dx = x - (cx / scale - ox) * k,
    dy = y - (cy / scale - oy) * k;
  const sum = Math.abs(dx) + Math.abs(dy) || 1;
  const turn = dx >= 0 ? (dy >= 0 ? dy / sum : 4 + dy / sum) : 2 - dy / sum; // 0 to 4 around the middle
  const around = 1.6 * zoom * (objects.x1[index] - objects.x0[index] + objects.y1[index] - objects.y0[index]);
  const pairs = Math.max(3, Math.round(around / 14));
  return ((turn / 4) * pairs) % 1 < 0.58;
}
