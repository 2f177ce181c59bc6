// What is shown, as text, CSV or JSON, on the clipboard.

function asText(units) {
  const rows = Array.from(units.values, (value, i) =>
    [String(units.starts[i]), units.number(value), units.alone(i)].join("\t"));
  return ["position\trelevance\ttoken", ...rows].join("\n") + "\n";
}

/** RFC 4180; a text that a spreadsheet would run as a formula gets an apostrophe before it. */
function asCsv(units) {
  const quoted = (text) => {
    const inert = /^[=+\-@\t\r]/.test(text) ? "'" + text : text;
    return '"' + inert.replaceAll('"', '""') + '"';
  };
  const rows = Array.from(units.values, (value, i) =>
    [units.starts[i], quoted(units.text(i)), value, units.share(i) ?? "", units.rank(i) ?? ""].join(","));
  return ["position,token,relevance,share,rank", ...rows].join("\r\n") + "\r\n";
}

function asJson(units, target, layer) {
  const content = {
    target: { name: target.name, value: target.value, position: target.position },
    layer,
    unit: units.unit,
    first_token_ignored: units.ignoreFirst,
    rounded_to_16_bits: units.item.encoding === "int16",
    positions: units.starts,
    tokens: units.starts.map((_, i) => units.text(i)),
    relevance: Array.from(units.values),
    provenance: units.item.provenance,
  };
  return JSON.stringify(content, null, 1) + "\n";
}

/** A page without the right to the clipboard, as in a frame, may still copy what is selected. */
async function copyToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
