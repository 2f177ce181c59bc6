"""GPT-2 with a contrastive seed, and by CP-LRP."""

import sys

import torch
from transformers.models.gpt2 import modeling_gpt2

from lxt.efficient import monkey_patch

path, variant = sys.argv[1:]
if variant == "contrastive":
    monkey_patch(modeling_gpt2, verbose=True)
else:
    from lxt.efficient.models.gpt2 import cp_LRP

    monkey_patch(modeling_gpt2, cp_LRP, verbose=True)

model = modeling_gpt2.GPT2LMHeadModel.from_pretrained(path, attn_implementation="eager")
for parameter in model.parameters():
    parameter.requires_grad = False
ids = torch.tensor([[5, 9, 3, 17, 9, 4]])
x = model.get_input_embeddings()(ids)
logits = model(inputs_embeds=x.requires_grad_(), use_cache=False).logits[0, -1, :]
best = int(logits.argmax())
if variant == "contrastive":
    seed = torch.full_like(logits, -1 / logits.shape[-1])
    seed[best] = 1
else:
    seed = torch.zeros_like(logits)
    seed[best] = 1
logits.backward(seed)
relevance = (x.grad * x).float().sum(-1).detach()[0]
