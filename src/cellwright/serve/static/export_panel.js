// Export: every format of the command line, as files in the project or one download.

import { button, field, format, h, select } from "./dom.js";
import { get } from "./http.js";

const FORMATS = [
  {
    name: "geojson",
    title: "QuPath GeoJSON",
    what: "One file of polygons per image, with classes, scores and measurements",
  },
  { name: "label_images", title: "Label masks", what: "TIFF of the same size as the image, one number per object" },
  { name: "imagej_roi", title: "ImageJ ROIs", what: "One zip of outlines per image, for the ROI manager" },
  { name: "coco", title: "COCO JSON", what: "One file for all images" },
];

export class ExportPanel {
  constructor(page, host) {
    this.page = page;
    this.formats = FORMATS;
    this.to = select(
      FORMATS.map((one) => [one.name, one.title]),
      "geojson",
      () => this.explain(),
      { id: "export-format" },
    );
    this.what = h("p", { class: "hint" });
    this.which = select(
      [
        ["all", "All images"],
        ["corrected", "Corrected images"],
        ["this", "This image"],
      ],
      "all",
    );
    this.useGates = h("input", { type: "checkbox", checked: true });
    this.gateField = field("Only objects inside the gates", this.useGates, { inline: true });
    this.progress = h("div", { class: "job-panel" });
    this.outcome = h("div", { class: "outcome" });
    host.append(
      h(
        "section",
        {},
        field("Format", this.to),
        this.what,
        field("Images", this.which),
        this.gateField,
        button({ symbol: "download", text: "Export", kind: "primary", id: "export", click: () => this.start() }),
        this.progress,
        this.outcome,
      ),
    );
    page.jobs.show("export", this.progress);
    page.jobs.addEventListener("end", (event) => {
      if (event.detail.verb === "export") this.show(event.detail);
    });
    page.addEventListener("gates", () => this.gates());
    this.explain();
    this.gates();
  }

  async opened() {
    if (this.asked) return;
    this.asked = true;
    try {
      const answer = await get("/api/formats"),
        formats = answer.formats ?? answer;
      if (!formats.length) return;
      this.formats = formats;
      const chosen = this.to.value;
      this.to.replaceChildren(...formats.map((one) => h("option", { value: one.name, text: one.title ?? one.name })));
      this.to.value = formats.some((one) => one.name === chosen) ? chosen : formats[0].name;
      this.explain();
    } catch (error) {
      console.warn(`formats: ${error.message}`); // the usual ones stay
    }
  }

  explain() {
    const what = this.formats.find((one) => one.name === this.to.value)?.what ?? "";
    this.what.textContent = what.charAt(0).toUpperCase() + what.slice(1);
  }
  gates() {
    this.gateField.hidden = !this.page.panels.measure?.gates.length;
  }

  start() {
    const { page } = this,
      { value } = this.which;
    if (value === "this" && !page.info) return null;
    const images =
      value === "all"
        ? null
        : value === "this"
          ? [page.info.id]
          : page.images.images.filter((image) => image.state === "corrected").map((image) => image.id);
    const gate = this.useGates.checked
      ? page.panels.measure.gates.map(({ column, low, high }) => ({ column, low, high }))
      : [];
    this.outcome.replaceChildren();
    return page.jobs.start("export", { to: this.to.value, images, gate });
  }

  show(job) {
    if (job.state !== "done") return;
    const { files = [], n_files: total = files.length, download: url, folder } = job.result ?? {};
    this.outcome.replaceChildren(
      h("p", {}, `${format.count(total, "file")} in `, h("code", { text: `${folder}/` }), " of the project:"),
      h(
        "ul",
        { class: "files" },
        files.slice(0, 20).map((name) => h("li", { text: name.slice(folder.length + 1) })),
        total > 20 ? h("li", { text: `and ${total - 20} more` }) : null,
      ),
      h("a", { class: "button", href: url, download: "", text: total > 1 ? "Download as one zip" : "Download" }),
    );
  }
}
