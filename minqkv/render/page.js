// Sorts tables by a click on a header, or by Enter or Space on it: upwards, downwards, as written.
// Without this script a page loses nothing else.
"use strict";

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
