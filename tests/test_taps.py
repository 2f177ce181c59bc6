"""Taps against hooks written by hand, over composites × architectures, and their other promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidFile, InvalidTap

CAUSAL = [
    name
    for name in zoo.NAMES + zoo.RECURRENT
    if zoo.ARCHITECTURES[name].model_class.endswith(("ForCausalLM", "LMHeadModel"))
]
TOLERANCE = 1e-9  # float64 but for norms and softmax, which many models compute in float32
over_models = pytest.mark.parametrize("name", CAUSAL)
over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name
)


def ids(rows: int = 1, tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 120, (rows, tokens), generator=generator)


def first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else next(filter(torch.is_tensor, value))


@contextmanager
def kept(model: nn.Module, sites: list[str], end: str) -> Iterator[dict[str, Tensor]]:
    """What goes into modules, or comes out, with its gradient afterwards."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in sites:
        module = model.get_submodule(name)

        def keep(x: Tensor, name: str = name) -> None:
            if x.requires_grad:
                x.retain_grad()
            found[name] = x

        if end == "output":
            hook = module.register_forward_hook(lambda _, args, out, keep=keep: keep(first(out)))
        else:
            hook = module.register_forward_pre_hook(lambda _, args, keep=keep: keep(first(args)))
        handles.append(hook)
    yield found
    for handle in handles:
        handle.remove()


def by_hand(
    model: nn.Module, token_ids: Tensor, composite: lxt.Composite, sites: list[str], end: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Activation and relevance [tokens, channels] at each site, for the last top logit."""
    with composite.context(model), kept(model, sites, end) as found:
        x = model.get_input_embeddings()(token_ids).detach().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            embedding = model.get_input_embeddings()
            patch.setattr(embedding, "forward", lambda _: x)
            logits = model(input_ids=token_ids, use_cache=False).logits
        logits[0, -1].max().backward()
    return {
        name: (
            x.detach()[0] if x.dim() == 3 else x.detach(),
            (x * (torch.zeros_like(x) if x.grad is None else x.grad))
            .detach()
            .reshape(token_ids.shape[1], -1),
        )
        for name, x in found.items()
    }


def close(one: Tensor, other: Tensor, scale: Tensor, tolerance: float = TOLERANCE) -> bool:
    return bool((one - other).abs().max() <= tolerance * scale.abs().max())


@over_composites
@over_models
def test_taps_are_what_hooks_see(name: str, composite: lxt.Composite) -> None:
    model = zoo.build(name, dtype=torch.float64)
    token_ids = ids()
    taps = [lxt.Residual(), lxt.Residual(channels=True, name="channels")]
    for tap in (lxt.Heads(), lxt.Neurons()):
        try:
            lxt.explain(model, token_ids, composite=composite, taps=tap)
        except InvalidTap:
            assert name in WITHOUT[tap.key], name
        else:
            assert name not in WITHOUT[tap.key], name
            taps.append(tap)
    plain = lxt.explain(model, token_ids, composite=composite)
    e = lxt.explain(model, token_ids, composite=composite, taps=taps)
    assert close(e.relevance, plain.relevance, plain.relevance)
    for key, latent in e.latent.items():
        assert latent.axes[:3] == ("batch", "layers", "tokens")
        paths = [site.removesuffix(":input") for site in latent.sites]
        end = "input" if latent.sites[0].endswith(":input") else "output"
        expected = by_hand(model, token_ids, composite, paths, end)
        for i, path in enumerate(paths):
            x, r = expected[path]
            x = x.reshape(r.shape)
            units = latent.units[i]
            if key == "heads":
                r = r.reshape(len(r), units, -1).sum(-1)
                x = x.reshape(len(x), units, -1).norm(dim=-1)
            elif key == "residual":
                r, x = r.sum(-1), x.norm(dim=-1)
            got, activation = latent.relevance[0, i], latent.activation[0, i]
            if r.dim() == 2:
                assert not got[:, units:].any()
                got, activation = got[:, :units], activation[:, :units]
            assert close(got, r, plain.relevance), (key, path)
            assert close(activation, x, x), (key, path)


WITHOUT: dict[str, list[str]] = {
    "heads": ["mamba", "mamba2", "rwkv"],
    "neurons": ["mamba", "mamba2", "qwen3_moe", "mixtral"],
}
"""The architectures that have no such units: none at all, or experts of them."""

ALL = [
    lxt.Residual(),
    lxt.Residual(channels=True, name="channels"),
    lxt.Heads(),
    lxt.Neurons(),
    lxt.Neurons(over="tokens", name="sums"),
    lxt.Neurons(top=4, name="strongest"),
    lxt.Neurons(top=4, over="tokens", name="strongest sums"),
    lxt.Heads(top=1000, name="all"),
]


def same(one: lxt.Latent, other: lxt.Latent, tolerance: float = TOLERANCE) -> None:
    assert (one.axes, one.sites, one.units) == (other.axes, other.sites, other.units)
    torch.testing.assert_close(one.relevance, other.relevance, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one.activation, other.activation, rtol=tolerance, atol=tolerance)
    if one.index is not None:
        assert other.index is not None
        assert torch.equal(one.index, other.index)


def test_sums_and_the_strongest_are_those_of_all() -> None:
    e = lxt.explain(zoo.build("llama", dtype=torch.float64), ids()[0], taps=ALL)
    latent = e.latent
    neurons, heads = latent["neurons"], latent["heads"]
    torch.testing.assert_close(latent["sums"].relevance, neurons.relevance.sum(1))
    torch.testing.assert_close(latent["sums"].activation, neurons.activation.sum(1))
    torch.testing.assert_close(latent["residual"].relevance, latent["channels"].relevance.sum(-1))
    for layer in range(2):
        flat = neurons.relevance[layer].flatten()
        order = flat.abs().argsort(descending=True)[:4]
        strongest = latent["strongest"]
        assert strongest.index is not None
        assert torch.equal(strongest.relevance[layer], flat[order])
        assert torch.equal(strongest.activation[layer], neurons.activation[layer].flatten()[order])
        width = neurons.units[layer]
        assert strongest.index[layer].tolist() == [[i // width, i % width] for i in order.tolist()]
        assert latent["strongest sums"].index[layer, :, 0].unique().tolist() == [-1]
    every = latent["all"]
    assert every.relevance.shape == (2, 1000)
    assert torch.equal(
        every.relevance.count_nonzero(1), heads.relevance.flatten(1).count_nonzero(1)
    )
    assert (every.index[every.relevance == 0] == -1).all()
    site, position, unit, relevance = neurons.strongest(1)[0]
    place = neurons.sites.index(site), position, unit
    assert relevance == neurons.relevance[place].item()
    assert abs(relevance) == neurons.relevance.abs().max()
    assert latent["strongest"].strongest(1) == neurons.strongest(1)
    unit = neurons.unit(site, 5, position)
    assert (unit.name, unit.position) == (f"{site}[5]", position)
    value = lxt.explain(zoo.build("llama", dtype=torch.float64), ids()[0], target=unit).target.value
    assert value == pytest.approx(neurons.activation[neurons.sites.index(site), position, 5].item())
    head = heads.unit(heads.sites[1], 3)
    e = lxt.explain(zoo.build("llama", dtype=torch.float64), ids()[0], target=head)
    assert e.target.value == pytest.approx(heads.activation[1, 6, 3].item())
    for wrong in (("nothing", 0), (site, 48), (site, -1)):
        with pytest.raises(InvalidTap, match="there is no"):
            neurons.unit(*wrong)
    assert heads.total.tolist() == pytest.approx(heads.relevance.sum((1, 2)).tolist())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "falcon"])
@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
def test_rows_targets_and_checkpoints_change_nothing(name: str, composite: lxt.Composite) -> None:
    model = zoo.build(name, dtype=torch.float64)
    batch = ids(3, 6)
    mask = torch.ones_like(batch)
    mask[1, :2] = 0  # padding on the left
    inputs = {"input_ids": batch, "attention_mask": mask}
    targets = [lxt.Logit(5), lxt.Logit(9, position=2), lxt.Contrast(7, 8)]
    whole = lxt.explain(model, inputs, target=targets, taps=ALL, composite=composite)
    again = lxt.explain(
        model, inputs, target=targets, taps=ALL, composite=composite, checkpoint=1, batch_size=1
    )
    for row in range(3):
        alone = batch[row][mask[row].bool()]
        for number, target in enumerate(targets):
            one = lxt.explain(model, alone, target=target, taps=ALL, composite=composite)
            for key, latent in one.latent.items():
                same(whole[row][number].latent[key], latent)
                same(again[row][number].latent[key], latent)


def test_many_targets_of_rows_with_different_counts() -> None:
    model = zoo.build("llama", dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": ids(2, 4), "attention_mask": mask}
    e = lxt.explain(model, inputs, target=lxt.Every(), taps=[lxt.Heads(), lxt.Neurons(top=2)])
    assert e.latent["heads"].axes == ("batch", "targets", "layers", "tokens", "heads")
    assert e[1].latent["heads"].relevance.shape == (2, 2, 2, 4)
    assert e[1].latent["neurons"].index.shape == (2, 2, 2, 2)
    for number in range(2):
        one = lxt.explain(model, ids(2, 4)[1, :2], target=lxt.Every([number]), taps=[lxt.Heads()])
        same(e[1][number].latent["heads"], one[0].latent["heads"])


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_share_what_they_put_out(name: str, composite: lxt.Composite) -> None:
    model = zoo.build(name, dtype=torch.float64)
    token_ids = ids(2)
    called: list[tuple[Tensor, ...]] = []
    modules = [m for n, m in model.named_modules() if n.endswith(".experts")]
    handles = [m.register_forward_pre_hook(lambda _, args: called.append(args)) for m in modules]
    targets = [lxt.Logit(5), lxt.Logit(9, position=3)]
    outputs = lxt.Tap("layers.*.mlp.experts", name="outputs")
    taps = [lxt.Experts(), outputs, lxt.Experts(top=3, name="strongest")]
    e = lxt.explain(model, token_ids, target=targets, taps=taps, composite=composite)
    for handle in handles:
        handle.remove()
    experts = e.latent["experts"]
    assert experts.axes == ("batch", "targets", "layers", "tokens", "experts")
    # A glance at a few tokens came before, and each expert by itself comes in the backward pass.
    called = [args for args in called if len(args[0]) == 14 and args[1].shape[-1] > 1]
    assert len(called) == len(modules)
    whole = e.latent["outputs"].relevance.sum(-1)
    torch.testing.assert_close(experts.relevance.sum(-1), whole, rtol=1e-9, atol=1e-9)
    for layer, (hidden, indices, weights) in enumerate(called):
        y = torch.zeros(len(hidden), experts.units[layer], hidden.shape[-1], dtype=torch.float64)
        for token in range(len(hidden)):  # each expert of each token by itself
            for one, weight in zip(indices[token], weights[token], strict=True):
                alone = modules[layer](hidden[token][None], one.view(1, 1), weight.view(1, 1))
                y[token, one] = alone[0].detach()
                assert experts.activation[token // 7, layer, token % 7, one] == weight
        total = y.sum(1)
        # The gradient at the output, of each target, is its relevance by what it put out.
        g = e.latent["outputs"].relevance[:, :, layer].transpose(0, 1).reshape(2, len(hidden), -1)
        g = g / total
        expected = torch.einsum("ktc,tec->kte", g, y).reshape(2, 2, 7, -1).transpose(0, 1)
        torch.testing.assert_close(experts.relevance[:, :, layer], expected, rtol=1e-7, atol=1e-9)
    strongest = e.latent["strongest"].relevance[..., 0].abs()
    torch.testing.assert_close(strongest, experts.relevance.abs().flatten(3).amax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_forward_and_the_relevance_stay_as_they_are(dtype: torch.dtype) -> None:
    model = zoo.build("llama", dtype=dtype)
    plain = lxt.explain(model, ids())
    tapped = lxt.explain(model, ids(), taps=[lxt.Residual(), lxt.Heads()])
    assert plain.target == tapped.target  # the logit to the bit
    assert torch.equal(plain.relevance, tapped.relevance)
    # A float16 model's backward pass starts from a scaled seed, which is taken back.
    stream = lxt.trace(model, ids()).relevance[0]
    assert torch.allclose(stream[0], plain.relevance[0])
    wide = lxt.trace(zoo.build("llama", dtype=torch.float64), ids()).relevance[0].float()
    assert (stream - wide).norm() < 0.1 * wide.norm()


def test_models_that_write_in_place_keep_what_was_read() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 4)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 20)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

        def forward(self, input_ids: Tensor) -> Any:
            x = self.first(self.embedding(input_ids))
            x += 1
            x.mul_(2)
            return (self.second(x),)

    model = Writer().double()
    e = lxt.explain(model, ids(tokens=3) % 20, taps=[lxt.Tap("first")])
    latent = e.latent["first"]
    x = model.first(model.embedding(ids(tokens=3) % 20)).detach()
    assert torch.equal(latent.activation[:, 0], x)
    top = model(ids(tokens=3) % 20)[0][0, -1].argmax()
    expected = torch.zeros_like(x)
    expected[:, -1] = 2 * x[:, -1] * model.second.weight[top]
    torch.testing.assert_close(latent.relevance[:, 0], expected.detach())


def test_explicit_composites_hand_back_the_same() -> None:
    from lxt.explicit.composites import attnlrp

    model = zoo.build("llama", dtype=torch.float64)
    taps = [lxt.Residual(), lxt.Neurons(top=3), lxt.Heads()]
    explicit = lxt.explain(model, ids(), taps=taps, composite=attnlrp)
    efficient = lxt.explain(model, ids(), taps=taps)
    for key in efficient.latent:
        same(explicit.latent[key], efficient.latent[key], 1e-5)  # explicit rules divide by x + ε


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (3, "taps=3"),
        ([None], "None is no tap"),
        (["layers.*.nothing"], "no module of LlamaForCausalLM matches 'layers.*.nothing'"),
        ([lxt.Heads(), lxt.Heads()], "two taps are called 'heads'"),
        (lxt.Heads(layer=2), "there is no layer 2: the model has 2"),
        ("lm_head", r"lm_head has the shape \[1, 1, 128\]"),
    ],
)
def test_taps_that_are_none(taps: Any, message: str) -> None:
    with pytest.raises(InvalidTap, match=message):
        lxt.explain(zoo.build("llama"), ids(), taps=taps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: lxt.Heads(top=0),
        lambda: lxt.Heads(over="heads"),
        lambda: lxt.Neurons(layer="3"),  # pyright: ignore[reportArgumentType]
        lambda: lxt.Tap(3),  # pyright: ignore[reportArgumentType]
        lambda: lxt.Site(""),
        lambda: lxt.Site("a", end="middle"),  # pyright: ignore[reportArgumentType]
        lambda: lxt.Site("a", heads=0),
        lambda: lxt.Unit("a", 1, head=2),
        lambda: lxt.Unit("a", head=2),
        lambda: lxt.Unit("a", direction=torch.zeros(3)),
        lambda: lxt.Unit("a", 1.5),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_can_be_refused_at_once_is(make: Any) -> None:
    with pytest.raises(InvalidTap):
        make()


def test_layers_are_chosen_by_number() -> None:
    model = zoo.build("llama")
    e = lxt.explain(model, ids(), taps=[lxt.Residual(layer=-1), lxt.Heads(layer=[1, 0])])
    assert e.latent["residual"].sites == ["model.layers.1"]
    assert e.latent["heads"].sites == [f"model.layers.{i}.self_attn.o_proj:input" for i in (0, 1)]


@pytest.mark.parametrize("target", [None, [lxt.Logit(3), lxt.Logit(4)]])
def test_what_was_read_is_saved_too(target: Any, tmp_path: Path) -> None:
    e = lxt.explain(zoo.build("llama"), ids(2), target=target, taps=ALL)
    e.save(tmp_path / "e.safetensors")
    again = lxt.Explanation.load(tmp_path / "e.safetensors")
    assert list(again.latent) == list(e.latent)
    for key, latent in e.latent.items():
        same(again.latent[key], latent, 0)
    assert not lxt.Explanation.from_json(e.to_json()).latent


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("units"), r"latent\[0\] does not hold exactly"),
        (lambda one: one.update(axes=["layers"]), "has not the axes layers"),
        (lambda one: one.update(sites="x"), "sites 'x'"),
        (lambda one: one.update(tensors=["relevance", "nothing"]), "has the tensors"),
        (lambda one: one.update(tensors=["relevance"]), "lacks relevance or activation"),
        (lambda one: one.update(units=[1, True]), "units that are no numbers"),
        (lambda one: one.update(tensors=["relevance", "activation", "index"]), "lacks latent.0"),
    ],
)
def test_damaged_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    e = lxt.explain(zoo.build("llama"), ids(), taps=lxt.Heads())
    e.save(tmp_path / "e")
    with safe_open(tmp_path / "e", framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(header["content"])
    change(content["latent"][0])
    save_file(tensors, tmp_path / "e", header | {"content": json.dumps(content)})
    with pytest.raises(InvalidFile, match=message):
        lxt.Explanation.load(tmp_path / "e")
