// What is shown of which explanation, and the controls that choose it.

const items = JSON.parse(document.getElementById("data").textContent).map((raw) => new Item(raw));

const state = {
  item: 0, target: 0, layer: 0, view: "text", unit: "tokens",
  full: 100, threshold: 0, ignoreFirst: false,
};

const paint = {
  unitsOf: (item, values, value) => new Units(item, values, { ...state, value }),
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

function unitsNow() {
  const item = items[state.item];
  return paint.unitsOf(item, item.values(state.target, state.layer), item.targets[state.target].value);
}

/** Say what is under the pointer or in focus. */
function read(units, i, label) {
  const [start, end] = [units.starts[i], units.ends[i] - 1];
  const fields = [
    ["position", start === end ? String(start) : `${start}–${end}`],
    ["relevance", units.number(units.values[i])],
    ["share", percent(units.share(i))],
    ["rank", `${units.rank(i)} of ${units.values.length}`],
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
  if (!target) {
    role("headline").textContent = "No targets";
    return;
  }
  const units = unitsNow();
  const scale = paint.scaleOf(units);
  showControls(item);
  showFacts(item, target, units, scale);
  if (state.view === "text") text.show(units, scale, paint.thresholdOf(units), state.target);
  if (state.view === "matrix") showTargets(item);
  if (state.view === "layers") showLayers(item);
  if (state.view === "compare") showComparison(item);
  table.show(units, scale);
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
      if (chosen) chip.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }
}

function showFacts(item, target, units, scale) {
  const plain = (value) => units.ofSums(value).replace(/^\+/, "");
  role("headline").textContent = `Relevance for ${target.name}`;
  const facts = {
    explained: target.words, value: plain(target.value), "model predicts": target.prediction,
  };
  for (const name of ["composite", "model"]) {
    if (name in item.provenance) facts[name] = item.provenance[name];
  }
  role("facts").replaceChildren(...definitions(facts));
  role("provenance").replaceChildren(...definitions(item.provenance));
  for (const place of document.querySelectorAll('[data-role="lowest"]')) place.textContent = units.number(-scale);
  for (const place of document.querySelectorAll('[data-role="highest"]')) place.textContent = units.number(scale);
  const beyond = units.values.filter((value) => Math.abs(value) > scale).length;
  const notes = [];
  if (state.full < 100) notes.push(`${beyond} beyond the colours' end, at the ${state.full}th percentile`);
  if (state.ignoreFirst) notes.push("the first token is ignored in colours, shares and ranks");
  if (state.threshold) notes.push(`no colour below ±${units.number(paint.thresholdOf(units)).slice(1)}`);
  if (item.encoding === "int16") notes.push("relevances are rounded to 16 bits of each target's largest");
  role("notes").textContent = notes.join("; ");
  role("total").textContent = plain(units.total);
  role("value").textContent = plain(target.value);
}

function definitions(items_) {
  return Object.entries(items_).flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, element("bdi", {}, value))]);
}

/** The scale of several rows together, as that of one. */
function commonScale(rows) {
  if (state.full >= 100) return rows.reduce((most, units) => Math.max(most, units.largest), 0);
  const sizes = Float64Array.from(rows.flatMap((units) => Array.from(units.values, Math.abs))).sort();
  return percentileOf(sizes.reverse(), state.full);
}

function showMap(map, rows, labels, chosen) {
  const scale = commonScale(rows);
  map.show(rows, labels, scale, chosen);
  const format = numberFormat(scale);
  role("lowest").textContent = format(-scale);
  role("highest").textContent = format(scale);
}

function showTargets(item) {
  const rows = item.targets.map((_, i) => paint.unitsOf(item, item.values(i, state.layer), item.targets[i].value));
  showMap(targetMap, rows, item.targets.map(({ name }) => name), state.target);
}

function showLayers(item) {
  const rows = item.layers.map((_, i) => paint.unitsOf(item, item.values(state.target, i), item.targets[state.target].value));
  showMap(layerMap, rows, item.layers, state.layer);
}

function comparableWith(item) {
  return items.filter((other) => other.key === item.key);
}

function showComparison(item) {
  const entries = comparableWith(item).map((other) => {
    const target = Math.min(state.target, other.targets.length - 1);
    const values = other.values(target, Math.min(state.layer, other.depth - 1));
    const units = paint.unitsOf(other, values, other.targets[target].value);
    units.tokens = values;
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
    role(name).addEventListener("input", (event) => {
      role(`${name}-shown`).textContent = `${event.target.value} %`;
    });
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
  role("theme").addEventListener("change", (event) => {
    document.documentElement.dataset.theme = event.target.value;
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
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
  const units = unitsNow();
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
  role("static").remove();
  // A page in a frame tells whoever made it how tall it is.
  if (window.parent !== window) {
    new ResizeObserver(() => {
      window.parent.postMessage({ lxtHeight: document.documentElement.offsetHeight }, "*");
    }).observe(document.body);
  }
}
