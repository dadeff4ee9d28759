// Edits of the open image: sent one after the other, applied as the changed boxes that come back.

import { toast } from "./dom.js";
import { CLIENT, get, lot, post, unpackLabels } from "./http.js";

const PAUSES = [300, 1000, 3000]; // milliseconds before an edit without an answer is sent again

/** Events: "history" ({undo, redo}: names of the next steps or null), "saving" (number of edits under way). */
export class Editor extends EventTarget {
  constructor(page) {
    super();
    this.page = page;
    this.queue = Promise.resolve();
    this.pending = 0;
    this.undoName = this.redoName = null;
  }

  async open(info) {
    this.image = info.id;
    this.rev = info.rev;
    this.setHistory(null, null);
    await this.loadHistory();
  }

  async loadHistory() {
    const image = this.image,
      { undo, redo } = await get(`/api/images/${image}/history`);
    if (image === this.image) this.setHistory(undo.at(-1) ?? null, redo.at(-1) ?? null);
  }

  setHistory(undo, redo) {
    this.undoName = undo;
    this.redoName = redo;
    this.dispatchEvent(new Event("history"));
  }

  /** Send one edit; resolves with the server's answer, or null if it was refused (the user has been told). */
  send(edit) {
    const image = this.image,
      { score, area } = this.page.objects.filter;
    this.pending++;
    this.dispatchEvent(new Event("saving"));
    const body = { ...edit, edit_id: lot(), client: CLIENT, shown: { min_score: score, min_area: area } };
    const result = this.queue.then(async () => {
      try {
        const answer = await this.insist(`/api/images/${image}/edits`, { ...body, rev: this.rev });
        if (image === this.image) await this.apply(answer);
        if (answer.message) toast(answer.message.charAt(0).toUpperCase() + answer.message.slice(1));
        return answer;
      } catch (error) {
        if (error.status === 409 && error.body?.boxes && image === this.image) await this.apply(error.body);
        else if (error.status === 409) await this.page.reload();
        toast(error.message, "error");
        return null;
      } finally {
        this.pending--;
        this.dispatchEvent(new Event("saving"));
      }
    });
    this.queue = result;
    return result;
  }

  /** Send it again where no answer came: the server knows the edit by its `edit_id` and makes it once. */
  async insist(url, body) {
    for (const pause of PAUSES) {
      try {
        return await post(url, body);
      } catch (error) {
        if (error.status !== 0) throw error;
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
    return post(url, body);
  }

  async apply(answer) {
    const { page } = this,
      { viewer, objects } = page;
    if (answer.reload) return page.reload();
    const boxes = await Promise.all(
      (answer.boxes ?? []).map(async (box) => ({ ...box, labels: await unpackLabels(box.labels) })),
    );
    this.rev = answer.rev;
    viewer.tiles?.patch(boxes, answer.rev);
    if (answer.objects) objects.apply(answer.objects);
    page.setState(answer.state);
    for (const box of boxes) viewer.invalidate([box.y0, box.x0, box.y0 + box.h, box.x0 + box.w]);
    viewer.frame(); // now, not in the next frame
    if ("undo" in answer) this.setHistory(answer.undo, answer.redo);
    else await this.loadHistory();
    return undefined;
  }

  /** Someone else's edit, told by the server: changed rows, and the boxes whose labels are to be fetched again. */
  async follow(event) {
    if (event.client === CLIENT) return;
    await this.queue;
    if (event.image !== this.image || event.rev <= this.rev) return;
    if (event.reload) {
      await this.page.reload();
      return;
    }
    this.rev = event.rev;
    this.page.viewer.tiles?.stale(event.boxes, event.rev);
    if (event.objects) this.page.objects.apply(event.objects);
    this.page.setState(event.state);
    this.page.viewer.invalidate();
    await this.loadHistory();
  }

  undo() {
    return this.undoName === null ? toast("Nothing to undo") : this.send({ op: "undo" });
  }
  redo() {
    return this.redoName === null ? toast("Nothing to redo") : this.send({ op: "redo" });
  }
}
