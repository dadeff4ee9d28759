// Evaluate: predictions against the corrected annotations. Errors by kind lead to their place in the picture.

import { button, field, format, h, select } from "./dom.js";
import { get } from "./http.js";
import { goToPlace, nameOf, pictureList } from "./pictures.js";
import { bar } from "./train_panel.js";

const KINDS = {
  missed: "Missed",
  extra: "Extra",
  merged: "Merged",
  split: "Split",
  poor: "Poor outline",
  class: "Wrong class",
};
const MOST_LISTED = 200;

export class EvaluatePanel {
  constructor(page, host) {
    this.page = page;
    this.known = {}; // the job that is shown, by verb
    this.model = select([["", "Stored predictions"]], "");
    this.progress = h("div", { class: "job-panel" });
    this.searching = h("div", { class: "job-panel" });
    this.outcome = h("div", { class: "outcome" });
    this.suspects = h("div", { class: "outcome" });
    host.append(
      h(
        "section",
        {},
        field("Evaluate", this.model),
        h(
          "div",
          { class: "pair" },
          button({
            symbol: "play",
            text: "Evaluate",
            kind: "primary",
            id: "evaluate",
            title: "Compare with the corrected images",
            click: () => this.start(),
          }),
          button({
            text: "Find suspects",
            title: "Annotations that look wrong: missing, merged, shifted",
            click: () => page.jobs.start("suspects", { images: null }),
          }),
        ),
        this.progress,
        this.searching,
        h("p", {
          class: "hint",
          text: "The corrected images serve as annotations. Click an error to go to it and fix the annotation.",
        }),
      ),
      this.outcome,
      this.suspects,
    );
    page.jobs.show("evaluate", this.progress);
    page.jobs.show("suspects", this.searching);
    page.jobs.addEventListener("end", (event) => this.ended(event.detail));
    page.addEventListener("project", () => {
      const chosen = this.model.value,
        names = page.models.map((model) => model.name);
      this.model.replaceChildren(
        h("option", { value: "", text: "Stored predictions" }),
        ...names.map((name) => h("option", { value: name, text: `Model ${name}` })),
      );
      this.model.value = names.includes(chosen) ? chosen : "";
    });
  }

  /** What was found last, in an earlier visit. */
  opened() {
    for (const verb of ["evaluate", "suspects"]) {
      const job = this.page.jobs.latest(verb);
      if (job && this.known[verb] !== job.id) this.ended(job);
    }
  }

  start() {
    return this.page.jobs.start("evaluate", { images: null, model: this.model.value || null });
  }

  async ended(job) {
    if (job.state !== "done") return;
    this.known[job.verb] = job.id;
    if (job.verb === "suspects") this.showErrors(this.suspects, "Suspects", job.result?.suspects ?? []);
    if (job.verb !== "evaluate") return;
    const report = await this.page.guard(() => get(`/api/evaluations/${job.result?.evaluation ?? job.id}`));
    if (report) this.show(report, job);
  }

  show(report, job) {
    const metrics = report.headline.filter(({ value }) => typeof value === "number");
    const interval = ({ low, high }) =>
      typeof low === "number" ? `95 % interval ${format.number(low)} to ${format.number(high)}` : "";
    const parts = [
      h(
        "section",
        {},
        h("h3", { text: "Metrics" }),
        h(
          "table",
          { class: "metrics" },
          h(
            "tbody",
            {},
            metrics.map((row) =>
              h(
                "tr",
                { title: interval(row) },
                h("th", { scope: "row", text: row.metric }),
                h("td", {}, bar(row.value), h("span", { text: format.number(row.value) })),
              ),
            ),
          ),
        ),
        report.notes?.map((text) => h("p", { class: text.startsWith("warning") ? "problem" : "hint", text })),
      ),
    ];
    if (report.images?.length) {
      const key = "accuracy@0.5",
        worst = report.images.slice(0, 12); // the worst come first
      parts.push(
        h(
          "section",
          {},
          h("h3", { text: `Worst images by ${key}` }),
          this.pictures(job, report, key),
          worst
            .filter((row) => !job.result?.pictures?.some((one) => one.image === row.image))
            .map((row) =>
              button({
                text: `${nameOf(this.page, row.image)}  ${format.number(row[key])}`,
                kind: "row",
                click: () => goToPlace(this.page, row.image),
              }),
            ),
        ),
      );
    }
    const errors = h("div");
    this.errors = report.errors ?? [];
    this.showErrors(errors, "Errors", this.errors);
    this.outcome.replaceChildren(...parts, errors);
  }

  /** The worst images with their errors; each leads to the image, where the errors are marked. */
  pictures(job, report, key) {
    const values = new Map(report.images.map((row) => [row.image, row[key]]));
    const rows = (job.result?.pictures ?? []).map(({ image }) => ({
      text: `${nameOf(this.page, image)}  ${format.number(values.get(image))}`,
      go: async () => {
        if (!(await goToPlace(this.page, image))) return;
        this.mark(image, report.errors);
        this.page.viewer.request();
      },
    }));
    return pictureList(job.id, rows, "two");
  }

  /** The errors of an image are marked in it. */
  mark(image, errors) {
    this.page.marks = errors
      .filter((error) => error.image === image)
      .map((error) => ({ box: error.box, text: titleOf(error.kind) }));
  }

  /** Errors or suspects: chips by kind that filter, and a list that leads to each. */
  showErrors(host, title, errors) {
    const kinds = [...new Set(errors.map((error) => error.kind))],
      shown = new Set(kinds),
      list = h("div", { class: "error-list" });
    const render = () => {
      const rows = errors.filter((error) => shown.has(error.kind));
      list.replaceChildren(
        ...rows
          .slice(0, MOST_LISTED)
          .map((error) =>
            button({
              text: `${titleOf(error.kind)} · ${nameOf(this.page, error.image)}`,
              title: error.why,
              kind: "row",
              click: () => this.goTo(error, errors),
            }),
          ),
      );
      if (rows.length > MOST_LISTED)
        list.append(h("p", { class: "muted", text: `and ${rows.length - MOST_LISTED} more` }));
      if (!rows.length) list.append(h("p", { class: "muted", text: "None." }));
    };
    const chips = kinds.map((kind) => {
      const chip = button({
        text: `${titleOf(kind)} ${errors.filter((error) => error.kind === kind).length}`,
        kind: "chip",
        pressed: true,
        click: () => {
          if (shown.has(kind)) shown.delete(kind);
          else shown.add(kind);
          chip.setAttribute("aria-pressed", String(shown.has(kind)));
          render();
        },
      });
      return chip;
    });
    render();
    host.replaceChildren(
      h("section", {}, h("h3", { text: `${title} (${errors.length})` }), h("div", { class: "chips" }, chips), list),
    );
  }

  async goTo(error, errors) {
    const { page } = this;
    if (!(await goToPlace(page, error.image, error.box))) return;
    this.mark(error.image, errors);
    page.objects.select((error.ids ?? []).filter((id) => page.objects.has(id)));
    page.setStatus(`${titleOf(error.kind)}${error.why ? `: ${error.why}` : ""}`);
    page.viewer.request();
  }
}

const titleOf = (kind) => KINDS[kind] ?? kind.charAt(0).toUpperCase() + kind.slice(1).replaceAll("_", " ");
