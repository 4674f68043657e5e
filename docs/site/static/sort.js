// Every table of rows is sorted by a click on a head: by its first number, or by its words; what was not run stays at the end.
// A third click brings back the order of the page.
"use strict";

function key(row, column) {
  const text = row.cells[column]?.textContent.trim() ?? "";
  const number = parseFloat(text.replace(/[,\u2009]/g, "").replace("\u2212", "-"));
  return { text, number: /^[-+\u2212\d.]/.test(text) ? number : NaN, absent: ["", "-", "not run"].includes(text) };
}

function compare(a, b, direction) {
  if (a.absent !== b.absent) return a.absent ? 1 : -1;
  const numbers = !Number.isNaN(a.number) && !Number.isNaN(b.number);
  return direction * ((numbers && a.number - b.number) || a.text.localeCompare(b.text, "en", { numeric: true }));
}

function sortable(table) {
  const body = table.tBodies[0];
  const asWritten = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort ?? "none"];
      heads.forEach((one) => (one.ariaSort = "none"));
      head.ariaSort = next;
      const direction = next === "ascending" ? 1 : -1;
      const rows = asWritten.map((row) => [key(row, column), row]);
      if (next !== "none") rows.sort(([a], [b]) => compare(a, b, direction));
      body.append(...rows.map(([, row]) => row));
    });
  });
  table.classList.add("sortable");
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table"))
    if (table.tHead && table.tBodies[0]?.rows.length > 2) sortable(table);
});
