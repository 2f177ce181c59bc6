"""Which words of a prompt made a Llama say what it says next.

Weights: SmolLM2-135M-Instruct, a Llama that `lxt.load_model` fetches once (90 MB).
Prints the model's next token and the words that spoke most for and against it; writes the prompt as
a heat map, `llama.pdf`.

    python examples/llama_quickstart.py [--checkpointing] [--out FOLDER]
"""

from _common import PROMPT, arguments
from transformers.models.llama import modeling_llama

import lxt
from lxt.efficient import monkey_patch
from lxt.utils import clean_tokens, pdf_heatmap


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--checkpointing",
        action="store_true",
        help="recompute activations in the backward pass: less memory, twice the forward pass",
    )
    options = parser.parse_args()

    # From here on every Llama runs under AttnLRP's rules.
    patch = monkey_patch(modeling_llama)

    model, tokenizer, name = lxt.load_model()
    model.requires_grad_(False)  # no gradients of weights: they would only cost memory
    if options.checkpointing:
        model.train()  # transformers checkpoints in training mode only; dropout stays off
        model.gradient_checkpointing_enable()

    # Token ids have no gradient, their embeddings do.
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids.to(model.device)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()

    logits = model(inputs_embeds=embeddings, use_cache=False).logits[0, -1]
    logit, prediction = logits.max(dim=-1)
    logit.backward()

    # Relevance is activation · gradient; the sum over a word's features is the word's.
    relevance = (embeddings * embeddings.grad).float().sum(-1)[0].detach().cpu()
    words = clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]))

    print(f"model       {name}")
    print(f"prediction  {tokenizer.decode(prediction)!r} with a logit of {logit:.2f}")
    for title, order in (("for it", relevance.argsort(descending=True)),
                         ("against it", relevance.argsort())):  # fmt: skip
        print(f"most {title}:")
        for i in order[:5]:
            print(f"  {relevance[i]:+6.2f}  {words[i]!r} (token {int(i)})")

    file = options.out / "llama.pdf"
    pdf_heatmap(words, relevance / relevance.abs().max(), path=file)
    print(f"wrote {file}")

    patch.remove()  # Llamas are what they were


if __name__ == "__main__":
    main()
