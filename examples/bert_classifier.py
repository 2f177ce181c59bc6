"""Which words speak for a classifier's label, and which against it.

Weights: a small BERT classifier, trained here in seconds on made-up reviews, which are positive if
more words praise than complain. So we know of each word what its sign must be.
Prints a review with the relevance of its words for the label "positive", and over 200 reviews how
many words have the right sign; writes the review as a heat map, `bert.pdf`.

    python examples/bert_classifier.py [--out FOLDER]
"""

import torch
import torch.nn.functional as F
from _common import arguments
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert import modeling_bert

from lxt.efficient import monkey_patch
from lxt.utils import pdf_heatmap

PRAISE = ["lovely", "fresh", "friendly", "quick", "tasty", "warm"]
COMPLAINT = ["bland", "cold", "late", "loud", "rude", "stale"]
NEUTRAL = ["food", "and", "the", "soup", "was", "staff"]
WORDS = ["[CLS]", *PRAISE, *COMPLAINT, *NEUTRAL]
KIND = torch.tensor([0] + [1] * len(PRAISE) + [-1] * len(COMPLAINT) + [0] * len(NEUTRAL))


def reviews(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids [count, 10] and labels [count], of which 1 is positive."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, len(WORDS), (2 * count, 10), generator=generator)
    ids[:, 0] = 0
    balance = KIND[ids].sum(1)
    decided = balance != 0
    return ids[decided][:count], (balance[decided] > 0).long()[:count]


def trained_classifier() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, initializer_range=0.1, num_labels=2,
        id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    model = modeling_bert.BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        ids, labels = reviews(64, seed=step)
        loss = F.cross_entropy(model(ids).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def main() -> None:
    out = arguments(__doc__).parse_args().out
    model = trained_classifier()
    ids, labels = reviews(200, seed=12345)

    with monkey_patch(modeling_bert):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=embeddings).logits
        # Rows do not influence each other, so one backward pass explains all of them.
        logits[:, model.config.label2id["positive"]].sum().backward()
    relevance = (embeddings * embeddings.grad).sum(-1).detach()

    accuracy = (logits.argmax(-1) == labels).float().mean()
    for name, sign in (("praise", 1), ("complaint", -1)):
        words = relevance[KIND[ids] == sign]
        right = (words.sign() == sign).float().mean()
        print(f"{name:9}  mean relevance {words.mean():+.2f}, right sign {right:.1%}")
    print(f"neutral    mean |relevance| {relevance[KIND[ids] == 0].abs().mean():.2f}")
    print(f"the model itself is right in {accuracy:.1%} of {len(ids)} reviews")

    mixed = int(((KIND[ids] == -1).sum(1) == 1).nonzero()[0])  # the first with one complaint
    words = [WORDS[i] for i in ids[mixed]]
    label = model.config.id2label[int(logits[mixed].argmax())]
    print(f"\na review labelled {label!r}, with its relevance for 'positive':")
    for word, score in zip(words, relevance[mixed], strict=True):
        print(f"  {score:+.2f}  {word}")
    row = relevance[mixed] / relevance[mixed].abs().max()
    pdf_heatmap([f" {word}" for word in words], row, path=out / "bert.pdf")


if __name__ == "__main__":
    main()
