// The units as a table: for screen readers, and to sort.

const ROWS_AT_ONCE = 1000;

class TableView {
  constructor(place) {
    this.place = place;
    this.by = "position";
    this.limit = ROWS_AT_ONCE;
    place.addEventListener("toggle", () => this.draw());
    place.addEventListener("click", (event) => {
      const by = event.target.dataset && event.target.dataset.by;
      if (by === "more") this.limit += ROWS_AT_ONCE;
      else if (by) this.by = by;
      else return;
      this.draw();
    });
  }

  show(units, scale, threshold) {
    Object.assign(this, { units, scale, threshold });
    if (this.made && this.made !== units.item) this.limit = ROWS_AT_ONCE;
    this.made = units.item;
    this.place.querySelector("summary").textContent = `Table of all ${units.values.length}`;
    this.draw();
  }

  draw() {
    const place = this.place.querySelector("div");
    if (!this.place.open || !this.units) {
      place.replaceChildren();
      return;
    }
    const order = Array.from(this.units.values, (_, i) => i);
    const { values } = this.units;
    if (this.by === "relevance") order.sort((a, b) => values[b] - values[a]);
    if (this.by === "rank") order.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
    const table = element("table", {}, this.head(), this.body(order.slice(0, this.limit)));
    const left = order.length - this.limit;
    const more = left > 0 ? [element("button", { "data-by": "more" }, `${left} more`)] : [];
    place.replaceChildren(table, ...more);
  }

  head() {
    const column = (by, text, name) => {
      const sorts = ["position", "relevance", "rank"].includes(by);
      const order = by === "position" ? "ascending" : "descending";
      const state = sorts ? { "aria-sort": this.by === by ? order : "none" } : {};
      const inner = sorts ? element("button", { "data-by": by }, text) : text;
      return element("th", { scope: "col", class: name || "", ...state }, inner);
    };
    return element(
      "thead", {},
      element("tr", {},
        column("position", "position"), column("", "token", "token"),
        column("relevance", "relevance"), column("", "share"), column("rank", "rank"),
      ),
    );
  }

  body(order) {
    const { units, scale, threshold } = this;
    const rows = order.map((i) =>
      element("tr", {},
        element("td", {}, String(units.starts[i])),
        element("td", { class: "token" },
          element("bdi", { class: className(units, i, scale, threshold) }, units.alone(i))),
        element("td", {}, units.number(units.values[i])),
        element("td", {}, percent(units.share(i))),
        element("td", {}, String(units.rank(i) ?? IGNORED)),
      ));
    return element("tbody", {}, ...rows);
  }
}
