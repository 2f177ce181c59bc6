"""Loading a model and its tokenizer: by hub id, local folder, GGUF file, or the embedded default.

`transformers` takes seconds to import, so every function here imports it when it is called.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError

from lxt.errors import InvalidInput, InvalidModel, LxtError, ModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gguf import GGUFReader
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?")
_DTYPES = ("float64", "float32", "bfloat16", "float16")

_AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForMaskedLM",
}

# Byte-level vocabularies whose digits stand alone. `transformers` gives them GPT-2's split, which
# glues a digit to the white space before it, so that "\n\n1" and "=  9" become other tokens.
_DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})


class LoadedModel(NamedTuple):
    """A model in eval mode, its tokenizer, and the name to show for it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_model(
    name: str | None = None,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LoadedModel:
    """Load a model and its tokenizer.

    A name that exists on disk is always read from there. Only a name that doesn't, and that has
    the form of a hub id (`name` or `owner/name`), is looked up on the hub. Code that comes with a
    model is never run.

    Args:
        name: A hub id, a folder written by `save_pretrained`, a `.gguf` file (its weights are
            dequantised), or None for the embedded default, SmolLM2-135M-Instruct.
        device: Where the model goes, as `torch.device` spells it. None is CUDA where there is
            one, else the CPU.
        dtype: `"float64"`, `"float32"`, `"bfloat16"`, `"float16"`, or that `torch.dtype`. None is
            the checkpoint's own on an accelerator; on the CPU, where half precision saves no time
            and costs accuracy, at least float32. A GGUF file's quantised weights become float32.

    Returns:
        The model in eval mode, the tokenizer, and the name.

    Raises:
        ModelUnavailable: Nothing of that name can be found, fetched or read, or the device is not
            to be had here.
        InvalidInput: The device or dtype is none that there is.
        InvalidModel: What was found is no language model or classifier that `transformers` knows.

    """
    place, precision = _parse_device(device), _parse_dtype(dtype)
    if name is None:
        from lxt import default_model  # which in turn uses this module

        with _explained(default_model.NAME):
            folder = default_model.model_folder()
        return _load_pretrained(str(folder), default_model.NAME, place, precision)

    path = _existing_path(name)
    if path is None:
        if not _HUB_ID.fullmatch(name) or name.lower().endswith(".gguf"):
            raise ModelUnavailable(
                f"there is no file or folder {name!r}. Give the path of a model folder or .gguf "
                "file that exists, or a hub id such as 'openai-community/gpt2'"
            )
        return _load_pretrained(name, name, place, precision)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidModel(
                f"the folder {name!r} is no model: it has no config.json. Give a folder that "
                "`save_pretrained` wrote"
            )
        return _load_pretrained(str(path), name, place, precision)
    if path.suffix.lower() == ".gguf":
        with _explained(name):
            model, tokenizer = load_gguf(path, precision or torch.float32)
            return _finish(model, tokenizer, name, place)
    raise InvalidModel(f"{name!r} is neither a model folder nor a .gguf file")


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file into an ordinary model: dense parameters, nothing left quantised.

    Args:
        path: The file.
        dtype: The dtype of the parameters.

    Raises:
        InvalidModel: The file is damaged, or none at all.
        Exception: Whatever `transformers` raises for an architecture it can't read.

    """
    import transformers
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except Exception as error:  # it trusts the file: a damaged one fails anywhere
        raise InvalidModel(f"{path.name!r} is no whole GGUF file: {_first_line(error)}") from error

    folder, options = str(path.parent), {"gguf_file": path.name}
    # Releases without this class have no packed weights to turn off.
    quantization = getattr(transformers, "GgufConfig", None)
    packing = {"quantization_config": quantization(dequantize=True)} if quantization else {}
    # The bar that the dequantisation draws has no switch.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        auto_class = getattr(transformers, _auto_class(config))
        model = auto_class.from_pretrained(folder, config=config, dtype=dtype, **options, **packing)
        if _gguf_value(reader, "tokenizer.ggml.pre") in _DIGIT_SPLITTERS:
            tokenizer = _digit_splitting_tokenizer(reader)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return model, tokenizer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the warnings and bars of `transformers`, except those of a download from the hub."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hub_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not hub_bars:
            disable_progress_bars()


def _parse_device(device: str | None) -> torch.device:
    """The device that a string names, once something could be put there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f"{device!r} is no device: {_first_line(error)}") from error
    try:
        torch.empty(1, device=place).cpu()
    # Every backend has its own way to say no: a build without CUDA fails an assertion.
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise ModelUnavailable(
            f"device {device!r} can't be used here: {_first_line(error)}. "
            f"Devices: 'cpu'{', ' + repr('cuda') if torch.cuda.is_available() else ''}"
        ) from error
    return place


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of that name, if it is one that relevance can be computed in."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InvalidInput(f"dtype {str(dtype)!r} is none of {', '.join(_DTYPES)}")
    return getattr(torch, name)


def _existing_path(name: str) -> Path | None:
    """The path of that name if there is one; any string will do."""
    if not name:  # which is the current folder to pathlib
        return None
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, no home for "~x"
        return None


def _load_pretrained(
    source: str, name: str, place: torch.device, dtype: torch.dtype | None
) -> LoadedModel:
    """Load a local folder or hub id, and refuse one that would be completed by random weights."""
    with _explained(name):
        import transformers

        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            auto_class = _auto_class(config)
            model, info = getattr(transformers, auto_class).from_pretrained(
                source,
                config=config,
                dtype=dtype or _default_dtype(config, place),
                output_loading_info=True,
                trust_remote_code=False,
            )
            if missing := sorted(info["missing_keys"]):
                raise InvalidModel(
                    f"{name!r} ({', '.join(config.architectures or ['no architecture named'])}) "
                    f"has no weights for {missing[0]!r} and {len(missing) - 1} more, which "
                    f"{auto_class} needs. Give a causal or masked language model, or a sequence "
                    "classifier"
                )
            tokenizer = _load_tokenizer(source, name)
        return _finish(model, tokenizer, name, place)


def _load_tokenizer(source: str, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer; `transformers` makes up an empty one where there are no files."""
    import transformers

    advice = "Save one there with `tokenizer.save_pretrained`"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (ValueError, TypeError) as error:
        raise InvalidModel(
            f"{name!r} has no tokenizer that can be read: {_first_line(error)}. {advice}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InvalidModel(f"{name!r} has no tokenizer. {advice}")
    return tokenizer


def _finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    place: torch.device,
) -> LoadedModel:
    """Put the model in its place and in eval mode, under the name it was asked for by."""
    model.config.name_or_path = tokenizer.name_or_path = name
    model.to(place)  # pyright: ignore[reportArgumentType]
    return LoadedModel(model.eval(), tokenizer, name)


def _auto_class(config: PreTrainedConfig) -> str:
    """The `transformers` class that loads the architecture named in the config."""
    for architecture in config.architectures or ():
        for ending, auto_class in _AUTO_CLASSES.items():
            if architecture.endswith(ending):
                return auto_class
    return "AutoModelForCausalLM"


def _default_dtype(config: PreTrainedConfig, place: torch.device) -> torch.dtype | str:
    """The checkpoint's own dtype, but never half precision on a CPU."""
    if place.type != "cpu":
        return "auto"
    return torch.float64 if config.dtype == torch.float64 else torch.float32


def _digit_splitting_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerBase:
    """Build the byte-level BPE tokenizer of a GGUF file, each digit a word of its own."""
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = _gguf_value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in _gguf_value(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, _gguf_value(reader, "tokenizer.ggml.token_type"), strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            control = kind == TokenType.CONTROL
            backend.add_tokens([AddedToken(token, normalized=False, special=control)])

    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {
        role: _gguf_value(reader, f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_gguf_value(reader, "tokenizer.chat_template"),
        add_bos_token=bool(_gguf_value(reader, "tokenizer.ggml.add_bos_token")),
        **{f"{role}_token": None if i is None else tokens[i] for role, i in ids.items()},
    )


def _gguf_value(reader: GGUFReader, key: str) -> Any:
    """The value of a GGUF file's metadata under a key, or None."""
    field = reader.get_field(key)
    return field.contents() if field else None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the packages below raise into one line about the model called `name`."""
    try:
        yield
    except LxtError:
        raise
    except (OSError, ImportError, SafetensorError, MemoryError, torch.OutOfMemoryError) as error:
        reason = _hub_reason(error) or _package_reason(error) or _first_line(error)
        raise ModelUnavailable(f"{name!r} can't be loaded: {reason}") from error
    # Anything can come out of a file that someone else wrote: KeyError, TypeError, IndexError.
    except Exception as error:
        raise InvalidModel(f"{name!r} is no model to load: {_first_line(error)}") from error


def _hub_reason(error: BaseException | None) -> str | None:
    """Why the hub did not give a model, if that is what went wrong."""
    from huggingface_hub import errors

    reasons = {
        errors.GatedRepoError: "access to it has to be asked for on its page on the hub, and then "
        "`hf auth login` run here",
        errors.RepositoryNotFoundError: "neither the hub nor this folder has a model of that name "
        "(for a private one, run `hf auth login`)",
        errors.LocalEntryNotFoundError: "there is no such folder, the hub can't be reached, and "
        "its cache has no copy. Give the path of a model folder or .gguf file, or go online once",
    }
    while error is not None:
        for kind, reason in reasons.items():
            if isinstance(error, kind):
                return reason
        error = error.__cause__ or error.__context__
    return None


def _package_reason(error: BaseException) -> str | None:
    """Why a package can't be imported: what went wrong first, not what came of it."""
    if not isinstance(error, ImportError):
        return None
    first: BaseException = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    reason = _first_line(first)
    if "torchvision::" in reason:
        reason += " (the installed torchvision is for another build of torch)"
    return reason


def _first_line(error: BaseException) -> str:
    """What an exception says, without the paragraphs that follow."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".!: ") if lines else type(error).__name__
