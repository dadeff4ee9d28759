// Small helpers to build the page: elements, icons, short messages, dialogs. No markup is parsed from strings.

const SVG = "http://www.w3.org/2000/svg";

// Outlines of 20 x 20 icons, drawn for this page.
const ICONS = {
  select: "M5 3l11 7-5 1.2L8.4 16z",
  delete: "M4 5.5h12M8 5.5V4h4v1.5M5.5 5.5l.8 11h7.4l.8-11M8.5 8.5v5M11.5 8.5v5",
  outline: "M10 3.2c4.2 0 6.6 2.4 6.6 5.6 0 4.2-3.4 8-7.4 8-3.6 0-5.8-2.6-5.8-6 0-4.4 2.8-7.6 6.6-7.6z",
  brush:
    "M16.8 3.2c-3 .8-6.4 4-8 6.8l1.6 1.6c2.8-1.6 6-5 6.4-8.4zM8 11c-2.2 0-3 1.4-3.2 3-.1 1-.8 1.8-1.8 2.2 3.4 1.2 6.8 0 6.8-3.4z",
  erase: "M11.5 3.5l5 5-7 7.5H6.2L3 12.6zM7.2 8.2l5 5M9.5 16H17",
  merge: "M7 5.2a4.8 4.8 0 1 0 0 9.6M13 5.2a4.8 4.8 0 1 1 0 9.6M7 10h6M10.8 7.8L13 10l-2.2 2.2",
  split: "M10 2.5v15M7.5 5.2a4.8 4.8 0 0 0 0 9.6zM12.5 5.2a4.8 4.8 0 0 1 0 9.6z",
  region: "M3.5 6V3.5H6M9 3.5h2M14 3.5h2.5V6M16.5 9v2M16.5 14v2.5H14M11 16.5H9M6 16.5H3.5V14M3.5 11V9M7 13l6-6",
  line: "M3 14.5L14.5 3l2.5 2.5L5.5 17zM6 11.5l1.5 1.5M8.5 9l1.5 1.5M11 6.5L12.5 8",
  undo: "M7.5 4L3.5 8l4 4M3.5 8H12a4.3 4.3 0 0 1 0 8.6H8",
  redo: "M12.5 4l4 4-4 4M16.5 8H8a4.3 4.3 0 0 0 0 8.6h4",
  previous: "M12.5 4.5L7 10l5.5 5.5",
  next: "M7.5 4.5L13 10l-5.5 5.5",
  fit: "M3.5 7.5v-4h4M12.5 3.5h4v4M16.5 12.5v4h-4M7.5 16.5h-4v-4",
  plus: "M10 4v12M4 10h12",
  minus: "M4 10h12",
  folder: "M3 5.5h5l1.5 2H17v8.5H3z",
  upload: "M10 13V4M6.5 7.5L10 4l3.5 3.5M3.5 13v3.5h13V13",
  play: "M6 3.8l10 6.2-10 6.2z",
  stop: "M5 5h10v10H5z",
  close: "M5 5l10 10M15 5L5 15",
  check: "M4 10.5l4 4 8-9",
  download: "M10 4v9M6.5 9.5L10 13l3.5-3.5M3.5 13v3.5h13V13",
  help: "M7.3 7.5C7.3 5.8 8.5 5 10 5s2.7.9 2.7 2.4c0 2-2.7 2.2-2.7 4.3M10 14.5v.6",
  copy: "M7 7h9v9H7zM4 13V4h9",
  eye: "M2.5 10c2-3.5 4.6-5 7.5-5s5.5 1.5 7.5 5c-2 3.5-4.6 5-7.5 5s-5.5-1.5-7.5-5zM10 12.3a2.3 2.3 0 1 0 0-4.6 2.3 2.3 0 0 0 0 4.6z",
};

/** An element. props: `class`, `text`, `on: {event: handler}`, `data: {}`; everything else is a property or attribute. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "text") element.textContent = value;
    else if (key === "on") for (const [name, handler] of Object.entries(value)) element.addEventListener(name, handler);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key in element && key !== "list" && key !== "form") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon, a text or both. `title` names the key that does the same. */
export function button({ text, symbol, title, label, kind = "", click, disabled, pressed, id }) {
  const children = [symbol ? icon(symbol) : null, text ? h("span", { text }) : null];
  const props = { class: `button ${kind}`, type: "button", title, disabled, id, on: click ? { click } : {} };
  if (label) props["aria-label"] = label;
  if (pressed !== undefined) props["aria-pressed"] = String(pressed);
  return h("button", props, children);
}

/** A labelled control: `<label>` above or beside an input, select or a row of them. */
export function field(text, control, { hint, inline = false } = {}) {
  const label = h(
    "label",
    { class: inline ? "field inline" : "field" },
    h("span", { class: "field-name", text }),
    control,
  );
  if (hint) label.append(h("span", { class: "hint", text: hint }));
  return label;
}

export function select(options, value, change, props = {}) {
  const element = h("select", { ...props, on: { change: () => change?.(element.value) } });
  for (const option of options) {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    element.append(h("option", { value: key, text }));
  }
  if (value !== undefined && value !== null) element.value = value;
  return element;
}

export function slider({ min, max, step, value, input, change, label, id }) {
  const element = h("input", { type: "range", min, max, step, "aria-label": label, id });
  element.value = value;
  if (input) element.addEventListener("input", () => input(Number(element.value)));
  if (change) element.addEventListener("change", () => change(Number(element.value)));
  return element;
}

/** A message at the bottom of the picture; errors stay until closed, and are read out at once. */
export function toast(message, kind = "info") {
  const host = document.getElementById("toasts");
  const note = h(
    "div",
    { class: `toast ${kind}`, role: kind === "error" ? "alert" : "status" },
    h("span", { text: message }),
  );
  const close = () => note.remove();
  if (kind === "error") note.append(button({ symbol: "close", kind: "bare", label: "Close this message", click: close }));
  if (kind !== "error") for (const old of host.querySelectorAll(".toast.info")) old.remove();
  while (host.children.length > 2) host.firstChild.remove();
  host.append(note);
  if (kind !== "error") setTimeout(close, 4000);
}

/** A modal dialog; resolves with the value of the button that closed it, or null. */
export function dialog(title, content, actions = [], kind = "") {
  return new Promise((resolve) => {
    const foot = h("div", { class: "dialog-foot" });
    const close = button({ symbol: "close", kind: "bare", label: "Close" });
    const box = h(
      "dialog",
      { class: `dialog ${kind}`, "aria-label": title },
      h("div", { class: "dialog-head" }, h("h2", { text: title }), close),
      h("div", { class: "dialog-body" }, content),
      foot,
    );
    const done = (value) => {
      box.close();
      box.remove();
      resolve(value);
    };
    close.addEventListener("click", () => done(null));
    for (const { text, value, primary } of actions)
      foot.append(
        button({
          text,
          kind: primary ? "primary" : "",
          click: () => done(typeof value === "function" ? value() : value),
        }),
      );
    if (!actions.length) foot.remove();
    box.addEventListener("cancel", (event) => {
      event.preventDefault();
      done(null);
    });
    box.addEventListener("click", (event) => {
      if (event.target === box) done(null);
    });
    const first = box.querySelector(".dialog-body input");
    first?.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing || first.dataset.enter) return;
      event.preventDefault();
      foot.querySelector(".primary")?.click();
    });
    document.body.append(box);
    box.showModal();
    first?.focus();
  });
}

export const format = {
  number: (value) =>
    value === null || value === undefined || Number.isNaN(value)
      ? ""
      : Math.abs(value) >= 1000
        ? Math.round(value).toLocaleString("en")
        : Number.isInteger(value)
          ? String(value)
          : String(Number(value.toPrecision(3))),
  count: (n, noun) => `${n.toLocaleString("en")} ${n === 1 ? noun : noun + "s"}`,
};
