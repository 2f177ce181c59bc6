"""Relevance of the residual stream at each layer, caught by hooks."""

import sys

import torch
from transformers.models.llama import modeling_llama

from lxt.efficient import monkey_patch

monkey_patch(modeling_llama)
model = modeling_llama.LlamaForCausalLM.from_pretrained(sys.argv[1])
if sys.argv[2] == "checkpointing":
    model.train()
    model.gradient_checkpointing_enable()
for parameter in model.parameters():
    parameter.requires_grad = False


def keep(module, args, output):
    module.activation = output[0] if isinstance(output, tuple) else output
    module.activation.retain_grad()


for layer in model.model.layers:
    layer.register_forward_hook(keep)
ids = torch.tensor([[5, 9, 3, 17, 9, 4]])
x = model.get_input_embeddings()(ids)
logits = model(inputs_embeds=x.requires_grad_(), use_cache=False).logits
logits[0, -1].max().backward()
trace = torch.stack(
    [(h.activation * h.activation.grad).sum(-1)[0].detach() for h in model.model.layers]
)
