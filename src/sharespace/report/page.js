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
