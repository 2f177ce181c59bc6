// Elements are made of texts and attributes alone, never of markup.

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function role(name) {
  return document.querySelector(`[data-role="${name}"]`);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** Fill a list of choices, numbered from 0. */
function choices(select, texts) {
  select.replaceChildren(...texts.map((text, i) => element("option", { value: String(i) }, text)));
}
