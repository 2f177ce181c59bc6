"""Which neurons hold a fact, and what a model says without them.

Relevance tells what each neuron of each MLP contributed to an answer. A neuron that contributes to
one answer and to no other is taken to hold that fact. A few of them are switched off, or
turned up, while the model answers all questions; as controls, as many that are merely more active
than for other questions, and as many at random.

Weights: SmolLM2-135M-Instruct, a Llama that `lxt.load_model` fetches once (90 MB).
Prints the probability of each answer without its neurons, and how much is left of the others;
writes a picture of that, `knowledge_neurons.png`.

    python examples/knowledge_neurons.py [--out FOLDER]
"""

import matplotlib.pyplot as plt
import torch
from _common import arguments
from torch import Tensor, nn

import lxt

FACTS = {
    "The capital of France is": " Paris",
    "The capital of Italy is": " Rome",
    "The capital of Japan is": " Tokyo",
    "The capital of Germany is": " Berlin",
    "The capital of Spain is": " Madrid",
    "The Eiffel Tower is located in the city of": " Paris",
}
NEURONS = 10


def probabilities(model: nn.Module, tokenizer, edits: dict[lxt.Unit, lxt.Edit]) -> Tensor:
    """The probability of each answer, by a model that is steered."""
    tokenizer.padding_side = "left"  # so that the last position is each prompt's own
    prompts = tokenizer(list(FACTS), return_tensors="pt", padding=True)
    answers = tokenizer(list(FACTS.values()), add_special_tokens=False).input_ids
    with lxt.steer(model, edits), torch.no_grad():
        logits = model(**prompts, logits_to_keep=1).logits[:, -1].float()
    return logits.softmax(-1).gather(1, torch.tensor(answers))[:, 0]


def only_here(scores: Tensor, fact: int) -> Tensor:
    """The neurons [NEURONS] whose score [facts, neurons] for one fact is furthest above others'."""
    others = torch.cat([scores[:fact], scores[fact + 1 :]]).amax(0).clamp(min=0)
    return (scores[fact] - others).topk(NEURONS).indices


def main() -> None:
    out = arguments(__doc__).parse_args().out
    model, tokenizer, _ = lxt.load_model()
    model.requires_grad_(False)

    # Relevance and activation [layers, neurons], summed over tokens, for each fact.
    read = [
        lxt.explain(
            model,
            prompt,
            tokenizer=tokenizer,
            target=lxt.Logit(answer),
            taps=lxt.Neurons(over="tokens"),
        ).latent["neurons"]
        for prompt, answer in FACTS.items()
    ]
    relevance = torch.stack([latent.relevance.flatten() for latent in read])
    activation = torch.stack([latent.activation.abs().flatten() for latent in read])
    width = read[0].units[0]

    def units(numbers: Tensor) -> list[lxt.Unit]:
        neurons = read[0]
        return [neurons.unit(neurons.sites[n // width], n % width) for n in numbers.tolist()]

    generator = torch.Generator().manual_seed(0)
    chosen = {
        "by relevance": lambda fact: only_here(relevance, fact),
        "by activation": lambda fact: only_here(activation, fact),
        "at random": lambda _: torch.randperm(relevance.shape[1], generator=generator)[:NEURONS],
    }
    before = probabilities(model, tokenizer, {})
    kept = {}
    for name, choose in chosen.items():
        rows = []
        for fact in range(len(FACTS)):
            off = dict.fromkeys(units(choose(fact)), lxt.Scale(0))
            rows.append(probabilities(model, tokenizer, off) / before)
        kept[name] = torch.stack(rows)  # [neurons of which fact, which answer]

    print(
        f"{NEURONS} of {relevance.shape[1]} neurons off; what is left of the answer's probability"
    )
    print(f"{'':44}{'':>8}" + "".join(f"{name:>17}" for name in chosen))
    own = torch.eye(len(FACTS), dtype=torch.bool)
    for fact, (prompt, answer) in enumerate(FACTS.items()):
        cells = "".join(f"{kept[name][fact, fact]:17.2f}" for name in chosen)
        print(f"{prompt:44}{answer:>8}{cells}")
    for name in chosen:
        print(f"others' answers, median, {name}: {kept[name][~own].median():.2f}")

    louder = dict.fromkeys(units(only_here(relevance, 1)), lxt.Scale(2))
    ratio = probabilities(model, tokenizer, louder) / before
    others = ratio[~own[1]].median()
    print(f"those of Rome twice as active: Rome × {ratio[1]:.2f}, others × {others:.2f}")

    figure, axes = plt.subplots(1, 3, figsize=(10, 4.6), layout="constrained", sharey=True)
    names = [" ".join(word for word in prompt.split()[1:] if word.istitle()) for prompt in FACTS]
    for axis, (name, values) in zip(axes, kept.items(), strict=True):
        image = axis.imshow(values.clamp(max=1), cmap="viridis", vmin=0, vmax=1)
        axis.set(title=f"chosen {name}", xlabel="asked")
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axis.set_yticks(range(len(names)), names)
    axes[0].set_ylabel("neurons switched off of")
    figure.colorbar(image, label="probability left, of 1", ax=axes)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "knowledge_neurons.png", dpi=120)
    print(f"wrote {out / 'knowledge_neurons.png'}")


if __name__ == "__main__":
    main()
