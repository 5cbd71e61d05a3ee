// Column heads of tables become buttons that sort the rows: once by the largest first, once by the smallest, then
// as they were. Without a script the tables stay as they are.
"use strict";
function value(row, column) {
  const cell = row.cells[column], text = cell ? cell.textContent.trim() : "";
  const found = text.replaceAll("−", "-").match(/^[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?/i);
  if (!found) return { text, number: NaN };
  const unit = { k: 1e3, M: 1e6, G: 1e9 }[text.charAt(found[0].length)] || 1;
  return { text, number: unit * parseFloat(found[0].replaceAll(",", "")) };
}
function compare(one, other) {
  // Names and dashes stand after the numbers, whichever way these are sorted.
  if (isNaN(one.number) && isNaN(other.number)) return one.text.localeCompare(other.text);
  if (isNaN(one.number) || isNaN(other.number)) return isNaN(one.number) ? 1 : -1;
  return one.number - other.number;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies].flatMap(body => [...body.rows]);
  const order = rows.map(row => [row.parentElement, row]);
  const heads = [...table.tHead.rows[0].cells];
  const status = document.createElement("caption");
  status.className = "unseen";
  status.setAttribute("aria-live", "polite");
  table.prepend(status);
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const name = button.textContent.trim(), before = head.getAttribute("aria-sort");
      const way = { null: "descending", descending: "ascending" }[before] || null;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      table.classList.toggle("sorted", way !== null);
      for (const [body, row] of order) body.append(row);
      status.textContent = way ? `sorted by ${name}, ${way}` : "in the original order";
      if (!way) return;
      head.setAttribute("aria-sort", way);
      const sign = way === "descending" ? -1 : 1;
      const models = rows.filter(row => !row.classList.contains("group"));
      const keyed = models.map(row => [value(row, column), row]);
      keyed.sort(([one], [other]) =>
        isNaN(one.number) === isNaN(other.number) ? sign * compare(one, other) : compare(one, other));
      for (const [, row] of keyed) table.tBodies[0].append(row);
    });
  });
}
// All parts are open on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
