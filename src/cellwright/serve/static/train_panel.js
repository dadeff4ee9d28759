// Train: choose corrected images and a recipe, watch losses and metrics, compare the new model with the old one.

import { button, field, format, h, select } from "./dom.js";
import { post } from "./http.js";
import { goToPlace, nameOf, pictureList } from "./pictures.js";
import { lineChart } from "./plots.js";

export class TrainPanel {
  constructor(page, host) {
    this.page = page;
    this.left = new Set(); // images that the user took out
    this.list = h("div", { class: "check-list", role: "group", "aria-label": "Images to train on" });
    this.recipe = select([["nuclei/finetune", "nuclei/finetune"]], "nuclei/finetune");
    this.minutes = h("input", {
      type: "number",
      min: 0.1,
      step: "any",
      value: 5,
      id: "minutes",
      "aria-label": "Minutes",
    });
    this.name = h("input", { type: "text", value: "", placeholder: "numbered: train-1", spellcheck: false, maxLength: 60 });
    this.progress = h("div", { class: "job-panel" });
    this.losses = lineChart("Losses over steps", "loss");
    this.metrics = lineChart("Validation metrics over steps", "metric");
    this.charts = h(
      "section",
      { hidden: true },
      h("h3", { text: "Loss" }),
      this.losses.canvas,
      h("h3", { text: "Held-out images" }),
      this.metrics.canvas,
    );
    this.outcome = h("div", { class: "outcome" });
    this.go = button({ symbol: "play", text: "Train", kind: "primary", id: "train", click: () => this.start() });
    host.append(
      h(
        "section",
        {},
        h("h3", { text: "Corrected images" }),
        this.list,
        h("p", {
          class: "hint",
          text: "An image counts as corrected once you have edited or marked it (Q). Some are held out, to compare the new model with the old one.",
        }),
      ),
      h(
        "section",
        {},
        h("div", { class: "pair" }, field("Recipe", this.recipe), field("Minutes", this.minutes)),
        field("Name of the new model", this.name),
        this.go,
        this.progress,
      ),
      this.charts,
      this.outcome,
    );
    page.jobs.show("train", this.progress);
    page.jobs.addEventListener("change", (event) => {
      if (event.detail.verb === "train") this.show(event.detail);
    });
    page.jobs.addEventListener("end", (event) => {
      if (event.detail.verb === "train") page.loadProject();
    });
    page.addEventListener("project", () => this.showImages());
    page.addEventListener("states", () => this.showImages());
  }

  get candidates() {
    return this.page.images.images.filter((image) => image.state === "corrected" || image.state === "training");
  }
  opened() {
    this.showImages();
    const minutes = this.page.jobs.latest("train")?.parameters?.minutes;
    if (minutes && !this.asked) this.minutes.value = minutes; // of the training that may go on
    this.asked = true;
  }

  showImages() {
    const recipes = this.page.project?.recipes;
    if (recipes && this.recipe.length !== recipes.length) {
      this.recipe.replaceChildren(...recipes.map((name) => h("option", { value: name, text: name })));
      this.recipe.value = recipes.includes("nuclei/finetune") ? "nuclei/finetune" : recipes[0];
    }
    const rows = this.candidates.map((image) => {
      const box = h("input", {
        type: "checkbox",
        checked: !this.left.has(image.id),
        on: {
          change: () => {
            if (box.checked) this.left.delete(image.id);
            else this.left.add(image.id);
            this.enable();
          },
        },
      });
      return h(
        "label",
        { class: "field inline" },
        box,
        h("span", { class: "grow clip", text: image.name }),
        h("span", { class: "muted", text: format.count(image.n_objects ?? 0, "object") }),
      );
    });
    if (!rows.length)
      rows.push(
        h("p", {
          class: "muted",
          text: "None yet. Correct some images first: a few images with about a hundred objects are a good start.",
        }),
      );
    this.list.replaceChildren(...rows);
    this.enable();
  }

  enable() {
    this.go.disabled = !this.candidates.some((image) => !this.left.has(image.id));
  }

  start() {
    const images = this.candidates.filter((image) => !this.left.has(image.id)).map((image) => image.id);
    const parameters = { images, recipe: this.recipe.value, minutes: Number(this.minutes.value) };
    if (this.name.value.trim()) parameters.name = this.name.value.trim();
    return this.page.jobs.start("train", parameters);
  }

  trainOn(id) {
    return this.page.guard(() => post(`/api/jobs/${id}/resume`, { minutes: Number(this.minutes.value) }));
  }

  show(job) {
    const losses = {},
      metrics = {};
    const put = (series, values, step) => {
      for (const [name, value] of Object.entries(values))
        if (typeof value === "number") (series[name] ??= []).push([step, value]);
    };
    for (const event of (job.events ?? []).toSorted((a, b) => a.step - b.step)) {
      if (event.kind === "step")
        put(
          losses,
          Object.keys(event.losses ?? {}).length > 3 ? { loss: event.loss } : { loss: event.loss, ...event.losses },
          event.step,
        );
      else put(metrics, event.metrics ?? {}, event.step);
    }
    const chosen = Object.fromEntries(
      Object.entries(metrics)
        .sort(([a], [b]) => rank(a) - rank(b))
        .slice(0, 3),
    );
    this.charts.hidden = !Object.keys(losses).length && !Object.keys(chosen).length;
    this.losses.set(losses);
    this.metrics.set(chosen);
    this.outcome.replaceChildren(...(job.state === "done" && job.result ? this.compare(job.result, job.id) : []));
  }

  /** Before and after on the held-out images, as numbers with bars and in pictures. */
  compare({ model, before, after, finished, held_out: heldOut, pictures }, id) {
    const names = Object.keys(after ?? {})
      .filter((name) => typeof after[name] === "number")
      .sort((a, b) => rank(a) - rank(b))
      .slice(0, 8);
    const isWorse = before && after[names[0]] < before[names[0]],
      advice = isWorse
        ? " is worse than the model before on the held-out images: train longer, or correct more images."
        : ": choose it under Predict.";
    const parts = [h("p", {}, "New model ", h("strong", { text: model }), advice)];
    if (names.length) {
      const head = before ? ["Before", "After"] : ["After"],
        cells = (name) => [...(before ? [before[name]] : []), after[name]];
      parts.push(
        h("h3", { text: `On ${format.count(heldOut?.length ?? 0, "held-out image")}` }),
        h(
          "table",
          { class: "metrics compared" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("td"),
              head.map((text) => h("th", { text, scope: "col", class: "number" })),
            ),
          ),
          h(
            "tbody",
            {},
            names.map((name) =>
              h(
                "tr",
                {},
                h("th", { scope: "row", text: name }),
                cells(name).map((value) => h("td", {}, bar(value), h("span", { text: format.number(value) }))),
              ),
            ),
          ),
        ),
      );
    }
    if (pictures?.length) {
      const { page } = this,
        rows = pictures.map((one) => ({
          text: `${nameOf(page, one.image)}  ${format.number(one.before)} → ${format.number(one.after)}`,
          go: () => goToPlace(page, one.image, one.box, 0.1),
        }));
      parts.push(
        h("h3", { text: "Where the models differ most" }),
        h("p", { class: "hint", text: "Annotations, before, after. The numbers are accuracy@0.5 of the image." }),
        pictureList(id, rows),
      );
    }
    if (finished === false)
      parts.push(
        button({
          text: "Train longer",
          kind: "small",
          title: "Continue where training stopped, for the minutes set above",
          click: () => this.trainOn(id),
        }),
      );
    return [h("section", {}, parts)];
  }
}

const FIRST = ["accuracy@0.5", "f1@0.5", "pq", "AP50@all", "AP@all", "aji"];
const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

export function bar(value) {
  const fill = h("span", { class: "bar" });
  fill.style.width = `${Math.max(0, Math.min(1, value ?? 0)) * 100}%`;
  return h("span", { class: "bar-box" }, fill);
}
