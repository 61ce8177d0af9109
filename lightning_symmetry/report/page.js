const charts = () => document.querySelectorAll(".js-plotly-plot");

// the scale of the steps, for all charts at once
for (const choice of document.querySelectorAll('input[name="steps"]')) {
  choice.addEventListener("change", () => {
    for (const chart of charts()) {
      if (chart.data[0].x === undefined) continue;
      const change = {};
      for (const axis of Object.keys(chart.layout).filter((key) => key.startsWith("xaxis"))) {
        change[axis + ".type"] = choice.value;
        change[axis + ".autorange"] = true;
      }
      Plotly.relayout(chart, change);
    }
  });
}

// an event leads to its step in a chart, where a line stays
for (const link of document.querySelectorAll("a[data-step]")) {
  link.addEventListener("click", () => {
    const chart = document.querySelector(link.hash + " .js-plotly-plot");
    const others = (chart.layout.shapes || []).filter((shape) => shape.name !== "chosen");
    const step = Number(link.dataset.step);
    const line = {name: "chosen", type: "line", x0: step, x1: step, y0: 0, y1: 1, yref: "paper", line: {color: "#d0453a", width: 2}};
    Plotly.relayout(chart, {shapes: [...others, line]});
  });
}

// on a phone the cells of a row stand one below the other: each has its heading, and all stay a table to be read out
for (const table of document.querySelectorAll("table")) {
  table.role = "table";
  for (const part of table.querySelectorAll("thead, tbody")) part.role = "rowgroup";
  for (const row of table.rows) {
    row.role = "row";
    for (const cell of row.cells) {
      cell.role = cell.tagName === "TH" ? "columnheader" : "cell";
      if (cell.tagName === "TD") cell.dataset.heading = table.tHead.rows[0].cells[cell.cellIndex].textContent.trim();
    }
  }
}

// tables that can be sorted: a button in each heading, numbers by size
const sortKey = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
const asNumber = (text) => (text === "" || isNaN(text) ? null : Number(text));
function inOrder(a, b) {
  const [x, y] = [asNumber(a), asNumber(b)];
  if (x !== null && y !== null) return x - y;
  if (x !== null || y !== null) return x !== null ? -1 : 1;
  return a.localeCompare(b, undefined, {numeric: true});
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (ascending ? 1 : -1) * inOrder(sortKey(a, column), sortKey(b, column)));
      table.tBodies[0].append(...rows);
    });
  });
}

// tables that can be filtered: by any word in a row, and by the kind in its first column
for (const filter of document.querySelectorAll(".filters")) {
  const rows = [...document.getElementById(filter.dataset.table).tBodies[0].rows];
  const [words, kind, told] = ["input", "select", "output"].map((name) => filter.querySelector(name));
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word)) || (kind.value !== "" && row.cells[0].textContent.trim() !== kind.value);
    }
    told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${filter.dataset.noun}`;
  };
  words.addEventListener("input", apply);
  kind.addEventListener("change", apply);
  apply();
}
