// The explanations of the page: numbers as they were computed, and what is derived from them.

const LEVELS = 20;

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

const ENCODINGS = {
  float32: { size: 4, read: (view, at) => view.getFloat32(at, true) },
  float64: { size: 8, read: (view, at) => view.getFloat64(at, true) },
  int16: { size: 2, read: (view, at) => view.getInt16(at, true) },
};

/** One input with its targets and layers; `values(target, layer)` has a number for each token. */
class Item {
  constructor(raw) {
    Object.assign(this, raw);
    const bytes = bytesOf(raw.base64);
    const view = new DataView(bytes.buffer);
    const { size, read } = ENCODINGS[raw.encoding];
    const width = this.tokens.length;
    this.all = new Float64Array(bytes.length / size);
    for (let i = 0; i < this.all.length; i++) {
      const row = raw.largest ? raw.largest[Math.floor(i / width)] / 32767 : 1;
      this.all[i] = read(view, i * size) * row;
    }
    this.totals = new Float64Array(bytesOf(raw.totals).buffer);
    this.key = raw.tokens.join("\0");
    this.depth = this.layers ? this.layers.length : 1;
    // The target that explains each token: the one at the position before it.
    this.explains = new Map();
    if (this.many) {
      this.targets.forEach((target, number) => {
        const token = target.position === null ? -1 : target.position + 1;
        if (token > 0 && token < width && !this.explains.has(token)) this.explains.set(token, number);
      });
    }
  }

  values(target, layer) {
    const start = (target * this.depth + layer) * this.tokens.length;
    return this.all.subarray(start, start + this.tokens.length);
  }

  /** The sum of all relevance, as it was before any rounding. */
  total(target, layer) {
    return this.totals[target * this.depth + layer];
  }

  /** The first token of each unit: token, word or sentence. */
  starts(unit) {
    if (unit === "words") return this.words;
    if (unit === "sentences") return this.sentences;
    return this.tokens.map((_, i) => i);
  }
}

/**
 * How to write numbers up to `largest`: signed, with the same decimals, four digits for it. Smaller
 * ones have fewer, but none that is not 0 is written as 0, and 0 has no sign.
 */
function numberFormat(largest) {
  const signed = (value, text) => (value > 0 ? "+" + text : text);
  const power = (value, digits) =>
    signed(value, value.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2"));
  if (largest && !(largest >= 1e-3 && largest < 1e6)) {
    return (value) => (value ? power(value, 2) : "0");
  }
  const decimals = largest ? Math.max(0, 3 - Math.floor(Math.log10(largest))) : 0;
  return (value) => {
    const text = fixed(value, decimals);
    if (Number(text)) return signed(value, text);
    return value ? power(value, 0) : text;
  };
}

function fixed(value, decimals) {
  // A binary number is half way between two decimal ones only where 5 to that power divides it.
  const steps = Math.abs(value) * 10 ** decimals;
  const tie = (2 * steps) % 2 === 1 && (2 * steps) % 5 ** decimals === 0;
  const even = (Math.sign(value) * roundHalfEven(steps)) / 10 ** decimals;
  return ((tie ? even : value) || 0).toFixed(decimals);
}

/**
 * The units of a text with their relevance, sums over the tokens of each. `total` is the sum of
 * all, and `value` that of the target, if there is one.
 */
class Units {
  constructor(item, values, { unit, ignoreFirst, total, value = 0 }) {
    Object.assign(this, { item, unit, ignoreFirst, total });
    this.starts = item.starts(unit);
    const count = item.tokens.length;
    this.ends = this.starts.map((_, i) => (i + 1 < this.starts.length ? this.starts[i + 1] : count));
    // What is set aside: a unit of nothing but the token that is ignored. It keeps its relevance.
    this.aside = ignoreFirst && this.ends[0] === 1 ? 0 : -1;
    // Of a larger unit, the token that is ignored is no part.
    const first = ignoreFirst && this.aside < 0 ? 1 : 0;
    this.values = new Float64Array(this.starts.length);
    this.starts.forEach((start, i) => {
      for (let token = Math.max(start, first); token < this.ends[i]; token++) {
        this.values[i] += values[token];
      }
    });
    this.largest = this.counted.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
    // In parts of the largest: the sum itself may be too large a number.
    this.absolute = this.counted.reduce((sum, one) => sum + Math.abs(one) / (this.largest || 1), 0);
    // All alike, so that they compare at a glance, unless units would have too few digits.
    const beside = Math.max(Math.abs(this.total), Math.abs(value));
    this.ofSums = numberFormat(Math.max(this.largest, beside));
    this.number = 10 * this.largest >= beside ? this.ofSums : numberFormat(this.largest);
  }

  /** The values of all but what is set aside. */
  get counted() {
    return this.values.subarray(this.aside + 1);
  }

  /** Their |relevance|, falling; sorted when it is first asked for. */
  get sizes() {
    this.sorted ??= this.counted.map(Math.abs).sort().reverse();
    return this.sorted;
  }

  text(i) {
    return this.item.tokens.slice(this.starts[i], this.ends[i]).join("");
  }

  /** By itself: spaces at its ends, which could be overlooked, are shown. */
  alone(i) {
    const text = this.text(i).replaceAll("↵\n", "↵");
    return text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  }

  /** Of what is set aside there is none: `null`. */
  share(i) {
    if (i === this.aside) return null;
    return this.absolute ? Math.abs(this.values[i]) / this.largest / this.absolute : 0;
  }

  /** From 1: how many units have a larger |relevance|, and itself. Or `null`, as the share. */
  rank(i) {
    if (i === this.aside) return null;
    const size = Math.abs(this.values[i]);
    let low = 0;
    let high = this.sizes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.sizes[middle] > size) low = middle + 1;
      else high = middle;
    }
    return low + 1;
  }

  percentile(percent) {
    return percent >= 100 ? this.largest : percentileOf(this.sizes, percent);
  }
}

/**
 * The size up to which so many per cent of all are, of sizes that fall. Zeros don't count: they are
 * what a token can't have had any part in, and in a causal model's matrix they are the half.
 */
function percentileOf(sizes, percent) {
  let count = sizes.length;
  while (count && !sizes[count - 1]) count--;
  return count ? sizes[count - Math.ceil((percent / 100) * count)] : 0;
}

function levelOf(value, scale) {
  if (!scale) return 0;
  return Math.max(-LEVELS, Math.min(LEVELS, roundHalfEven((value / scale) * LEVELS)));
}

/** As Python rounds, which made the pictures and tables of the same numbers. */
function roundHalfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

function levelName(level) {
  return (level > 0 ? "p" : "n") + Math.abs(level);
}

/** The class of a unit, by which it has its colour, or none. */
function className(units, i, scale, threshold) {
  if (i === units.aside) return "set-aside";
  if (threshold && Math.abs(units.values[i]) < threshold) return "below";
  return levelName(levelOf(units.values[i], scale));
}

function unsigned(text) {
  return text.replace(/^\+/, "");
}
