// Explanations of the same tokens side by side, and the difference of two of them.

class ComparisonView {
  constructor(place, events) {
    this.place = place;
    this.events = events;
    this.columns = place.querySelector(".columns");
    this.difference = new TextView(place.querySelector('[data-role="difference"]'), events);
    this.selects = ["minuend", "subtrahend"].map((name) => role(name));
    this.shared = role("shared");
    for (const control of [...this.selects, this.shared]) {
      control.addEventListener("change", () => this.draw());
    }
  }

  /** `entries` have a name, the words for their target, and units. */
  show(entries, paint) {
    const names = entries.map((entry) => entry.name);
    if (!this.names || JSON.stringify(this.names) !== JSON.stringify(names)) this.make(names);
    Object.assign(this, { entries, paint });
    this.draw();
  }

  make(names) {
    this.names = names;
    this.columns.replaceChildren();
    this.views = names.map((name) => {
      const text = element("p", { class: "tokens" });
      const words = element("p", { class: "note" });
      this.columns.append(element("section", {}, element("h2", {}, name), words, text));
      return { words, text: new TextView(text, this.events) };
    });
    this.selects.forEach((select, i) => {
      choices(select, names);
      select.value = String(i);
    });
  }

  draw() {
    const largest = Math.max(...this.entries.map(({ units }) => this.paint.scaleOf(units)));
    this.entries.forEach(({ words, units }, i) => {
      const scale = this.shared.checked ? largest : this.paint.scaleOf(units);
      const full = unsigned(units.number(scale));
      this.views[i].words.textContent =
        `${words}; sum of relevance ${units.ofSums(units.total)}; colours full at ±${full}`;
      this.views[i].text.show(units, scale, this.paint.thresholdOf(units), -1);
    });
    const [a, b] = this.selects.map((select) => this.entries[Number(select.value)].units);
    const values = a.tokens.map((value, i) => value - b.tokens[i]);
    const units = this.paint.unitsOf(a.item, values, { total: a.total - b.total });
    const scale = this.paint.scaleOf(units);
    role("difference-words").textContent =
      `Sum ${units.ofSums(units.total)}; colours full at ±${unsigned(units.number(scale))}`;
    this.difference.show(units, scale, this.paint.thresholdOf(units), -1);
  }
}
