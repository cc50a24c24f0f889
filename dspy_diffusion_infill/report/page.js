"use strict";
// Sorts and filters trials and dropped proposals; on a page that is watched, takes what is new.
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
const forms = () => [...document.querySelectorAll(".filters")];
const tableOf = (form) => document.getElementById(form.dataset.table);
const fields = () => forms().flatMap((form) => [...form.querySelectorAll("[name]")]);
const start = () => forms().forEach((form) => {
  const table = tableOf(form);
  const rows = [...table.tBodies[0].rows];
  const filter = () => {
    const data = new FormData(form);
    const text = data.get("text").toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden =
        (data.get("kind") && row.dataset.k !== data.get("kind")) ||
        (data.get("predictor") && !row.dataset.p.split("\n").includes(data.get("predictor"))) ||
        (text && ![...row.querySelectorAll(".edit > del, .edit > ins")].some((part) => part.textContent.toLowerCase().includes(text)));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = `${shown} of ${rows.length} ${form.dataset.rows}`;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.firstElementChild.addEventListener("click", () => sortBy(table, column, head.getAttribute("aria-sort") === "ascending")));
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  if ([...new FormData(form).values()].some(Boolean)) filter(); // a reload keeps what was chosen
});
const refresh = async () => {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const chosen = Object.fromEntries(fields().map((one) => [one.id, one.value]));
  const sorted = forms().map((form) => tableOf(form).querySelector("th[aria-sort]"));
  const opened = [...document.querySelectorAll("details[id][open]")].map((one) => one.id);
  const focused = document.activeElement && document.activeElement.id;
  document.querySelector("main").replaceWith(page.querySelector("main"));
  document.title = page.title;
  for (const one of fields()) if (one.id in chosen) one.value = chosen[one.id];
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  start();
  for (const head of sorted) {
    if (head) sortBy(document.getElementById(head.closest("table").id), head.cellIndex, head.getAttribute("aria-sort") === "descending");
  }
  const again = focused && document.getElementById(focused);
  if (again) again.focus();
};
// Paper opens nothing: what is closed is printed open, and is closed again.
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => (opened = closed()).forEach((one) => (one.open = true)));
addEventListener("afterprint", () => opened.forEach((one) => (one.open = false)));
start();
if (document.querySelector("[data-watched]")) new EventSource("events").onmessage = refresh;
