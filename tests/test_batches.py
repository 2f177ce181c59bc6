"""Batches of unequal rows: each row as if it were alone, in the order given, in bounded memory."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lxt
import zoo
from lxt import memory
from lxt.batching import rows_of_like_length
from lxt.errors import InvalidInput, UnknownOperation
from lxt.memory import as_bytes, free_memory
from spellings import byte_level_bpe

BPE = byte_level_bpe()
TEXTS = [
    "The capital of France is",
    "Paris",
    "a b c d e f g h",
    "is it",
    "The capital",
    "a much longer text about the capital of France",
    "of",
]
MODELS = ["llama", "gpt2", "qwen3", "bert"]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def seen_shapes(model: nn.Module) -> list[tuple[int, int]]:
    """The batches that go through a model from now on."""
    shapes: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_hook(
        lambda m, args, out: shapes.append(tuple(out.shape[:2]))
    )
    return shapes


@pytest.mark.parametrize("size", [None, 1, 2, 3, 100])
def test_texts_of_any_length_in_the_order_given(size: int | None) -> None:
    model = zoo.build("llama", vocab_size=320)
    shapes = seen_shapes(model)
    together = lxt.explain(model, TEXTS, tokenizer=BPE, batch_size=size)
    assert [rows for rows, _ in shapes] == {
        None: [7], 1: [1] * 7, 2: [2, 2, 2, 1], 3: [3, 3, 1], 100: [7]
    }[size]  # fmt: skip
    assert [length for _, length in shapes] == sorted(length for _, length in shapes)
    assert len(together) == len(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        alone = lxt.explain(model, text, tokenizer=BPE)
        assert row.tokens == alone.tokens
        assert row.target.name == alone.target.name
        assert difference(row.relevance, alone.relevance) < 1e-10


def padded(side: str) -> dict[str, torch.Tensor]:
    rows = [[9, 17, 30, 41, 5, 22, 60], [70, 8], [33, 12, 9, 4], [5], [9, 9, 8, 7, 6, 5]]
    ids, mask = torch.zeros(5, 7, dtype=torch.long), torch.zeros(5, 7, dtype=torch.long)
    for row, tokens in enumerate(rows):
        at = slice(7 - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, at], mask[row, at] = torch.tensor(tokens), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_padded_rows_equal_single_rows(name, side, dtype, tolerance) -> None:
    model, inputs = zoo.build(name, dtype=dtype), padded(side)
    together = lxt.explain(model, inputs, batch_size=2)
    assert (together.relevance[inputs["attention_mask"] == 0] == 0).all()
    for row, ids, keep in zip(
        together, inputs["input_ids"], inputs["attention_mask"].bool(), strict=True
    ):
        alone = lxt.explain(model, ids[keep])
        assert row.target.position == alone.target.position
        assert difference(row.relevance, alone.relevance) < tolerance


def test_what_else_has_an_entry_for_each_row_goes_with_it() -> None:
    model, inputs = zoo.build("bert"), padded("left")
    types = torch.tensor([[0] * 7, [1] * 7, [0] * 7, [1] * 7, [1] * 7])
    whole = lxt.explain(model, inputs | {"token_type_ids": types})
    parts = lxt.explain(model, inputs | {"token_type_ids": types}, batch_size=2)
    assert torch.allclose(whole.relevance, parts.relevance, atol=1e-12)
    assert not torch.allclose(whole.relevance, lxt.explain(model, inputs).relevance)


class Shifted(nn.Module):
    """Takes a number for each row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask, factor):
        embedded = self.get_input_embeddings()(input_ids) * factor[:, None, None]
        return self.model(inputs_embeds=embedded, attention_mask=attention_mask)


def test_a_number_for_each_row_goes_with_it() -> None:
    model = Shifted(zoo.build("gpt2"))
    inputs = padded("right") | {"factor": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()}
    whole, parts = lxt.explain(model, inputs), lxt.explain(model, inputs, batch_size=2)
    assert torch.allclose(whole.relevance, parts.relevance, atol=1e-10)


def test_rows_of_similar_length_run_together() -> None:
    lengths = [5, 40, 6, 41, 5, 39]
    assert rows_of_like_length(lengths, 3, 0) == [[0, 4, 2], [5, 1, 3]]
    assert rows_of_like_length(lengths, None, 30) == [[0, 4, 2], [5], [1], [3]]
    assert rows_of_like_length(lengths, None, 1000) == [[0, 4, 2, 5, 1, 3]]
    assert rows_of_like_length(lengths, None, 0) == [[0], [4], [2], [5], [1], [3]]


def test_a_budget_bounds_the_rows() -> None:
    model = zoo.build("llama", vocab_size=320)
    shapes = seen_shapes(model)
    expected = lxt.explain(model, TEXTS, tokenizer=BPE)
    few = lxt.explain(model, TEXTS, tokenizer=BPE, memory_budget="100kB")
    assert len(shapes) > 3
    assert torch.allclose(few.relevance, expected.relevance, rtol=1e-10, atol=1e-12)


def test_where_memory_runs_out_the_batch_is_halved(monkeypatch) -> None:
    model = zoo.build("llama", vocab_size=320)
    expected = lxt.explain(model, TEXTS, tokenizer=BPE)
    sizes: list[int] = []

    def small(module, args, output):
        sizes.append(len(output))
        if len(output) > 2:
            raise torch.OutOfMemoryError("out of memory")

    model.model.norm.register_forward_hook(small)
    together = lxt.explain(model, TEXTS, tokenizer=BPE, batch_size=5)
    assert sizes == [5, 3, 2, 1, 2, 2]
    assert torch.allclose(together.relevance, expected.relevance, rtol=1e-10, atol=1e-12)
    assert together.target == expected.target
    model.model.norm.register_forward_hook(lambda *_: small(*_[:2], torch.zeros(3)))
    with pytest.raises(torch.OutOfMemoryError):
        lxt.explain(model, TEXTS[:1], tokenizer=BPE)


@pytest.mark.parametrize("size", [0, -1, True, "8", 2.0])
def test_bad_batch_sizes(size: object) -> None:
    with pytest.raises(InvalidInput, match=f"batch_size is {size!r}"):
        lxt.explain(zoo.build("llama"), [[1, 2]], batch_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["The", "The", " ", "The"], "prompt 2 is empty"),
        (["The", "The", 5, "The"], "prompt 2 is 5"),
        ([5, "The"], "prompt 0 is 5"),
        (["The", "a" * 70, "The"], "prompt 1 is .* tokens long, the model's context 64"),
        (["The", "a\udcff"], "prompt 1 is no Unicode"),
        ({"input_ids": [[1, 2], [3, 999]]}, "out of range in row 1: 999"),
        ([], "nothing"),
    ],
)
def test_a_bad_row_is_found_before_long_work(texts, message: str) -> None:
    model = zoo.build("llama", vocab_size=320)
    model.register_forward_pre_hook(lambda *_: pytest.fail("long work began"))
    with pytest.raises(InvalidInput, match=message):
        lxt.explain(model, texts, tokenizer=BPE, batch_size=1)


def test_budgets_are_read_as_people_write_them() -> None:
    cpu = torch.device("cpu")
    for text, size in (("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("7", 7), (9, 9)):
        assert as_bytes(text, cpu) == size
    assert free_memory(cpu) > 2**20
    assert as_bytes(None, cpu) > 2**19
    assert as_bytes(None, torch.device("meta")) == 2**30


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"max": "9000", "current": "5000", "stat": "file 9\ninactive_file 700\n"}, 4700),
        ({"max": "max", "current": "5000", "stat": ""}, None),
        ({"max": "5000", "current": "9000", "stat": "inactive_file 0\n"}, 0),
        (
            {
                "limit_in_bytes": "9000",
                "usage_in_bytes": "5000",
                "stat": "inactive_file 1\ntotal_inactive_file 300\n",
            },
            4300,
        ),
        ({"limit_in_bytes": str(2**63 - 4096), "usage_in_bytes": "5000", "stat": ""}, None),
        ({}, None),
    ],
)
def test_what_is_free_within_a_container(
    files: dict[str, str], free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    folder = "memory/" if "limit_in_bytes" in files else ""
    for name, text in files.items():
        (tmp_path / f"{folder}memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    found = free_memory(torch.device("cpu"))
    assert found > 2**20 if free is None else found == free


# Heads that are given explained positions only.

MASKED = [n for n in zoo.NAMES if "MaskedLM" in zoo.ARCHITECTURES[n].model_class]


@pytest.mark.parametrize("name", MASKED)
def test_a_head_runs_at_the_explained_positions_only(name: str) -> None:
    model = zoo.build(name)
    head = model.get_output_embeddings()
    shapes = []
    hook = head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape[:2])))
    target = lxt.Logit(7, position=1)
    picked = lxt.explain(model, padded("left")["input_ids"][:1], target=target)
    several = lxt.explain(model, padded("right"), target=lxt.Prediction(position=-1))
    assert shapes == [(1, 1), (5, 5)]
    hook.remove()
    assert not head._forward_hooks
    assert not head._forward_pre_hooks
    model.get_output_embeddings = lambda: None  # as for a model that doesn't say what its head is
    assert (
        difference(
            picked.relevance,
            lxt.explain(model, padded("left")["input_ids"][:1], target=target).relevance,
        )
        < 1e-10
    )
    plain = lxt.explain(model, padded("right"), target=lxt.Prediction(position=-1))
    assert difference(several.relevance, plain.relevance) < 1e-10
    assert [one.name for one in several.target] == [one.name for one in plain.target]


class Counting(nn.Module):
    """A language model that does something with positions after its head."""

    def __init__(self, after) -> None:
        super().__init__()
        self.gpt = zoo.build("gpt2")
        self.config = self.gpt.config
        self.after = after
        self.runs = 0

    def get_input_embeddings(self) -> nn.Module:
        return self.gpt.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.gpt.get_output_embeddings()

    def forward(self, input_ids, attention_mask):
        self.runs += 1
        return self.after(self.gpt(input_ids, attention_mask=attention_mask).logits)


@pytest.mark.parametrize(
    ("after", "runs"),
    [
        (lambda z: z, 1),
        (lambda z: z.flip(1), 2),  # which position is whose, nothing tells
        (lambda z: z.cumsum(1), 2),
        (lambda z: z * 2, 2),
        (lambda z: z + z[:, :7], 2),
        (lambda z: z[:, torch.arange(7)], 2),  # an error where there are fewer
    ],
)
def test_where_something_comes_after_the_head_it_runs_as_always(after, runs: int) -> None:
    model = Counting(after)
    inputs = padded("left")["input_ids"][:1]
    explanation = lxt.explain(model, inputs)
    assert model.runs == runs
    model.get_output_embeddings = lambda: None
    expected = lxt.explain(model, inputs)
    assert torch.allclose(explanation.relevance, expected.relevance, atol=1e-12)
    assert explanation.target == expected.target
    model.runs = 0
    del model.get_output_embeddings
    targets = [lxt.Logit(7, position=t) for t in (2, 5, 5)] + [lxt.Logit(8, position=5)]
    together = lxt.explain(model, inputs, target=targets)
    for one, target in zip(together[0], targets, strict=True):
        alone = lxt.explain(model, inputs, target=target)[0]
        assert difference(one.relevance, alone.relevance) < 1e-9


def test_an_error_of_the_model_is_shown_as_it_is() -> None:
    model = Counting(lambda z: z)
    composite = lxt.attnlrp.without(torch.nn.functional.layer_norm)
    with pytest.raises(UnknownOperation, match="layer_norm"):
        lxt.explain(model, padded("left")["input_ids"][:1], composite=composite)
    assert not model.get_output_embeddings()._forward_pre_hooks
