// The index of an atlas: all units in a table, to sort and to search.

const AT_ONCE = 200;

const data = JSON.parse(document.getElementById("data").textContent);
const shown = { by: data.columns.length - 1, falling: true, limit: AT_ONCE };
const searched = data.names.map((name, i) => `${name} ${data.tokens[i]}`.toLowerCase());

/** The numbers of the units that are looked for, in order; names go by their place in the model. */
function chosen() {
  const wanted = role("find").value.trim().toLowerCase();
  const paged = role("paged").checked;
  const units = [];
  for (let i = 0; i < data.names.length; i++) {
    if ((!paged || data.pages[i]) && searched[i].includes(wanted)) units.push(i);
  }
  const sign = shown.falling ? -1 : 1;
  const value = (i) => (shown.by < 0 ? i : data.values[i][shown.by]);
  return units.sort((a, b) => sign * (value(a) - value(b)) || a - b);
}

function head() {
  const column = (by, text) => {
    const order = shown.falling ? "descending" : "ascending";
    const state = { scope: "col", "aria-sort": shown.by === by ? order : "none" };
    return element("th", state, element("button", { "data-by": String(by) }, text));
  };
  const numbers = data.columns.map((text, by) => column(by, text));
  const tokens = element("th", { scope: "col" }, "at tokens");
  return element("thead", {}, element("tr", {}, column(-1, "unit"), ...numbers, tokens));
}

function line(i) {
  const { [i]: name } = data.names;
  const page = data.pages[i];
  const unit = page ? element("a", { href: page }, name) : name;
  const numbers = data.values[i].map((value) => element("td", {}, value.toPrecision(4)));
  const tokens = element("td", {}, element("bdi", {}, data.tokens[i]));
  return element("tr", {}, element("td", {}, unit), ...numbers, tokens);
}

function draw() {
  const units = chosen();
  const lines = units.slice(0, shown.limit).map(line);
  role("table").replaceChildren(head(), element("tbody", {}, ...lines));
  role("found").textContent = `${units.length} units`;
  const left = units.length - shown.limit;
  role("more").hidden = left <= 0;
  role("more").textContent = `${left} more`;
}

role("table").addEventListener("click", (event) => {
  const { by } = event.target.dataset;
  if (by === undefined) return;
  shown.falling = shown.by === Number(by) ? !shown.falling : Number(by) >= 0;
  shown.by = Number(by);
  draw();
  role("table").querySelector(`[data-by="${by}"]`).focus();
});
role("find").addEventListener("input", draw);
role("paged").addEventListener("change", draw);
role("more").addEventListener("click", () => {
  shown.limit += AT_ONCE;
  draw();
});
role("app").hidden = false;
role("static").remove();
draw();
