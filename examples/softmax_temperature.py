"""Explaining a probability in place of a logit, at several temperatures.

What raises all logits alike speaks for no word in particular: a logit's explanation shows it, a
probability's leaves it out. A softmax that is sure of itself passes hardly any relevance on; a
temperature above 1 makes it less so. Whether the heat map gets sharper depends on model and text:
that of this logit already is.

Uses the explicit form, in which the gradient of a tensor is its relevance.

Weights: SmolLM2-135M-Instruct, a Llama that `lxt.load_model` fetches once (90 MB).
Prints for the logit and for each temperature how much relevance arrives, over how many words it
spreads, and on which most of it falls; writes a heat map of each, `softmax_….pdf`.

    python examples/softmax_temperature.py [--out FOLDER]
"""

import torch
from _common import PROMPT, arguments
from torch import Tensor

import lxt
import lxt.explicit.functional as lf
from lxt.explicit.models.llama import attnlrp
from lxt.utils import clean_tokens, pdf_heatmap

TEMPERATURES = (1.0, 2.0, 5.0, 20.0)


def main() -> None:
    out = arguments(__doc__).parse_args().out
    model, tokenizer, _ = lxt.load_model()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids.to(model.device)
    words = clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]))

    attnlrp.register(model)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits[0, -1]
    attnlrp.remove()  # the rules are in the graph by now
    prediction = int(logits.argmax())
    print(
        f"prediction {tokenizer.decode(prediction)!r}, probability {logits.softmax(-1).max():.3f}"
    )

    def relevance_for(output: Tensor) -> Tensor:
        """The relevance of each word for a number, which is put in as it is."""
        (received,) = torch.autograd.grad(output, embeddings, output, retain_graph=True)
        return received.float().sum(-1)[0].cpu()

    explained = {"logit": logits[prediction]}
    for temperature in TEMPERATURES:
        probabilities = lf.softmax(logits, -1, temperature=temperature)
        explained[f"T={temperature:g}"] = probabilities[prediction]

    for name, output in explained.items():
        relevance = relevance_for(output)
        shares = relevance.abs() / relevance.abs().sum()
        spread = (-shares * shares.log()).nansum().exp()  # n words with the same share: n
        top = "  ".join(f"{words[i]!r} {shares[i]:.0%}" for i in shares.topk(4).indices)
        print(f"{name:6} value {output:8.3g}  Σ|R| {relevance.abs().sum():8.3g}  "
              f"spread {spread:4.1f} words   most: {top}")  # fmt: skip
        scaled = relevance / relevance.abs().max()
        pdf_heatmap(words, scaled, path=out / f"softmax_{name.replace('=', '')}.pdf")


if __name__ == "__main__":
    main()
