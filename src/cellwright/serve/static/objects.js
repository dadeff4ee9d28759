// The objects of one image: their columns, how each is drawn (a lookup table by id), what is selected and shown.

import { CLASS_PACKED, ID_PACKED, RAMP, cssOf } from "./colours.js";

export const HIDDEN = 0,
  SHOWN = 1,
  MANUAL = 2,
  SELECTED = 4,
  HOVERED = 8,
  DOOMED = 16;
const LARGEST_ID = 1 << 26;
const COLUMNS = ["y0", "x0", "y1", "x1", "area", "score", "class", "origin"];

export class Objects extends EventTarget {
  constructor(classes) {
    super();
    this.classes = classes;
    this.rows = new Map(); // id -> index into the columns
    this.ids = [];
    for (const name of COLUMNS) this[name] = [];
    this.rev = -1;
    this.filter = { score: 0, area: 0 };
    this.gates = []; // [{column, low, high, keep: Set of ids}]
    this.colourBy = "class";
    this.selected = new Set();
    this.hovered = 0;
    this.doomed = new Set(); // what a rectangle of the delete tool would remove
    this.capacity = 0;
    this.nShown = 0;
    this.typicalSide = 20;
    this.reserve(1024);
  }

  reserve(id) {
    if (id < this.capacity) return;
    if (id > LARGEST_ID) throw new Error(`Object ${id}: the page shows ids up to ${LARGEST_ID.toLocaleString("en")}`);
    let capacity = Math.max(this.capacity, 1024);
    while (capacity <= id) capacity *= 2;
    const grow = (kind, old) => {
      const larger = new kind(capacity);
      if (old) larger.set(old);
      return larger;
    };
    this.flags = grow(Uint8Array, this.flags);
    this.colours = grow(Uint32Array, this.colours);
    this.capacity = capacity;
  }

  get count() {
    return this.rows.size;
  }
  has(id) {
    return this.rows.has(id);
  }
  isShown(id) {
    return id < this.capacity && (this.flags[id] & SHOWN) !== 0;
  }

  row(id) {
    const index = this.rows.get(id);
    if (index === undefined) return null;
    const row = { id };
    for (const name of COLUMNS) row[name] = this[name][index];
    return row;
  }

  /** Replace everything by the answer of /objects. */
  load(table) {
    this.rows.clear();
    this.ids = [];
    for (const name of COLUMNS) this[name] = [];
    this.flags.fill(0);
    this.nShown = 0;
    this.selected.clear();
    this.hovered = 0;
    this.rev = table.rev;
    this.put(table);
    this.restyle();
    this.changed("load");
  }

  put(table) {
    for (let i = 0; i < table.id.length; i++) {
      const id = table.id[i];
      this.reserve(id);
      let index = this.rows.get(id);
      if (index === undefined) {
        index = this.ids.length;
        this.ids.push(id);
        this.rows.set(id, index);
      }
      for (const name of COLUMNS) this[name][index] = table[name][i];
    }
  }

  /** Apply the answer of an edit: changed rows and removed ids. */
  apply({ changed, removed }) {
    for (const id of removed ?? []) {
      this.rows.delete(id);
      this.selected.delete(id);
      if (this.hovered === id) this.hovered = 0;
      if (id < this.capacity) this.style(id);
    }
    if (changed) {
      this.put(changed);
      this.restyleSome(changed.id); // also where no pixel changed: another class, or drawn by hand from now on
    }
    if (this.ids.length > 2 * this.rows.size + 1024) this.compact();
    this.changed("edit");
  }

  compact() {
    const kept = [...this.rows];
    const columns = Object.fromEntries(COLUMNS.map((name) => [name, kept.map(([, index]) => this[name][index])]));
    Object.assign(this, columns);
    this.ids = kept.map(([id]) => id);
    this.rows = new Map(this.ids.map((id, index) => [id, index]));
  }

  passes(index) {
    const score = this.score[index];
    if (
      this.origin[index] !== "manual" &&
      ((score !== null && score < this.filter.score) || this.area[index] < this.filter.area)
    )
      return false;
    const id = this.ids[index];
    return this.gates.every((gate) => gate.keep.has(id));
  }

  colourOf(index) {
    switch (this.colourBy) {
      case "score": {
        const score = this.score[index];
        if (score === null) return CLASS_PACKED[1];
        const [low, high] = this.scoreRange;
        return RAMP[Math.round(255 * Math.min(1, Math.max(0, (score - low) / Math.max(high - low, 1e-6))))];
      }
      case "size": {
        const [low, high] = this.areaRange;
        const place = (Math.log(this.area[index] + 1) - low) / Math.max(high - low, 1e-6);
        return RAMP[Math.round(255 * Math.min(1, Math.max(0, place)))];
      }
      case "id":
        return ID_PACKED[(Math.imul(this.ids[index], 2654435761) >>> 16) % ID_PACKED.length];
      default:
        return CLASS_PACKED[(this.class[index] ?? 0) % CLASS_PACKED.length];
    }
  }

  /** Fill the entry of one object in the lookup table; keeps count of those shown. */
  style(id) {
    const index = this.rows.get(id),
      before = this.flags[id] & SHOWN;
    this.nShown -= before;
    if (index === undefined) {
      this.flags[id] = HIDDEN;
      return;
    }
    let flags = HIDDEN;
    if (this.passes(index)) {
      flags = SHOWN;
      if (this.origin[index] === "manual") flags |= MANUAL;
      if (this.selected.has(id)) flags |= SELECTED;
      if (this.hovered === id) flags |= HOVERED;
      if (this.doomed.has(id)) flags |= DOOMED;
    }
    this.nShown += flags & SHOWN;
    this.flags[id] = flags;
    this.colours[id] = this.colourOf(index);
  }

  /** Fill the whole lookup table: after a filter, a gate or another colouring. */
  restyle() {
    let smallest = Infinity,
      largest = 0,
      low = 1,
      high = 0;
    for (const index of this.rows.values()) {
      const area = this.area[index],
        score = this.score[index];
      if (area < smallest) smallest = area;
      if (area > largest) largest = area;
      if (score !== null && score < low) low = score;
      if (score !== null && score > high) high = score;
    }
    this.areaRange = [Math.log(smallest + 1), Math.log(largest + 1)];
    const areas = [...this.rows.values()]
      .slice(0, 5000)
      .map((index) => this.area[index])
      .sort((a, b) => a - b);
    this.typicalSide = Math.sqrt(areas[areas.length >> 1] ?? 400);
    this.scoreRange = high >= low ? [low, high] : [0, 1];
    for (const id of this.rows.keys()) this.style(id);
  }

  shown() {
    const ids = [];
    for (const id of this.rows.keys()) if (this.flags[id] & SHOWN) ids.push(id);
    return ids;
  }

  countShown() {
    return this.nShown;
  }

  setFilter(filter) {
    Object.assign(this.filter, filter);
    this.restyle();
    this.changed("filter");
  }

  setGates(gates) {
    this.gates = gates;
    this.restyle();
    this.changed("filter");
  }

  setColourBy(name) {
    this.colourBy = name;
    this.restyle();
    this.changed("style");
  }

  select(ids, { add = false, toggle = false } = {}) {
    const before = [...this.selected];
    if (!add && !toggle) this.selected.clear();
    for (const id of ids) {
      if (!this.has(id)) continue;
      if (toggle && this.selected.has(id)) this.selected.delete(id);
      else this.selected.add(id);
    }
    this.restyleSome(new Set([...before, ...ids]));
    this.changed("select");
  }

  hover(id) {
    if (id === this.hovered) return;
    const before = this.hovered;
    this.hovered = id;
    this.restyleSome(new Set([before, id]));
  }

  doom(ids) {
    const before = this.doomed;
    this.doomed = new Set(ids);
    this.restyleSome(new Set([...before, ...ids]));
  }

  /** Style some ids again and say which box (full pixels) has to be drawn. */
  restyleSome(ids) {
    let box = null;
    for (const id of ids) {
      const index = this.rows.get(id);
      if (!id || index === undefined) continue;
      this.style(id);
      const [y0, x0, y1, x1] = [this.y0[index], this.x0[index], this.y1[index], this.x1[index]];
      box = box
        ? [Math.min(box[0], y0), Math.min(box[1], x0), Math.max(box[2], y1), Math.max(box[3], x1)]
        : [y0, x0, y1, x1];
    }
    if (box) this.dispatchEvent(new CustomEvent("draw", { detail: box }));
  }

  /** The shown objects whose middles lie inside a rectangle [y0, x0, y1, x1]. */
  inside([y0, x0, y1, x1]) {
    const ids = [];
    for (const [id, i] of this.rows) {
      const y = (this.y0[i] + this.y1[i]) / 2,
        x = (this.x0[i] + this.x1[i]) / 2;
      if (y >= y0 && y <= y1 && x >= x0 && x <= x1 && this.flags[id] & SHOWN) ids.push(id);
    }
    return ids;
  }

  css(id) {
    return cssOf(this.colours[id]);
  }
  changed(what) {
    this.dispatchEvent(new CustomEvent("change", { detail: what }));
  }
}
