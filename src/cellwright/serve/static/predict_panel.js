// Predict: model, channel, diameter, views; then the sliders that act on the stored candidates.

import { button, field, format, h, select, slider } from "./dom.js";

const VIEWS = [
  ["", "One view (fast)"],
  ["mirror", "Mirror (2 views)"],
  ["flips", "Flips (4 views)"],
  ["turns", "Turns and flips (8 views)"],
];

export class PredictPanel {
  constructor(page, host) {
    this.page = page;
    this.model = select(
      [
        ["nuclei", "nuclei"],
        ["classical", "classical"],
      ],
      "nuclei",
      null,
      { id: "model" },
    );
    this.channel = select([["", "Automatic"]], "", () => this.showChannels());
    this.channelField = field("Channel", this.channel);
    this.without = h("p", { class: "problem", hidden: true });
    this.diameter = h("input", {
      type: "number",
      min: 1,
      step: "any",
      placeholder: "estimated",
      "aria-label": "Diameter, pixels",
    });
    this.views = select(VIEWS, "");
    this.keep = h("input", { type: "checkbox", checked: true });
    this.progress = h("div", { class: "job-panel" });
    this.score = slider({
      min: 0,
      max: 1,
      step: 0.01,
      value: 0,
      label: "Minimum score",
      id: "score-slider",
      input: () => this.filter(),
    });
    this.area = slider({
      min: 0,
      max: 1,
      step: 0.005,
      value: 0,
      label: "Minimum area",
      id: "area-slider",
      input: () => this.filter(),
    });
    this.scoreText = h("output", { class: "fixed" });
    this.areaText = h("output", { class: "fixed" });
    this.shownText = h("p", { class: "muted" });
    this.apply = button({
      text: "Apply",
      kind: "small",
      title: "Leave the hidden objects out of exports, measurements and training too",
      click: () => this.accept(),
    });
    host.append(
      h(
        "section",
        {},
        h("h3", { text: "Model" }),
        field("Model", this.model),
        this.channelField,
        this.without,
        field(
          "Diameter",
          h(
            "div",
            { class: "pair" },
            this.diameter,
            button({
              symbol: "line",
              text: "Measure",
              kind: "small",
              title: "Draw a line over one object (J)",
              click: () => page.info && page.tools.use("line"),
            }),
          ),
          { hint: "In pixels; estimated for each image if empty" },
        ),
        field("Views", this.views),
        field("Keep images corrected by hand as they are", this.keep, { inline: true }),
        h(
          "div",
          { class: "pair" },
          button({
            symbol: "play",
            text: "This image",
            kind: "primary",
            title: "Predict this image (P)",
            id: "predict-one",
            click: () => this.start(false),
          }),
          button({
            text: "All images",
            title: "Predict all images (Shift+P)",
            id: "predict-all",
            click: () => this.start(true),
          }),
        ),
        this.progress,
      ),
      h(
        "section",
        {},
        h("h3", { text: "Objects shown" }),
        h("div", { class: "slider-row" }, h("span", { text: "Minimum score" }), this.score, this.scoreText),
        h("div", { class: "slider-row" }, h("span", { text: "Minimum area" }), this.area, this.areaText),
        h("div", { class: "row" }, this.shownText, h("span", { class: "grow" }), this.apply),
        h("p", {
          class: "hint",
          text: "The sliders filter what the model found, without predicting again. Objects drawn by hand are always shown.",
        }),
      ),
    );
    page.jobs.show("predict", this.progress);
    page.jobs.addEventListener("end", (event) => {
      if (event.detail.verb === "predict") this.ended();
    });
    page.addEventListener("project", () => {
      this.showModels();
      this.showChannels();
    });
    page.addEventListener("image", () => this.showImage());
    page.addEventListener("objects", (event) => {
      if (event.detail === "load") this.limits();
      this.showCounts();
    });
  }

  showModels() {
    const known = this.page.models.map((model) => [model.name, model.name]);
    if (!known.length) return;
    const chosen = this.model.value,
      ready = known.map(([name]) => name);
    this.model.replaceChildren(...known.map(([value, text]) => h("option", { value, text })));
    this.model.value = ready.includes(chosen) ? chosen : ready[0];
  }

  showImage() {
    const names = this.page.info.channels.map((channel, index) => channel.name ?? String(index)),
      chosen = this.channel.value;
    this.channel.replaceChildren(
      h("option", { value: "", text: "Automatic" }),
      ...names.map((name) => h("option", { value: name, text: name })),
    );
    this.channel.value = names.includes(chosen) ? chosen : "";
    const colours = names.length === 3 && ["r", "red"].includes(names[0].toLowerCase());
    this.channelField.hidden = names.length < 2 || colours;
    this.showChannels();
  }

  /** Images that lack the chosen channel, which "All images" would fail for. One without a name may be any. */
  showChannels() {
    const wanted = this.channel.value.toLowerCase(),
      { images } = this.page.images;
    const without = images.filter(
      ({ channels = [] }) => channels.length > 1 && !channels.some((name) => name.toLowerCase() === wanted),
    );
    this.without.hidden = !wanted || this.channelField.hidden || !without.length;
    const names = without.slice(0, 5).map((image) => image.name);
    if (without.length > names.length) names.push(`and ${without.length - names.length} more`);
    this.without.textContent = `Not in ${format.count(without.length, "image")}: ${names.join(", ")}. "All images" leaves ${without.length === 1 ? "it" : "them"} out, and says so.`;
  }

  /** Sliders cover what this image has. Areas are on a logarithmic scale. */
  limits() {
    const { objects, info } = this.page;
    const [low, high] = info.score_range ?? objects.scoreRange ?? [0, 1];
    this.score.min = Math.max(0, Math.floor(Math.min(low, objects.filter.score) * 100) / 100);
    this.score.max = Math.min(1, Math.ceil(high * 100) / 100);
    this.largest = Math.max(10, Math.exp(objects.areaRange?.[1] ?? 5));
    this.score.value = objects.filter.score;
    this.area.value = Math.log1p(objects.filter.area) / Math.log1p(this.largest);
    this.showValues();
  }

  get limitsNow() {
    const share = Number(this.area.value);
    return {
      score: Number(this.score.value) <= Number(this.score.min) ? 0 : Number(this.score.value),
      area: share ? Math.round(Math.expm1(share * Math.log1p(this.largest ?? 100))) : 0,
    };
  }

  filter() {
    this.page.objects.setFilter(this.limitsNow);
    this.showValues();
  }

  showValues() {
    const { score, area } = this.page.objects.filter;
    this.scoreText.textContent = score.toFixed(2);
    this.areaText.textContent = `${format.number(area)} px`;
  }

  showCounts() {
    const { objects } = this.page,
      shown = objects.countShown();
    this.shownText.textContent = `${format.number(shown)} of ${format.count(objects.count, "object")}`;
    this.apply.disabled = !objects.count;
    if (document.activeElement !== this.score && document.activeElement !== this.area && this.largest) {
      this.score.value = objects.filter.score;
      this.area.value = Math.log1p(objects.filter.area) / Math.log1p(this.largest);
    }
    this.showValues();
  }

  accept() {
    const { score, area } = this.page.objects.filter;
    this.page.edit({ op: "filter", min_score: score, min_area: area });
  }

  setDiameter(px) {
    this.diameter.value = px.toFixed(1);
  }

  start(all) {
    const { page } = this;
    if (!all && !page.info) return null;
    const parameters = {
      model: [this.model.value],
      images: all ? null : [page.info.id],
      keep: this.keep.checked && all ? "corrected" : "none",
    };
    if (this.channel.value) parameters.channel = [this.channel.value];
    if (this.diameter.value) parameters.diameter = Number(this.diameter.value);
    if (this.views.value) parameters.views = this.views.value;
    return page.jobs.start("predict", parameters);
  }

  async ended() {
    await this.page.loadProject();
    await this.page.reload();
  }
}
