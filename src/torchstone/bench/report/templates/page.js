"use strict";
// The page is whole without this: it only lets tables be sorted and the claims be filtered.
const value = (row, column) => {
  const cell = row.cells[column];
  if (cell.dataset.value === undefined) return cell.textContent.trim().toLowerCase();
  return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
};
const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b;

for (const table of document.querySelectorAll("table[data-sort]")) {
  const body = table.tBodies[0], original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      for (const other of heads) other.setAttribute("aria-sort", other === head ? next : "none");
      const sign = next === "descending" ? -1 : 1;
      const missing = (row) => Number.isNaN(value(row, column));
      const rows = next === "none" ? original : [...original].sort((a, b) =>
        missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(value(a, column), value(b, column))));
      body.append(...rows);
    });
  });
}

const field = (label, control) => {
  const wrapper = document.createElement("label");
  wrapper.append(label, control);
  return wrapper;
};
const choice = (rows, key, all, text) => {
  const select = document.createElement("select");
  select.append(new Option(all, ""));
  for (const name of new Set(rows.map((row) => row.dataset[key]))) select.append(new Option(text(name), name));
  return select;
};

for (const sheet of document.querySelectorAll("[data-filter]")) {
  const rows = [...sheet.querySelector("tbody").rows];
  if (rows.length < 4) continue; // all are in sight
  const text = document.createElement("input"), form = document.createElement("form"), count = document.createElement("p");
  text.type = "search";
  const verdict = choice(rows, "verdict", "all verdicts", (name) => name);
  const names = (anchor) => document.getElementById(anchor).querySelector("h2").textContent;
  const study = rows[0].dataset.study ? choice(rows, "study", "all studies", names) : null;
  form.className = "filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter claims");
  count.setAttribute("role", "status");
  form.append(field("Text", text), field("Verdict", verdict), ...(study ? [field("Study", study)] : []), count);
  const apply = () => {
    const wanted = text.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = !(row.textContent.toLowerCase().includes(wanted)
        && (!verdict.value || row.dataset.verdict === verdict.value) && (!study?.value || row.dataset.study === study.value));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
  sheet.prepend(form);
}
