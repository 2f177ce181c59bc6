"""The explicit way with a ready model: the gradient is the relevance."""

import sys

import torch

from lxt.explicit.models.llama import LlamaForCausalLM, attnlrp

model = LlamaForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float64)
model.gradient_checkpointing_enable()
attnlrp.register(model)
if sys.argv[2] == "train":
    model.train()


def keep(module, grad_input, grad_output):
    module.relevance = grad_output[0].detach()


for layer in model.model.layers:
    layer.register_full_backward_hook(keep)
ids = torch.tensor([[5, 9, 3, 17, 9, 4]])
x = model.get_input_embeddings()(ids)
logits = model(inputs_embeds=x.requires_grad_(), use_cache=False).logits
value, index = torch.max(logits[0, -1, :], dim=-1)
value.backward(value)
trace = torch.stack([layer.relevance[0].sum(-1) for layer in model.model.layers])
relevance = x.grad.float().sum(-1).cpu()[0]
