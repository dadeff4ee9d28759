// The picture: OpenSeadragon for the pixels, one canvas for the label layer, one for lines that tools draw.

import { h } from "./dom.js";
import { LabelTiles } from "./labels.js";
import { paint } from "./paint.js";

const OSD = globalThis.OpenSeadragon;
const SMOOTH_BELOW = 2.5; // screen pixels per image pixel: above, pixels are shown as squares

// OpenSeadragon adds a style element, which the content security policy refuses (page.css has the rule), unless it finds
// one with this mark: an element of no namespace has the name, but is no style sheet.
const mark = document.createElementNS(null, "style");
mark.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(mark);

/** Events: "moved" (after every drawn frame), "labels" (tiles of the label layer arrived). */
export class Viewer extends EventTarget {
  constructor(host) {
    super();
    this.host = host;
    this.mode = "outlines";
    this.opacity = 1;
    this.info = null;
    this.objects = null;
    this.tiles = null;
    this.dirty = null; // rectangles of full pixels still to draw; true: everything
    this.painters = []; // draw on the canvas of lines: (context, viewer) => void
    this.timings = [];
    this.osd = new OSD({
      element: host,
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: 0.25,
      springStiffness: 9,
      blendTime: 0,
      visibilityRatio: 0.25,
      minZoomImageRatio: 0.5,
      maxZoomPixelRatio: 64,
      zoomPerScroll: 1.25,
      immediateRender: true,
      imageLoaderLimit: 6,
      maxImageCacheCount: 400,
      crossOriginPolicy: false,
      preserveImageSizeOnResize: true,
      placeholderFillStyle: null,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false, flickEnabled: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
    });
    this.osd.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true;
    });
    this.labels = h("canvas", { class: "layer", "aria-hidden": "true" });
    this.lines = h("canvas", { class: "layer", "aria-hidden": "true" });
    this.osd.canvas.append(this.labels, this.lines);
    this.osd.canvas.removeAttribute("tabindex");
    this.osd.addHandler("update-viewport", () => this.frame());
    for (const name of ["zoom", "pan"])
      this.osd.addHandler(name, ({ immediately }) => {
        if (!this.fitting && !immediately) this.fitted = false;
      });
    this.osd.addHandler("animation", () => {
      this.moving = performance.now();
    });
    this.osd.addHandler("animation-finish", () => {
      this.moving = 0;
      this.invalidate();
    });
    new ResizeObserver(() => this.resize()).observe(host);
    this.resize();
  }

  // ---- images -------------------------------------------------------------------------------------------------

  /** Show an image. `show` is the display of channels; `objects` the columns of its objects. */
  open(info, objects, show) {
    this.tiles?.close();
    this.osd.close();
    this.info = info;
    this.objects = objects;
    this.painted = null;
    this.levels = info.levels.map((level) => ({ scale: level.scale, hw: level.hw }));
    this.tiles = new LabelTiles(info.id, this.levels, info.tile_px ?? 512, (box) => {
      this.invalidate(box);
      this.dispatchEvent(new Event("labels"));
    });
    this.tiles.rev = info.rev;
    objects.addEventListener("draw", (event) => this.invalidate(event.detail));
    objects.addEventListener("change", (event) => {
      if (event.detail !== "edit" && event.detail !== "select") this.invalidate();
    });
    this.show = show;
    return new Promise((resolve) => {
      this.osd.addOnceHandler("open", () => {
        this.fit(true);
        this.invalidate();
        resolve();
      });
      this.osd.open(this.source(show));
    });
  }

  source(show) {
    const { info, levels } = this,
      last = levels.length - 1,
      [height, width] = info.hw;
    const query = `show=${encodeURIComponent(JSON.stringify(show))}&v=${encodeURIComponent(info.version ?? "")}`;
    const source = new OSD.TileSource({
      width,
      height,
      tileSize: info.tile_px ?? 512,
      tileOverlap: 0,
      minLevel: 0,
      maxLevel: last,
    });
    source.getLevelScale = (level) => 1 / levels[last - level].scale;
    source.getTileUrl = (level, x, y) => `/api/images/${info.id}/tiles/${last - level}/${y}/${x}?${query}`;
    return source;
  }

  /** Other contrast or colours: the old picture stays until the new one is complete. */
  setShow(show) {
    this.show = show;
    const world = this.osd.world,
      old = Array.from({ length: world.getItemCount() }, (_, i) => world.getItemAt(i));
    this.osd.addTiledImage({
      tileSource: this.source(show),
      success: ({ item }) => {
        const swap = () => {
          for (const image of old) if (world.getIndexOfItem(image) >= 0) world.removeItem(image);
        };
        if (item.getFullyLoaded()) swap();
        else item.addOnceHandler("fully-loaded-change", swap);
      },
    });
  }

  // ---- places -------------------------------------------------------------------------------------------------

  /** CSS pixels per image pixel, and the image coordinates of the top left corner. */
  get place() {
    const viewport = this.osd.viewport,
      bounds = viewport.getBounds(true),
      width = this.info.hw[1];
    return {
      zoom: (viewport.getZoom(true) * viewport.getContainerSize().x) / width,
      x: bounds.x * width,
      y: bounds.y * width,
    };
  }

  /** Image coordinates [y, x] of a pointer event. */
  imageOf(event) {
    const box = this.host.getBoundingClientRect(),
      { zoom, x, y } = this.place;
    return [(event.clientY - box.top) / zoom + y, (event.clientX - box.left) / zoom + x];
  }

  /** CSS pixels in the picture [x, y] of image coordinates [y, x]. */
  screenOf([row, column]) {
    const { zoom, x, y } = this.place;
    return [(column - x) * zoom, (row - y) * zoom];
  }

  /** The whole image. */
  fit(immediately = false) {
    if (!this.info) return;
    const [height, width] = this.info.hw,
      { clientWidth, clientHeight } = this.host,
      margin = 14;
    const zoom = Math.min((clientWidth - 2 * margin) / width, (clientHeight - 2 * margin) / height);
    const x = (clientWidth - width * zoom) / 2,
      y = (clientHeight - height * zoom) / 2;
    this.fitted = true;
    this.fitting = true;
    this.osd.viewport.fitBounds(
      new OSD.Rect(-x / zoom / width, -y / zoom / width, clientWidth / zoom / width, clientHeight / zoom / width),
      immediately,
    );
    this.fitting = false;
  }

  zoomBy(factor) {
    if (this.info) {
      this.osd.viewport.zoomBy(factor);
      this.osd.viewport.applyConstraints();
    }
  }
  panBy(x, y) {
    // CSS pixels
    if (!this.info) return;
    this.osd.viewport.panBy(this.osd.viewport.deltaPointsFromPixels(new OSD.Point(x, y)));
    this.osd.viewport.applyConstraints();
  }

  /** Two fingers moved: `from` and `to` are {x, y, apart}, in the window. */
  pinch(from, to) {
    const box = this.host.getBoundingClientRect(),
      { viewport } = this.osd;
    this.fitted = false;
    viewport.panBy(viewport.deltaPointsFromPixels(new OSD.Point(from.x - to.x, from.y - to.y), true), true);
    const middle = viewport.pointFromPixel(new OSD.Point(to.x - box.left, to.y - box.top), true);
    viewport.zoomBy(to.apart / from.apart, middle, true);
    viewport.applyConstraints(true);
  }

  /** Zoom to a box [y0, x0, y1, x1] with room around it, or only move there if it is visible at this zoom. */
  goTo([y0, x0, y1, x1], { zoom = false, margin = 1.2 } = {}) {
    const width = this.info.hw[1],
      side = Math.max(y1 - y0, x1 - x0, 8),
      viewport = this.osd.viewport;
    if (zoom) {
      const room = Math.max(side * margin, 48);
      viewport.fitBounds(
        new OSD.Rect(
          (x0 - room) / width,
          (y0 - room) / width,
          (x1 - x0 + 2 * room) / width,
          (y1 - y0 + 2 * room) / width,
        ),
      );
      return;
    }
    const [sx, sy] = this.screenOf([(y0 + y1) / 2, (x0 + x1) / 2]),
      { clientWidth, clientHeight } = this.host;
    if (sx < 40 || sy < 60 || sx > clientWidth - 40 || sy > clientHeight - 40)
      viewport.panTo(new OSD.Point((x0 + x1) / 2 / width, (y0 + y1) / 2 / width));
  }

  /** The id of the object drawn under image coordinates. */
  idAt([y, x]) {
    if (!this.tiles || this.mode === "off") return 0;
    const id = this.tiles.at(y, x, this.labelLevel());
    return id && this.objects.isShown(id) ? id : 0;
  }

  labelLevel() {
    const zoom = this.place.zoom * this.ratio;
    let level = 0;
    while (level + 1 < this.levels.length && this.levels[level + 1].scale * zoom <= 1.01) level++;
    return level;
  }

  // ---- drawing ------------------------------------------------------------------------------------------------

  resize() {
    this.ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
    for (const canvas of [this.labels, this.lines]) {
      canvas.width = Math.max(1, Math.round(this.host.clientWidth * this.ratio));
      canvas.height = Math.max(1, Math.round(this.host.clientHeight * this.ratio));
    }
    this.drawn = "";
    this.painted = null; // what the canvas shows: {zoom, x, y}
    this.invalidate();
    if (this.fitted && this.info) requestAnimationFrame(() => this.fit(true)); // after OpenSeadragon's own resizing
  }

  /** Draw again a box of full pixels [y0, x0, y1, x1], or everything, in the next frame. */
  invalidate(box = null) {
    if (box === null) this.dirty = true;
    else if (this.dirty !== true) (this.dirty ??= []).push(box);
    this.request();
  }

  request() {
    this.requested ||= requestAnimationFrame(() => {
      this.requested = 0;
      this.frame();
    });
  }

  /** One frame: the label layer where it changed or the view moved, and the lines of tools. */
  frame() {
    if (!this.info || !this.osd.world.getItemCount()) return;
    const { zoom, x, y } = this.place,
      placed = `${zoom} ${x} ${y}`;
    const moved = placed !== this.drawn;
    if (moved) {
      const smooth = zoom * this.ratio < SMOOTH_BELOW;
      if (smooth !== this.smooth) {
        this.smooth = smooth;
        this.osd.drawer.setImageSmoothingEnabled(smooth);
      }
    }
    if (moved || this.dirty) this.paintLabels(zoom, x, y);
    this.drawn = placed;
    this.paintLines();
    if (moved) this.dispatchEvent(new Event("moved"));
  }

  paintLabels(zoom, x, y) {
    const context = this.labels.getContext("2d"),
      { width, height } = this.labels,
      { dirty, painted } = this;
    this.dirty = null;
    if (this.mode === "off" || !this.objects) {
      context.clearRect(0, 0, width, height);
      this.painted = null;
      return;
    }
    const start = performance.now(),
      pixel = zoom * this.ratio;
    const shifts = painted?.zoom === zoom && dirty !== true;
    const rectangles = shifts ? this.shift(context, x, y, pixel) : [[0, 0, width, height]];
    if (!shifts) this.painted = { zoom, x, y };
    const { x: left, y: top } = this.painted,
      level = this.labelLevel(),
      { scale } = this.levels[level],
      side = this.objects.typicalSide * pixel;
    const view = {
      level,
      scale,
      k: pixel * scale,
      ox: left / scale,
      oy: top / scale,
      width,
      height,
      thick: side > 13,
      tiny: side < 6,
    };
    if (shifts)
      for (const [y0, x0, y1, x1] of dirty ?? []) {
        const at = (value, origin, up) => Math[up ? "ceil" : "floor"]((value - origin) * pixel) + (up ? 4 : -4);
        rectangles.push([
          at(x0 - scale, left, false),
          at(y0 - scale, top, false),
          at(x1 + scale, left, true),
          at(y1 + scale, top, true),
        ]);
      }
    let seen;
    for (const rectangle of rectangles)
      seen = paint(context, this.tiles, this.objects, view, rectangle, this.mode, this.opacity);
    if (!shifts) this.tiles.keepOnly(seen);
    this.timings.push(performance.now() - start);
    if (this.timings.length > 240) this.timings.shift();
  }

  /** The picture moved without zooming: move what is drawn by whole pixels; returns the strips that are to be drawn. */
  shift(context, x, y, pixel) {
    const { painted } = this,
      { width, height } = this.labels;
    const dx = Math.round((painted.x - x) * pixel),
      dy = Math.round((painted.y - y) * pixel);
    if (!dx && !dy) return [];
    painted.x -= dx / pixel;
    painted.y -= dy / pixel;
    context.globalCompositeOperation = "copy";
    context.drawImage(this.labels, dx, dy);
    context.globalCompositeOperation = "source-over";
    const strips = [];
    if (dx) strips.push(dx > 0 ? [0, 0, dx, height] : [width + dx, 0, width, height]);
    if (dy) strips.push(dy > 0 ? [0, 0, width, dy] : [0, height + dy, width, height]);
    return strips;
  }

  paintLines() {
    const context = this.lines.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.lines.width, this.lines.height);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    for (const painter of this.painters) painter(context, this);
  }

  setMode(mode) {
    this.mode = mode;
    this.painted = null;
    this.invalidate();
  }
  setOpacity(value) {
    this.opacity = value;
    this.invalidate();
  }
}
