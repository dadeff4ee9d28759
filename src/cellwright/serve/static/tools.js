// The tools that work on the picture with a pointer, or with the crosshair that the keyboard moves.

import { toast } from "./dom.js";

const rounded = (points) => points.map(([y, x]) => [Math.round(y * 4) / 4, Math.round(x * 4) / 4]);
const distance = ([ay, ax], [by, bx]) => Math.hypot(ay - by, ax - bx);
const boxOf = ([ay, ax], [by, bx]) => [Math.min(ay, by), Math.min(ax, bx), Math.max(ay, by), Math.max(ax, bx)];

/** `drags`: a pressed pointer belongs to the tool; otherwise dragging moves the picture. */
export const TOOLS = [
  {
    name: "select",
    key: "V",
    title: "Select",
    drags: false,
    hint: "Click an object; Shift-click adds, Shift-drag selects a rectangle. Drag moves the picture.",
  },
  {
    name: "delete",
    key: "X",
    title: "Delete",
    drags: true,
    hint: "Click an object, or drag a rectangle around several.",
  },
  {
    name: "outline",
    key: "D",
    title: "Draw outline",
    drags: true,
    hint: "Draw around a new object, or click its corners; Enter closes the outline.",
  },
  {
    name: "brush",
    key: "B",
    title: "Brush",
    drags: true,
    hint: "Start on an object to extend it, or elsewhere to paint a new one. The wheel sets the size.",
  },
  {
    name: "erase",
    key: "E",
    title: "Eraser",
    drags: true,
    hint: "Erases the selected objects, or any object if none is selected. The wheel sets the size.",
  },
  { name: "merge", key: "M", title: "Merge", drags: true, hint: "Click two objects to make them one." },
  {
    name: "split",
    key: "S",
    title: "Split",
    drags: true,
    hint: "Draw a line across an object, or click its two ends.",
  },
  {
    name: "region",
    key: "R",
    title: "Not annotated",
    drags: true,
    hint: "Draw around a region that training and evaluation should ignore; click one to remove it.",
  },
  {
    name: "line",
    key: "J",
    title: "Measure diameter",
    drags: true,
    hint: "Drag a line over one typical object: its length becomes the diameter.",
  },
];

export class Tools extends EventTarget {
  constructor(page) {
    super();
    this.page = page;
    this.viewer = page.viewer;
    this.name = "select";
    this.radius = 6;
    this.over = false; // whether the brush paints over other objects
    this.cross = null; // crosshair [y, x]
    this.fingers = new Map(); // id -> the last event of each finger on the picture
    this.reset();
    const host = this.viewer.host,
      options = { capture: true };
    host.addEventListener("pointerdown", (event) => this.down(event), options);
    host.addEventListener("pointermove", (event) => this.move(event), options);
    host.addEventListener("pointerup", (event) => this.up(event), options);
    host.addEventListener(
      "pointercancel",
      (event) => {
        this.fingers.delete(event.pointerId);
        this.cancel();
      },
      options,
    );
    host.addEventListener("pointerleave", () => this.leave());
    host.addEventListener("dblclick", () => {
      if (this.points.length > 2) this.finish();
    });
    host.addEventListener("contextmenu", (event) => event.preventDefault());
    host.addEventListener("wheel", (event) => this.wheel(event), { capture: true, passive: false });
    this.viewer.painters.push((context) => this.paint(context));
  }

  get tool() {
    return TOOLS.find((tool) => tool.name === this.name);
  }
  get sized() {
    return this.name === "brush" || this.name === "erase";
  }

  reset() {
    this.press = null; // {start, last, moved, screen}
    this.points = []; // of an outline, a line or a stroke
    this.first = 0; // first object of a merge
    this.rectangle = null;
    this.strokes = this.strokes ?? []; // sent, not yet drawn by the label layer
  }

  use(name) {
    this.cancel();
    this.name = name;
    this.dispatchEvent(new Event("change"));
    this.viewer.host.dataset.tool = name;
    this.viewer.request();
  }

  setRadius(radius) {
    this.radius = Math.min(400, Math.max(0.5, radius));
    this.dispatchEvent(new Event("change"));
    this.viewer.request();
  }

  cancel() {
    const busy = this.points.length > 0 || this.first || this.rectangle;
    this.reset();
    this.page.objects?.doom([]);
    this.viewer.request();
    return Boolean(busy);
  }

  // ---- pointer ------------------------------------------------------------------------------------------------

  down(event) {
    if (!this.page.info || !event.target.closest(".openseadragon-canvas")) return;
    this.viewer.host.focus({ preventScroll: true });
    const touch = event.pointerType === "touch";
    if (touch) this.fingers.set(event.pointerId, event);
    if (this.press && !this.press.watched) {
      // Another pointer while the tool works: a second finger, or the palm beside a pen.
      event.stopPropagation();
      event.preventDefault();
      if (touch && this.press.touch) this.pinch(event);
      return;
    }
    const pans = event.button === 1 || event.button === 2 || (event.button === 0 && this.space);
    const selects = this.name === "select" && event.shiftKey && event.button === 0;
    if (!pans && !selects && !(this.tool.drags && event.button === 0 && event.isPrimary)) {
      this.press = event.isPrimary
        ? { start: this.viewer.imageOf(event), screen: [event.clientX, event.clientY], watched: true }
        : null;
      return; // OpenSeadragon's
    }
    event.stopPropagation();
    event.preventDefault();
    this.viewer.host.setPointerCapture(event.pointerId);
    const at = this.viewer.imageOf(event);
    const { pointerId: pointer } = event;
    this.press = { start: at, screen: [event.clientX, event.clientY], pans, selects, pointer, touch };
    this.press.before = this.points.slice();
    if (!pans) this.begin(at, event);
  }

  /** A second finger: both move and zoom the picture, and what the first one began is dropped. */
  pinch(event) {
    const { before } = this.press;
    this.viewer.host.setPointerCapture(event.pointerId);
    this.points = before ?? [];
    this.rectangle = null;
    this.page.objects.doom([]);
    this.press = { pinches: true, touch: true, ...this.spread() };
    this.viewer.request();
  }

  /** The middle of two fingers, and how far they are apart. */
  spread() {
    const [a, b] = this.fingers.values();
    const apart = Math.max(Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY), 1);
    return { x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, apart };
  }

  move(event) {
    if (!this.page.info) return;
    if (this.fingers.has(event.pointerId)) this.fingers.set(event.pointerId, event);
    if (this.press && !this.press.watched && this.press.pointer !== event.pointerId) {
      event.stopPropagation();
      if (this.press.pinches && this.fingers.size > 1) {
        const now = this.spread();
        this.viewer.pinch(this.press, now);
        Object.assign(this.press, now);
      }
      return;
    }
    this.pointer = event;
    const at = (this.at = this.viewer.imageOf(event));
    if (!this.press || this.press.watched) {
      if (this.press && Math.hypot(event.clientX - this.press.screen[0], event.clientY - this.press.screen[1]) > 4)
        this.press.moved = true;
      this.hover(at);
      return;
    }
    event.stopPropagation();
    const { screen } = this.press;
    if (Math.hypot(event.clientX - screen[0], event.clientY - screen[1]) > 3) this.press.moved = true;
    if (this.press.pans) {
      this.viewer.panBy(screen[0] - event.clientX, screen[1] - event.clientY);
      this.press.screen = [event.clientX, event.clientY];
      return;
    }
    const all = event.getCoalescedEvents?.() ?? [];
    for (const one of all.length ? all : [event]) this.drag(this.viewer.imageOf(one));
    this.viewer.request();
  }

  up(event) {
    const press = this.press;
    this.fingers.delete(event.pointerId);
    if (!press) return;
    if (!press.watched && press.pointer !== event.pointerId) {
      event.stopPropagation();
      if (press.pinches && !this.fingers.size) this.press = null;
      return;
    }
    this.press = null;
    if (press.watched) {
      if (!press.moved && event.button === 0) this.click(press.start, event);
      return;
    }
    event.stopPropagation();
    if (press.pans) return;
    this.end(this.viewer.imageOf(event), press, event);
    this.viewer.request();
  }

  leave() {
    this.at = null;
    this.hover(null);
  }

  wheel(event) {
    if (!this.sized || event.ctrlKey || event.shiftKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.setRadius(this.radius * Math.exp(-Math.sign(event.deltaY) * 0.12));
  }

  hover(at) {
    const id = at ? this.viewer.idAt(at) : 0;
    this.page.hover(id, at, this.pointer);
    this.viewer.request();
  }

  // ---- what the tools do --------------------------------------------------------------------------------------

  begin(at, event) {
    switch (this.name) {
      case "brush":
      case "erase":
        this.points = [at];
        this.target = this.strokeTarget(at, event);
        break;
      case "outline":
      case "region":
      case "split":
        if (this.points.length < 1) this.points = [at];
        this.free = this.points.length === 1; // a line drawn in one go; otherwise a corner is added when released
        break;
      case "line":
        this.points = [at, at];
        break;
    }
  }

  strokeTarget(at, event) {
    if (this.name === "erase" || event?.altKey)
      return { op: "erase", id: this.page.objects.selected.size === 1 ? [...this.page.objects.selected][0] : null };
    const id = this.viewer.idAt(at);
    return { op: "brush", id: id || null, colour: id ? this.page.objects.css(id) : null };
  }

  drag(at) {
    const apart = 1.2 / this.viewer.place.zoom;
    if (this.press.selects || this.name === "delete") {
      this.rectangle = boxOf(this.press.start, at);
      if (this.name === "delete") this.page.objects.doom(this.page.objects.inside(this.rectangle));
    } else if (this.name === "line") this.points[1] = at;
    else if (this.sized || (this.free && ["outline", "region", "split"].includes(this.name))) {
      if (distance(this.points.at(-1), at) >= apart) this.points.push(at);
    }
  }

  end(at, press, event) {
    if (press.selects || (this.name === "delete" && this.rectangle && press.moved)) {
      const box = this.rectangle;
      this.rectangle = null;
      if (press.selects && !press.moved) return this.click(press.start, event);
      const ids = this.page.objects.inside(box ?? boxOf(press.start, at));
      if (press.selects) return this.page.objects.select(ids, { add: true });
      this.page.objects.doom([]);
      if (ids.length)
        this.page.edit({
          op: "delete_rect",
          box: box.map((v, i) => (i < 2 ? Math.floor(v) : Math.ceil(v))),
          shown_ids: ids,
        });
      return undefined;
    }
    switch (this.name) {
      case "brush":
      case "erase":
        return this.stroke();
      case "outline":
      case "region":
      case "split":
        if (press.moved && this.free && this.points.length > 2) return this.finish();
        if (this.points.length === 1 && this.free && distance(this.points[0], press.start) === 0)
          return this.click(press.start, event, true);
        return this.click(at, event);
      case "line":
        return this.measure();
      default:
        return this.click(press.start, event);
    }
  }

  /** A click, or Enter at the crosshair. `placed`: the point is already in `points`. */
  click(at, event, placed = false) {
    const { objects } = this.page,
      id = this.viewer.idAt(at);
    switch (this.name) {
      case "select":
        objects.select(id ? [id] : [], { toggle: event?.shiftKey || event?.ctrlKey || event?.metaKey });
        break;
      case "delete":
        if (id) this.page.edit({ op: "delete", ids: [id] });
        break;
      case "merge":
        this.mergeClick(id);
        break;
      case "brush":
      case "erase":
        this.points = [at];
        this.target = this.strokeTarget(at, event);
        this.stroke();
        break;
      case "region": {
        const index = this.points.length <= 1 ? this.page.regionAt(at) : -1;
        if (index >= 0) {
          this.reset();
          this.page.edit({ op: "unignore", index });
          break;
        }
        this.corner(at, placed, event);
        break;
      }
      case "outline":
        this.corner(at, placed, event);
        break;
      case "split":
        if (!placed) this.points.push(at);
        if (this.points.length === 2) this.finish();
        break;
      case "line":
        this.points.push(at);
        if (this.points.length === 2) this.measure();
        break;
    }
    this.viewer.request();
  }

  corner(at, placed, event) {
    const close = (event?.pointerType === "touch" ? 22 : 9) / this.viewer.place.zoom;
    if (this.points.length > 2 && distance(this.points[0], at) < close) return this.finish();
    if (!placed) this.points.push(at);
    return undefined;
  }

  mergeClick(id) {
    if (!id) return;
    if (!this.first) {
      this.first = id;
      this.page.objects.select([id]);
    } else if (id !== this.first) {
      const ids = [this.first, id];
      this.first = 0;
      this.page.edit({ op: "merge", ids }).then((answer) => {
        if (answer) this.page.objects.select([]);
      });
    }
  }

  stroke() {
    const { target } = this,
      path = rounded(this.points),
      radius = Math.round(this.radius * 4) / 4;
    if (!path.length) return;
    this.points = [];
    const drawn = { path, radius, erases: target.op === "erase", colour: target.colour };
    this.strokes.push(drawn);
    const edit = { op: target.op, path, radius, id: target.id };
    if (target.op === "brush" && this.over) edit.over = true;
    if (target.op === "brush" && target.id === null) edit.class = this.page.currentClass;
    this.page.edit(edit).finally(() => {
      this.strokes = this.strokes.filter((stroke) => stroke !== drawn);
      this.viewer.request();
    });
  }

  finish() {
    const points = rounded(this.points),
      name = this.name;
    this.reset();
    this.viewer.request();
    if (name === "split" && points.length > 1) return this.split(points);
    if (points.length < 3) return undefined;
    if (name === "outline") return this.page.edit({ op: "draw", outline: points, class: this.page.currentClass });
    if (name === "region") return this.page.edit({ op: "ignore_region", outline: points });
    return undefined;
  }

  split(line) {
    const { objects } = this.page,
      counts = new Map();
    for (let i = 1; i < line.length; i++) {
      const [a, b] = [line[i - 1], line[i]],
        n = Math.ceil(distance(a, b)) + 1;
      for (let k = 0; k <= n; k++) {
        const id = this.viewer.idAt([a[0] + ((b[0] - a[0]) * k) / n, a[1] + ((b[1] - a[1]) * k) / n]);
        if (id) counts.set(id, (counts.get(id) ?? 0) + 1);
      }
    }
    const most = [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
    const chosen = objects.selected.size === 1 ? [...objects.selected][0] : most;
    if (!chosen || !counts.has(chosen)) return toast("The line does not cross an object");
    return this.page.edit({ op: "split", id: chosen, line });
  }

  measure() {
    const [a, b] = this.points;
    this.reset();
    if (distance(a, b) > 1) this.page.measured(distance(a, b));
  }

  // ---- crosshair ----------------------------------------------------------------------------------------------

  toggleCross() {
    if (this.cross) this.cross = null;
    else {
      const { zoom, x, y } = this.viewer.place,
        { clientWidth, clientHeight } = this.viewer.host;
      this.cross = [y + clientHeight / 2 / zoom, x + clientWidth / 2 / zoom];
    }
    this.hover(this.cross);
    this.viewer.request();
  }

  moveCross(dy, dx, far) {
    const step = Math.max(1, Math.round((far ? 32 : 4) / this.viewer.place.zoom)),
      [height, width] = this.page.info.hw;
    this.cross = [
      Math.min(height - 0.5, Math.max(0.5, this.cross[0] + dy * step)),
      Math.min(width - 0.5, Math.max(0.5, this.cross[1] + dx * step)),
    ];
    this.viewer.goTo([this.cross[0], this.cross[1], this.cross[0], this.cross[1]]);
    this.at = this.cross;
    this.hover(this.cross);
  }

  enter(event) {
    if (this.cross && !event.shiftKey) this.click(this.cross, null);
    else if (this.points.length > 1) this.finish();
  }

  // ---- lines on the picture -----------------------------------------------------------------------------------

  paint(context) {
    if (!this.page.info) return;
    const { viewer } = this,
      { zoom } = viewer.place;
    for (const stroke of this.strokes) paintStroke(context, viewer, stroke, zoom);
    if (this.sized && this.points.length)
      paintStroke(
        context,
        viewer,
        { path: this.points, radius: this.radius, erases: this.target.op === "erase", colour: this.target.colour },
        zoom,
      );
    else if (this.points.length) this.paintPoints(context);
    if (this.rectangle) {
      const [x0, y0] = viewer.screenOf(this.rectangle),
        [x1, y1] = viewer.screenOf(this.rectangle.slice(2));
      twice(context, (c) => c.strokeRect(x0, y0, x1 - x0, y1 - y0), [5, 4]);
    }
    const cursor = this.cross ?? this.at;
    if (this.sized && cursor) {
      const [x, y] = viewer.screenOf(cursor);
      twice(context, (c) => {
        c.beginPath();
        c.arc(x, y, this.radius * zoom, 0, 7);
        c.stroke();
      });
    }
    if (this.cross) {
      const [x, y] = viewer.screenOf(this.cross);
      twice(context, (c) => {
        c.beginPath();
        c.moveTo(x - 14, y);
        c.lineTo(x - 3, y);
        c.moveTo(x + 3, y);
        c.lineTo(x + 14, y);
        c.moveTo(x, y - 14);
        c.lineTo(x, y - 3);
        c.moveTo(x, y + 3);
        c.lineTo(x, y + 14);
        c.stroke();
      });
    }
  }

  paintPoints(context) {
    const { viewer } = this,
      closes = this.name === "outline" || this.name === "region";
    const points = this.points.map((point) => viewer.screenOf(point));
    const next = this.cross ?? this.at;
    if (next && !(this.press && this.free)) points.push(viewer.screenOf(next));
    const trace = (c) => {
      c.beginPath();
      points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
      if (closes) c.closePath();
    };
    if (closes) {
      context.fillStyle = "rgba(255,255,255,.14)";
      trace(context);
      context.fill();
    }
    twice(context, (c) => {
      trace(c);
      c.stroke();
    });
    for (const [x, y] of this.free && this.press ? [] : points) {
      context.fillStyle = "#fff";
      context.fillRect(x - 2.5, y - 2.5, 5, 5);
    }
    if (this.name === "line" && this.points.length === 2) {
      const [x, y] = points[1],
        text = `${distance(this.points[0], this.points[1]).toFixed(1)} px`;
      context.font = "12px system-ui, sans-serif";
      context.fillStyle = "rgba(0,0,0,.75)";
      context.fillRect(x + 10, y - 20, context.measureText(text).width + 10, 18);
      context.fillStyle = "#fff";
      context.fillText(text, x + 15, y - 7);
    }
  }
}

/** A line that is visible on bright and on dark. */
export function twice(context, draw, pattern = []) {
  context.lineJoin = context.lineCap = "round";
  context.setLineDash([]);
  context.strokeStyle = "rgba(0,0,0,.7)";
  context.lineWidth = 3.5;
  draw(context);
  context.setLineDash(pattern);
  context.strokeStyle = "#fff";
  context.lineWidth = 1.5;
  draw(context);
  context.setLineDash([]);
}

function paintStroke(context, viewer, { path, radius, erases, colour }, zoom) {
  context.globalAlpha = 0.55;
  context.lineJoin = context.lineCap = "round";
  context.lineWidth = Math.max(1, 2 * radius * zoom);
  context.strokeStyle = erases ? "#101216" : (colour ?? "#56b4e9");
  context.beginPath();
  path.forEach((point, i) => {
    const [x, y] = viewer.screenOf(point);
    if (i) context.lineTo(x, y);
    else {
      context.moveTo(x, y);
      context.lineTo(x + 0.01, y);
    }
  });
  context.stroke();
  context.globalAlpha = 1;
}
