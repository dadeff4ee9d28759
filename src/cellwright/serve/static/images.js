// The list of images: thumbnails, counts and states; filter and sort; files dropped onto the page; folders on the server.

import { button, dialog, format, h, icon, select, toast } from "./dom.js";
import { get, post, remove, upload } from "./http.js";

const STATES = { new: "New", predicted: "Predicted", corrected: "Corrected", training: "In training" };
const SORTS = {
  name: ["Name", (a, b) => a.name.localeCompare(b.name, "en", { numeric: true })],
  most: ["Most objects", (a, b) => (b.n_objects ?? -1) - (a.n_objects ?? -1)],
  least: ["Fewest objects", (a, b) => (a.n_objects ?? Infinity) - (b.n_objects ?? Infinity)],
  state: ["State", (a, b) => Object.keys(STATES).indexOf(a.state) - Object.keys(STATES).indexOf(b.state)],
  added: ["Order added", () => 0],
};
const PAGE = 500;

export class ImageList {
  constructor(page, host) {
    this.page = page;
    this.images = [];
    this.text = "";
    this.state = "all";
    this.sort = "name";
    this.build(host);
    this.acceptDrops();
  }

  build(host) {
    this.list = h("div", { class: "image-list", role: "listbox", "aria-label": "Images", tabIndex: -1 });
    this.total = h("span", { class: "muted" });
    this.files = h("input", {
      type: "file",
      multiple: true,
      hidden: true,
      "aria-label": "Files to add",
      on: { change: () => this.add([...this.files.files].map((file) => [file.name, file])) },
    });
    const filter = h("input", {
      type: "search",
      id: "image-filter",
      placeholder: "Filter by name",
      "aria-label": "Filter by name",
      on: {
        input: () => {
          this.text = filter.value.toLowerCase();
          this.render();
        },
      },
    });
    const states = select(
      [["all", "All states"], ...Object.entries(STATES)],
      "all",
      (value) => {
        this.state = value;
        this.render();
      },
      { "aria-label": "Show images in state" },
    );
    const sorts = select(
      Object.entries(SORTS).map(([key, [text]]) => [key, text]),
      "name",
      (value) => {
        this.sort = value;
        this.render();
      },
      { "aria-label": "Sort images" },
    );
    host.append(
      h(
        "div",
        { class: "panel-head" },
        h("h2", { text: "Images" }),
        this.total,
        h("span", { class: "grow" }),
        button({
          symbol: "upload",
          kind: "bare",
          title: "Add image files",
          label: "Add image files",
          click: () => this.files.click(),
        }),
        button({
          symbol: "folder",
          kind: "bare",
          title: "Open a folder on this computer",
          label: "Open a folder",
          click: () => this.browse(),
        }),
      ),
      this.files,
      h("div", { class: "image-tools" }, filter, h("div", { class: "pair" }, states, sorts)),
      this.list,
    );
  }

  async load() {
    const first = await get(`/api/project?offset=0&limit=${PAGE}`);
    const images = [...first.images],
      total = first.n_images ?? images.length;
    while (images.length < total) {
      const more = await get(`/api/project?offset=${images.length}&limit=${PAGE}`);
      if (!more.images.length) break;
      images.push(...more.images);
    }
    this.images = images;
    this.render();
    return first;
  }

  get visible() {
    const images = this.images.filter(
      (image) => (this.state === "all" || image.state === this.state) && image.name.toLowerCase().includes(this.text),
    );
    return images.sort(SORTS[this.sort][1]);
  }

  render() {
    const visible = this.visible;
    this.total.textContent =
      visible.length === this.images.length ? String(this.images.length) : `${visible.length} of ${this.images.length}`;
    this.list.replaceChildren(...visible.map((image) => this.card(image)));
    if (!this.images.length) this.list.append(this.empty());
    else if (!visible.length) this.list.append(h("p", { class: "muted pad", text: "No image matches the filter." }));
  }

  empty() {
    return h(
      "div",
      { class: "empty" },
      h("p", { text: "Drop images or folders anywhere on this page." }),
      button({ symbol: "upload", text: "Choose files", click: () => this.files.click() }),
      button({ symbol: "folder", text: "Open a folder", click: () => this.browse() }),
    );
  }

  card(image) {
    const current = image.id === this.page.info?.id,
      objects = image.n_objects;
    const count = objects === null || objects === undefined ? "" : format.count(objects, "object");
    const note = image.note ? h("span", { class: "note", text: image.note }) : null;
    const card = h(
      "div",
      {
        class: "image-card",
        role: "option",
        tabIndex: current ? 0 : -1,
        title: `${image.name}${image.note ? `\n${image.note}` : ""}`,
        "aria-selected": String(current),
        data: { id: image.id },
        on: { click: () => this.page.openImage(image.id), keydown: (event) => this.key(event, image) },
      },
      h("img", {
        src: `/api/images/${image.id}/thumbnail?v=${encodeURIComponent(image.version ?? image.rev ?? "")}`,
        alt: "",
        loading: "lazy",
        width: 48,
        height: 48,
        draggable: false,
      }),
      h(
        "div",
        { class: "image-text" },
        h("span", { class: "image-name", text: image.name }),
        h(
          "span",
          { class: "image-facts" },
          h("span", { class: `state ${image.state}`, text: STATES[image.state] ?? image.state }),
          h("span", { text: count }),
        ),
        note,
      ),
      h(
        "button",
        {
          class: "button bare remove",
          type: "button",
          tabIndex: -1,
          title: "Remove from the project (Delete)",
          "aria-label": `Remove ${image.name} from the project`,
          on: {
            click: (event) => {
              event.stopPropagation();
              this.takeOff(image);
            },
          },
        },
        icon("close"),
      ),
    );
    return card;
  }

  key(event, image) {
    const cards = [...this.list.querySelectorAll(".image-card")],
      at = cards.indexOf(event.currentTarget);
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) {
      event.preventDefault();
      cards[at + move]?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.page.openImage(image.id);
    } else if (event.key === "Delete") {
      event.stopPropagation();
      this.takeOff(image);
    }
  }

  async takeOff(image) {
    const sure = await dialog(
      "Remove from the project?",
      h("p", { text: `${image.name} will be removed from this project. The file itself is kept.` }),
      [
        { text: "Cancel", value: false },
        { text: "Remove", value: true, primary: true },
      ],
    );
    if (!sure) return;
    await this.page.guard(() => remove(`/api/images/${image.id}`));
    await this.page.loadProject();
    if (this.page.info?.id === image.id) await this.page.closeImage();
  }

  update(image) {
    const known = this.images.find((other) => other.id === image.id);
    if (!known) return;
    Object.assign(known, image);
    const card = this.list.querySelector(`[data-id="${CSS.escape(image.id)}"]`);
    if (card) card.replaceWith(this.card(known));
  }

  /** Ask for the row of an image again, soon: its state and count follow its edits. */
  refresh(id) {
    clearTimeout(this.refreshing);
    this.refreshing = setTimeout(async () => {
      const place = this.images.findIndex((image) => image.id === id);
      if (place < 0) return;
      const {
        images: [image],
      } = await get(`/api/project?offset=${place}&limit=1`);
      if (image?.id !== id) return;
      this.update(image);
      this.page.showImageState();
    }, 400);
  }

  mark(id) {
    for (const card of this.list.querySelectorAll(".image-card")) {
      const current = card.dataset.id === id;
      card.setAttribute("aria-selected", String(current));
      card.tabIndex = current ? 0 : -1;
      if (current) card.scrollIntoView({ block: "nearest" });
    }
  }

  // ---- adding -------------------------------------------------------------------------------------------------

  acceptDrops() {
    let depth = 0;
    const shade = document.getElementById("drop");
    document.addEventListener("dragenter", (event) => {
      if (event.dataTransfer?.types.includes("Files")) {
        depth++;
        shade.hidden = false;
      }
    });
    document.addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      if (!depth) shade.hidden = true;
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      depth = 0;
      shade.hidden = true;
      const entries = [...event.dataTransfer.items]
        .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile())
        .filter(Boolean);
      const files = [];
      for (const entry of entries) await collect(entry, "", files);
      await this.add(files);
    });
  }

  /** Upload files [[name, File]], two at a time; what the server refuses is named. Of folders, only images count. */
  async add(dropped) {
    const suffixes = this.page.project?.image_suffixes ?? [""];
    const files = named(
      dropped.filter(([name]) => !name.includes("/") || suffixes.some((end) => name.toLowerCase().endsWith(end))),
    );
    const others = dropped.length - files.length,
      left = others ? `${format.count(others, "other file")} left out` : "";
    if (!files.length) {
      if (left) toast(`No image in this folder; ${left}`);
      return;
    }
    const refused = [],
      added = [],
      todo = [...files],
      total = files.length;
    const worker = async () => {
      for (let next = todo.shift(); next; next = todo.shift()) {
        const [name, file] = next;
        this.page.setStatus(`Adding ${name} (${total - todo.length} of ${total})`);
        try {
          added.push(...(await upload(name, file)).images);
        } catch (error) {
          refused.push(`${name}: ${error.message}`);
        }
      }
    };
    await Promise.all([worker(), worker()]);
    this.files.value = "";
    this.page.setStatus("");
    if (refused.length)
      toast(
        refused.length > 3 ? `${refused.slice(0, 3).join("\n")}\nand ${refused.length - 3} more` : refused.join("\n"),
        "error",
      );
    if (!added.length) return;
    toast([`${format.count(added.length, "image")} added`, left].filter(Boolean).join("; "));
    await this.page.loadProject();
    if (this.page.info || !this.visible.length) return;
    await this.page.openImage(this.visible[0].id);
    this.page.openTab(1); // the next step
  }

  async browse() {
    const path = h("input", {
      type: "text",
      "aria-label": "Folder",
      spellcheck: false,
      class: "wide-input",
      data: { enter: "shows" },
    });
    const list = h("div", { class: "folder-list" }),
      facts = h("p", { class: "facts muted" });
    const show = async (where) => {
      try {
        const folder = await get(`/api/folders?path=${encodeURIComponent(where)}`);
        path.value = folder.path;
        const below = folder.folders.length && folder.path ? "; those in the folders below are opened too" : "";
        facts.textContent = `${format.count(folder.n_images, "image")} here${below}`;
        const rows = folder.folders.map((one) =>
          button({
            symbol: "folder",
            text: one.split("/").at(-1) || one,
            title: one,
            kind: "row",
            click: () => show(one),
          }),
        );
        if (folder.parent !== null)
          rows.unshift(button({ symbol: "previous", text: "Up", kind: "row", click: () => show(folder.parent) }));
        list.replaceChildren(...rows);
      } catch (error) {
        facts.textContent = error.message;
      }
    };
    path.addEventListener("change", () => show(path.value));
    show("");
    const chosen = await dialog("Open a folder", h("div", {}, path, facts, list), [
      { text: "Cancel", value: null },
      { text: "Open", value: () => path.value, primary: true },
    ]);
    if (!chosen) return;
    try {
      const { message } = await post("/api/open", { path: chosen });
      toast(message);
      await this.page.loadProject();
      if (!this.page.info && this.visible.length) await this.page.openImage(this.visible[0].id);
    } catch (error) {
      toast(error.message, "error");
    }
  }
}

/** Files under the names that they get: without their folders, except where two files have the same name. */
export function named(files) {
  const forms = [
    (parts) => parts.at(-1),
    (parts) => parts.slice(1).join("_") || parts[0],
    (parts) => parts.join("_"),
  ].map((form) => files.map(([name]) => form(name.split("/"))));
  return files.map(([, file], i) => {
    const form = forms.find((names) => names.indexOf(names[i]) === names.lastIndexOf(names[i])) ?? forms[2];
    return [form[i], file];
  });
}

/** The files of a dropped file or folder, with their paths in it. */
async function collect(entry, folder, files) {
  if (entry instanceof File) files.push([entry.name, entry]);
  else if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (!file.name.startsWith(".")) files.push([folder + file.name, file]);
  } else {
    const reader = entry.createReader();
    for (;;) {
      // a reader returns at most 100 entries at a time
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      for (const child of some) await collect(child, `${folder}${entry.name}/`, files);
    }
  }
}
