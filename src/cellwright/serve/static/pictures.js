// Pictures of results: thumbnails that open large, and lead to their place in the image.

import { button, dialog, h, toast } from "./dom.js";

/** The image that a result is about: results name images by id, or as the files of the project name them. */
function imageOf(page, key) {
  return page.images.images.find((image) => image.id === key || image.name === key);
}

export function nameOf(page, key) {
  return imageOf(page, key)?.name ?? key;
}

/** Open an image that a result is about, at a box (y0, x0, y1, x1); whether it is there. margin: around the box. */
export async function goToPlace(page, key, box, margin) {
  const id = imageOf(page, key)?.id ?? key;
  if (page.info?.id !== id) await page.openImage(id);
  if (page.info?.id !== id) {
    toast(`${nameOf(page, key)} is not in this project`);
    return false;
  }
  if (box) page.viewer.goTo(box, { zoom: true, margin });
  return true;
}

/** The pictures of a job. rows: `{text, go}` of each; `go` leads to the place. */
export function pictureList(job, rows, kind = "") {
  const url = (number, px) => `/api/jobs/${job}/pictures/${number}?px=${px}`;
  const figures = rows.map(({ text, go }, number) => {
    const open = async () => {
      const large = h("img", { class: "figure", src: url(number, 1600), alt: text });
      const action = { text: "Go to this image", value: "go", primary: true };
      if ((await dialog(text, large, [action], "wide tall")) === "go") go();
    };
    return h(
      "figure",
      { class: "thumbnail" },
      h(
        "button",
        { type: "button", class: "picture-button", title: "Enlarge", on: { click: open } },
        h("img", { class: "figure", src: url(number, 560), alt: `${text} (enlarge)`, loading: "lazy" }),
      ),
      h("figcaption", {}, button({ text, kind: "row", title: "Go to this image", click: go })),
    );
  });
  return h("div", { class: `thumbnails ${kind}` }, figures);
}
