"""LXT's helpers: pieces to words, words to a file, with LaTeX or without."""

import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from pypdf import PdfReader

import lxt
from lxt import utils
from lxt.errors import InvalidInput, LxtError, UnwritableFile
from lxt.explicit import rules as explicit_rules
from lxt.utils import clean_tokens, pdf_heatmap
from lxt.views import latex

ANY = st.text(st.characters(exclude_categories=[]), max_size=12)
WORDS = ["The", " capital", " of", " France"]
RELEVANCES = [0.5, -1.0, 0.0, 1.0]

# A program like xelatex that writes down how it was called.
FAKE = """#!{python}
import json, os, pathlib, sys
source = pathlib.Path(sys.argv[-1]).read_text(encoding="utf-8")
record = {{"argv": sys.argv[1:], "source": source, "cwd": os.getcwd()}}
pathlib.Path({record!r}).write_text(json.dumps(record))
pathlib.Path("heatmap.log").write_text({log!r})
pathlib.Path("heatmap.aux").write_text("")
pathlib.Path("heatmap.pdf").write_bytes(b"%PDF by LaTeX")
sys.exit({status})
"""


@pytest.fixture(autouse=True)
def no_latex(monkeypatch, tmp_path):
    """Only the programs that a test puts there are found."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)


def install(tmp_path, name="xelatex", *, status=0, log="a\nb\n! Undefined control sequence."):
    program = tmp_path / "bin" / name
    record = tmp_path / "record.json"
    program.write_text(
        FAKE.format(python=sys.executable, record=str(record), log=log, status=status)
    )
    program.chmod(0o755)
    return record


def recorded(record):
    return json.loads(record.read_text())


def text_of(file):
    return PdfReader(io.BytesIO(Path(file).read_bytes())).pages[0].extract_text()


# Pieces


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["<s>", "▁The", "▁cap", "ital", "▁▁▁"], ["<s>", " The", " cap", "ital", "   "]),
        (["▁a", "<0x0A>", "b_c", "##", "</s>"], [" a", "\n", "b_c", "##", "</s>"]),
        (["▁", "<0xE2>", "<0x82>", "<0xAC>"], [" ", "€", "◌", "◌"]),
        (["The", "Ġna", "Ã¯", "ve", "Ċ", "##", "Ġ#"], ["The", " na", "ï", "ve", "\n", "##", " #"]),
        (["<|im_start|>", "user", "Ċ", "âĤ", "¬"], ["<|im_start|>", "user", "\n", "€", "◌"]),
        (["Ġa", "â", "<|im_end|>"], [" a", r"\xE2", "<|im_end|>"]),
        (["<｜begin▁of▁sentence｜>", "Ġa"], ["<｜begin▁of▁sentence｜>", " a"]),
        (["####", "ĠTitle", "##"], ["####", " Title", "##"]),
        (["[CLS]", "par", "##is", "_", "[SEP]"], ["[CLS]", " par", "is", " _", " [SEP]"]),
        (["un", "##believ", "##able", "##"], ["un", "believ", "able", " ##"]),
        (["hello</w>", "wor", "ld</w>"], ["hello ", "wor", "ld"]),
        (["no", "mark", "", "_x_", "##", "&"], ["no", "mark", "", "_x_", "##", "&"]),
        ([], []),
    ],
)
def test_clean_tokens(pieces, words):
    given_pieces = list(pieces)
    assert clean_tokens(pieces) == words
    assert pieces == given_pieces


def test_nothing_is_escaped():
    assert clean_tokens(["▁50%", "▁$x_1$", "▁{&#}\\"]) == [" 50%", " $x_1$", " {&#}\\"]


@given(st.lists(ANY | st.sampled_from(["▁a", "Ġb", "##c", "Ċ", "<0xE2>", "d</w>"])))
def test_any_pieces_have_a_word_each(pieces):
    assert len(clean_tokens(pieces)) == len(pieces)


@pytest.mark.parametrize(
    ("words", "quoted"), [("▁The", "▁The"), (["a", None], "word 1 is None"), (3, "int")]
)
def test_what_is_no_list_of_texts_is_quoted(words, quoted):
    with pytest.raises(InvalidInput, match=quoted):
        clean_tokens(words)
    with pytest.raises(InvalidInput, match=quoted):
        pdf_heatmap(words, [0.0])


# Relevances, colours, paths


@pytest.mark.parametrize(
    "relevances",
    [
        RELEVANCES,
        tuple(RELEVANCES),
        np.array(RELEVANCES, dtype=np.float16),
        torch.tensor(RELEVANCES, dtype=torch.float64, requires_grad=True),
        torch.tensor(RELEVANCES, dtype=torch.bfloat16),
        list(torch.tensor(RELEVANCES).unbind()),
    ],
)
def test_relevances_of_any_type_give_the_same_file(relevances):
    pdf_heatmap(WORDS, RELEVANCES, path="expected.pdf")
    pdf_heatmap(WORDS, relevances, path="given.pdf")
    assert Path("given.pdf").read_bytes() == Path("expected.pdf").read_bytes()


@pytest.mark.parametrize(
    ("relevances", "message"),
    [
        ([0.0] * 3, "3 relevances for 4 words"),
        ([0, 0, 1.5, 0], "relevance 2 is 1.5"),
        ([0, -1.01, 0, 0], "relevance 1 is -1.01"),
        ([0, float("nan"), 0, 0], "relevance 1 is nan"),
        ([float("inf"), 0, 0, 0], "relevance 0 is inf"),
        (torch.zeros(1, 4), r"shape \[1, 4\]"),
        (torch.tensor(0.5), r"shape \[\]"),
        (["x"] * 4, "'x'"),
        (None, "NoneType"),
        (np.zeros(4, dtype=complex), "real number"),
        (torch.zeros(4, dtype=torch.complex64), "real number"),
        ([0, np.complex64(0), 0, 0], "real number"),
        ([[0.0]] * 4, r"shape \[4, 1\].* one number for each word"),
        (np.zeros((4, 2)), r"shape \[4, 2\].* one number for each word"),
        (list(torch.zeros(4, 3)), r"shape \[4, 3\].* one number for each word"),
        ([0, None, 0, 0], "relevance 1 is None"),
        (np.array([0, 0, None, 0]), "relevance 2 is None"),
        (3, "not int"),
    ],
)
def test_wrong_relevances_are_quoted(relevances, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match=message):
            pdf_heatmap(WORDS, relevances)
    assert not Path("heatmap.pdf").exists()


def test_colours_are_those_of_the_map():
    pdf_heatmap([" "] * 3, [-1, 0, 1], path="a.svg")
    fills = re.findall(r'style="fill: (#[0-9a-f]{6})"', Path("a.svg").read_text())
    assert [fill for fill in fills if fill != "#ffffff"] == ["#0000ff", "#fffefe", "#ff0000"]
    rgba = utils._apply_colormap([-1, 1], "coolwarm")
    assert rgba.shape == (2, 4)
    assert rgba[0, 2] > rgba[0, 0]


def test_an_unknown_map_names_close_ones():
    with pytest.raises(InvalidInput, match="'colwarm'.*'coolwarm'"):
        pdf_heatmap(WORDS, RELEVANCES, cmap="colwarm")


def test_the_default_file_is_heatmap_pdf():
    pdf_heatmap(WORDS, RELEVANCES)
    assert text_of("heatmap.pdf") == "The capital of France"
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "heatmap.pdf"]


@pytest.mark.parametrize(
    ("path", "start"), [("a", b"%PDF"), ("b/c/d.PNG", b"\x89PNG"), (Path("e.svg"), b"<?xml")]
)
def test_the_format_is_that_of_the_suffix(path, start):
    pdf_heatmap(WORDS, RELEVANCES, path=path)
    file = Path(path) if Path(path).suffix else Path(f"{path}.pdf")
    assert file.read_bytes().startswith(start)


def test_wrong_arguments_are_quoted():
    with pytest.raises(InvalidInput, match=r"'\.txt'.*\.pdf, \.png, \.svg"):
        pdf_heatmap(WORDS, RELEVANCES, path="a.txt")
    with pytest.raises(InvalidInput, match="'latexmk'.*'xelatex'.*'matplotlib'"):
        pdf_heatmap(WORDS, RELEVANCES, backend="latexmk")
    for path in (3, b"a.pdf", None):
        with pytest.raises(InvalidInput, match=f"path must be .*{path!r}"):
            pdf_heatmap(WORDS, RELEVANCES, path=path)


def test_a_folder_is_no_file():
    Path("folder").mkdir()
    for path in ("folder", "folder/", "new/", Path("folder")):
        with pytest.raises(UnwritableFile, match=f"'{path}'.* a folder"):
            pdf_heatmap(WORDS, RELEVANCES, path=path)
    with pytest.raises(UnwritableFile, match="no file"):
        pdf_heatmap(WORDS, RELEVANCES, path="")
    assert sorted(path.name for path in Path().iterdir()) == ["bin", "folder"]


@pytest.mark.parametrize("path", ["file/a.pdf", "folder.pdf", "a\0.pdf", "", "a" * 300])
def test_what_cannot_be_written_is_quoted_and_leaves_nothing(path, tmp_path):
    Path("file").write_text("kept")
    Path("folder.pdf").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnwritableFile):
        pdf_heatmap(WORDS, RELEVANCES, path=path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_legend_on_demand():
    pdf_heatmap(WORDS, RELEVANCES, legend=True)
    assert text_of("heatmap.pdf").split()[-3:] == ["−1", "0", "1"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(ANY, st.floats(width=32)), max_size=5))
def test_any_words_make_a_file_or_an_error_of_ours(pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pdf_heatmap([word for word, _ in pairs], [value for _, value in pairs])
        except LxtError:
            assert not all(abs(value) <= 1 for _, value in pairs)
    latex.document([word for word, _ in pairs], ["#ffffff"] * len(pairs))


# LaTeX


@pytest.mark.parametrize("backend", latex.PROGRAMS)
def test_latex_sets_the_page_where_it_is_installed(backend, tmp_path):
    record = install(tmp_path, backend)
    pdf_heatmap(WORDS, RELEVANCES, path="out/a.pdf", backend=backend)
    assert Path("out/a.pdf").read_bytes() == b"%PDF by LaTeX"
    assert list(Path("out").iterdir()) == [Path("out/a.pdf")]
    call = recorded(record)
    assert call["argv"][-1] == "heatmap.tex"
    assert {"-no-shell-escape", "-interaction=nonstopmode"} < set(call["argv"])
    assert not Path(call["cwd"]).exists()
    assert "\\lxttoken{0000FF}{FFFFFF}{capital}".lower() in call["source"].lower()


def test_aux_files_are_kept_on_demand(tmp_path):
    install(tmp_path)
    pdf_heatmap(WORDS, RELEVANCES, delete_aux_files=False)
    assert sorted(path.name for path in tmp_path.glob("heatmap.*")) == [
        "heatmap.log",
        "heatmap.pdf",
        "heatmap.tex",
    ]
    assert Path("heatmap.tex").read_text() == utils._generate_latex(WORDS, RELEVANCES)


@pytest.mark.parametrize(
    "failure", [{"status": 1}, {"log": "Missing character: There is no 東 in font lmroman10!"}]
)
def test_where_latex_fails_matplotlib_sets_the_page_and_a_warning_says_so(failure, tmp_path):
    record = install(tmp_path, **failure)
    with pytest.warns(UserWarning, match="(?s)xelatex failed.*(Undefined|Missing)") as caught:
        pdf_heatmap(WORDS, RELEVANCES)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    assert recorded(record)
    assert text_of("heatmap.pdf") == "The capital of France"


def test_a_run_that_does_not_end_is_ended(tmp_path):
    program = tmp_path / "bin" / "slow"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    run = latex.run(str(program), "", timeout=0.3)
    assert run.pdf is None
    assert "0.3 seconds" in run.end_of_log
    assert latex.run(str(tmp_path / "none"), "").pdf is None


def test_matplotlib_can_be_asked_for(tmp_path):
    record = install(tmp_path)
    pdf_heatmap(WORDS, RELEVANCES, backend="matplotlib")
    pdf_heatmap(WORDS, RELEVANCES, path="a.png")
    assert not record.exists()


SPECIAL = "\\{}$&#%_^~<>|\"`'"
INJECTIONS = [
    "\\input{/etc/passwd}",
    "\\write18{touch x}",
    "^^5cinput",
    "}}\\end{document}",
    "%",
    "a%\n\\input{x}",
    "\r\\input{x}",
    "\x00\x1b\u202e\u2028\ud800",
    SPECIAL,
    "--``''!`?`,,<<",
]
COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)


def commands_and_rest(source):
    """What TeX sees: commands, and the characters that are none."""
    return set(COMMAND.findall(source)), COMMAND.sub("", source)


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_token_has_no_meaning_to_tex(text):
    allowed = {"textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater"}
    allowed |= {"textbar", "textquotedbl", "textasciigrave", "textquotesingle", "ensuremath"}
    allowed |= {"hookleftarrow", "mapsto", "circ", *"{}$&#%_ "}
    commands, rest = commands_and_rest(latex.escape(text))
    assert commands <= allowed
    assert not set(rest) & set("\\$&#%_^~<>|\"`'\n\r\0")
    assert rest.count("{") == rest.count("}")


@given(ANY)
def test_no_text_at_all_has(text):
    rest = commands_and_rest(latex.escape(text))[1]
    assert not set(rest) & set("\\$&#%_^~<>|\"`'\n\r\0\x7f")
    rest.encode()
    depth = 0
    for char in rest:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0


def test_latex_keeps_spaces_lines_and_long_tokens_in_boxes():
    source = latex.document(["a", " b", "\n", "  c d", "x" * 100], ["#ffffff"] * 5)
    body = source.split("\\raggedright\n")[1]
    assert "\\space{}%\n\\lxttoken{ffffff}{000000}{b}" in body
    assert "{\\ensuremath{\\hookleftarrow}}%\n\\newline{}" in body
    assert "{\\ \\ c\\ d}" in body
    assert max(map(len, re.findall("x+", body))) <= 40
    assert sum(map(len, re.findall("x{10,}", body))) == 100


def test_nothing_heavy_is_imported_with_it():
    code = "import sys, lxt.utils; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_subpackages_are_imported_when_they_are_asked_for():
    code = (
        "import sys, lxt; names = {'lxt.explicit', 'lxt.efficient', 'lxt.utils'}; "
        "print(names & set(sys.modules)); "
        "lxt.explicit.attnlrp, lxt.efficient.monkey_patch, lxt.utils.pdf_heatmap; "
        "print(names <= set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\nTrue\n"
    with pytest.raises(AttributeError, match="'lxt' has no attribute 'explict'"):
        lxt.explict  # noqa: B018


def test_rules_of_lxt_are_named_where_they_are_not():
    for name in explicit_rules.__all__:
        with pytest.raises(AttributeError, match=f"it is lxt.explicit.rules.{name}"):
            getattr(lxt.rules, name)
    with pytest.raises(AttributeError, match="no attribute 'Epsilon'$"):
        lxt.rules.Epsilon  # noqa: B018
