"""How much an explanation changes when the model is quantised.

Weights: SmolLM2-135M-Instruct, a Llama that `lxt.load_model` fetches once (90 MB); in full
precision, with 8-bit weights (torchao) and with 4-bit weights (bitsandbytes).
Prints for each the prediction, the word that spoke most for it, and how alike the relevances are.

    pip install torchao bitsandbytes
    python examples/quantized_llama.py
"""

import tempfile

import torch
from _common import PROMPT, arguments
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.models.llama import modeling_llama

import lxt
from lxt.efficient import monkey_patch
from lxt.utils import clean_tokens

QUANTISED = {
    "8 bit": TorchAoConfig(Int8WeightOnlyConfig()),
    # Small models lose much in 4 bits; half precision between the layers would lose more.
    "4 bit": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
}


def explain(model: modeling_llama.LlamaForCausalLM, ids: Tensor) -> tuple[Tensor, int]:
    """The relevance of each word for the prediction, and the prediction."""
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    logit, prediction = model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].max(-1)
    logit.backward()
    return (embeddings * embeddings.grad).float().sum(-1)[0].detach(), int(prediction)


def main() -> None:
    arguments(__doc__).parse_args()
    model, tokenizer, _ = lxt.load_model(device="cpu")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    words = clean_tokens(tokenizer.convert_ids_to_tokens(ids[0]))

    with tempfile.TemporaryDirectory() as folder, monkey_patch(modeling_llama):
        model.save_pretrained(folder)  # transformers quantises as it loads
        full, prediction = explain(model, ids)
        print(f"full   predicts {tokenizer.decode(prediction)!r}, most for it "
              f"{words[full.argmax()]!r} (token {int(full.argmax())})")  # fmt: skip
        for name, quantisation in QUANTISED.items():
            model = modeling_llama.LlamaForCausalLM.from_pretrained(
                folder, quantization_config=quantisation, dtype=torch.float32, device_map="cpu"
            )
            relevance, prediction = explain(model, ids)
            similarity = torch.cosine_similarity(relevance, full, dim=0)
            print(f"{name}  predicts {tokenizer.decode(prediction)!r}, most for it "
                  f"{words[relevance.argmax()]!r} (token {int(relevance.argmax())}), "
                  f"cosine to full precision {similarity:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
