// What is shown of which explanation, and the controls that choose it.

const items = JSON.parse(document.getElementById("data").textContent).map((raw) => new Item(raw));

const state = {
  item: 0, target: 0, layer: 0, view: "text", unit: "tokens",
  full: 100, threshold: 0, ignoreFirst: false,
};

const paint = {
  unitsOf: (item, values, of) => new Units(item, values, { ...state, ...of }),
  scaleOf: (units) => units.percentile(state.full),
  thresholdOf: (units) => (state.threshold / 100) * units.largest,
};

const events = {
  onRead: read,
  onChoose: (units, i) => {
    const target = units.item.explains.get(units.ends[i] - 1);
    if (target !== undefined && units.item === items[state.item]) change({ target });
  },
};

const text = new TextView(role("tokens"), events);
const table = new TableView(role("table"));
const comparison = new ComparisonView(role("compare"), events);
const targetMap = new MapView(role("matrix"), { onRead: read, onChoose: (target) => change({ target }) });
const layerMap = new MapView(role("layers"), { onRead: read, onChoose: (layer) => change({ layer }) });

function unitsFor(item, target, layer) {
  const of = { total: item.total(target, layer), value: item.targets[target].value };
  return paint.unitsOf(item, item.values(target, layer), of);
}

/** Say what is under the pointer or in focus. */
function read(units, i, label) {
  const [start, end] = [units.starts[i], units.ends[i] - 1];
  const fields = [
    ["position", start === end ? String(start) : `${start}–${end}`],
    ["relevance", units.number(units.values[i])],
    ["share", percent(units.share(i))],
    ["rank", i === units.aside ? IGNORED : `${units.rank(i)} of ${units.counted.length}`],
  ];
  if (label !== undefined) fields.unshift(["of", label]);
  const parts = fields.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, value)));
  role("reading").replaceChildren(element("bdi", {}, units.alone(i)), ...parts);
  role("reading").hidden = false;
}

function change(changes) {
  const before = items[state.item];
  Object.assign(state, changes);
  const item = items[state.item];
  if (item !== before) fillTargets(item);
  state.target = Math.max(0, Math.min(state.target, item.targets.length - 1));
  state.layer = Math.min(state.layer, item.depth - 1);
  show();
}

function fillTargets(item) {
  choices(role("target"), item.targets.map((target, i) => `${i}: ${target.name}`));
  const chips = item.targets.map((target, i) =>
    element("button", { "data-target": String(i), "aria-pressed": "false" }, target.name));
  role("chips").replaceChildren(...(item.many ? chips : []));
}

function show() {
  const item = items[state.item];
  const target = item.targets[state.target];
  showControls(item);
  document.querySelector("main").classList.toggle("empty", !target);
  if (!target) {
    role("headline").textContent = "No targets";
    return;
  }
  const units = unitsFor(item, state.target, state.layer);
  showFacts(item, target, units);
  let rows = [units];
  if (state.view === "matrix") rows = item.targets.map((_, i) => unitsFor(item, i, state.layer));
  if (state.view === "layers") rows = item.layers.map((_, i) => unitsFor(item, state.target, i));
  const colours = coloursOf(rows);
  showLegend(item, rows, colours);
  if (state.view === "text") text.show(units, colours.scale, colours.threshold, state.target);
  if (state.view === "matrix") targetMap.show(rows, item.targets.map(({ name }) => name), colours, state.target);
  if (state.view === "layers") layerMap.show(rows, item.layers, colours, state.layer);
  if (state.view === "compare") showComparison(item);
  table.show(units, colours.scale, colours.threshold);
}

function showControls(item) {
  const comparable = comparableWith(item).length > 1;
  const tabs = { text: true, matrix: item.many, layers: item.layers !== null, compare: comparable };
  if (!tabs[state.view]) state.view = "text";
  for (const [name, there] of Object.entries(tabs)) {
    const tab = document.querySelector(`[data-view="${name}"]`);
    tab.hidden = !there;
    tab.setAttribute("aria-selected", String(name === state.view));
    role(`panel-${name}`).hidden = name !== state.view;
  }
  role("tabs").hidden = Object.values(tabs).filter(Boolean).length < 2;
  role("of-items").hidden = items.length < 2;
  role("of-targets").hidden = !item.many;
  role("of-layers").hidden = item.layers === null;
  role("chips").hidden = !item.many;
  role("legend").hidden = role("sums").hidden = state.view === "compare";
  role("copy").hidden = !item.targets.length;
  role("zoom").hidden = state.view !== "matrix" && state.view !== "layers";
  document.querySelector("main").classList.toggle("wide", state.view !== "text");
  role("target").value = String(state.target);
  role("item").value = String(state.item);
  role("layer").max = String(item.depth - 1);
  role("layer").value = String(state.layer);
  role("layer-name").textContent = item.layers ? item.layers[state.layer] : "";
  for (const chip of role("chips").children) {
    const chosen = Number(chip.dataset.target) === state.target;
    if (chosen !== (chip.getAttribute("aria-pressed") === "true")) {
      chip.setAttribute("aria-pressed", String(chosen));
      if (chosen) uncover(chip);
    }
  }
}

/** Scroll a chip into its row; the page stays where it is. */
function uncover(chip) {
  const row = role("chips");
  const left = chip.offsetLeft - row.offsetLeft;
  row.scrollLeft = Math.max(Math.min(row.scrollLeft, left), left + chip.offsetWidth - row.clientWidth);
}

function showFacts(item, target, units) {
  const plain = (value) => unsigned(units.ofSums(value));
  role("headline").textContent = `Relevance for ${target.name}`;
  const facts = { explained: target.words, value: plain(target.value) };
  if (target.prediction) facts["model predicts"] = target.prediction;
  for (const name of ["composite", "model"]) {
    if (name in item.provenance) facts[name] = item.provenance[name];
  }
  role("facts").replaceChildren(...definitions(facts));
  role("provenance").replaceChildren(...definitions(item.provenance));
  role("total").textContent = plain(units.total);
  role("value").textContent = plain(target.value);
}

/** Say what the colours are, of one row or of those of a map, and what they leave out. */
function showLegend(item, rows, { scale, threshold, number }) {
  role("lowest").textContent = number(-scale);
  role("highest").textContent = number(scale);
  const compares = state.view === "compare";
  const notes = [];
  if (state.full < 100) {
    const beyond = rows.reduce((sum, units) => sum + units.sizes.filter((size) => size > scale).length, 0);
    const end = `the ${ordinal(state.full)} percentile of |relevance|, zeros left out`;
    notes.push(compares ? `colours end at ${end}` : `${beyond} beyond the colours' end, at ${end}`);
  }
  if (state.ignoreFirst) {
    const merged = rows[0].aside < 0 ? "sums of its unit, " : "";
    notes.push(`the first token is ignored in ${merged}colours, shares and ranks`);
  }
  if (state.threshold) {
    const least = compares ? `${state.threshold} % of the largest |relevance| of each` : `±${unsigned(number(threshold))}`;
    notes.push(`no colour below ${least}`);
  }
  if (item.encoding === "int16") {
    notes.push("relevances are rounded to 16 bits of the largest of their target and layer, their sum is not");
  }
  role("notes").textContent = notes.join("; ");
}

function definitions(items_) {
  return Object.entries(items_).flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, element("bdi", {}, value))]);
}

/** Where colours end and begin, and how to write it: of several rows together as of one. */
function coloursOf(rows) {
  const [units] = rows;
  if (rows.length === 1) {
    return { scale: paint.scaleOf(units), threshold: paint.thresholdOf(units), number: units.number };
  }
  const largest = rows.reduce((most, { largest }) => Math.max(most, largest), 0);
  let scale = largest;
  if (state.full < 100) {
    const sizes = Float64Array.from(rows.flatMap((units) => Array.from(units.counted, Math.abs))).sort();
    scale = percentileOf(sizes.reverse(), state.full);
  }
  return { scale, threshold: paint.thresholdOf({ largest }), number: numberFormat(largest) };
}

/** Paper is light, and holds the whole of a map. What is shown is drawn anew afterwards. */
function drawForPaper() {
  const map = { matrix: targetMap, layers: layerMap }[state.view];
  if (!map) return;
  const root = document.documentElement;
  const { theme = "" } = root.dataset;
  root.dataset.theme = "light";
  map.drawForPaper();
  root.dataset.theme = theme;
}

function comparableWith(item) {
  return items.filter((other) => other.key === item.key && other.targets.length);
}

function showComparison(item) {
  const entries = comparableWith(item).map((other) => {
    const target = Math.min(state.target, other.targets.length - 1);
    const layer = Math.min(state.layer, other.depth - 1);
    const units = unitsFor(other, target, layer);
    units.tokens = other.values(target, layer);
    return { name: other.name, words: other.targets[target].words, units };
  });
  comparison.show(entries, paint);
}

function listen() {
  const on = (name, type, changes) =>
    role(name).addEventListener(type, (event) => change(changes(event.target)));
  on("item", "change", (control) => ({ item: Number(control.value), target: 0 }));
  on("target", "change", (control) => ({ target: Number(control.value) }));
  on("before", "click", () => ({ target: state.target - 1 }));
  on("after", "click", () => ({ target: state.target + 1 }));
  on("layer", "input", (control) => ({ layer: Number(control.value) }));
  on("unit", "change", (control) => ({ unit: control.value }));
  on("full", "input", (control) => ({ full: Number(control.value) }));
  on("threshold", "input", (control) => ({ threshold: Number(control.value) }));
  on("ignore-first", "change", (control) => ({ ignoreFirst: control.checked }));
  for (const name of ["full", "threshold"]) {
    const say = () => { role(`${name}-shown`).textContent = `${role(name).value} %`; };
    role(name).addEventListener("input", say);
    say(); // a page saved by the browser holds what it said then
  }
  role("tabs").addEventListener("click", (event) => {
    if (event.target.dataset.view) change({ view: event.target.dataset.view });
  });
  role("chips").addEventListener("click", (event) => {
    if (event.target.dataset.target) change({ target: Number(event.target.dataset.target) });
  });
  role("zoom").addEventListener("click", (event) => {
    const map = state.view === "layers" ? layerMap : targetMap;
    const factor = Number(event.target.dataset.zoom);
    if (factor) map.zoom(factor);
  });
  role("theme").value = document.documentElement.dataset.theme || "";
  role("theme").addEventListener("change", (event) => {
    document.documentElement.dataset.theme = event.target.value;
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  window.addEventListener("beforeprint", drawForPaper);
  window.addEventListener("afterprint", show);
  role("copy").addEventListener("click", (event) => copy(event.target.dataset.as));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "[") change({ target: state.target - 1 });
    if (event.key === "]") change({ target: state.target + 1 });
  });
}

async function copy(as) {
  if (!as) return;
  const item = items[state.item];
  const target = item.targets[state.target];
  const units = unitsFor(item, state.target, state.layer);
  const made = {
    text: () => asText(units),
    csv: () => asCsv(units),
    json: () => asJson(units, target, item.layers ? item.layers[state.layer] : null),
  }[as]();
  const done = await copyToClipboard(made);
  role("copied").textContent = done ? `copied ${units.values.length} rows` : "this page may not copy";
}

if (items.length) {
  choices(role("item"), items.map((item) => item.name));
  fillTargets(items[0]);
  // Of each next token, the last one is of the whole text.
  if (items[0].explains.size) state.target = items[0].targets.length - 1;
  listen();
  role("app").hidden = false;
  show();
  role("static")?.remove(); // not there in a page saved by the browser
  // A page in a frame tells whoever made it how tall it is.
  if (window.parent !== window) {
    new ResizeObserver(() => {
      window.parent.postMessage({ lxtHeight: document.documentElement.offsetHeight }, "*");
    }).observe(document.body);
  }
}
