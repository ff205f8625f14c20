// What moves on a page. Without this script, everything is still there to be read.
"use strict";

// Sorts tables by a click on a header, or by Enter or Space on it: upwards, downwards, as written.

const REVERSED = { ascending: "descending", descending: "none", none: "ascending" };

// Numbers by their size, words by the alphabet; a cell without a value comes last in both orders.
function compare(a, b, column, sign) {
  const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
  return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = REVERSED[header.getAttribute("aria-sort")];
      for (const other of headers) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const rows = [...written]; // sort() is stable: equal values stay as they were written
      if (order !== "none") rows.sort((a, b) => compare(a, b, column, sign));
      body.append(...rows);
    });
  });
}

// A button that opens every answer, for those who read and do not guess.
for (const button of document.querySelectorAll("button.unfold")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    for (const answer of document.querySelectorAll("details.answer")) answer.open = true;
  });
}

// On paper nothing can be unfolded.
const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...folded()];
  for (const fold of opened) fold.open = true;
});
addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));

// In maps of attention, a token shows what it attends to, in every head of its layer: its row is
// framed, the keys are shaded by their weights, and the largest are named below.
for (const maps of document.querySelectorAll(".maps")) {
  const show = (event) => {
    const key = event.target.closest("thead th");
    const row = event.target.closest("tbody tr");
    const query = key ? key.cellIndex - 1 : row ? row.sectionRowIndex : -1;
    for (const figure of maps.querySelectorAll("figure")) {
      const table = figure.querySelector("table");
      const rows = [...table.tBodies[0].rows];
      const keys = [...table.tHead.rows[0].cells].slice(1);
      const cells = query < 0 ? [] : [...rows[query].cells].slice(1);
      rows.forEach((each, i) => each.classList.toggle("on", i === query));
      keys.forEach((each, i) => {
        each.style.setProperty("--w", cells[i]?.style.getPropertyValue("--w") || "0%");
      });
      const named = cells.map((cell, i) => [cell.title, keys[i].textContent])
        .filter(([weight]) => Number(weight) > 0).sort((a, b) => b[0] - a[0]).slice(0, 3)
        .map(([weight, token]) => `${token} ${weight}`);
      const token = query < 0 ? "" : rows[query].cells[0].textContent;
      figure.querySelector(".told").textContent = token && `${token} → ${named.join(", ")}`;
    }
  };
  for (const kind of ["pointerover", "pointerleave", "focusin"]) maps.addEventListener(kind, show);
}
