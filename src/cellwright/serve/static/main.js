// The page: what is open, and the parts that show it.

import { button, dialog, field, format, h, select, slider, toast } from "./dom.js";
import { Editor } from "./edits.js";
import { EvaluatePanel } from "./evaluate_panel.js";
import { ExportPanel } from "./export_panel.js";
import { events, get, post } from "./http.js";
import { ImageList } from "./images.js";
import { Jobs } from "./jobs.js";
import { bindKeys, help } from "./keys.js";
import { MeasurePanel } from "./measure_panel.js";
import { Objects } from "./objects.js";
import { PredictPanel } from "./predict_panel.js";
import { TOOLS, Tools, twice } from "./tools.js";
import { TrainPanel } from "./train_panel.js";
import { ViewPanel } from "./view_panel.js";
import { Viewer } from "./viewer.js";
import { CLASS_COLOURS } from "./colours.js";

const byId = (id) => document.getElementById(id);
const TABS = [
  ["view", "View", ViewPanel],
  ["predict", "Predict", PredictPanel],
  ["train", "Train", TrainPanel],
  ["evaluate", "Evaluate", EvaluatePanel],
  ["measure", "Measure", MeasurePanel],
  ["export", "Export", ExportPanel],
];
const WITH_SELECTION = { delete: "Delete", fill_holes: "Fill holes", smooth: "Smooth" };
const NICE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];

/** Events: "project", "image", "classes", "filter" (which objects are shown), "region". */
class Page extends EventTarget {
  constructor() {
    super();
    this.info = null;
    this.objects = new Objects([]);
    this.regions = [];
    this.models = [];
    this.marks = []; // boxes to draw: [{box, text}]
    this.classIndex = 0;
    this.viewer = new Viewer(byId("picture"));
    this.editor = new Editor(this);
    this.tools = new Tools(this);
    this.jobs = new Jobs(this);
    this.images = new ImageList(this, byId("images"));
    this.panels = {};
    this.buildTabs();
    this.buildBar();
    this.buildTools();
    this.viewer.painters.unshift((context) => {
      this.paintRegions(context);
      this.paintMarks(context);
    });
    this.viewer.addEventListener("moved", () => this.placed());
    this.editor.addEventListener("history", () => this.showHistory());
    this.editor.addEventListener("saving", () => this.showSaving());
    bindKeys(this);
  }

  async start() {
    await this.loadProject();
    events(
      (event) => this.follow(event),
      (lost) => this.connection(lost),
    );
    globalThis.addEventListener("beforeunload", (event) => {
      if (this.editor.pending) event.preventDefault();
    });
    const first =
      this.images.visible.find((image) => `#${image.id}` === decodeURIComponent(location.hash)) ??
      this.images.visible[0];
    if (first) await this.openImage(first.id);
    if (first && this.images.images.every((image) => image.state === "new")) this.openTab(1); // the next step
    this.jobs.load();
  }

  /** Without a connection events are missed: afterwards, everything is asked for again. */
  async connection(lost) {
    const was = this.lost;
    this.lost = lost;
    this.showSaving();
    if (!was || lost) return;
    await this.guard(async () => {
      await this.loadProject();
      await this.reload();
      await this.jobs.load();
    });
  }

  // ---- project and image ----------------------------------------------------------------------------------------

  async loadProject() {
    this.project = await this.images.load();
    try {
      this.models = (await get("/api/models")).models;
    } catch {
      this.models = this.project.models;
    }
    this.classes = this.project.classes.map((one) => one.name ?? one);
    byId("project-name").textContent = this.project.name;
    byId("project-name").title = this.project.folder;
    document.title = `${this.project.name} · cellwright`;
    byId("welcome").hidden = this.images.images.length > 0;
    this.showImageState();
    this.dispatchEvent(new Event("project"));
  }

  openImage(id) {
    if (this.opening === id) return this.opened;
    this.opening = id;
    this.opened = this.load(id);
    return this.opened;
  }

  async load(id) {
    this.tools.cancel();
    try {
      const info = await get(`/api/images/${id}`);
      const table = await get(`/api/images/${id}/objects`);
      if (this.opening !== id) return; // another image was chosen meanwhile
      info.id ??= id;
      const objects = new Objects(info.classes ?? this.classes);
      objects.colourBy = this.objects.colourBy;
      this.objects = objects;
      this.info = info;
      this.marks = [];
      this.setStatus("");
      this.readState(info);
      objects.load(table);
      objects.addEventListener("change", (event) => this.objectsChanged(event.detail));
      byId("image-name").textContent = info.name;
      byId("welcome").hidden = true;
      history.replaceState(null, "", `#${encodeURIComponent(id)}`);
      await this.editor.open({ ...info, rev: table.rev ?? info.rev });
      await this.viewer.open(info, objects, this.panels.view.showOf(info));
      this.placed(); // the last image may have lain in the same place
      this.images.mark(id);
      this.dispatchEvent(new Event("image"));
      this.showImageState();
      this.objectsChanged("load");
    } catch (error) {
      if (this.opening === id) this.setStatus("");
      toast(error.message, "error");
    } finally {
      if (this.opening === id) this.opening = null;
    }
  }

  /** After the open image was removed: show another one, or begin anew. */
  async closeImage() {
    this.info = null;
    const [next] = this.images.visible;
    if (next) await this.openImage(next.id);
    else location.reload();
  }

  readState(values) {
    if (values.regions) this.regions = values.regions;
    const limits = values.score_threshold !== undefined || values.min_area !== undefined;
    if (values.score_threshold !== undefined) this.objects.filter.score = values.score_threshold ?? 0;
    if (values.min_area !== undefined) this.objects.filter.area = values.min_area ?? 0;
    return limits;
  }

  /** What an edit changed besides objects: limits of what is shown, regions. */
  setState(values) {
    if (!values) return;
    const before = JSON.stringify(this.objects.filter);
    if (this.readState(values) && JSON.stringify(this.objects.filter) !== before) this.objects.setFilter({});
    this.viewer.request();
  }

  /** Fetch the objects and labels of the open image anew, unless what is here is as new: a selection then stays. */
  async reload() {
    if (!this.info) return;
    const id = this.info.id,
      [info, table] = await Promise.all([get(`/api/images/${id}`), get(`/api/images/${id}/objects`)]);
    if (this.info.id !== id) return;
    if (table.rev > this.editor.rev) {
      this.editor.rev = table.rev;
      this.readState(info);
      this.objects.load(table);
      this.viewer.tiles?.stale(null, table.rev);
      this.viewer.invalidate();
    }
    await this.editor.loadHistory();
  }

  async follow(event) {
    if (event.kind === "edit") {
      if (this.info && event.image === this.info.id) await this.editor.follow(event);
    } else if (event.kind === "opening") {
      if (this.opening === event.image) this.setStatus(`Opening ${event.name}: ${Math.floor(100 * event.done)} %`);
    } else if (event.kind === "job") this.jobs.update(event.job);
    else if (event.kind === "project") {
      clearTimeout(this.projectTimer);
      this.projectTimer = setTimeout(() => this.loadProject(), 250);
    }
  }

  go(direction) {
    const visible = this.images.visible,
      at = visible.findIndex((image) => image.id === (this.opening ?? this.info?.id));
    const next = visible[at + direction];
    if (next) this.openImage(next.id);
    else toast(direction > 0 ? "This is the last image" : "This is the first image");
  }

  async markCorrected() {
    const image = this.images.images.find((one) => one.id === this.info.id);
    const answer = await this.edit({ op: "accept", accepted: image?.state !== "corrected" });
    if (answer) this.images.refresh(this.info.id);
  }

  async guard(action) {
    try {
      return await action();
    } catch (error) {
      toast(error.message, "error");
      return null;
    }
  }

  // ---- objects ----------------------------------------------------------------------------------------------------

  edit(edit) {
    return this.editor.send(edit);
  }
  get currentClass() {
    return this.classIndex < this.classes.length ? this.classIndex : 0;
  }

  onSelected(op) {
    const ids = [...this.objects.selected];
    if (!ids.length && this.objects.hovered && op !== "delete") ids.push(this.objects.hovered);
    if (!ids.length) return toast(`${WITH_SELECTION[op]}: select an object first`);
    return this.edit({ op, ids });
  }

  chooseClass(index) {
    if (index >= this.classes.length) return;
    this.classIndex = index;
    this.showTool();
    const ids = [...this.objects.selected];
    if (ids.length) this.edit({ op: "set_class", ids, class: index });
  }

  async addClass() {
    const name = h("input", {
      type: "text",
      "aria-label": "Name of the new class",
      class: "wide-input",
      maxLength: 60,
    });
    const chosen = await dialog("New class", field("Name", name), [
      { text: "Cancel", value: null },
      { text: "Add", value: () => name.value.trim(), primary: true },
    ]);
    if (!chosen) {
      this.showTool();
      return;
    }
    await this.guard(async () => {
      await post("/api/classes", { name: chosen });
      await this.loadProject();
      this.objects.classes = this.classes;
      this.chooseClass(this.classes.indexOf(chosen));
    });
    this.showTool();
  }

  /** Select the next object in reading order among those shown. */
  step(direction) {
    const objects = this.objects,
      ids = objects.shown();
    if (!ids.length) return;
    const place = (id) => {
      const i = objects.rows.get(id);
      return Math.floor(objects.y0[i] / 64) * 1e6 + objects.x0[i];
    };
    ids.sort((a, b) => place(a) - place(b));
    const [current] = objects.selected,
      at = ids.indexOf(current);
    const id = ids[(at + direction + ids.length) % ids.length] ?? ids[0];
    objects.select([id]);
    this.show(id);
  }

  show(id, options) {
    const row = this.objects.row(id);
    if (row) this.viewer.goTo([row.y0, row.x0, row.y1, row.x1], options);
    if (row) this.setStatus(this.describe(row));
  }

  zoomToSelected() {
    const rows = [...this.objects.selected].map((id) => this.objects.row(id));
    if (!rows.length) return;
    const least = (name) => Math.min(...rows.map((row) => row[name])),
      most = (name) => Math.max(...rows.map((row) => row[name]));
    this.viewer.goTo([least("y0"), least("x0"), most("y1"), most("x1")], { zoom: true });
  }

  escape() {
    if (this.tools.cancel()) return;
    if (this.tools.cross) this.tools.toggleCross();
    else if (this.marks.length) {
      this.marks = [];
      this.viewer.request();
    } else if (this.objects.selected.size) this.objects.select([]);
    else this.tools.use("select");
  }

  describe(row) {
    const score =
      row.score === null
        ? "drawn by hand"
        : `score ${row.score.toFixed(2)}${row.origin === "manual" ? ", corrected" : ""}`;
    return `Object ${row.id} · ${this.classes[row.class] ?? ""} · ${score} · ${format.number(row.area)} px`;
  }

  hover(id, at, event) {
    this.objects.hover(id);
    const tip = byId("tip"),
      row = id ? this.objects.row(id) : null;
    tip.hidden = !row || !event;
    if (row && event) {
      tip.textContent = this.describe(row);
      const box = this.viewer.host.getBoundingClientRect();
      const x = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 6),
        y = event.clientY - box.top + 18;
      tip.style.transform = `translate(${Math.max(4, x)}px, ${y + 34 > box.height ? y - 48 : y}px)`;
    }
    const [height, width] = this.info.hw,
      inside = at && at[0] >= 0 && at[1] >= 0 && at[0] < height && at[1] < width;
    byId("at").textContent = inside ? `y ${Math.floor(at[0])}  x ${Math.floor(at[1])}` : "";
  }

  objectsChanged(what) {
    const { objects } = this,
      total = objects.count,
      shown = objects.countShown();
    byId("counts").textContent =
      `${shown === total ? format.count(total, "object") : `${format.number(shown)} of ${format.count(total, "object")}`}${objects.selected.size ? `, ${objects.selected.size} selected` : ""}`;
    if (what === "edit" && this.info) this.images.refresh(this.info.id);
    this.showTool();
    this.dispatchEvent(new CustomEvent("objects", { detail: what }));
  }

  regionAt([y, x]) {
    return this.regions.findIndex((region) => {
      let inside = false;
      for (let i = 0, j = region.length - 1; i < region.length; j = i++) {
        const [ay, ax] = region[i],
          [by, bx] = region[j];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
      }
      return inside;
    });
  }

  measured(px) {
    this.tools.use("select");
    this.panels.predict.setDiameter(px);
    this.openTab(1);
  }

  // ---- what is shown ------------------------------------------------------------------------------------------------

  placed() {
    const { zoom } = this.viewer.place,
      pixel = this.info.pixel_size_um?.[1];
    byId("zoom").textContent = `${zoom >= 0.1 ? Math.round(zoom * 100) : (zoom * 100).toFixed(1)} %`;
    const unit = pixel ?? 1,
      longest = (160 / zoom) * unit;
    let nice = NICE.findLast((n) => n <= longest) ?? longest;
    let text = pixel ? (nice >= 1000 ? `${nice / 1000} mm` : `${nice} µm`) : `${nice} px`;
    if (nice === longest) {
      const power = 10 ** Math.floor(Math.log10(longest));
      nice = power;
      text = pixel ? `${Number(power.toPrecision(1))} µm` : `${Number(power.toPrecision(1))} px`;
    }
    byId("scale-bar").style.width = `${(nice / unit) * zoom}px`;
    byId("scale-text").textContent = text;
    byId("scale").hidden = false;
    byId("tip").hidden = true;
  }

  paintRegions(context) {
    if (!this.info || !this.regions.length) return;
    context.save();
    for (const region of this.regions) {
      const points = region.map((point) => this.viewer.screenOf(point));
      const trace = (c) => {
        c.beginPath();
        points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
        c.closePath();
      };
      context.save();
      trace(context);
      context.fillStyle = "rgba(20,22,26,.35)";
      context.fill();
      context.clip();
      const xs = points.map(([x]) => x),
        ys = points.map(([, y]) => y),
        bottom = Math.max(...ys),
        top = Math.min(...ys);
      context.strokeStyle = "rgba(255,255,255,.35)";
      context.lineWidth = 1;
      context.beginPath();
      for (let x = Math.min(...xs) - (bottom - top); x < Math.max(...xs); x += 9) {
        context.moveTo(x, bottom);
        context.lineTo(x + bottom - top, top);
      }
      context.stroke();
      context.restore();
      twice(
        context,
        (c) => {
          trace(c);
          c.stroke();
        },
        [2, 4],
      );
      context.font = "600 12px system-ui, sans-serif";
      context.fillStyle = "#fff";
      context.fillText("not annotated", Math.min(...xs) + 6, top + 16);
    }
    context.restore();
  }

  paintMarks(context) {
    for (const { box, text } of this.marks) {
      const [x0, y0] = this.viewer.screenOf(box),
        [x1, y1] = this.viewer.screenOf(box.slice(2));
      twice(context, (c) => c.strokeRect(x0 - 5, y0 - 5, x1 - x0 + 10, y1 - y0 + 10), [6, 4]);
      context.font = "600 12px system-ui, sans-serif";
      context.fillStyle = "rgba(0,0,0,.75)";
      context.fillRect(x0 - 5, y0 - 25, context.measureText(text).width + 10, 18);
      context.fillStyle = "#fff";
      context.fillText(text, x0, y0 - 12);
    }
  }

  showImageState() {
    const image = this.images.images.find((one) => one.id === this.info?.id);
    byId("mark").setAttribute("aria-pressed", String(image?.state === "corrected" || image?.state === "training"));
    this.dispatchEvent(new Event("states"));
  }

  setStatus(text) {
    byId("status").textContent = text;
  }

  showSaving() {
    const saved = byId("saved");
    saved.textContent = this.lost ? "No connection" : this.editor.pending ? "Saving" : "Saved";
    saved.className = this.lost ? "saved lost" : "saved";
  }

  showHistory() {
    const { undoName, redoName } = this.editor;
    this.undoButton.disabled = undoName === null;
    this.redoButton.disabled = redoName === null;
    this.undoButton.title = `Undo${undoName ? `: ${undoName}` : ""} (Ctrl+Z)`;
    this.redoButton.title = `Redo${redoName ? `: ${redoName}` : ""} (Ctrl+Shift+Z)`;
  }

  // ---- parts of the page ----------------------------------------------------------------------------------------------

  buildBar() {
    byId("step").append(
      button({
        symbol: "previous",
        kind: "bare",
        title: "Previous image (,)",
        label: "Previous image",
        click: () => this.go(-1),
      }),
      h("h1", { id: "image-name" }),
      button({ symbol: "next", kind: "bare", title: "Next image (.)", label: "Next image", click: () => this.go(1) }),
    );
    this.undoButton = button({
      symbol: "undo",
      kind: "bare",
      label: "Undo",
      disabled: true,
      click: () => this.editor.undo(),
    });
    this.redoButton = button({
      symbol: "redo",
      kind: "bare",
      label: "Redo",
      disabled: true,
      click: () => this.editor.redo(),
    });
    byId("actions").append(
      h("span", { id: "saved", class: "saved", role: "status" }),
      this.undoButton,
      this.redoButton,
      button({
        id: "mark",
        symbol: "check",
        text: "Corrected",
        kind: "bare",
        pressed: false,
        title: "Mark this image as corrected (Q)",
        click: () => this.info && this.markCorrected(),
      }),
      button({ symbol: "help", kind: "bare", title: "Keys (?)", label: "Keys", click: () => help(this) }),
    );
    byId("zoomers").append(
      button({
        symbol: "minus",
        kind: "bare",
        title: "Zoom out (-)",
        label: "Zoom out",
        click: () => this.viewer.zoomBy(1 / 1.4),
      }),
      h("span", { id: "zoom" }),
      button({
        symbol: "plus",
        kind: "bare",
        title: "Zoom in (+)",
        label: "Zoom in",
        click: () => this.viewer.zoomBy(1.4),
      }),
      button({
        symbol: "fit",
        kind: "bare",
        title: "Whole image (0)",
        label: "Whole image",
        click: () => this.viewer.fit(),
      }),
    );
  }

  buildTools() {
    const rail = byId("tools");
    for (const tool of TOOLS) {
      if (tool.name === "line") continue; // started from the predict panel, or by its key
      rail.append(
        button({
          symbol: tool.name,
          kind: "tool",
          title: `${tool.title} (${tool.key})`,
          label: tool.title,
          pressed: false,
          click: () => this.tools.use(tool.name),
        }),
      );
      rail.lastChild.dataset.tool = tool.name;
    }
    this.tools.addEventListener("change", () => this.showTool());
    this.showTool();
  }

  /** The bar above the picture: what the tool does and its options, and what can be done with the selection. */
  showTool() {
    const { tools } = this,
      tool = tools.tool,
      bar = byId("tool-bar"),
      n = this.objects.selected.size;
    for (const element of byId("tools").children)
      element.setAttribute("aria-pressed", String(element.dataset.tool === tool.name));
    const state = `${tool.name} ${n} ${this.classIndex} ${this.classes}`;
    if (state === this.toolState) {
      const size = byId("brush-size");
      if (size && document.activeElement !== size) size.value = Math.log(tools.radius);
      if (size) byId("brush-px").textContent = `${format.number(2 * tools.radius)} px`;
      return;
    }
    this.toolState = state;
    const parts = [h("strong", { text: tool.title })];
    if (tools.sized)
      parts.push(
        h(
          "label",
          { class: "inline" },
          h("span", { text: "Size" }),
          slider({
            id: "brush-size",
            min: Math.log(0.5),
            max: Math.log(200),
            step: 0.01,
            value: Math.log(tools.radius),
            label: "Brush size",
            input: (value) => tools.setRadius(Math.exp(value)),
          }),
          h("span", { id: "brush-px", class: "fixed", text: `${format.number(2 * tools.radius)} px` }),
        ),
      );
    if (tool.name === "brush") {
      const over = h("input", {
        type: "checkbox",
        checked: tools.over,
        on: {
          change: () => {
            tools.over = over.checked;
          },
        },
      });
      parts.push(
        h(
          "label",
          { class: "inline", title: "Paint over neighbours instead of beside them" },
          over,
          h("span", { text: "Over neighbours" }),
        ),
      );
    }
    if (n && (tool.name === "select" || tool.name === "erase")) {
      parts.push(h("span", { class: "muted", text: `${n} selected` }));
      for (const [op, text] of Object.entries(WITH_SELECTION))
        parts.push(
          button({
            text,
            kind: "small",
            title: `${text} (${{ delete: "Delete", fill_holes: "F", smooth: "O" }[op]})`,
            click: () => this.onSelected(op),
          }),
        );
    } else parts.push(h("span", { class: "hint grow", text: tool.hint, title: tool.hint }));
    if (["outline", "brush"].includes(tool.name) || (n && tool.name === "select")) parts.push(this.classChoice());
    bar.replaceChildren(...parts);
  }

  classChoice() {
    const options = (this.classes ?? []).map((name, index) => [
      String(index),
      `${index < 9 ? `${index + 1}  ` : ""}${name}`,
    ]);
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = CLASS_COLOURS[this.classIndex % CLASS_COLOURS.length];
    const choice = select(
      [...options, ["add", "New class..."]],
      String(this.classIndex),
      (value) => (value === "add" ? this.addClass() : this.chooseClass(Number(value))),
      { "aria-label": "Class" },
    );
    return h("label", { class: "inline" }, h("span", { text: "Class" }), swatch, choice);
  }

  buildTabs() {
    const bar = byId("tabs"),
      body = byId("panel");
    this.tabButtons = TABS.map(([name, text, Panel], index) => {
      const content = h("div", {
        class: "panel-body",
        role: "tabpanel",
        id: `panel-${name}`,
        "aria-labelledby": `tab-${name}`,
        hidden: true,
      });
      body.append(content);
      this.panels[name] = new Panel(this, content);
      const tab = h("button", {
        class: "tab",
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        text,
        title: `${text} (Alt+${index + 1})`,
        "aria-controls": `panel-${name}`,
        on: {
          click: () => this.openTab(index),
          keydown: (event) => {
            const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
            if (step) {
              this.openTab((index + step + TABS.length) % TABS.length);
              this.tabButtons[this.tab].focus();
            }
          },
        },
      });
      bar.append(tab);
      return tab;
    });
    this.openTab(0);
  }

  openTab(index) {
    this.tab = index;
    this.tabButtons.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
      byId(`panel-${TABS[i][0]}`).hidden = i !== index;
    });
    this.panels[TABS[index][0]].opened?.();
    this.panels.measure?.showDock();
  }

  /** The name of the panel that is open. */
  get openPanel() {
    return TABS[this.tab][0];
  }

  cycleMode() {
    this.panels.view.setMode({ outlines: "filled", filled: "off", off: "outlines" }[this.viewer.mode]);
  }
  cycleColour() {
    this.panels.view.setColourBy({ class: "score", score: "size", size: "id", id: "class" }[this.objects.colourBy]);
  }
}

const page = new Page();
globalThis.cellwrightPage = page; // for the browser's console and for tests
page.start().catch((error) => toast(error.message, "error"));
