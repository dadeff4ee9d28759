// Every action of the page with its key: one table, which the help under "?" shows.

import { dialog, h } from "./dom.js";
import { TOOLS } from "./tools.js";

const control = (event) => event.ctrlKey || event.metaKey;

/** [group, keys as shown, what it does, test of the event, action] */
function table(page) {
  const { tools, viewer } = page;
  const tool = ({ name, key, title }) => [
    "Tools",
    key,
    title,
    (e) => e.key.toUpperCase() === key,
    () => tools.use(name),
  ];
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  return [
    ...TOOLS.map(tool),
    [
      "Tools",
      "[ and ]",
      "Smaller, larger brush",
      (e) => e.key === "[" || e.key === "]",
      (e) => tools.setRadius(tools.radius * (e.key === "]" ? 1.15 : 1 / 1.15)),
    ],
    [
      "Tools",
      "K",
      "Crosshair: arrows move it, Enter clicks, Shift+Enter closes an outline",
      (e) => e.key.toUpperCase() === "K",
      () => tools.toggleCross(),
    ],
    ["Tools", "Enter", "Close the outline or line", (e) => e.key === "Enter", (e) => tools.enter(e)],
    ["Tools", "Esc", "Cancel the current action; then clear the selection", (e) => e.key === "Escape", () => page.escape()],
    [
      "Objects",
      "Delete",
      "Delete the selected objects",
      (e) => e.key === "Delete" || e.key === "Backspace",
      () => page.onSelected("delete"),
    ],
    [
      "Objects",
      "F",
      "Fill holes of the selected objects",
      (e) => e.key.toUpperCase() === "F",
      () => page.onSelected("fill_holes"),
    ],
    [
      "Objects",
      "O",
      "Smooth the selected objects",
      (e) => e.key.toUpperCase() === "O",
      () => page.onSelected("smooth"),
    ],
    [
      "Objects",
      "1 to 9",
      "Class of the selected objects and of new ones",
      (e) => /^[1-9]$/.test(e.key),
      (e) => page.chooseClass(Number(e.key) - 1),
    ],
    [
      "Objects",
      "N, Shift+N",
      "Next, previous object",
      (e) => e.key.toUpperCase() === "N",
      (e) => page.step(e.shiftKey ? -1 : 1),
    ],
    [
      "Objects",
      "Ctrl+A",
      "Select all objects shown",
      (e) => control(e) && e.key === "a",
      () => page.objects.select(page.objects.shown()),
    ],
    [
      "Objects",
      "Ctrl+Z",
      "Undo",
      (e) => control(e) && !e.shiftKey && e.key.toLowerCase() === "z",
      () => page.editor.undo(),
    ],
    [
      "Objects",
      "Ctrl+Shift+Z, Ctrl+Y",
      "Redo",
      (e) => control(e) && (e.key.toLowerCase() === "y" || (e.shiftKey && e.key.toLowerCase() === "z")),
      () => page.editor.redo(),
    ],
    [
      "View",
      "+ and -",
      "Zoom in, zoom out",
      (e) => "+=-".includes(e.key),
      (e) => viewer.zoomBy(e.key === "-" ? 1 / 1.4 : 1.4),
    ],
    ["View", "0", "Whole image", (e) => e.key === "0", () => viewer.fit()],
    ["View", "Z", "Zoom to the selected objects", (e) => e.key.toUpperCase() === "Z", () => page.zoomToSelected()],
    [
      "View",
      "Arrows",
      "Move the picture, or the crosshair (Shift: far)",
      (e) => e.key in arrows,
      (e) => {
        const [dy, dx] = arrows[e.key];
        if (tools.cross) tools.moveCross(dy, dx, e.shiftKey);
        else viewer.panBy(dx * (e.shiftKey ? 400 : 90), dy * (e.shiftKey ? 400 : 90));
      },
    ],
    [
      "View",
      "Space + drag",
      "Move the picture with any tool (or the middle button, or two fingers)",
      (e) => e.key === " ",
      () => {
        tools.space = true;
        viewer.host.dataset.pans = "1";
      },
    ],
    ["View", "L", "Labels: outlines, filled, off", (e) => e.key.toUpperCase() === "L", () => page.cycleMode()],
    ["View", "C", "Colour by class, score, size or id", (e) => e.key.toUpperCase() === "C", () => page.cycleColour()],
    ["View", "A", "Automatic contrast", (e) => e.key.toUpperCase() === "A", () => page.panels.view.auto()],
    ["View", "I", "Invert", (e) => e.key.toUpperCase() === "I", () => page.panels.view.invert()],
    [
      "View",
      "H",
      "Show or hide the channels one by one",
      (e) => e.key.toUpperCase() === "H",
      () => page.panels.view.cycleChannels(),
    ],
    [
      "Images",
      ". and ,",
      "Next, previous image",
      (e) => [".", ",", "PageDown", "PageUp"].includes(e.key),
      (e) => page.go(e.key === "." || e.key === "PageDown" ? 1 : -1),
    ],
    ["Objects", "Q", "Mark the image as corrected", (e) => e.key.toUpperCase() === "Q", () => page.markCorrected()],
    [
      "Images",
      "/",
      "Filter the list of images",
      (e) => e.key === "/",
      () => document.getElementById("image-filter").focus(),
    ],
    [
      "Page",
      "P",
      "Predict this image",
      (e) => e.key.toUpperCase() === "P" && !e.shiftKey,
      () => page.panels.predict.start(false),
    ],
    [
      "Page",
      "Shift+P",
      "Predict all images",
      (e) => e.key.toUpperCase() === "P",
      () => page.panels.predict.start(true),
    ],
    [
      "Page",
      "Alt+1 to Alt+6",
      "View, Predict, Train, Evaluate, Measure, Export",
      (e) => e.altKey && /^[1-6]$/.test(e.key),
      (e) => page.openTab(Number(e.key) - 1),
    ],
    ["Page", "?", "This list", (e) => e.key === "?", () => help(page)],
  ];
}

const typing = (element) => element.matches("input:not([type=range], [type=checkbox], [type=radio]), textarea, select");
// Keys that a focused control uses itself.
const ownKeys = (element, event) =>
  (element.matches("input[type=range], [role=slider], [role=tab], [role=option]") && event.key.startsWith("Arrow")) ||
  (element.matches("button, a, summary, [role=option], input[type=checkbox], input[type=radio]") &&
    [" ", "Enter"].includes(event.key));

export function bindKeys(page) {
  const rows = table(page);
  page.keys = rows;
  document.addEventListener("keydown", (event) => {
    const element = event.target;
    if (document.querySelector("dialog[open]")) return;
    if (typing(element)) {
      if (event.key === "Escape") element.blur();
      return;
    }
    if (ownKeys(element, event)) return;
    const plain = !control(event) && !event.altKey;
    for (const [group, keys, , test, action] of rows) {
      const modified = keys.startsWith("Ctrl") || keys.startsWith("Alt");
      if (modified === plain || !test(event)) continue;
      const global = keys === "?" || keys === "/" || keys.startsWith("Alt");
      if (!page.info && !global) return;
      event.preventDefault();
      if (page.opening && group !== "Images")
        page.opened.then(() => action(event)); // meant for the image that is being opened
      else action(event);
      return;
    }
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " ") {
      page.tools.space = false;
      delete page.viewer.host.dataset.pans;
    }
  });
}

export function help(page) {
  const groups = [...new Set(page.keys.map(([group]) => group))];
  const content = groups.map((group) =>
    h(
      "section",
      {},
      h("h3", { text: group }),
      h(
        "dl",
        { class: "keys" },
        page.keys
          .filter(([name]) => name === group)
          .flatMap(([, keys, text]) => [h("dt", {}, h("kbd", { text: keys })), h("dd", { text })]),
      ),
    ),
  );
  return dialog("Keys", h("div", { class: "key-groups" }, content), [], "wide");
}
