"""Loading a model: folders, hub ids, hostile names, GGUF files."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

from lxt import default_model
from lxt.errors import InvalidInput, InvalidModel, ModelUnavailable
from lxt.models import load_model, quiet_transformers

SRC = Path(default_model.__file__).parents[1]
WORDS = ["[UNK]", "the", "capital", "of", "France", "is", "Paris"]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "vocab_size": len(WORDS)}


def tiny_tokenizer():
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def save_tiny(folder, kind="LlamaForCausalLM", dtype=torch.float32, tokenizer=True):
    """A random model of the class `kind`, saved; returns it."""
    config_class = transformers.LlamaConfig if "Llama" in kind else transformers.BertConfig
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config_class(**TINY, **HEADS)).to(dtype).eval()
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return model


def write_gguf(path, pre="smollm", bos=False):
    """A one-layer llama with random Q8_0 matrices and a byte-level tokenizer."""
    generator = np.random.default_rng(0)
    tokens = [*sorted(bytes_to_unicode().values()), "ĊĊ", "<|end|>"]
    metadata = {
        "name": "Tiny",
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 64,
        "head_count": 2,
        "head_count_kv": 1,
        "layer_norm_rms_eps": 1e-5,
        "rope_freq_base": 10000.0,
        "vocab_size": len(tokens),
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": tokens,
        "token_types": [1] * (len(tokens) - 1) + [3],
        "token_merges": ["Ċ Ċ"],
        "eos_token_id": len(tokens) - 1,
        "bos_token_id": len(tokens) - 1,
        "add_bos_token": bos,
        "chat_template": "{{ messages[0]['content'] }}",
    }
    matrices = {
        "token_embd": (len(tokens), 32),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    for name, shape in matrices.items():
        weight = generator.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


def run_python(code, environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(SRC)} | environment,
        capture_output=True,
        text=True,
    )


def logits(loaded, text="the capital"):
    with torch.no_grad():
        return loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits


# Folders and hub ids


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("LlamaForCausalLM", (1, 2, 7)),
        ("BertForMaskedLM", (1, 2, 7)),
        ("BertForPreTraining", (1, 2, 7)),
        ("BertForSequenceClassification", (1, 2)),
    ],
)
def test_a_folder_gives_the_class_that_its_config_names(tmp_path, capfd, kind, shape):
    saved = save_tiny(tmp_path, kind)
    capfd.readouterr()
    loaded = load_model(str(tmp_path), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert type(loaded.model).__name__ == kind.replace("PreTraining", "MaskedLM")
    assert not loaded.model.training
    assert loaded.name == loaded.model.config.name_or_path == str(tmp_path)
    assert logits(loaded).shape == shape
    before, after = saved.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in after)


@pytest.mark.parametrize("kind", ["BertModel", "BertForTokenClassification", "LlamaModel"])
def test_a_head_that_would_be_random_is_refused(tmp_path, kind):
    save_tiny(tmp_path, kind)
    with pytest.raises(InvalidModel, match=rf"{kind}\) has no weights for '.*needs"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "BertForMaskedLM"])
def test_a_folder_without_tokenizer_is_refused(tmp_path, kind):
    save_tiny(tmp_path, kind, tokenizer=False)
    with pytest.raises(InvalidModel, match=r"has no tokenizer.*tokenizer\.save_pretrained"):
        load_model(str(tmp_path))


def test_dtype_on_the_cpu_is_single_precision_at_least(tmp_path):
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        save_tiny(tmp_path, dtype=dtype)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert load_model(str(tmp_path), device="cpu").model.dtype == expected
    assert load_model(str(tmp_path), dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_model(str(tmp_path), dtype=torch.float16).model.dtype == torch.float16


@pytest.mark.parametrize("dtype", ["fp33", "int64", torch.int8, "float8_e4m3fn", "", "nn"])
def test_a_bad_dtype_is_quoted(dtype):
    with pytest.raises(InvalidInput, match=rf"dtype '{dtype}' is none of float64, float32"):
        load_model("unused", dtype=dtype)


@pytest.mark.parametrize("device", ["nonsense", "cpu:x", ""])
def test_a_bad_device_is_quoted(device):
    with pytest.raises(InvalidInput, match=rf"'{device}' is no device"):
        load_model("unused", device=device)


@pytest.mark.parametrize("device", ["meta", "cuda:99"])
def test_a_device_that_is_not_there_is_quoted(device):
    with pytest.raises(ModelUnavailable, match=rf"device '{device}' can't be used here.*'cpu'"):
        load_model("unused", device=device)


@pytest.fixture
def no_hub(monkeypatch):
    """Fails a test that asks the hub."""

    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", asked)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)


NOT_HUB_IDS = """
./none /no/such ~/no/such ~no-such-user/x ../x a/b/c none.gguf a/none.GGUF .hidden dé
https://example.org/gpt2
"""


@pytest.mark.parametrize("name", [*NOT_HUB_IDS.split(), "", " ", "a\0b", "a\nb", "a/" * 3000])
def test_a_name_that_is_no_hub_id_never_reaches_the_hub(no_hub, name):
    with pytest.raises(ModelUnavailable) as error:
        load_model(name)
    assert repr(name) in str(error.value)
    assert "'openai-community/gpt2'" in str(error.value)


def test_what_exists_but_is_no_model_never_reaches_the_hub(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    with pytest.raises(InvalidModel, match=r"folder 'gpt2' is no model: it has no config\.json"):
        load_model("gpt2")
    Path("weights.bin").touch()
    with pytest.raises(InvalidModel, match=r"'weights\.bin' is neither a model folder nor"):
        load_model("weights.bin")


def test_a_local_folder_is_preferred_to_a_hub_id(tmp_path, monkeypatch):
    save_tiny(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_model("gpt2").model.config.model_type == "llama"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json' is not a valid JSON file"),
        ("[]", "Should have a `model_type` key"),
        ('{"model_type": "none-such"}', "model type `none-such`"),
        ('{"model_type": "t5"}', "Unrecognized configuration class"),
        ('{"model_type": "llama", "hidden_size": "x"}', "hidden_size"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path, config, message):
    save_tiny(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((InvalidModel, ModelUnavailable)) as error:
        load_model(str(tmp_path))
    assert repr(str(tmp_path)) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_missing_weights_are_unavailable(tmp_path):
    save_tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    os.truncate(weights, 1000)
    with pytest.raises(ModelUnavailable, match=r"can't be loaded: .*deserializ"):
        load_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(ModelUnavailable, match=r"no file named model\.safetensors"):
        load_model(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InvalidModel, match="contains custom code"):
        load_model(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match=r"'lxt/none' can't be loaded: .*can't be reached"):
        load_model("lxt/none")


class EmptyHub(BaseHTTPRequestHandler):
    """A hub that has no model but one, which it does not show."""

    def do_HEAD(self):
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *args):
        pass


def test_what_the_hub_does_not_have_or_show():
    code = """
        from lxt.models import ModelUnavailable, load_model
        for name in ("lxt/none", "lxt/gated"):
            try:
                load_model(name)
            except ModelUnavailable as error:
                print(error)
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
        ran = run_python(code, hub)
        server.shutdown()
    none, gated = ran.stdout.splitlines()
    assert "'lxt/none' can't be loaded: neither the hub nor this folder has" in none
    assert "'lxt/gated' can't be loaded: access to it has to be asked for" in gated
    assert ran.stderr == ""


def test_settings_of_transformers_are_as_before(tmp_path):
    save_tiny(tmp_path)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    weights = tmp_path / "model.safetensors"
    try:
        for level, shown in [(logging.INFO, True), (logging.WARNING, False)]:
            logging.set_verbosity(level)
            (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
            load_model(str(tmp_path))
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, shown)
        os.truncate(weights, 100)
        with pytest.raises(ModelUnavailable):
            load_model(str(tmp_path))
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, shown)
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def test_the_bars_of_a_download_from_the_hub_stay_as_chosen():
    was = are_progress_bars_disabled()
    try:
        for disabled in (False, True):
            (disable_progress_bars if disabled else enable_progress_bars)()
            with quiet_transformers():
                assert are_progress_bars_disabled() is disabled
                assert not logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled() is disabled
    finally:
        (disable_progress_bars if was else enable_progress_bars)()


def test_importing_is_cheap():
    code = "import sys, lxt.models; print({'transformers', 'rich'} & set(sys.modules))"
    assert run_python(code, {}).stdout.strip() == "set()"


# GGUF files


def test_gguf_weights_come_out_as_ordinary_parameters(tiny_gguf, tmp_path, capfd):
    loaded = load_model(str(tiny_gguf), device="cpu")
    assert capfd.readouterr() == ("", "")
    model = loaded.model
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    assert type(down) is torch.nn.Linear
    tensor = next(t for t in gguf.GGUFReader(tiny_gguf).tensors if "ffn_down" in t.name)
    stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert torch.equal(down.weight, torch.from_numpy(stored))

    model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path))), logits(loaded))
    assert load_model(str(tiny_gguf), dtype="float64").model.dtype == torch.float64


@pytest.mark.parametrize(
    ("pre", "bos", "tokens"),
    [
        ("smollm", False, ["a", "ĊĊ", "1"]),
        ("smollm", True, ["<|end|>", "a", "ĊĊ", "1"]),
        ("gpt-2", False, ["a", "Ċ", "Ċ", "1"]),
    ],
)
def test_gguf_tokens_are_split_as_the_file_says(tmp_path, pre, bos, tokens):
    write_gguf(tmp_path / "x.gguf", pre, bos)
    tokenizer = load_model(str(tmp_path / "x.gguf")).tokenizer
    tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, saved):
        assert each.convert_ids_to_tokens(each("a\n\n1")["input_ids"]) == tokens
        assert each.eos_token == "<|end|>"
        assert each.decode(each("é 你<|end|>")["input_ids"], skip_special_tokens=True) == "é 你"


@pytest.mark.parametrize("content", ["", "nonsense", "truncated"])
def test_a_damaged_gguf_is_refused(tiny_gguf, tmp_path, content):
    path = tmp_path / "damaged.gguf"
    whole = tiny_gguf.read_bytes()
    path.write_bytes(whole[:-1000] if content == "truncated" else content.encode() * 99)
    with pytest.raises(InvalidModel, match=r"'damaged\.gguf' is no whole GGUF file: "):
        load_model(str(path))


def test_a_package_that_does_not_fit_is_named_by_what_went_wrong_first(monkeypatch) -> None:
    def broken(*_args, **_kwargs):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as cause:
            raise ImportError("Could not import module 'LlamaConfig'") from cause

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", broken)
    with pytest.raises(ModelUnavailable, match="torchvision::nms does not exist .the installed"):
        load_model("somewhere/model")
