"""JSON: schema and reader accept what is written, and refuse the same broken documents."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from jsonschema import Draft202012Validator

from explained import batch, batch_of_many, explanations, many, same, single, traced
from lxt.errors import InvalidFile
from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation
from lxt.json_format import schema

DATA = Path(__file__).parent / "data"
SCHEMA = Draft202012Validator(schema())
WRITTEN = [single(), batch(), many(), batch_of_many(), traced()]


def read_back(document):
    return Explanation.from_json(json.dumps(document))


def test_the_schema_is_one_and_says_what_each_field_is():
    Draft202012Validator.check_schema(schema())
    for part in ("row", "target"):
        for name, field in schema()["$defs"][part]["properties"].items():
            assert field["description"], name


def test_the_documentation_names_every_field_and_its_example_is_valid():
    text = (DATA.parents[1] / "docs" / "explanation-format.md").read_text("utf-8")
    text = text.partition("# Explanations of pictures")[0]
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    SCHEMA.validate(json.loads(example))
    assert Explanation.from_json(example).tokens == ["The", " capital", " of"]
    parts = [schema()["$defs"][part]["properties"] for part in ("version3", "row", "target")]
    for name in (name for part in parts for name in part):
        assert f"| `{name}` |" in text, name


@settings(deadline=None)
@given(explanations())
def test_what_is_written_fits_the_schema_and_reads_back_but_for_padding(explanation):
    text = explanation.to_json()
    SCHEMA.validate(json.loads(text))
    read = Explanation.from_json(text)
    assert read.axes == explanation.axes
    assert read.relevance.dtype == explanation.relevance.dtype
    assert len(read.inputs()) == len(explanation.inputs())
    for one, other in zip(read.inputs(), explanation.inputs(), strict=True):
        same(one, other)
    assert read.to_json() == text
    if not explanation.is_batch and explanation.mask.all():
        same(read, explanation)


@settings(deadline=None)
@given(explanations())
def test_json_is_strict_and_its_numbers_read_back(explanation):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(explanation.to_json(), parse_constant=refuse)
    assert (content["format"], content["version"]) == ("lxt.explanation", 3)
    assert content["provenance"] == explanation.provenance
    rows = explanation.inputs()
    assert len(content["rows"]) == len(rows)
    for read, row in zip(content["rows"], rows, strict=True):
        relevance = torch.tensor(read["relevance"], dtype=row.relevance.dtype)
        assert torch.equal(relevance.reshape(row.relevance.shape), row.relevance)
        assert read["tokens"] == row.tokens
        assert read["token_ids"] == row.token_ids.tolist()
        if row.is_many:
            assert [ExplainedTarget(**target) for target in read["target"]] == row.target
        else:
            assert ExplainedTarget(**read["target"]) == row.target


def test_a_batch_is_padded_behind():
    read = Explanation.from_json(batch().to_json())
    assert read.tokens == [["The", " capital", " of"], ["In", " Rome", ""]]
    assert read.mask.tolist() == [[True, True, True], [True, True, False]]
    assert read.token_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert read.relevance.tolist() == [[0.5, -2.0, 0.25], [1.0, 3.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("explanation_v1", single()),
        ("explanation_v2", single()),
        ("explanation_v2_many", many()),
        ("explanation_v3_batch_of_many", batch_of_many()),
        ("explanation_v3_traced", traced()),
    ],
)
def test_files_of_every_version_are_read(name, expected):
    path = DATA / f"{name}.json"
    SCHEMA.validate(json.loads(path.read_text("utf-8")))
    for read in (Explanation.from_json(path), Explanation.load(path)):
        assert read.axes == expected.axes
        assert read.relevance.dtype == expected.relevance.dtype
        for one, other in zip(read.inputs(), expected.inputs(), strict=True):
            same(one, other)


def test_a_file_of_this_version_is_what_is_written_today():
    for name, explanation in [("batch_of_many", batch_of_many()), ("traced", traced())]:
        assert (DATA / f"explanation_v3_{name}.json").read_text("utf-8") == explanation.to_json()


@pytest.mark.parametrize(("value", "dtype"), [(0.1, torch.float64), (0.5, torch.float32)])
def test_before_version_3_the_type_is_the_narrowest_that_holds_the_numbers(value, dtype):
    document = json.loads((DATA / "explanation_v2.json").read_text("utf-8"))
    document["rows"][0]["relevance"][0] = value
    assert read_back(document).relevance.dtype == dtype
    document["rows"] *= 2
    assert read_back(document).axes == ("batch", "tokens")
    assert read_back(document).relevance.dtype == dtype


def test_the_text_a_path_and_a_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "{x}.json"
    path.write_text(single().to_json(), "utf-8-sig")
    same(Explanation.from_json(path), single())
    same(Explanation.from_json(str(path)), single())
    same(Explanation.load(path), single())
    same(Explanation.from_json("\n " + single().to_json()), single())


def at(document, place):
    *path, last = place
    for key in path:
        document = document[key]
    return document, last


def places(document, place=()):
    """Every place in a document, but for the characters of a string."""
    yield place
    if isinstance(document, dict | list):
        keys = document if isinstance(document, dict) else range(len(document))
        for key in keys:
            yield from places(document[key], (*place, key))


NUMBERS = [0, 1, 2, 3, 3.0, -1, 0.5, 1e39, 10**400, 2**63, -(2**63)]
LISTS = [[], [0.5], [[0.5]], ["tokens"], ["batch", "tokens"], ["layers", "tokens"]]
OTHERS = [None, True, False, "", "sum", "float32", {}, {"model": "x"}, {"model": 1}]
ODD = st.sampled_from([*NUMBERS, *LISTS, *OTHERS]).map(copy.deepcopy)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_schema_and_reader_refuse_the_same_documents(data):
    """Lengths that do not fit are what a schema can't say."""
    earlier = [
        json.loads(path.read_text("utf-8")) for path in sorted(DATA.glob("explanation_v[12]*.json"))
    ]
    documents = [*(json.loads(explanation.to_json()) for explanation in WRITTEN), *earlier]
    document = copy.deepcopy(data.draw(st.sampled_from(documents)))
    for _ in range(data.draw(st.integers(1, 2))):
        inside = [place for place in places(document) if place]
        if not inside:
            break
        parent, key = at(document, data.draw(st.sampled_from(inside)))
        match data.draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                parent[key] = data.draw(ODD)
            case "remove":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.sampled_from(["extra", "dtype", "layers"]))] = data.draw(ODD)
            case "add":
                parent.append(copy.deepcopy(parent[key]))
    try:
        read_back(document)
        reason = ""
    except InvalidFile as error:
        reason = str(error)
    lengths = re.search(r"\d+ given where there are \d+ (tokens|layers|targets)", reason)
    assert lengths or SCHEMA.is_valid(document) == (not reason), reason


def broken(change, explanation=None):
    document = json.loads((single() if explanation is None else explanation).to_json())
    change(document)
    return document


def put(value, *place):
    def change(document):
        parent, key = at(document, place)
        parent[key] = value

    return change


def drop(*place):
    def change(document):
        parent, key = at(document, place)
        del parent[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("pt", "format"), 'format: "pt" is not one of "lxt.explanation"'),
        (put(4, "version"), "version: 4 is not one that this version of lxt reads, 1, 2 and 3"),
        (put(True, "version"), "version: true is not"),
        (drop("rows"), "it lacks rows"),
        (put(1, "extra"), 'it has "extra", and should have only'),
        (put(["tokens", "batch"], "axes"), 'axes: ["tokens", "batch"] is not one of ["tokens"]'),
        (put("float16", "dtype"), 'dtype: "float16" is not one of "float32", "float64"'),
        (put(["a"], "layers"), 'layers: ["a"] is not null, and axes has no layers'),
        (put([], "rows"), "rows: 0 rows where axes has no batch: it takes 1"),
        (put({}, "rows"), "rows: {} is not a list"),
        (put([3], "rows"), "rows[0]: 3 is not an object of tokens, token_ids, relevance, target"),
        (put(None, "rows", 0, "tokens", 1), "rows[0].tokens[1]: null is not a string"),
        (put(0.5, "rows", 0, "token_ids", 2), "rows[0].token_ids[2]: 0.5 is not an integer from"),
        (put(2**63, "rows", 0, "token_ids", 2), "rows[0].token_ids[2]: 9223372036854775808 is not"),
        (put(True, "rows", 0, "token_ids", 2), "rows[0].token_ids[2]: true is not an integer from"),
        (put(True, "rows", 0, "relevance", 2), "rows[0].relevance[2]: true is not a number"),
        (put([5], "rows", 0, "token_ids"), "rows[0].token_ids: 1 given where there are 3 tokens"),
        (put("x", "rows", 0, "relevance", 2), 'rows[0].relevance[2]: "x" is not a number'),
        (put(1e39, "rows", 0, "relevance", 2), "rows[0].relevance[2]: 1e+39 is not a number of at"),
        (put([1], "rows", 0, "relevance", 2), "rows[0].relevance[2]: [1] is not a number"),
        (put([], "rows", 0, "relevance"), "rows[0].relevance: 0 given where there are 3 tokens"),
        (put([], "rows", 0, "target"), "rows[0].target: [] is not an object of kind, name, value"),
        (drop("rows", 0, "target", "kind"), "rows[0].target: it lacks kind"),
        (put("x", "rows", 0, "target", "kind"), 'rows[0].target.kind: "x" is not one of "predi'),
        (put(-1, "rows", 0, "target", "position"), "rows[0].target.position: -1 is not an integer"),
        (put(10**400, "rows", 0, "target", "value"), "rows[0].target.value: 10000"),
        (put(3, "provenance", "model"), 'provenance["model"]: 3 is not a string'),
        (put([], "provenance"), "provenance: [] is not an object of strings"),
        (put("a" * 999, "rows"), f'rows: "{"a" * 59}… is not a list'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path, change, message):
    path = tmp_path / "file"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(InvalidFile, match=re.escape(message)) as caught:
        Explanation.from_json(path)
    assert repr(str(path)) in str(caught.value)
    with pytest.raises(InvalidFile, match=re.escape(message)):
        Explanation.load(path)


def test_many_targets_are_not_of_version_1():
    document = json.loads((DATA / "explanation_v2_many.json").read_text("utf-8"))
    assert read_back(document).is_many
    document["version"] = 1
    assert not SCHEMA.is_valid(document)
    with pytest.raises(InvalidFile, match=r"rows\[0\]\.target: .* is not an object of kind"):
        read_back(document)


def test_lists_of_targets_and_layers_are_counted():
    for explanation, place, message in [
        (many(), ("relevance",), "rows[0].relevance: 2 given where there are 3 targets"),
        (many(), ("relevance", 1), "rows[0].relevance[1]: 2 given where there are 3 tokens"),
        (many(), ("target",), "rows[0].relevance: 3 given where there are 2 targets"),
        (traced(), ("relevance",), "rows[0].relevance: 1 given where there are 2 layers"),
    ]:

        def shorten(document, place=place):
            parent, key = at(document, ("rows", 0, *place))
            parent[key] = parent[key][:-1]

        with pytest.raises(InvalidFile, match=re.escape(message)):
            read_back(broken(shorten, explanation))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON: "),
        ('{"format": NaN}', "NaN is no number"),
        ('{"a": ' * 100_000, "nested too deeply|not JSON"),
        ("{}", "it lacks format, version"),
        ('{"format": "lxt.explanation", "version": 1e999}', "version: Infinity is not"),
    ],
)  # fmt: skip
def test_texts_that_are_refused(text, reason):
    with pytest.raises(InvalidFile, match=f"^the text is not an explanation in JSON: .*({reason})"):
        Explanation.from_json(text)


def test_files_that_are_refused(tmp_path):
    for data, reason in [
        (b"", "it is not JSON"),
        (b"[]", r"\[\] is not an object of format, version"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it is neither safetensors nor JSON"),
    ]:
        (tmp_path / "file").write_bytes(data)
        for read in (Explanation.load, Explanation.from_json):
            with pytest.raises(InvalidFile, match=reason):
                read(tmp_path / "file")
    with pytest.raises(InvalidFile, match="No such file"):
        Explanation.from_json("no-such-file.json")
    single().save(tmp_path / "file")
    with pytest.raises(InvalidFile, match="it is n"):
        Explanation.from_json(tmp_path / "file")
