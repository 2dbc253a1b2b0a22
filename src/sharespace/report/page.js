"use strict";
document.documentElement.classList.add("scripted");
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}
const limits = new Map();
for (const table of document.querySelectorAll("table[data-shown]")) {
  const most = Number(table.dataset.shown), rows = () => [...table.tBodies[0].rows];
  const controls = document.createElement("div"), filter = document.createElement("input");
  const button = document.createElement("button"), said = document.createElement("span");
  let all = false;
  controls.className = "controls";
  filter.type = "search";
  filter.placeholder = "Filter the rows";
  filter.setAttribute("aria-label", `Filter: ${table.caption.textContent}`);
  button.type = "button";
  said.setAttribute("aria-live", "polite");
  const apply = () => {
    const wanted = filter.value.trim().toLowerCase();
    let matching = 0, visible = 0;
    for (const row of rows()) {
      const matches = row.textContent.toLowerCase().includes(wanted);
      matching += matches;
      row.hidden = !matches || (!all && visible >= most);
      visible += !row.hidden;
    }
    button.textContent = all ? `Show the first ${most}` : `Show all ${matching}`;
    button.hidden = matching <= most;
    table.parentElement.classList.toggle("whole", visible <= most);
    said.textContent = `${visible} of ${rows().length} rows`;
  };
  filter.addEventListener("input", apply);
  button.addEventListener("click", () => { all = !all; apply(); });
  controls.append(filter, button, said);
  table.parentElement.before(controls);
  limits.set(table, apply);
  apply();
}
function sort(table, heads, column) {
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach(head => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = row => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  };
  const order = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  const rows = [...body.rows].map(row => [key(row), row]);
  rows.sort((a, b) => (down ? -1 : 1) * order(a[0], b[0]));
  body.append(...rows.map(pair => pair[1]));
  if (limits.has(table)) limits.get(table)();
}
for (const map of document.querySelectorAll("svg.heat")) {
  const said = map.closest("figure").querySelector(".readout");
  const [left, top, width, height] = map.dataset.box.split(" ").map(Number);
  const rows = JSON.parse(map.dataset.rows), columns = JSON.parse(map.dataset.columns);
  const values = map.dataset.values.split(" ");
  const tell = event => {
    const box = map.getBoundingClientRect();
    const x = (event.clientX - box.left) * map.width.baseVal.value / box.width - left;
    const y = (event.clientY - box.top) * map.height.baseVal.value / box.height - top;
    const column = Math.floor(x / width * columns.length), row = Math.floor(y / height * rows.length);
    const inside = column >= 0 && row >= 0 && column < columns.length && row < rows.length;
    const value = inside ? values[row * columns.length + column] : "-";
    if (inside) said.textContent = `${rows[row]} × ${columns[column]}: ${value === "-" ? "nothing" : value.replaceAll("_", " ")}`;
  };
  map.addEventListener("pointermove", tell);
  map.addEventListener("pointerdown", tell);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => d.open = true));
