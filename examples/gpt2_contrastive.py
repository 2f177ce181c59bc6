"""Why this token *rather than the others*? For models such as GPT-2, whose logits mean little.

A softmax only sees differences of logits: adding the same amount to all of them changes nothing.
GPT-2 makes use of that freedom, and most of its logits are negative, so that the explanation of a
single logit can come out with its signs flipped. A contrast, the logit minus the mean of all
others, does not depend on the shift.

Weights: a small GPT-2, trained here in seconds to look up a word ("red ant green fox blue bee |
green" → "fox"), so that we know which words matter. Then all its logits are lowered alike.
Prints for both models what a plain and a contrastive explanation say of the pair asked for.

    python examples/gpt2_contrastive.py
"""

import torch
from _common import PAIRS, WORDS, arguments, asked_pair, lookup_texts, train_to_look_up
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.gpt2 import modeling_gpt2

import lxt
from lxt.efficient import monkey_patch


def explain(model: nn.Module, text: Tensor, contrastive: bool) -> Tensor:
    """The relevance of each word for the word that the model predicts next."""
    embeddings = model.transformer.wte(text[None]).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings).logits[0, -1]
    prediction = logits.argmax()
    # The seed of the backward pass says how much each logit counts.
    seed = torch.zeros_like(logits)
    if contrastive:
        seed -= 1 / (len(logits) - 1)  # the mean of all *other* logits (LXT's page divides by N)
    seed[prediction] = 1
    logits.backward(seed)
    return (embeddings * embeddings.grad).sum(-1)[0].detach()


def lower_all_logits(model: nn.Module, text: Tensor, amount: float) -> None:
    """Lower the logits of a text by the same amount each, as no softmax can notice."""
    with torch.no_grad():
        final = model.transformer(text[None]).last_hidden_state[0, -1]
        model.lm_head.weight -= amount * final / final.dot(final)


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=64, n_layer=2, n_head=4, n_positions=16,
        initializer_range=0.1, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = modeling_gpt2.GPT2LMHeadModel(config)
    train_to_look_up(model)

    text = lookup_texts(1, seed=12345)[0, : 2 * PAIRS + 1]  # three pairs and the first question
    pair = int(asked_pair(text[None]))
    print("text    ", " ".join(WORDS[i] for i in text))

    for title, amount in (("as trained", 0.0), ("all logits 30 lower", 30.0)):
        lower_all_logits(model, text, amount)
        logits = model(text[None]).logits[0, -1]
        probability, prediction = logits.softmax(-1).max(-1)
        print(f"\n{title}: predicts {WORDS[prediction]!r} with probability {probability:.3f} "
              f"and logit {logits[prediction]:.1f}")  # fmt: skip
        with monkey_patch(modeling_gpt2):
            plain = explain(model, text, contrastive=False)
            contrast = explain(model, text, contrastive=True)
        for name, relevance in (("plain", plain), ("contrast", contrast)):
            scores = "  ".join(f"{WORDS[i]} {r:+.2f}" for i, r in zip(text, relevance, strict=True))
            print(f"  {name:8}  relevance of the pair {relevance[pair : pair + 2].sum():+6.2f}   "
                  f"({scores})")  # fmt: skip

        # The same in one line:
        e = lxt.explain(model, {"input_ids": text[None]}, target=lxt.Contrast(None))
        print(f"  lxt.Contrast(None) differs by {(e.relevance - contrast).abs().max():.1e}")


if __name__ == "__main__":
    main()
