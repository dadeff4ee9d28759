// Measure: one table of every object of the image, linked with the picture both ways; plots; gates.

import { button, field, format, h, select } from "./dom.js";
import { get } from "./http.js";
import { histogram, scatter } from "./plots.js";

const ROW = 24; // pixels
const HANDY = ["area_px", "area", "area_um2", "solidity", "eccentricity"];

export class MeasurePanel {
  constructor(page, host) {
    this.page = page;
    this.table = null; // {ids, columns: [{name, unit, values}]}
    this.gates = []; // [{column, low, high}]; kept from image to image, and sent with an export
    this.order = { column: null, down: false };
    this.x = select([], null, () => this.plots());
    this.y = select([], null, () => this.plots());
    this.gateHost = h("div", { class: "gates" });
    this.facts = h("p", {
      class: "muted",
      text: "Sizes, shapes and intensities of all objects of this image, in every channel.",
    });
    this.start = button({ text: "Measure this image", kind: "primary", id: "measure", click: () => this.measure() });
    host.append(
      h("section", {}, this.start, this.facts),
      h("section", {}, h("h3", { text: "Plots" }), field("Histogram and x", this.x), field("y", this.y)),
      h(
        "section",
        {},
        h(
          "div",
          { class: "row" },
          h("h3", { text: "Gates" }),
          h("span", { class: "grow" }),
          button({
            text: "Select",
            kind: "small",
            title: "Select the objects inside all gates",
            click: () => this.selectGated(),
          }),
          button({ text: "Clear", kind: "small", click: () => this.setGates([]) }),
        ),
        this.gateHost,
        h("p", {
          class: "hint",
          text: "Drag over the histogram to keep a range. Objects outside are hidden, and left out of exports that use the gates.",
        }),
      ),
    );
    this.buildDock();
    page.addEventListener("image", () => this.forget());
    page.addEventListener("objects", (event) => this.objectsChanged(event.detail));
    this.showGates();
  }

  buildDock() {
    this.dock = document.getElementById("dock");
    this.head = h("div", { class: "table-head", role: "row" });
    this.body = h("div", { class: "table-rows" });
    this.scroller = h(
      "div",
      {
        class: "table-scroll",
        tabIndex: 0,
        role: "grid",
        "aria-label": "Measurements",
        on: { scroll: () => this.rows(), keydown: (event) => this.key(event) },
      },
      this.head,
      this.body,
    );
    this.histogram = histogram((low, high) => this.brush(low, high));
    this.scatter = scatter((ids, ranges) => this.lasso(ids, ranges));
    this.dock.append(this.scroller, h("div", { class: "plots" }, this.histogram.canvas, this.scatter.canvas));
    new ResizeObserver(() => this.rows()).observe(this.scroller);
  }

  opened() {
    if (this.page.info && !this.table) this.measure();
  }

  forget() {
    this.table = null;
    this.showDock();
    if (this.page.openPanel === "measure") this.measure();
  }

  showDock() {
    const visible = this.table !== null && this.page.openPanel === "measure";
    if (this.dock.hidden === visible) {
      this.dock.hidden = !visible;
      document.body.classList.toggle("docked", visible);
    }
  }

  async measure() {
    if (!this.page.info || this.busy) return;
    this.busy = true;
    const id = this.page.info.id;
    this.facts.textContent = "Measuring...";
    const table = await this.page.guard(() => get(`/api/images/${id}/measurements`));
    this.busy = false;
    if (!table || this.page.info.id !== id) {
      this.facts.textContent = "";
      return;
    }
    this.table = table;
    this.numeric = table.columns.filter((column) => column.values.some((value) => typeof value === "number"));
    this.places = new Map(table.ids.map((one, index) => [one, index]));
    this.facts.textContent = `${format.count(table.ids.length, "object")}, ${format.count(table.columns.length, "column")}`;
    this.start.querySelector("span").textContent = "Measure again";
    this.choices();
    this.sort();
    this.applyGates();
    this.showDock();
    this.plots();
  }

  choices() {
    const names = this.numeric.map((column) => column.name),
      keep = [this.x.value, this.y.value];
    for (const element of [this.x, this.y])
      element.replaceChildren(...names.map((name) => h("option", { value: name, text: titleOf(this.column(name)) })));
    const first =
      HANDY.find((name) => names.includes(name)) ?? names.find((name) => name.startsWith("area")) ?? names[0];
    this.x.value = names.includes(keep[0]) ? keep[0] : first;
    this.y.value = names.includes(keep[1])
      ? keep[1]
      : (names.find((name) => name.includes("mean")) ?? names.find((name) => name !== first) ?? first);
  }

  column(name) {
    return this.table.columns.find((column) => column.name === name);
  }

  sort() {
    const { column, down } = this.order,
      values = column && this.column(column)?.values;
    this.sorted = this.table.ids.map((_, index) => index);
    if (values) {
      const compare = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);
      this.sorted.sort((a, b) => compare(values[a], values[b]) * (down ? -1 : 1));
    }
    const heads = [["id", "id"], ...this.table.columns.map((one) => [one.name, titleOf(one)])];
    this.widths = heads.map(([, text], i) => (i ? Math.max(72, 26 + 7 * text.length) : 58));
    this.head.replaceChildren(
      ...heads.map(([name, text]) =>
        h("button", {
          class: "cell",
          type: "button",
          role: "columnheader",
          text: text + (column === name ? (down ? " ↓" : " ↑") : ""),
          title: text,
          on: {
            click: () => {
              this.order = { column: name, down: column === name && !down };
              this.sort();
              this.rows();
            },
          },
        }),
      ),
    );
    [...this.head.children].forEach((cell, i) => {
      cell.style.width = `${this.widths[i]}px`;
    });
    this.visible = this.sorted;
    this.rows();
  }

  rows() {
    if (!this.table) return;
    const { objects } = this.page;
    const list = (this.listed = this.visible.filter((index) => objects.isShown(this.table.ids[index])));
    this.body.style.height = `${list.length * ROW}px`;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 4),
      last = Math.min(list.length, first + Math.ceil(this.scroller.clientHeight / ROW) + 10);
    const parts = [];
    for (let place = first; place < last; place++) {
      const index = list[place],
        id = this.table.ids[index];
      const row = h(
        "div",
        {
          class: "table-row",
          role: "row",
          "aria-selected": String(objects.selected.has(id)),
          on: {
            click: (event) => {
              objects.select([id], { toggle: event.ctrlKey || event.metaKey });
              this.page.show(id);
            },
          },
        },
        h("span", { class: "cell", role: "gridcell", text: String(id) }),
        this.table.columns.map((column) =>
          h("span", {
            class: "cell",
            role: "gridcell",
            text:
              typeof column.values[index] === "number"
                ? format.number(column.values[index])
                : (column.values[index] ?? ""),
          }),
        ),
      );
      [...row.children].forEach((cell, i) => {
        cell.style.width = `${this.widths[i]}px`;
      });
      row.style.top = `${place * ROW}px`;
      parts.push(row);
    }
    this.body.replaceChildren(...parts);
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (!step || !this.listed?.length) return;
    event.preventDefault();
    event.stopPropagation();
    const [current] = this.page.objects.selected,
      at = this.listed.findIndex((index) => this.table.ids[index] === current);
    const id = this.table.ids[this.listed[Math.min(this.listed.length - 1, Math.max(0, at + step))]];
    this.page.objects.select([id]);
    this.page.show(id);
  }

  objectsChanged(what) {
    if (!this.table || this.dock.hidden) return;
    if (what === "edit") {
      this.facts.textContent = "The objects have changed since they were measured. Measure again.";
    }
    if (what === "select") {
      const [id] = this.page.objects.selected,
        place = this.listed?.findIndex((index) => this.table.ids[index] === id) ?? -1;
      if (place >= 0 && this.page.objects.selected.size === 1) {
        const top = place * ROW,
          { scrollTop, clientHeight } = this.scroller;
        if (top < scrollTop || top > scrollTop + clientHeight - 3 * ROW)
          this.scroller.scrollTop = Math.max(0, top - clientHeight / 2);
      }
    }
    this.rows();
    this.plots();
  }

  plots() {
    if (!this.table) return;
    const { objects } = this.page,
      x = this.column(this.x.value),
      y = this.column(this.y.value),
      { ids } = this.table;
    if (!x || !y) return;
    const gate = this.gates.find((one) => one.column === x.name);
    this.histogram.set({
      ids,
      values: x.values,
      title: titleOf(x),
      selected: objects.selected,
      range: gate ? [gate.low, gate.high] : null,
    });
    this.scatter.set({
      ids,
      x: x.values,
      y: y.values,
      xTitle: titleOf(x),
      yTitle: titleOf(y),
      selected: objects.selected,
      shown: (id) => objects.isShown(id),
      colour: (id) => objects.css(id),
    });
  }

  // ---- gates ------------------------------------------------------------------------------------------------------

  brush(low, high) {
    const others = this.gates.filter((gate) => gate.column !== this.x.value);
    this.setGates(low === null ? others : [...others, { column: this.x.value, low, high }]);
  }

  lasso(ids, ranges) {
    this.page.objects.select(ids);
    this.ranges = ranges;
    this.showGates();
    if (!ranges && ids.length) this.page.show(ids[0]);
  }

  gateRanges() {
    const others = this.gates.filter((gate) => ![this.x.value, this.y.value].includes(gate.column));
    const { x, y } = this.ranges;
    this.ranges = null;
    this.setGates([
      ...others,
      { column: this.x.value, low: x[0], high: x[1] },
      { column: this.y.value, low: y[0], high: y[1] },
    ]);
  }

  setGates(gates) {
    this.gates = gates;
    this.applyGates();
    this.showGates();
    this.page.dispatchEvent(new Event("gates"));
  }

  applyGates() {
    const applied = [];
    for (const { column, low, high } of this.table ? this.gates : []) {
      const values = this.column(column)?.values;
      if (values)
        applied.push({
          column,
          low,
          high,
          keep: new Set(this.table.ids.filter((_, i) => values[i] !== null && values[i] >= low && values[i] <= high)),
        });
    }
    this.page.objects.setGates(applied);
  }

  showGates() {
    const rows = this.gates.map((gate) =>
      h(
        "div",
        { class: "row gate" },
        h("span", {
          class: "grow clip",
          text: `${gate.column}: ${format.number(gate.low)} to ${format.number(gate.high)}`,
        }),
        button({
          symbol: "close",
          kind: "bare",
          label: `Remove the gate on ${gate.column}`,
          click: () => this.setGates(this.gates.filter((one) => one !== gate)),
        }),
      ),
    );
    if (this.ranges)
      rows.push(button({ text: "Use the rectangle as gates", kind: "small", click: () => this.gateRanges() }));
    if (!rows.length) rows.push(h("p", { class: "muted", text: "None" }));
    this.gateHost.replaceChildren(...rows);
  }

  selectGated() {
    this.page.objects.select(this.page.objects.shown());
  }
}

const titleOf = (column) =>
  column.unit && !column.name.includes(column.unit) ? `${column.name} (${column.unit})` : column.name;
