// How the image and the labels are shown: channels, contrast, gamma, outlines, colours.

import { button, field, format, h, select, slider } from "./dom.js";
import { CLASS_COLOURS, RAMP_CSS } from "./colours.js";

const MODES = [
  ["outlines", "Outlines"],
  ["filled", "Filled"],
  ["off", "Off"],
];
const COLOURINGS = [
  ["class", "Class"],
  ["score", "Score"],
  ["size", "Size"],
  ["id", "Id"],
];

export class ViewPanel {
  constructor(page, host) {
    this.page = page;
    this.channels = []; // {name, colour, low, high, auto: [low, high], gamma, invert, on, histogram, range}
    this.remembered = new Map(); // display by the names of channels: the next image of a plate looks the same
    this.channelHost = h("div", { class: "channels" });
    this.modes = h(
      "div",
      { class: "segments", role: "group", "aria-label": "Labels" },
      MODES.map(([name, text]) =>
        button({ text, kind: "segment", pressed: name === "outlines", click: () => this.setMode(name) }),
      ),
    );
    this.colourings = select(COLOURINGS, "class", (name) => this.setColourBy(name));
    this.legend = h("div", { class: "legend" });
    this.notes = h("section", { hidden: true });
    host.append(
      h(
        "section",
        {},
        h("h3", { text: "Labels" }),
        this.modes,
        field(
          "Opacity",
          slider({ min: 0.1, max: 1, step: 0.05, value: 1, input: (value) => page.viewer.setOpacity(value) }),
        ),
        field("Colour by", this.colourings),
        this.legend,
      ),
      h(
        "section",
        {},
        h(
          "div",
          { class: "row" },
          h("h3", { text: "Channels" }),
          h("span", { class: "grow" }),
          button({ text: "Auto", kind: "small", title: "Automatic contrast (A)", click: () => this.auto() }),
          button({ text: "Invert", kind: "small", title: "Invert (I)", click: () => this.invert() }),
        ),
        this.channelHost,
      ),
      this.notes,
    );
    page.addEventListener("image", () => this.showNotes());
    page.addEventListener("objects", (event) => {
      if (event.detail !== "select") this.showLegend();
    });
    page.addEventListener("project", () => this.showLegend());
  }

  /** The display of an image: as last set for images with the same channels, else the server's choice. */
  showOf(info) {
    const names = info.channels.map((channel) => channel.name).join("\n"),
      known = this.remembered.get(names);
    const channels = info.channels.map((channel, index) => ({
      index,
      name: channel.name || `Channel ${index + 1}`,
      colour: channel.colour,
      low: channel.low,
      high: channel.high,
      gamma: 1,
      invert: false,
      on: true,
      histogram: channel.histogram,
      range: [Math.min(channel.edges[0], channel.low), Math.max(channel.edges[1], channel.high)],
      dtype: channel.dtype,
      ...(known ? pick(known[index], ["colour", "gamma", "invert", "on"]) : {}),
    }));
    this.isColour = /^r(ed)?\ng(reen)?\nb(lue)?$/i.test(names);
    this.channels = channels;
    this.names = names;
    for (const group of this.groups) {
      const [low, high] = automatic(group),
        [first, last] = group[0].range;
      if (high < first + 0.35 * (last - first)) for (const channel of group) Object.assign(channel, { low, high }); // nearly black as it is
    }
    this.render();
    return this.show();
  }

  /** Channels that share one histogram: the three of a colour image, else each its own. */
  get groups() {
    return this.isColour ? [this.channels] : this.channels.map((channel) => [channel]);
  }

  /** The size of the image, and what was assumed when it was read. */
  showNotes() {
    const {
      hw: [height, width],
      pixel_size_um: pixel,
      notes = [],
      channels,
    } = this.page.info;
    const size = `${width.toLocaleString("en")} x ${height.toLocaleString("en")} px, ${channels[0].dtype}${pixel ? `, ${format.number(pixel[1])} µm per pixel` : ""}`;
    this.notes.hidden = false;
    this.notes.replaceChildren(
      h("h3", { text: "Image" }),
      h("p", { class: "muted", text: size }),
      ...notes.map((text) => h("p", { class: "problem", text })),
    );
  }

  show() {
    return this.channels
      .filter((channel) => channel.on)
      .map(({ index, colour, low, high, gamma, invert }) => ({ channel: index, colour, low, high, gamma, invert }));
  }

  changed() {
    this.remembered.set(this.names, this.channels);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.page.viewer.setShow(this.show()), 90);
  }

  auto() {
    for (const group of this.groups) {
      const [low, high] = automatic(group);
      for (const channel of group) Object.assign(channel, { low, high, gamma: 1 });
    }
    this.render();
    this.changed();
  }

  invert() {
    const inverted = !this.channels.every((channel) => channel.invert);
    for (const channel of this.channels) channel.invert = inverted;
    this.changed();
  }

  /** All channels, then each alone. */
  cycleChannels() {
    const on = this.channels.filter((channel) => channel.on);
    const next = on.length === this.channels.length ? 0 : this.channels.indexOf(on[0]) + 1;
    for (const channel of this.channels) channel.on = next >= this.channels.length || channel.index === next;
    this.render();
    this.changed();
  }

  setMode(mode) {
    this.page.viewer.setMode(mode);
    [...this.modes.children].forEach((element, i) =>
      element.setAttribute("aria-pressed", String(MODES[i][0] === mode)),
    );
  }

  setColourBy(name) {
    this.page.objects.setColourBy(name);
    this.colourings.value = name;
    this.showLegend();
  }

  showLegend() {
    const { objects } = this.page,
      by = objects.colourBy,
      parts = [];
    if (by === "class") {
      for (const [index, name] of (objects.classes ?? []).entries()) {
        const swatch = h("span", { class: "swatch" });
        swatch.style.background = CLASS_COLOURS[index % CLASS_COLOURS.length];
        parts.push(h("span", { class: "legend-item" }, swatch, name));
      }
    } else if (by !== "id" && objects.scoreRange) {
      const [low, high] =
        by === "score" ? objects.scoreRange : objects.areaRange.map((value) => Math.round(Math.exp(value) - 1));
      const ramp = h("span", { class: "ramp" });
      ramp.style.background = RAMP_CSS;
      parts.push(
        h("span", { text: format.number(low) }),
        ramp,
        h("span", { text: format.number(high) + (by === "size" ? " px" : "") }),
      );
    }
    parts.push(
      h("span", { class: "legend-item" }, h("span", { class: "line solid" }), "automatic"),
      h("span", { class: "legend-item" }, h("span", { class: "line dashed" }), "manual"),
    );
    this.legend.replaceChildren(...parts);
  }

  render() {
    this.channelHost.replaceChildren(...this.groups.map((group) => this.row(group)));
  }

  /** The controls of one channel, or of the three of a colour image. */
  row(group) {
    const [channel] = group,
      name = group.length > 1 ? "Colour" : channel.name;
    const each = (values) => {
      for (const one of group) Object.assign(one, values);
      this.changed();
    };
    const on = h("input", {
      type: "checkbox",
      checked: channel.on,
      "aria-label": `Show ${name}`,
      on: { change: () => each({ on: on.checked }) },
    });
    const colour =
      group.length > 1
        ? null
        : h("input", {
            type: "color",
            value: channel.colour,
            "aria-label": `Colour of ${name}`,
            on: { input: () => each({ colour: colour.value }) },
          });
    const values = h("span", { class: "muted fixed" });
    const write = () => {
      values.textContent = `${format.number(channel.low)} to ${format.number(channel.high)}`;
    };
    write();
    const shown = h("span", { class: "fixed small", text: channel.gamma.toFixed(2) });
    const gamma = slider({
      min: -1,
      max: 1,
      step: 0.05,
      value: Math.log2(channel.gamma),
      label: `Gamma of ${name}`,
      input: (value) => {
        each({ gamma: Number((2 ** value).toFixed(3)) });
        shown.textContent = channel.gamma.toFixed(2);
      },
    });
    const bars = histogram(name, group, () => {
      write();
      each({ low: channel.low, high: channel.high });
    });
    return h(
      "div",
      { class: "channel" },
      h("div", { class: "row" }, on, colour, h("span", { class: "grow clip", text: name, title: name }), values),
      bars,
      h("label", { class: "inline gamma" }, h("span", { text: "Gamma" }), gamma, shown),
    );
  }
}

const pick = (object, names) =>
  Object.fromEntries(names.filter((name) => object && name in object).map((name) => [name, object[name]]));

const countsOf = (group) =>
  group[0].histogram.map((_, i) => group.reduce((sum, channel) => sum + channel.histogram[i], 0));

/** Black and white points: all but the darkest 0.1 % and the brightest 0.2 % of the pixels. */
function automatic(group) {
  const counts = countsOf(group),
    total = counts.reduce((sum, count) => sum + count, 0),
    [low, high] = group[0].range,
    bin = (high - low) / counts.length;
  const whole = /int/.test(group[0].dtype) ? Math.round : (value) => value;
  const at = (share) => {
    let sum = 0;
    for (let i = 0; i < counts.length; i++) {
      sum += counts[i];
      if (sum >= share * total) return i;
    }
    return counts.length - 1;
  };
  const black = whole(low + at(0.001) * bin),
    white = whole(low + (at(0.998) + 1) * bin);
  return [black, Math.min(high, Math.max(white, black + bin))];
}

/** A histogram (log counts) with two handles, which the pointer drags and arrow keys move. */
function histogram(name, group, changed) {
  const [channel] = group,
    [low, high] = channel.range,
    counts = countsOf(group),
    width = 268,
    height = 56;
  const canvas = h("canvas", { width: width * 2, height: height * 2, class: "histogram-bars", "aria-hidden": "true" });
  const context = canvas.getContext("2d"),
    place = (value) => Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
  const most = Math.log1p(Math.max(...counts, 1));
  const draw = () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    counts.forEach((count, i) => {
      const x = (i / counts.length) * canvas.width,
        value = low + ((i + 0.5) / counts.length) * (high - low);
      const tall = (Math.log1p(count) / most) * (canvas.height - 6);
      context.fillStyle = value >= channel.low && value <= channel.high ? "#c9d1db" : "#59616d";
      context.fillRect(x, canvas.height - tall, canvas.width / counts.length + 0.6, tall);
    });
  };
  const handles = ["low", "high"].map((end) =>
    h("span", {
      class: `handle ${end}`,
      role: "slider",
      tabIndex: 0,
      "aria-label": `${end === "low" ? "Black" : "White"} point of ${name}`,
      on: {
        keydown: (event) => {
          const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
          if (!step) return;
          event.preventDefault();
          set(end, channel[end] + step * ((high - low) / (event.shiftKey ? 20 : 200)));
        },
      },
    }),
  );
  const box = h("div", { class: "histogram" }, canvas, handles);
  const put = () =>
    handles.forEach((handle, i) => {
      const value = channel[i ? "high" : "low"];
      handle.style.left = `${place(value) * 100}%`;
      handle.setAttribute("aria-valuemin", low);
      handle.setAttribute("aria-valuemax", high);
      handle.setAttribute("aria-valuenow", format.number(value));
    });
  const set = (end, value) => {
    const least = (high - low) / 1000,
      whole = /int/.test(channel.dtype ?? "") ? Math.round(value) : value;
    channel[end] =
      end === "low"
        ? Math.min(Math.max(whole, low), channel.high - least)
        : Math.max(Math.min(whole, high), channel.low + least);
    put();
    draw();
    changed();
  };
  let dragged = null;
  const valueAt = (event) => {
    const rect = canvas.getBoundingClientRect();
    return low + ((event.clientX - rect.left) / rect.width) * (high - low);
  };
  box.addEventListener("pointerdown", (event) => {
    const value = valueAt(event);
    dragged = Math.abs(value - channel.low) < Math.abs(value - channel.high) ? "low" : "high";
    box.setPointerCapture(event.pointerId);
    set(dragged, value);
  });
  box.addEventListener("pointermove", (event) => {
    if (dragged) set(dragged, valueAt(event));
  });
  box.addEventListener("pointerup", () => {
    dragged = null;
  });
  put();
  draw();
  return box;
}
