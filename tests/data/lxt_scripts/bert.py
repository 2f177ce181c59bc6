"""A BERT classifier."""

import sys

import torch
import transformers.models.bert.modeling_bert as modeling_bert

from lxt.efficient import monkey_patch

monkey_patch(modeling_bert, verbose=True)
model = modeling_bert.BertForSequenceClassification.from_pretrained(sys.argv[1])
for parameter in model.parameters():
    parameter.requires_grad = False
ids = torch.tensor([[1, 5, 9, 3, 17, 2]])
x = model.bert.get_input_embeddings()(ids)
logits = model(inputs_embeds=x.requires_grad_(True)).logits
value, index = torch.max(logits, dim=-1)
label = model.config.id2label[index.item()]
value.backward()
relevance = (x * x.grad).float().sum(-1).detach()[0]
