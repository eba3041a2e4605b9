"use strict";
// Comfort only: the report is complete without this script.
const number = (cell) => (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v));

function compare(a, b) {
  const x = number(a), y = number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

function sortBy(table, head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column]));
  body.append(...(down ? rows.reverse() : rows));
}

function sortable(table) {
  if (table.tBodies[0].rows.length < 3) return;
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head, column));
    head.append(button);
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 12) return;
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = "Filter rows";
  field.setAttribute("aria-label", "Filter rows of " + table.caption.textContent.trim());
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentElement.before(field);
}

function filterableList(list) {
  const items = [...list.children];
  if (items.length < 8) return;
  const field = document.createElement("input");
  field.type = "search";
  field.className = "filter";
  field.placeholder = "Filter findings";
  field.setAttribute("aria-label", "Filter findings: severity, words, variant or standard");
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(wanted);
  });
  list.before(field);
}

function copyable(element) {
  if (!navigator.clipboard) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copier";
  button.textContent = "copy";
  button.setAttribute("aria-label", "Copy " + element.textContent.slice(0, 24));
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(element.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  element.after(button);
}

function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}

document.querySelectorAll("table.sortable").forEach((table) => { sortable(table); filterable(table); });
document.querySelectorAll(".copy").forEach(copyable);
document.querySelectorAll("ul.findings").forEach(filterableList);

// Alt with an arrow walks from part to part, with the keyboard's focus.
const parts = [...document.querySelectorAll("header#verdict, section.chapter, section.check")];
addEventListener("keydown", (event) => {
  if (!event.altKey || event.ctrlKey || event.metaKey || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  const tops = parts.map((part) => part.getBoundingClientRect().top);
  const next = event.key === "ArrowDown"
    ? tops.findIndex((top) => top > 40)
    : tops.findLastIndex((top) => top < -40);
  if (next < 0) return;
  event.preventDefault();
  parts[next].tabIndex = -1;
  parts[next].focus({ preventScroll: true });
  parts[next].scrollIntoView();
});
const hint = document.createElement("p");
hint.className = "keys";
hint.textContent = "Alt ↓ and Alt ↑ go from part to part.";
document.querySelector("nav.contents").append(hint);

addEventListener("hashchange", reveal);
if (location.hash) reveal();
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open]):not(.variant)")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
