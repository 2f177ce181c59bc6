"""The efficient way with a causal language model: quickstart, checkpointing, heat map."""

import importlib
import sys

import torch
from transformers import PreTrainedTokenizerFast

from lxt.efficient import monkey_patch
from lxt.utils import clean_tokens, pdf_heatmap

name, class_name, path, dtype, checkpointing, heatmap = sys.argv[1:]

modeling = importlib.import_module(name)
monkey_patch(modeling, verbose=True)

model = getattr(modeling, class_name).from_pretrained(path, torch_dtype=getattr(torch, dtype))
if checkpointing == "yes":
    model.train()
    model.gradient_checkpointing_enable()
for parameter in model.parameters():
    parameter.requires_grad = False

tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
ids = tokenizer("the fox saw the other fox & the dog", return_tensors="pt").input_ids
x = model.get_input_embeddings()(ids)
logits = model(inputs_embeds=x.requires_grad_(), use_cache=False).logits
value, index = torch.max(logits[0, -1, :], dim=-1)
value.backward()
relevance = (x * x.grad).float().sum(-1).detach().cpu()[0]

pieces = clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]))
pdf_heatmap(pieces, relevance / relevance.abs().max(), path=heatmap, backend="xelatex")
