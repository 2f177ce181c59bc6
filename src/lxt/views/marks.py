"""How relevance is marked in a terminal: by colour where there is some, else by sign and shade."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from lxt.views import colour

FAINTEST = 2
"""Levels below this one are left unmarked: grey on grey hides those that matter."""

# One glyph for each third of the levels. More bars in a minus are a stronger negative.
_POSITIVE, _NEGATIVE = "░▒█", "-=≡"
_THIRDS = (FAINTEST, 8, 14)
_RAMP = 5


def is_coloured(console: Console) -> bool:
    """Whether the console shows colours: ``NO_COLOR`` may leave it bold and underlined text."""
    return console.color_system is not None and not console.no_color


def mark(level: int) -> str:
    """Return the glyph of a level, one column wide: a space for the faintest."""
    third = sum(abs(level) >= least for least in _THIRDS)
    return (_POSITIVE if level > 0 else _NEGATIVE)[third - 1] if third else " "


def style(level: int) -> Style:
    """Return the colours of a level; none for the faintest."""
    if abs(level) < FAINTEST:
        return Style.null()
    shade = colour.TERMINAL.shade(level)
    return Style(color=shade.foreground, bgcolor=shade.background)


def text_style(level: int) -> Style:
    """Return the same for a token's text, where a negative one is underlined as well."""
    return style(level) + Style(underline=True) if level <= -FAINTEST else style(level)


def cell(level: int, columns: int, *, coloured: bool) -> tuple[str, Style]:
    """Return a cell of a map: its sign shows in both, in colour as well as without."""
    if not coloured:
        return mark(level) * columns, Style.null()
    return (mark(level) if level < 0 else " ") * columns, style(level)


@dataclass(frozen=True)
class Scale:
    """The legend: which mark stands for what, up to ``number``, which is written without a sign."""

    number: str
    scale: float
    underlined: bool = False
    """Whether negative texts are underlined."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.scale:
            yield Text("all relevance is 0", style="dim")
            return
        coloured = is_coloured(console)
        parts: list[tuple[str, Style | str]] = [(f"-{self.number} ", "dim")]
        thirds = (*(-least for least in reversed(_THIRDS)), 0, *_THIRDS)
        ramp = [round(step * colour.LEVELS / _RAMP) for step in range(-_RAMP, _RAMP + 1)]
        for level in ramp if coloured else thirds:
            text, look = cell(level, 2 if coloured else 1, coloured=coloured)
            parts.append((text, text_style(level) if self.underlined else look))
        parts.append((f" +{self.number}", "dim"))
        if not coloured:
            steps = ", ".join(f"{(least - 0.5) / colour.LEVELS:.1%}" for least in _THIRDS)
            parts.append((f"   steps at {steps}", "dim"))
        yield Text.assemble(*parts, overflow="fold")
