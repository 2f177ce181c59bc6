// A picture's page: the patch under the pointer, or the one that arrow keys went to, is read.

const raw = JSON.parse(document.getElementById("data").textContent);

/** Relevance of the patches of one size, sums over what the page was given. */
class Patches {
  /** `size` is height and width in the model's pixels. */
  constructor(cells, size) {
    const [down, across] = [size[0] / raw.cell[0], size[1] / raw.cell[1]];
    [this.rows, this.columns] = [raw.rows / down, raw.columns / across];
    this.values = new Float64Array(this.rows * this.columns);
    cells.forEach((value, i) => {
      const [row, column] = [Math.floor(i / raw.columns), i % raw.columns];
      this.values[Math.floor(row / down) * this.columns + Math.floor(column / across)] += value;
    });
    this.sizes = this.values.map(Math.abs).sort().reverse();
    this.largest = this.sizes[0];
    // In parts of the largest: the sum itself may be too large a number.
    this.absolute = this.sizes.reduce((sum, one) => sum + one / (this.largest || 1), 0);
    this.number = numberFormat(this.largest);
  }

  value(row, column) {
    return this.values[row * this.columns + column];
  }

  share(row, column) {
    const part = Math.abs(this.value(row, column)) / (this.largest || 1);
    return this.absolute ? part / this.absolute : 0;
  }

  /** From 1: how many have a larger |relevance|, and itself. */
  rank(row, column) {
    const size = Math.abs(this.value(row, column));
    let [low, high] = [0, this.sizes.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sizes[middle] > size) low = middle + 1;
      else high = middle;
    }
    return low + 1;
  }

  /** Top, left, bottom, right in pixels of the picture; may reach beyond it. */
  box(row, column) {
    const [top, left, bottom, right] = raw.box;
    const [high, wide] = [(bottom - top) / this.rows, (right - left) / this.columns];
    const [y, x] = [top + row * high, left + column * wide];
    return [y, x, y + high, x + wide];
  }

  /** Row and column of a point, in pixels of the picture; `null` where the model saw nothing. */
  at(y, x) {
    const [top, left, bottom, right] = raw.box;
    if (y < top || y >= bottom || x < left || x >= right) return null;
    const part = (value, start, end, count) =>
      Math.min(Math.floor(((value - start) / (end - start)) * count), count - 1);
    return [part(y, top, bottom, this.rows), part(x, left, right, this.columns)];
  }
}

/** The numbers as they were computed, or as 16 bits of each row's largest. */
function cellsOf({ encoding, base64, largest, columns }) {
  const bytes = bytesOf(base64);
  const view = new DataView(bytes.buffer);
  const { size, read } = ENCODINGS[encoding];
  return Float64Array.from({ length: bytes.length / size }, (_, i) =>
    read(view, i * size) * (largest ? largest[Math.floor(i / columns)] / 32767 : 1));
}

const cells = cellsOf(raw);
const stages = [...document.querySelectorAll(".stage")];
const frames = stages.map((stage) => stage.appendChild(element("div", { class: "cell", hidden: "" })));
let patches = new Patches(cells, raw.sizes[0]);
let place = null;

function go(row, column) {
  place = [row, column];
  const [top, left, bottom, right] = patches.box(row, column);
  const [height, width] = raw.image;
  for (const frame of frames) {
    frame.hidden = false;
    const sides = { top: top / height, left: left / width, height: (bottom - top) / height, width: (right - left) / width };
    for (const [name, part] of Object.entries(sides)) frame.style[name] = `${100 * part}%`;
  }
  const whole = (number) => String(roundHalfEven(number) || 0);
  const fields = [
    ["row", row],
    ["column", column],
    ["relevance", patches.number(patches.value(row, column))],
    ["share", percent(patches.share(row, column))],
    ["rank", `${patches.rank(row, column)} of ${patches.values.length}`],
    ["pixels", `${whole(left)}…${whole(right)} × ${whole(top)}…${whole(bottom)}`],
  ];
  const parts = fields.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, String(value))));
  role("reading").replaceChildren(...parts);
  role("reading").hidden = false;
}

function point(event) {
  const area = event.currentTarget.getBoundingClientRect();
  const [y, x] = [(event.clientY - area.top) / area.height, (event.clientX - area.left) / area.width];
  const found = patches.at(y * raw.image[0], x * raw.image[1]);
  if (found && String(found) !== String(place)) go(...found);
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function key(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const [row, column] = place || [0, 0];
  const step = STEPS[event.key];
  if (step) {
    // The first key shows where it begins.
    const to = place ? [row + step[0], column + step[1]] : [0, 0];
    if (to[0] >= 0 && to[0] < patches.rows && to[1] >= 0 && to[1] < patches.columns) go(...to);
  } else if (event.key === "Home") go(row, 0);
  else if (event.key === "End") go(row, patches.columns - 1);
  else return;
  event.preventDefault();
}

/** Read by patches of another size; what was read stays under the same point. */
function resize(size) {
  const box = place && patches.box(...place);
  patches = new Patches(cells, size);
  if (box) go(...patches.at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2));
}

for (const stage of stages) {
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-label", "picture; arrow keys read the relevance of its patches");
  stage.addEventListener("pointermove", point);
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("keydown", key);
}
choices(role("size"), raw.sizes.map(([height, width]) =>
  height * width === 1 ? "pixels of the model" : `patches of ${height} × ${width} pixels of the model`));
role("size").addEventListener("change", (event) => resize(raw.sizes[Number(event.target.value)]));
role("of-sizes").hidden = raw.sizes.length < 2;
role("rounded").hidden = raw.encoding !== "int16";
role("controls").hidden = role("of-fading").hidden = false;

// The picture itself above the colours, as far as asked for.
const above = element("img", { alt: "", class: "above", src: document.querySelector(".picture img").src });
document.querySelector(".overlay .stage img").after(above);
above.style.opacity = 0;
role("fading").addEventListener("input", (event) => {
  above.style.opacity = event.target.value / 100;
});
