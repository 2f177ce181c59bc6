"""Explanations in a notebook: the page in a frame of its own, and without scripts what it says."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lxt.views import html, payload

if TYPE_CHECKING:
    from lxt.explanation import Explanation

__all__ = ["output"]

# The frame has an origin of its own, so that neither page can read or style the other. It says
# how tall it is, up to a height that still leaves room for the rest of a notebook.
_SCRIPT = """
{
  const place = document.getElementById("%(name)s");
  if (place) {
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.setAttribute("allow", "clipboard-write");
    frame.setAttribute("title", "explanation");
    Object.assign(frame.style, { width: "100%%", height: "480px", border: "0" });
    window.addEventListener("message", (event) => {
      const height = event.source === frame.contentWindow && event.data && event.data.lxtHeight;
      if (Number.isFinite(height)) frame.style.height = Math.min(height, 720) + "px";
    });
    frame.srcdoc = %(page)s;
    place.replaceChildren(frame);
  }
}
"""


def output(entries: Sequence[tuple[str, Explanation]]) -> str:
    """Return HTML for one output cell; what is saved with the notebook shows the same later.

    Where the front end takes scripts away, the text on its colours stays, with facts and legend.
    """
    name = f"lxt-{secrets.token_hex(8)}"
    page = payload.as_json(html.page_of(entries))
    script = _SCRIPT % {"name": name, "page": page}
    return f'<div id="{name}">\n{html.fragment(entries)}</div>\n<script>{script}</script>\n'
