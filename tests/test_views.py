"""What a person sees: readable in every width, theme and encoding, and inert whatever is shown."""

import io
import re
import sys

import pytest
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len
from rich.console import Console

from explained import batch_of, explain
from lxt.tokens import printable
from lxt.views import colour, summary

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "\"><svg onload='x'>",
    "&lt;b&gt;",
    "{{ 7 * 7 }}{% raw %}",
    "[red]",
    "[/]",
    ":smile:",
    "\x1b[31m\x1b]0;title\x07",
    "\x00\x7f\x9b31m",
    "\u202eevil\u2066",
    "\ud800",
]
LABEL = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=[]), max_size=12)


PARIS = explain(
    ["The", " capital", " of", " France", " is"], [0.3052, 4.1123, 0.0, 7.4331, -1.9024]
)
LONG = explain([f" t{i}" for i in range(40)], [(-1) ** i * float(i) for i in range(40)])


class Screen(io.StringIO):
    """A standard output that is a terminal, or has an encoding of its own."""

    def __init__(self, *, terminal=True, encoding="utf-8"):
        super().__init__()
        self.terminal, self.name_of_encoding = terminal, encoding

    def isatty(self):
        return self.terminal

    @property
    def encoding(self):
        return self.name_of_encoding


def printed(explanation, monkeypatch, *, width=100, **screen):
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setattr(sys, "stdout", Screen(**screen))
        return str(explanation)


# Colours


@pytest.mark.parametrize("palette", [colour.LIGHT, colour.DARK, colour.TERMINAL])
@pytest.mark.parametrize("level", range(-colour.LEVELS, colour.LEVELS + 1))
def test_text_is_readable_on_every_colour(palette, level):
    shade = palette.shade(level)
    assert colour.contrast(shade.foreground, shade.background) >= 4.5


def test_contrast_is_that_of_wcag():
    assert colour.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert colour.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("palette", [colour.LIGHT, colour.DARK, colour.TERMINAL])
def test_colours_run_from_blue_over_neutral_to_red(palette):
    def redness(level):
        red, _, blue = bytes.fromhex(palette.shade(level).background[1:])
        return red - blue

    rednesses = [redness(level) for level in range(-colour.LEVELS, colour.LEVELS + 1)]
    assert rednesses == sorted(set(rednesses))
    assert palette.shade(0).background == palette.neutral


def test_levels_are_scaled_by_the_largest_relevance():
    assert [colour.level_of(r, 2.0) for r in (-2.0, -1.0, 0.0, 1.0, 2.0)] == [-20, -10, 0, 10, 20]
    assert colour.level_of(0.0, 0.0) == 0


# Numbers


@pytest.mark.parametrize(
    ("largest", "value", "shown"),
    [
        (15.2, 15.234, "+15.23"),
        (15.2, -0.5, "-0.50"),
        (0.0123, 0.0123456, "+0.01235"),
        (123456.0, -123456.4, "-123456"),
        (1e-7, 1.234e-7, "+1.23e-07"),
        (1e9, -1.0, "-1.00e+00"),
        (0.0, 0.0, "0"),
        (7.4, 0.0, "0.000"),
        (7.4, -0.0, "0.000"),
        (7.4, 2e-5, "+2e-05"),
        (7.4, -4e-300, "-4e-300"),
        (1e-7, 0.0, "0"),
    ],
)
def test_numbers_have_the_digits_that_the_largest_needs(largest, value, shown):
    assert summary.number_format(largest)(value) == shown


@pytest.mark.parametrize("largest", range(-12, 13))
@pytest.mark.parametrize("smaller", range(25))
def test_numbers_are_readable_at_every_magnitude(largest, smaller):
    for digits in (1.0, 2.345678, 9.999999):
        value = digits * 10.0 ** (largest - smaller)
        for signed in (value, -value):
            shown = summary.number_format(digits * 10.0**largest)(signed)
            assert re.fullmatch(r"[+-](\d{1,7}|\d\.\d+|\d\d+\.\d+|\d(\.\d+)?e[+-]\d\d)", shown)
            assert len(shown) <= 9  # what is written out has at most three zeros before its digits
            exactness = 0.01 if smaller == 0 else 0.5
            assert float(shown) == pytest.approx(signed, rel=exactness)


def test_tokens_keep_their_digits_beside_a_large_value():
    small = summary.summarise(explain(["a", "b"], [2e-5, -1.234e-9], value=15.234))
    assert [token.number for token in small.tokens] == ["+2.00e-05", "-1.23e-09"]
    assert (small.scale_number, small.total_number) == ("2.00e-05", "2e-05")
    assert small.facts["value"] == small.value_number == "15.23"
    near = summary.summarise(explain(["a", "b"], [2.0, 2e-5], value=15.234))
    assert [token.number for token in near.tokens] == ["+2.00", "+2e-05"]


def test_shares_of_the_largest_floats_add_up_to_one():
    tokens = summary.summarise(explain(["a", "b"], [1e308, -1.5e308])).tokens
    assert [token.share for token in tokens] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "0.0%"), (1e-9, "<0.1%"), (0.0006, "0.1%"), (1.0, "100.0%")]
)
def test_no_share_that_is_there_is_written_as_none(share, shown):
    assert summary.percentage(share) == shown


def test_spaces_at_the_ends_of_a_lone_token_are_visible():
    tokens = summary.summarise(explain([" a b ", "  ", ""], [1.0, 1.0, 2.0])).tokens
    assert [token.alone for token in tokens] == ["␣a b␣", "␣␣", ""]
    assert [token.share for token in tokens] == [0.25, 0.25, 0.5]


# Terminal


def test_plain_text_shows_target_text_bars_and_sums(monkeypatch):
    shown = printed(PARIS, monkeypatch, terminal=False)
    assert shown.splitlines() == [
        'explained       prediction " Paris" at position 4',
        "value           15.23",
        'model predicts  " Paris"',
        "composite       attnlrp",
        "model           tiny",
        "",
        "The capital of France is",
        "    ▒▒▒▒▒▒▒    ██████ --",
        "-7.43 ≡=- ░▒█ +7.43   steps at 7.5%, 37.5%, 67.5%",
        "",
        "  token     relevance".ljust(95) + "share",
        "0 The           +0.31                │██▎".ljust(95) + " 2.2%",
        ("1 ␣capital      +4.11                │" + "█" * 30 + "▎").ljust(95) + "29.9%",
        "2 ␣of            0.00                │".ljust(95) + " 0.0%",
        ("3 ␣France       +7.43                │" + "█" * 54 + "▊").ljust(95) + "54.0%",
        "4 ␣is           -1.90  ██████████████│".ljust(95) + "13.8%",
        "",
        "sum of relevance 9.95   explained value 15.23",
    ]


@pytest.mark.parametrize("width", [10, 20, 40, 60, 100, 200])
@pytest.mark.parametrize("explanation", [PARIS, LONG])
def test_no_line_is_wider_than_the_terminal(monkeypatch, explanation, width):
    lines = printed(explanation, monkeypatch, width=width, terminal=False).splitlines()
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [40, 100])
def test_wide_characters_stay_in_their_columns(monkeypatch, width):
    tokens = ["東京", "👩\u200d🚀", "e\u0301", "a", "ﷺ", "日本語" * 20]
    wide = explain(tokens, [1.0, 2.0, -3.0, 4.0, 5.0, 6.0])
    lines = printed(wide, monkeypatch, width=width, terminal=False).splitlines()
    axes = [cell_len(line[: line.index("│")]) for line in lines if "│" in line]
    assert len(axes) == len(tokens)
    assert len(set(axes)) == 1


def test_many_tokens_are_listed_by_strength(monkeypatch):
    shown = printed(LONG, monkeypatch, terminal=False)
    assert "the 16 of 40 tokens with the largest |relevance|" in shown
    listed = re.findall(r"^ *(\d+) ␣t\d+ ", shown, re.MULTILINE)
    assert [int(position) for position in listed] == list(range(39, 23, -1))
    few = explain([" t"] * 24, [1.0] * 24)
    assert "with the largest" not in printed(few, monkeypatch, terminal=False)


@pytest.mark.parametrize("relevance", [0.0, 5e-324, 1e308, -1e308])
def test_extreme_relevance_is_shown(monkeypatch, relevance):
    shown = printed(explain(["a", "b"], [relevance, 0.0]), monkeypatch, terminal=False)
    assert "sum of relevance" in shown
    assert ("█" in shown) == (relevance != 0)


def test_a_small_relevance_still_has_a_bar(monkeypatch):
    shown = printed(explain(["a", "b", "c"], [1.0, 1e-9, -1e-9]), monkeypatch, terminal=False)
    assert "▕│" in shown
    assert "│▏" in shown


def test_no_tokens_at_all_can_be_shown(monkeypatch):
    nothing = explain([], [])
    assert "sum of relevance 0" in printed(nothing, monkeypatch, terminal=False)
    assert "All 0 tokens" in nothing.to_html()


@pytest.fixture
def colour_terminal(monkeypatch):
    # Always with all colours: rich keeps the codes of a style as it first wrote them.
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("colour_terminal")
def test_colour_is_for_terminals_that_want_it(monkeypatch):
    assert "\x1b[" in printed(PARIS, monkeypatch)
    assert "\x1b" not in printed(PARIS, monkeypatch, terminal=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(PARIS, monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in printed(PARIS, monkeypatch)


@pytest.mark.usefixtures("colour_terminal")
def test_the_environment_decides_as_rich_has_it(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in printed(PARIS, monkeypatch, terminal=False)
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in printed(PARIS, monkeypatch)


@pytest.mark.usefixtures("colour_terminal")
def test_the_strongest_token_has_the_strongest_colour(monkeypatch):
    red, green, blue = bytes.fromhex(colour.TERMINAL.positive[1:])
    shown = printed(PARIS, monkeypatch)
    assert re.search(rf"\x1b\[38;2;255;255;255;48;2;{red};{green};{blue}m France\x1b\[0m", shown)


def test_an_encoding_without_blocks_does_not_stop_print(monkeypatch):
    shown = printed(PARIS, monkeypatch, terminal=False, encoding="ascii")
    assert "+4.11" in shown.encode("ascii").decode()


def test_standard_output_may_be_absent(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert "sum of relevance" in str(PARIS)


@settings(deadline=None)
@given(st.lists(LABEL, min_size=1, max_size=4), LABEL, st.sampled_from([20, 40, 100]))
def test_any_label_is_inert_in_a_terminal(tokens, name, width):
    shown = explain(tokens, [1.0] * len(tokens), name=name, provenance={"model": name})
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    console.print(shown)
    lines = file.getvalue().split("\n")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(lines))
    assert max(map(cell_len, lines)) <= width


def test_markup_in_tokens_is_shown_as_it_is(monkeypatch):
    shown = printed(explain(HOSTILE, [1.0] * len(HOSTILE)), monkeypatch, terminal=False)
    text = "".join(shown.split("\n\n")[1].splitlines()[::2][:-1])  # marks stand below each line
    # A space at which a line was broken is not shown.
    assert "".join(text.split()) == "".join(map(printable, HOSTILE)).replace(" ", "")


def test_newlines_break_the_running_text(monkeypatch):
    shown = printed(explain(["a\n", "\nb"], [1.0, 1.0]), monkeypatch, terminal=False)
    assert "\na↵\n██\n↵\n█\nb\n█\n" in shown


def test_a_batch_is_shown_row_by_row(monkeypatch):
    shown = printed(batch_of(PARIS, PARIS), monkeypatch, terminal=False)
    first, second = shown.split("row 1 of 2\n")
    assert first == f"row 0 of 2\n{second}\n\n"
    assert second == printed(PARIS, monkeypatch, terminal=False)


def test_a_rich_console_shows_it():
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(PARIS)
    assert "sum of relevance 9.95" in console.export_text()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("prediction", 'prediction " Paris"'),
        ("logit", 'logit of " Paris"'),
        ("contrast", 'logit difference " Paris"'),
        ("label", 'label " Paris"'),
    ],
)
def test_the_target_is_put_into_words(kind, words):
    facts = summary.summarise(explain(["a"], [1.0], kind=kind)).facts
    assert facts["explained"] == f"{words} at position 0"


# HTML
