"use strict";
// Sort a table by a column: numbers by what data-v says, everything else as text.
function sortBy(table, column, button) {
  const head = button.closest("th");
  const rising = head.getAttribute("aria-sort") === "descending" || (head.getAttribute("aria-sort") === null && !head.classList.contains("n"));
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const number = (text) => (text === "" ? NaN : Number(text));
  const rows = Array.from(body.rows).map((row, place) => ({ row, place, text: value(row), number: number(value(row)) }));
  const numeric = head.classList.contains("n");
  rows.sort((a, b) => {
    if (numeric) {
      if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number) || a.place - b.place;
      return (rising ? a.number - b.number : b.number - a.number) || a.place - b.place;
    }
    return (rising ? 1 : -1) * a.text.localeCompare(b.text, undefined, { numeric: true }) || a.place - b.place;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...rows.map((entry) => entry.row));
}
for (const table of document.querySelectorAll("table.sortable"))
  Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
    const button = cell.querySelector("button");
    if (button) button.addEventListener("click", () => sortBy(table, column, button));
  });
// Copy what an element holds; where the browser does not let a page do that, mark it instead.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      source.closest("details")?.setAttribute("open", "");
      getSelection().selectAllChildren(source);
      button.textContent = "Marked: press Ctrl+C";
    }
  });
}
