// Jobs of the server: predictions, trainings, evaluations, measurements, exports. Started, followed, cancelled.

import { button, format, h, toast } from "./dom.js";
import { get, post, remove } from "./http.js";

const NAMES = {
  predict: "Prediction",
  train: "Training",
  evaluate: "Evaluation",
  suspects: "Search for suspects",
  measure: "Measurement",
  export: "Export",
  tune: "Tuning",
};
const ENDED = ["done", "failed", "cancelled"];

/** Events: "change" ({detail: job}) whenever a job moves, "end" ({detail: job}) once when it ends. */
export class Jobs extends EventTarget {
  constructor(page) {
    super();
    this.page = page;
    this.jobs = new Map();
  }

  async load() {
    try {
      const answer = await get("/api/jobs");
      for (const job of answer.jobs) this.update(job, true);
      const train = this.latest("train"); // its curves: the list has the last points only
      if (train) this.update(await get(`/api/jobs/${train.id}`), true);
    } catch (error) {
      console.warn(`jobs: ${error.message}`);
    }
  }

  async start(verb, parameters) {
    try {
      const job = await post("/api/jobs", { verb, parameters });
      this.update(job);
      return job;
    } catch (error) {
      toast(error.message, "error");
      return null;
    }
  }

  cancel(id) {
    return this.page.guard(() => remove(`/api/jobs/${id}`));
  }

  /** Take the newest state of a job. The event stream sends the last step and the last validation only. */
  update(job, quiet = false) {
    if (!job?.id) return;
    const before = this.jobs.get(job.id),
      ended = ENDED.includes(job.state) && !ENDED.includes(before?.state);
    const known = new Map(
      [...(before?.events ?? []), ...(job.events ?? [])].map((event) => [`${event.kind} ${event.step}`, event]),
    );
    const now = { ...before, ...job, events: [...known.values()] };
    this.jobs.set(job.id, now);
    this.dispatchEvent(new CustomEvent("change", { detail: now }));
    this.bar();
    if (ended && !quiet) this.ended(now);
  }

  async ended(job) {
    const name = NAMES[job.verb] ?? job.verb,
      full = await this.page.guard(() => get(`/api/jobs/${job.id}`));
    if (full) this.jobs.set(job.id, full);
    job = this.jobs.get(job.id);
    if (job.state === "failed") toast(`${name} failed: ${problemOf(job)}`, "error");
    else if (job.state === "cancelled") toast(`${name} cancelled`);
    else if (job.result?.failures?.length)
      toast(`${job.text || name}; failed for some images:\n${job.result.failures.join("\n")}`, "error");
    else if (this.page.openPanel !== job.verb) toast(job.text || `${name} finished`);
    this.dispatchEvent(new CustomEvent("change", { detail: job }));
    this.dispatchEvent(new CustomEvent("end", { detail: job }));
  }

  latest(verb) {
    return [...this.jobs.values()].filter((job) => job.verb === verb).at(-1) ?? null;
  }
  get running() {
    return [...this.jobs.values()].filter((job) => !ENDED.includes(job.state));
  }

  /** The line at the bottom of the page: what runs now. */
  bar() {
    const host = document.getElementById("job"),
      job = this.running.find((one) => one.state === "running") ?? this.running[0];
    if (!job) {
      host.replaceChildren();
      return;
    }
    host.replaceChildren(
      h("span", { text: `${NAMES[job.verb] ?? job.verb}${job.state === "queued" ? " (queued)" : ""}` }),
      meter(job),
      h("span", { class: "muted clip", text: job.text ?? "" }),
      button({
        symbol: "stop",
        kind: "bare small",
        label: "Cancel the job",
        title: "Cancel",
        click: () => this.cancel(job.id),
      }),
    );
  }

  /** Show the newest job of a verb in a panel: progress, outcome, and the command that does the same. */
  show(verb, host) {
    const render = () => {
      const job = this.latest(verb);
      if (!job) return;
      const over = ENDED.includes(job.state);
      const parts = [];
      if (!over)
        parts.push(
          h(
            "div",
            { class: "job-line" },
            meter(job),
            button({ text: "Cancel", kind: "small", click: () => this.cancel(job.id) }),
          ),
        );
      if (job.state === "failed") parts.push(h("p", { class: "problem", text: problemOf(job) }));
      else if (job.text)
        parts.push(h("p", { class: "muted", text: job.state === "cancelled" ? "Cancelled" : job.text }));
      if ((job.state === "failed" || job.state === "cancelled") && verb === "train")
        parts.push(
          button({
            text: "Resume",
            kind: "small",
            title: "Continue where training stopped, for the minutes set above",
            click: () => this.page.panels.train.trainOn(job.id),
          }),
        );
      parts.push(...(job.result?.failures ?? []).map((text) => h("p", { class: "problem", text: `Failed: ${text}` })));
      const notes = job.notes ?? [],
        told = notes.filter((note) => /^warning|assumed/.test(note));
      parts.push(...told.map((note) => h("p", { class: "problem", text: note })));
      if (notes.length > told.length)
        parts.push(
          h(
            "details",
            { class: "command" },
            h("summary", { text: format.count(notes.length, "note") }),
            h(
              "ul",
              { class: "files" },
              notes.map((text) => h("li", { text })),
            ),
          ),
        );
      const reports = over ? (job.result?.reports ?? []) : [];
      if (reports.length)
        parts.push(
          h(
            "p",
            { class: "reports" },
            reports.map(({ what, url }, index) =>
              h("a", {
                href: url,
                target: "_blank",
                rel: "noopener",
                text: `Report of the ${what}${reports.filter((one) => one.what === what).length > 1 ? ` ${index + 1}` : ""}`,
              }),
            ),
          ),
        );
      if (job.command) parts.push(command(job.command));
      host.replaceChildren(...parts);
    };
    this.addEventListener("change", (event) => {
      if (event.detail.verb === verb) render();
    });
    render();
  }
}

/** What went wrong, with the lines that say where and how to fix it. */
function problemOf(job) {
  const { message, details } = job.error ?? {};
  return [message ?? job.text ?? "no reason given", job.error?.kind === "bug" ? "" : details]
    .filter(Boolean)
    .join("\n");
}

function meter(job) {
  const element = h("progress", { max: 1, "aria-label": "Progress" });
  if (typeof job.progress === "number") element.value = job.progress;
  return element;
}

/** The same as a command line, to learn from and to copy. */
export function command(text) {
  return h(
    "details",
    { class: "command" },
    h("summary", { text: "Equivalent command line" }),
    h("pre", { tabIndex: 0, text }),
    button({
      symbol: "copy",
      text: "Copy",
      kind: "small",
      click: () => navigator.clipboard?.writeText(text).then(() => toast("Copied")),
    }),
  );
}
