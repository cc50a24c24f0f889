"use strict";
// Sorts and filters the trials; on a page that is watched, takes what is new.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace("−", "-"));
  return Number.isNaN(number) ? text.toLowerCase() : number;
};
const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
const sortBy = (table, column, descending) => {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [value(row, column), row]);
  keyed.sort((a, b) => (descending ? compare(b[0], a[0]) : compare(a[0], b[0])));
  body.append(...keyed.map((pair) => pair[1]));
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
};
const start = () => {
  const table = document.getElementById("trial-table");
  if (!table) return;
  const form = document.querySelector(".filters");
  const rows = [...table.tBodies[0].rows];
  const filter = () => {
    const data = new FormData(form);
    const text = data.get("text").toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden =
        (data.get("outcome") && row.dataset.o !== data.get("outcome")) ||
        (data.get("predictor") && !row.dataset.p.split("\n").includes(data.get("predictor"))) ||
        (text && !row.cells[2].textContent.toLowerCase().includes(text));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} trials`;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.firstElementChild.addEventListener("click", () => sortBy(table, column, head.getAttribute("aria-sort") === "ascending")));
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  if ([...new FormData(form).values()].some(Boolean)) filter(); // a reload keeps what was chosen
};
const refresh = async () => {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const chosen = [...document.querySelectorAll(".filters [name]")].map((one) => [one.name, one.value]);
  const sorted = document.querySelector("#trial-table th[aria-sort]");
  const focused = document.activeElement && document.activeElement.name;
  document.querySelector("main").replaceWith(page.querySelector("main"));
  document.title = page.title;
  for (const [name, text] of chosen) {
    const one = document.querySelector(`.filters [name=${name}]`);
    if (one) one.value = text;
  }
  start();
  if (sorted) sortBy(document.getElementById("trial-table"), sorted.cellIndex, sorted.getAttribute("aria-sort") === "descending");
  const again = focused && document.querySelector(`.filters [name=${focused}]`);
  if (again) again.focus();
};
// Paper opens nothing: what is closed is printed open, and is closed again.
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => (opened = closed()).forEach((one) => (one.open = true)));
addEventListener("afterprint", () => opened.forEach((one) => (one.open = false)));
start();
if (document.querySelector("[data-watched]")) new EventSource("events").onmessage = refresh;
