"""How relevance moves from word to word, layer after layer, to where the prediction is made.

Relevance is activation · gradient at *any* point of a model, so forward hooks that keep what each
layer hands on are all that is needed to follow it up the residual stream. In the explicit form,
where a gradient is relevance already, backward hooks see it go by.

Weights: SmolLM2-135M-Instruct, a Llama that `lxt.load_model` fetches once (90 MB).
Prints for some layers the words that hold most relevance, and how far the two forms are apart;
writes a picture of words × layers, `latent_trace.png`.

    python examples/latent_trace.py [--out FOLDER]
"""

import matplotlib.pyplot as plt
import torch
from _common import arguments
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

import lxt
from lxt.efficient import monkey_patch
from lxt.explicit.models.llama import attnlrp
from lxt.utils import clean_tokens

TEXT = "My uncle keeps four parrots and two horses. Every morning he saddles one of his"


def largest_logit(model: nn.Module, ids: Tensor) -> tuple[Tensor, int]:
    """What is explained: the logit of the word that the model predicts next; and that word."""
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logit, word = model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].max(-1)
    return logit, int(word)


def trace(model: nn.Module, ids: Tensor) -> tuple[Tensor, int]:
    """The relevance of each word at the output of each layer [layers, words]; the prediction."""
    outputs = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output.retain_grad()  # otherwise only leaves get a .grad
        outputs.append(output)

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    logit, prediction = largest_logit(model, ids)
    logit.backward()
    for handle in handles:
        handle.remove()
    relevance = torch.stack([(x * x.grad).float().sum(-1)[0].detach() for x in outputs])
    return relevance.cpu(), prediction


def explicit_trace(model: nn.Module, ids: Tensor) -> Tensor:
    """The same in the explicit form, where the gradient of a layer's output is its relevance."""
    relevances = []

    def keep(module: nn.Module, of_inputs: tuple, of_outputs: tuple[Tensor]) -> None:
        relevances.append(of_outputs[0].float().sum(-1)[0])

    handles = [layer.register_full_backward_hook(keep) for layer in model.model.layers]
    logit, _ = largest_logit(model, ids)
    logit.backward(logit)  # relevance is put in: as much as there is to explain
    for handle in handles:
        handle.remove()
    return torch.stack(relevances[::-1]).cpu()  # the last layer's came first


def draw(relevance: Tensor, words: list[str], title: str) -> plt.Figure:
    """A column for each layer, scaled by its own largest |relevance|; a row for each word."""
    scaled = relevance / relevance.abs().amax(1, keepdim=True)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    image = axes.imshow(scaled.T.numpy(), cmap="bwr", vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks(range(len(words)), words)
    axes.set(xlabel="layer", title=title)
    figure.colorbar(image, label="relevance, of the layer's largest")
    return figure


def main() -> None:
    out = arguments(__doc__).parse_args().out
    model, tokenizer, _ = lxt.load_model()
    model.requires_grad_(False)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids.to(model.device)

    with monkey_patch(modeling_llama):
        relevance, prediction = trace(model, ids)
    attnlrp.register(model)
    explicit = explicit_trace(model, ids)
    attnlrp.remove()

    words = clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]))
    print(f"{TEXT!r} goes on with {tokenizer.decode(prediction)!r}")
    for layer in range(0, len(relevance), 4):
        shares = relevance[layer].abs() / relevance[layer].abs().sum()
        top = "  ".join(f"{words[i]!r} {shares[i]:.0%}" for i in shares.topk(4).indices)
        print(f"layer {layer:2}  last word {shares[-1]:4.0%}   most: {top}")

    difference = (explicit - relevance).norm() / relevance.norm()
    print(f"the explicit form differs by {difference:.1e} of it")

    out.mkdir(parents=True, exist_ok=True)
    file = out / "latent_trace.png"
    draw(relevance, words, f"Relevance for {tokenizer.decode(prediction)!r}").savefig(file, dpi=150)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
