// Tiles of the label layer of one image: raw uint32 ids, fetched when seen, patched in place by edits.

import { labelTile } from "./http.js";

const MOST_TILES = 192; // 1 MiB each at 512 px
const AT_ONCE = 6;

export class LabelTiles {
  /** levels: [{scale, hw}], level 0 is the full size; label pixel (r, c) of a level is the full pixel (r * scale, c * scale). */
  constructor(image, levels, tilePx, arrived) {
    this.image = image;
    this.levels = levels;
    this.tilePx = tilePx;
    this.arrived = arrived; // (box of full pixels) => void
    this.tiles = new Map(); // key -> {level, row, column, rows, columns, data}; in order of use
    this.waiting = new Map(); // key -> AbortController
    this.queue = [];
    this.rev = 0;
    this.closed = false;
  }

  key(level, row, column) {
    return `${level}/${row}/${column}`;
  }

  /** The tile if it is here; otherwise it is fetched, and `arrived` is called. */
  want(level, row, column) {
    const key = this.key(level, row, column),
      tile = this.tiles.get(key);
    if (tile) {
      this.tiles.delete(key);
      this.tiles.set(key, tile); // the most recently used last
      if (tile.stale) this.request(level, row, column);
      return tile;
    }
    this.request(level, row, column);
    return null;
  }

  /** The best tile already here that covers the place of a missing one, at a coarser level. */
  coarser(level, row, column) {
    for (let other = level + 1; other < this.levels.length; other++) {
      const ratio = this.levels[level].scale / this.levels[other].scale;
      const tile = this.tiles.get(this.key(other, Math.floor(row * ratio), Math.floor(column * ratio)));
      if (tile) return tile;
    }
    return null;
  }

  request(level, row, column) {
    const key = this.key(level, row, column);
    if (this.waiting.has(key) || this.queue.some((job) => job.key === key)) return;
    this.queue.push({ key, level, row, column });
    this.pump();
  }

  /** Forget requests for tiles that are not seen any more. `seen`: keys. */
  keepOnly(seen) {
    this.queue = this.queue.filter((job) => seen.has(job.key));
  }

  pump() {
    while (this.waiting.size < AT_ONCE && this.queue.length) {
      const job = this.queue.pop(); // the last wanted first
      const abort = new AbortController();
      this.waiting.set(job.key, abort);
      this.fetch(job, abort.signal).finally(() => {
        this.waiting.delete(job.key);
        this.pump();
      });
    }
  }

  async fetch({ key, level, row, column }, signal) {
    const rev = this.rev;
    try {
      const tile = await labelTile(`/api/images/${this.image}/labels/${level}/${row}/${column}?rev=${rev}`, signal);
      if (this.closed) return;
      if (rev !== this.rev) {
        // edits came meanwhile: what was fetched may be older than they are
        this.queue.push({ key, level, row, column });
        return;
      }
      this.tiles.set(key, { ...tile, level, row, column });
      while (this.tiles.size > MOST_TILES) this.tiles.delete(this.tiles.keys().next().value);
      this.arrived(this.boxOf(level, row, column));
    } catch (error) {
      if (error.name !== "AbortError") console.warn(`labels ${key}: ${error.message}`);
    }
  }

  boxOf(level, row, column) {
    const side = this.tilePx * this.levels[level].scale;
    return [row * side, column * side, (row + 1) * side, (column + 1) * side];
  }

  /** Write changed boxes [{y0, x0, h, w, labels: Uint32Array}] (full pixels) into the tiles of every level. */
  patch(boxes, rev) {
    this.rev = rev;
    for (const box of boxes) for (const tile of this.tiles.values()) this.patchTile(tile, box);
  }

  patchTile(tile, { y0, x0, h, w, labels }) {
    const scale = this.levels[tile.level].scale;
    const top = tile.row * this.tilePx,
      left = tile.column * this.tilePx;
    const r0 = Math.max(Math.ceil(y0 / scale), top),
      r1 = Math.min(Math.ceil((y0 + h) / scale), top + tile.rows);
    const c0 = Math.max(Math.ceil(x0 / scale), left),
      c1 = Math.min(Math.ceil((x0 + w) / scale), left + tile.columns);
    for (let r = r0; r < r1; r++) {
      const source = (Math.round(r * scale) - y0) * w - x0;
      let target = (r - top) * tile.columns + c0 - left;
      for (let c = c0; c < c1; c++) tile.data[target++] = labels[source + Math.round(c * scale)];
    }
  }

  /** Boxes that someone else changed: what is here is shown until the new tiles arrive. */
  stale(boxes, rev) {
    this.rev = rev;
    for (const tile of this.tiles.values()) {
      const [y0, x0, y1, x1] = this.boxOf(tile.level, tile.row, tile.column);
      tile.stale ||=
        !boxes || boxes.some((box) => box.y0 < y1 && box.x0 < x1 && box.y0 + box.h > y0 && box.x0 + box.w > x0);
    }
  }

  /** The id at a full pixel, from the finest tile that is here; 0 outside and where nothing, or only older ids, are here. */
  at(y, x, finest = 0) {
    for (let level = finest; level < this.levels.length; level++) {
      const { scale, hw } = this.levels[level];
      const r = Math.floor(y / scale),
        c = Math.floor(x / scale);
      if (r < 0 || c < 0 || r >= hw[0] || c >= hw[1]) return 0;
      const row = Math.floor(r / this.tilePx),
        column = Math.floor(c / this.tilePx);
      const tile = this.tiles.get(this.key(level, row, column));
      if (tile?.stale) return 0;
      if (tile) return tile.data[(r - row * this.tilePx) * tile.columns + c - column * this.tilePx] ?? 0;
    }
    return 0;
  }

  close() {
    this.closed = true;
    this.queue = [];
    for (const abort of this.waiting.values()) abort.abort();
    this.tiles.clear();
  }
}
