// Plots on a canvas: lines over steps, a histogram and a scatter plot with brushing.

import { format, h } from "./dom.js";
import { CLASS_COLOURS } from "./colours.js";

const TEXT = "#a9b1bc",
  GRID = "#343a43",
  MARK = "#56b4e9";
const LEFT = 44,
  RIGHT = 10,
  TOP = 10,
  BOTTOM = 30;

/** A canvas that follows the size of its box; `draw(context, width, height)` in CSS pixels. */
export function plot(draw, { label, kind = "" }) {
  const canvas = h("canvas", { class: `plot ${kind}`, role: "img", "aria-label": label });
  const redraw = () => {
    const ratio = globalThis.devicePixelRatio || 1,
      width = canvas.clientWidth,
      height = canvas.clientHeight;
    if (!width || !height) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    draw(context, width, height);
  };
  new ResizeObserver(redraw).observe(canvas);
  return { canvas, redraw };
}

export function ticks(low, high, n = 4) {
  const span = high - low || 1,
    rough = span / n,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => span / s <= n + 0.5) ?? power * 10;
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step)
    values.push(Number(value.toPrecision(12)));
  return values;
}

export class Axes {
  constructor(width, height, [xLow, xHigh], [yLow, yHigh], top = TOP) {
    Object.assign(this, {
      width,
      height,
      top,
      xLow,
      xHigh: xHigh === xLow ? xLow + 1 : xHigh,
      yLow,
      yHigh: yHigh === yLow ? yLow + 1 : yHigh,
    });
  }
  x(value) {
    return LEFT + ((value - this.xLow) / (this.xHigh - this.xLow)) * (this.width - LEFT - RIGHT);
  }
  y(value) {
    return this.height - BOTTOM - ((value - this.yLow) / (this.yHigh - this.yLow)) * (this.height - this.top - BOTTOM);
  }
  valueX(px) {
    return this.xLow + ((px - LEFT) / (this.width - LEFT - RIGHT)) * (this.xHigh - this.xLow);
  }
  valueY(px) {
    return this.yLow + ((this.height - BOTTOM - px) / (this.height - this.top - BOTTOM)) * (this.yHigh - this.yLow);
  }

  draw(context, xTitle, yTitle) {
    context.clearRect(0, 0, this.width, this.height);
    context.fillStyle = TEXT;
    context.strokeStyle = GRID;
    context.lineWidth = 1;
    context.textAlign = "center";
    for (const value of ticks(this.xLow, this.xHigh))
      context.fillText(format.number(value), this.x(value), this.height - BOTTOM + 13);
    context.textAlign = "right";
    for (const value of ticks(this.yLow, this.yHigh, 3)) {
      const y = Math.round(this.y(value)) + 0.5;
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(this.width - RIGHT, y);
      context.stroke();
      context.fillText(format.number(value), LEFT - 5, y + 3);
    }
    context.textAlign = "center";
    context.fillText(xTitle, (LEFT + this.width - RIGHT) / 2, this.height - 3);
    context.save();
    context.translate(9, (this.top + this.height - BOTTOM) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(yTitle, 0, 0);
    context.restore();
    context.textAlign = "left";
  }
}

export const extent = (values) => {
  let low = Infinity,
    high = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
};

/** Lines over steps: series {name: [[step, value], ...]}, at most four in one picture. */
export function lineChart(label, yTitle) {
  let series = {};
  const picture = plot(
    (context, width, height) => {
      const all = Object.values(series).flat(),
        [low, high] = extent(all.map(([, value]) => value));
      const axes = new Axes(width, height, extent(all.map(([step]) => step)), [Math.min(0, low), high], 24);
      axes.draw(context, "step", yTitle);
      let x = LEFT;
      Object.entries(series).forEach(([name, points], index) => {
        context.strokeStyle = context.fillStyle = CLASS_COLOURS[(index + 1) % CLASS_COLOURS.length];
        context.lineWidth = 1.75;
        context.setLineDash([[], [6, 3], [2, 3], [8, 3, 2, 3]][index % 4]);
        context.beginPath();
        context.moveTo(x, 9);
        context.lineTo(x + 16, 9); // in the legend
        points.forEach(([step, value], i) =>
          i ? context.lineTo(axes.x(step), axes.y(value)) : context.moveTo(axes.x(step), axes.y(value)),
        );
        context.stroke();
        context.setLineDash([]);
        if (points.length === 1) context.fillRect(axes.x(points[0][0]) - 2, axes.y(points[0][1]) - 2, 4, 4);
        context.fillText(name, x + 19, 13);
        x += 28 + context.measureText(name).width;
      });
    },
    { label, kind: "chart" },
  );
  return {
    canvas: picture.canvas,
    set(next) {
      series = next;
      picture.redraw();
    },
  };
}

/** A histogram of one column; dragging over it calls `brushed(low, high)`, a click without a drag `brushed(null)`. */
export function histogram(brushed) {
  let data = null,
    axes = null,
    drag = null;
  const picture = plot(
    (context, width, height) => {
      if (!data) return;
      const [low, high] = extent(data.values),
        n = Math.max(8, Math.min(60, Math.floor(width / 9))),
        counts = new Array(n).fill(0),
        inside = new Array(n).fill(0);
      const bin = (value) => Math.min(n - 1, Math.floor(((value - low) / (high - low || 1)) * n));
      data.values.forEach((value, i) => {
        if (value === null || !Number.isFinite(value)) return;
        counts[bin(value)]++;
        if (data.selected.has(data.ids[i])) inside[bin(value)]++;
      });
      axes = new Axes(width, height, [low, high], [0, Math.max(...counts)]);
      axes.draw(context, data.title, "objects");
      const step = (axes.xHigh - axes.xLow) / n;
      for (let i = 0; i < n; i++) {
        const x = axes.x(axes.xLow + i * step),
          wide = Math.max(1, axes.x(axes.xLow + (i + 1) * step) - x - 1),
          middle = axes.xLow + (i + 0.5) * step;
        const gated = !data.range || (middle >= data.range[0] && middle <= data.range[1]);
        context.fillStyle = gated ? MARK : "#4a525e";
        context.fillRect(x, axes.y(counts[i]), wide, axes.y(0) - axes.y(counts[i]));
        context.fillStyle = "#fff";
        context.fillRect(x, axes.y(inside[i]), wide, axes.y(0) - axes.y(inside[i]));
      }
      const range = drag ?? data.range;
      if (range) {
        context.fillStyle = "rgba(240,228,66,.16)";
        context.fillRect(axes.x(range[0]), TOP, axes.x(range[1]) - axes.x(range[0]), height - TOP - BOTTOM);
        context.fillStyle = "#f0e442";
        for (const end of range) context.fillRect(axes.x(end) - 1, TOP, 2, height - TOP - BOTTOM);
      }
    },
    { label: "Histogram. Drag over it to gate.", kind: "brushable" },
  );
  const { canvas } = picture;
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (axes) {
      event.preventDefault(); // no text is selected
      canvas.setPointerCapture(event.pointerId);
      from = event.offsetX;
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from === null || Math.abs(event.offsetX - from) < 3) return;
    drag = [axes.valueX(from), axes.valueX(event.offsetX)].sort((a, b) => a - b);
    brushed(...drag);
    picture.redraw();
  });
  canvas.addEventListener("pointerup", () => {
    if (from !== null && !drag) brushed(null);
    from = drag = null;
    picture.redraw();
  });
  return {
    canvas,
    set(next) {
      data = next;
      picture.redraw();
    },
  };
}

/** A scatter plot of two columns; a dragged rectangle calls `brushed(ids, ranges)`, a click the nearest point's id. */
export function scatter(brushed) {
  let data = null,
    axes = null,
    from = null,
    rectangle = null;
  const picture = plot(
    (context, width, height) => {
      if (!data) return;
      axes = new Axes(width, height, extent(data.x), extent(data.y));
      axes.draw(context, data.xTitle, data.yTitle);
      const side = data.ids.length > 3000 ? 2 : 3.5;
      for (const chosen of [false, true]) {
        data.ids.forEach((id, i) => {
          if (data.x[i] === null || data.y[i] === null || data.selected.has(id) !== chosen) return;
          context.globalAlpha = chosen ? 1 : data.shown(id) ? 0.75 : 0.15;
          context.fillStyle = chosen ? "#fff" : data.colour(id);
          const grown = chosen ? side + 2 : side;
          context.fillRect(axes.x(data.x[i]) - grown / 2, axes.y(data.y[i]) - grown / 2, grown, grown);
        });
      }
      context.globalAlpha = 1;
      if (rectangle) {
        const [x0, y0, x1, y1] = rectangle;
        context.fillStyle = "rgba(240,228,66,.14)";
        context.strokeStyle = "#f0e442";
        context.fillRect(x0, y0, x1 - x0, y1 - y0);
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    },
    { label: "Scatter plot. Drag a rectangle to select objects.", kind: "brushable" },
  );
  const { canvas } = picture;
  canvas.addEventListener("pointerdown", (event) => {
    if (axes) {
      event.preventDefault(); // no text is selected
      canvas.setPointerCapture(event.pointerId);
      from = [event.offsetX, event.offsetY];
    }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || Math.hypot(event.offsetX - from[0], event.offsetY - from[1]) < 3) return;
    rectangle = [
      Math.min(from[0], event.offsetX),
      Math.min(from[1], event.offsetY),
      Math.max(from[0], event.offsetX),
      Math.max(from[1], event.offsetY),
    ];
    picture.redraw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!from) return;
    from = null;
    if (rectangle) {
      const [x0, y0, x1, y1] = rectangle,
        xs = [axes.valueX(x0), axes.valueX(x1)],
        ys = [axes.valueY(y1), axes.valueY(y0)];
      const ids = data.ids.filter(
        (_, i) => data.x[i] >= xs[0] && data.x[i] <= xs[1] && data.y[i] >= ys[0] && data.y[i] <= ys[1],
      );
      rectangle = null;
      brushed(ids, { x: xs, y: ys });
    } else {
      let best = null,
        nearest = 12;
      data.ids.forEach((id, i) => {
        const far = Math.hypot(axes.x(data.x[i]) - event.offsetX, axes.y(data.y[i]) - event.offsetY);
        if (far < nearest) {
          nearest = far;
          best = id;
        }
      });
      brushed(best ? [best] : [], null);
    }
    picture.redraw();
  });
  return {
    canvas,
    set(next) {
      data = next;
      picture.redraw();
    },
  };
}
