// Elements are made of texts and attributes alone, never of markup.

const IGNORED = "ignored";

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function role(name) {
  return document.querySelector(`[data-role="${name}"]`);
}

/** A part of 1, or `null` of what is ignored. */
function percent(share) {
  return share === null ? IGNORED : `${fixed(100 * share, 1)} %`;
}

function ordinal(number) {
  const teen = number % 100 > 10 && number % 100 < 14;
  return number + (teen ? "th" : ["th", "st", "nd", "rd"][number % 10] || "th");
}

/** Fill a list of choices, numbered from 0. */
function choices(select, texts) {
  select.replaceChildren(...texts.map((text, i) => element("option", { value: String(i) }, text)));
}
