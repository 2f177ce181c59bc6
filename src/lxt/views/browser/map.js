// Relevance of several rows as a map: targets or layers downwards, tokens across.

const LABELS = { rows: 130, columns: 84 };
const LABEL_ROOM = { row: 12, column: 16 };
const LARGEST_CELL = 48;
const TALLEST = 0.7; // of the window
const PAPER = 680; // so many pixels across it

/** Draws the part that is seen: a map of a thousand rows takes no more than one of ten. */
class MapView {
  constructor(place, { onRead, onChoose }) {
    Object.assign(this, { place, onRead, onChoose, cell: 0, at: [0, 0] });
    this.canvas = place.querySelector("canvas");
    this.extent = place.querySelector(".extent");
    place.addEventListener("scroll", () => this.later());
    new ResizeObserver(() => this.later()).observe(place);
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("click", (event) => {
      if (this.point(event)) onChoose(this.at[0]);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    place.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.25 : 0.8);
    }, { passive: false });
  }

  /**
   * `rows` are units of one item, `labels` say what each is; `scale` is where colours are full, and
   * below the threshold there are none.
   */
  show(rows, labels, { scale, threshold }, chosen) {
    const fresh = !this.rows || this.rows.length !== rows.length ||
      this.rows[0].values.length !== rows[0].values.length;
    Object.assign(this, { rows, labels, scale, threshold, chosen });
    this.image = null;
    this.onPaper = false;
    if (fresh) this.cell = 0;
    this.later();
  }

  get columns() {
    return this.rows[0].values.length;
  }

  fit() {
    const width = this.place.clientWidth - LABELS.rows;
    const height = TALLEST * window.innerHeight - LABELS.columns;
    const fitting = Math.min(width / this.columns, height / this.rows.length);
    this.cell = Math.max(1, Math.min(26, fitting));
  }

  zoom(factor) {
    const before = this.cell;
    this.cell = Math.max(0.5, Math.min(LARGEST_CELL, this.cell * factor));
    this.resize();
    const ratio = this.cell / before;
    this.place.scrollLeft *= ratio;
    this.place.scrollTop *= ratio;
    this.later();
  }

  later() {
    if (this.waiting || this.onPaper || !this.rows || !this.place.clientWidth) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  resize() {
    // Scroll bars take some room, too.
    const tall = Math.min(TALLEST * window.innerHeight, LABELS.columns + this.rows.length * this.cell + 20);
    this.place.style.height = `${Math.round(tall)}px`;
    this.extent.style.width = `${LABELS.rows + this.columns * this.cell}px`;
    this.extent.style.height = `${LABELS.columns + this.rows.length * this.cell}px`;
  }

  /** One pixel for each cell, to be stretched. */
  paint() {
    const style = getComputedStyle(document.documentElement);
    const colours = {};
    for (let level = -LEVELS; level <= LEVELS; level++) {
      const hex = style.getPropertyValue(`--${levelName(level)}`).trim();
      colours[levelName(level)] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    }
    colours.below = colours["set-aside"] = colours[levelName(0)];
    const image = new ImageData(this.columns, this.rows.length);
    this.rows.forEach((units, row) => {
      for (let column = 0; column < this.columns; column++) {
        const colour = colours[className(units, column, this.scale, this.threshold)];
        image.data.set(colour, 4 * (row * this.columns + column));
        image.data[4 * (row * this.columns + column) + 3] = 255;
      }
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    this.image = canvas;
  }

  draw() {
    if (!this.columns) return;
    if (!this.cell) this.fit();
    if (!this.image) this.paint();
    this.resize();
    const { clientWidth, clientHeight, scrollLeft, scrollTop } = this.place;
    this.drawPart(clientWidth, clientHeight, scrollLeft, scrollTop);
  }

  /** All of it, in the colours of now, as paper does not scroll; it stays until `show`. */
  drawForPaper() {
    if (!this.columns) return;
    const { cell } = this;
    this.onPaper = true;
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.cell = Math.max(1, Math.min(26, (PAPER - LABELS.rows) / this.columns));
    this.paint();
    this.drawPart(LABELS.rows + this.columns * this.cell, LABELS.columns + this.rows.length * this.cell, 0, 0);
    Object.assign(this, { cell, image: null });
  }

  drawPart(width, height, scrollLeft, scrollTop) {
    const density = window.devicePixelRatio || 1;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    [this.canvas.width, this.canvas.height] = [width * density, height * density];
    const context = this.canvas.getContext("2d");
    context.scale(density, density);
    const style = getComputedStyle(document.documentElement);
    this.inks = Object.fromEntries(
      ["page", "ink", "faint", "focus"].map((name) => [name, style.getPropertyValue(`--${name}`)]),
    );
    context.font = "12px system-ui, sans-serif";
    context.imageSmoothingEnabled = false;
    context.save();
    context.beginPath();
    context.rect(LABELS.rows, LABELS.columns, width, height);
    context.clip();
    const [left, top] = [LABELS.rows - scrollLeft, LABELS.columns - scrollTop];
    context.drawImage(this.image, left, top, this.columns * this.cell, this.rows.length * this.cell);
    this.frame(context, left, top);
    context.restore();
    this.drawLabels(context, left, top, width, height);
  }

  frame(context, left, top) {
    const [row, column] = this.at;
    context.lineWidth = this.cell < 6 ? 1 : 2;
    context.strokeStyle = this.inks.ink;
    context.strokeRect(left, top + this.chosen * this.cell, this.columns * this.cell, this.cell);
    context.strokeStyle = this.inks.focus;
    context.strokeRect(left + column * this.cell, top + row * this.cell, this.cell, this.cell);
  }

  drawLabels(context, left, top, width, height) {
    const every = (room) => Math.max(1, Math.ceil(room / this.cell));
    context.textBaseline = "middle";
    const first = (start, origin) => Math.max(0, Math.floor((origin - start) / this.cell));
    const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
    for (let row = first(top, LABELS.columns); row < this.rows.length; row++) {
      const y = top + (row + 0.5) * this.cell;
      if (y > height) break;
      if (y < LABELS.columns || row % every(LABEL_ROOM.row)) continue;
      context.fillStyle = row === this.chosen ? this.inks.ink : this.inks.faint;
      context.textAlign = "right";
      context.fillText(cut(this.labels[row], 18), LABELS.rows - 6, y, LABELS.rows - 12);
    }
    for (let column = first(left, LABELS.rows); column < this.columns; column++) {
      const x = left + (column + 0.5) * this.cell;
      if (x > width) break;
      if (x < LABELS.rows || column % every(LABEL_ROOM.column)) continue;
      context.save();
      context.translate(x, LABELS.columns - 6);
      context.rotate(-Math.PI / 3);
      context.fillStyle = this.inks.faint;
      context.textAlign = "left";
      context.fillText(cut(this.rows[0].alone(column).trim(), 12), 0, 0);
      context.restore();
    }
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left - LABELS.rows + this.place.scrollLeft;
    const y = event.clientY - box.top - LABELS.columns + this.place.scrollTop;
    const [row, column] = [Math.floor(y / this.cell), Math.floor(x / this.cell)];
    const inside = row >= 0 && row < this.rows.length && column >= 0 && column < this.columns;
    if (inside) this.go(row, column);
    return inside;
  }

  go(row, column) {
    this.at = [row, column];
    this.later();
    this.onRead(this.rows[row], column, this.labels[row]);
  }

  key(event) {
    const [row, column] = this.at;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const to = [row + step[0], column + step[1]];
      const inside = to[0] >= 0 && to[0] < this.rows.length && to[1] >= 0 && to[1] < this.columns;
      if (inside) {
        this.go(...to);
        this.follow(...to);
      }
    } else if (event.key === "Enter") this.onChoose(row);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") {
      this.cell = 0;
      this.later();
    } else return;
    event.preventDefault();
  }

  /** Scroll such that a cell is seen. */
  follow(row, column) {
    const into = (scroll, position, room) =>
      Math.max(Math.min(scroll, position), position + this.cell - room);
    const { place } = this;
    place.scrollLeft = into(place.scrollLeft, column * this.cell, place.clientWidth - LABELS.rows);
    place.scrollTop = into(place.scrollTop, row * this.cell, place.clientHeight - LABELS.columns);
  }
}
