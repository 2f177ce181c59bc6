"""Heat maps of tokens as files, with the names and arguments of LXT 2.1."""

import difflib
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lxt import storage
from lxt.errors import InvalidInput, UnwritableFile
from lxt.tokens import readable_pieces

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.colors import Colormap

__all__ = ["clean_tokens", "pdf_heatmap"]

_SUFFIXES = (".pdf", ".png", ".svg")


def clean_tokens(words: Sequence[str]) -> list[str]:
    r"""Return the text of each piece that ``tokenizer.convert_ids_to_tokens`` gives.

    A word begins with a space: ``▁Paris`` and ``ĠParis`` become ``" Paris"``; with ``##`` marks,
    words that begin anew get one, except for the first piece. Bytes are decoded: ``Ċ`` and
    ``<0x0A>`` become a newline, ``Ã©`` an ``é``. A character spread over several pieces stands at
    the first, and the others are ``"◌"``; bytes that are no character are written ``\xE2``.

    Pieces without any of these marks are returned as they are, and so are special tokens such as
    ``<s>``. Unlike in LXT, nothing is escaped for LaTeX: ``pdf_heatmap`` does that where needed.

    Args:
        words: pieces of one sequence, in their order.

    Returns:
        A new list with one text for each piece.

    Raises:
        InvalidInput: it is not a list of strings; quotes what is not.

    """
    return readable_pieces(_list_of_strings(words))


def pdf_heatmap(
    words: Sequence[str],
    relevances: Any,
    cmap: "str | Colormap" = "bwr",
    path: str | os.PathLike[str] = "heatmap.pdf",
    delete_aux_files: bool = True,
    backend: str = "xelatex",
    *,
    legend: bool = False,
) -> None:
    """Write words as running text, each on a colour for its relevance.

    The page is 200 mm wide. LaTeX sets it if the program is installed, and matplotlib if not; if
    LaTeX fails, as it does for characters that its fonts lack, a warning says so and matplotlib
    sets it. See ``lxt.views.page.draw`` for what matplotlib makes of any text.

    Args:
        words: texts, that read one after the other are the text, as ``clean_tokens`` returns them.
        relevances: one number from -1 to 1 for each word: a list, array or tensor of shape
            ``[words]``, of any type and on any device.
        cmap: a colour map of matplotlib or its name; -1 has its first colour, 1 its last.
        path: the file; ``.pdf`` is added to a name without suffix. Folders that are missing are
            made. With ``.png`` or ``.svg`` matplotlib writes that instead.
        delete_aux_files: whether LaTeX's ``.tex`` and ``.log`` are not kept beside the file.
        backend: ``"xelatex"``, ``"pdflatex"``, ``"lualatex"``, or ``"matplotlib"`` for no LaTeX.
        legend: whether a scale of the colours is shown below the text; always by matplotlib.

    Raises:
        InvalidInput: words and relevances don't belong together, a relevance is beyond -1 or 1 or
            not finite, or there is no such colour map, backend or format; quotes what was given.
        UnwritableFile: quotes the path and the system's reason.

    """
    from lxt.views import latex, page

    words = _list_of_strings(words)
    colours = _colours(_relevances(relevances, len(words)), cmap)
    if backend not in ("matplotlib", *latex.PROGRAMS):
        known = ", ".join(map(repr, (*latex.PROGRAMS, "matplotlib")))
        raise InvalidInput(f"backend {backend!r} is none of {known}")
    file = _file(path)
    if backend != "matplotlib" and file.suffix.lower() == ".pdf" and not legend:
        source = latex.document(words, colours)
        if _compile_latex_to_pdf(source, file, delete_aux_files, backend):
            return
    scale = page.Legend(_scale(cmap), ("−1", "0", "1")) if legend else None
    kind = cast("page.Format", file.suffix.lower().removeprefix("."))
    _write(file, page.draw(words, colours, format=kind, legend=scale))


def _apply_colormap(relevance: Any, cmap: "str | Colormap") -> "np.ndarray":
    """Return red, green, blue and alpha, each from 0 to 1, of relevances from -1 to 1."""
    import numpy as np

    return _colormap(cmap)((np.asarray(relevance, dtype=np.float64) + 1) / 2)


def _generate_latex(words: Sequence[str], relevances: Any, cmap: "str | Colormap" = "bwr") -> str:
    """Return the LaTeX document of a heat map; no character of a word has a meaning to TeX."""
    from lxt.views import latex

    return latex.document(words, _colours(_relevances(relevances, len(words)), cmap))


def _compile_latex_to_pdf(
    latex_code: str,
    path: str | os.PathLike[str] = "word_colors.pdf",
    delete_aux_files: bool = True,
    backend: str = "xelatex",
) -> bool:
    """Write a document's PDF and return True; False if the program is missing or fails."""
    from lxt.views import latex

    program = shutil.which(backend)
    if program is None:
        return False
    run = latex.run(program, latex_code)
    file = Path(path)
    if not delete_aux_files:
        _write(file.with_suffix(".tex"), latex_code.encode())
        _write(file.with_suffix(".log"), run.log.encode())
    if run.pdf is None:
        warnings.warn(
            f"{backend} failed, and matplotlib sets the page instead; its log ends:\n"
            f"{run.end_of_log}",
            stacklevel=3,
        )
        return False
    _write(file, run.pdf)
    return True


def _list_of_strings(words: Sequence[str]) -> list[str]:
    if isinstance(words, str | bytes):
        raise InvalidInput(f"words are one text, {words[:40]!r}, where a list of texts is needed")
    try:
        listed = list(words)
    except TypeError as error:
        raise InvalidInput(f"words must be a list of texts, not {type(words).__name__}") from error
    for i, word in enumerate(listed):
        if not isinstance(word, str):
            raise InvalidInput(f"word {i} is {word!r:.80}, and not a text")
    return listed


def _relevances(relevances: Any, count: int) -> "np.ndarray":
    import numpy as np
    import torch

    if isinstance(relevances, np.ndarray | torch.Tensor) and relevances.ndim != 1:
        raise _no_vector(relevances.shape)
    if isinstance(relevances, torch.Tensor):
        relevances = relevances.detach().cpu().tolist()  # numpy lacks bfloat16
    try:
        listed = list(relevances)
    except TypeError as error:
        raise InvalidInput(
            "relevances must be a list, array or tensor of numbers, not "
            f"{type(relevances).__name__}"
        ) from error
    values = np.array([_number(i, value, len(listed)) for i, value in enumerate(listed)])
    if len(values) != count:
        raise InvalidInput(f"there are {len(values)} relevances for {count} words")
    outside = ~(np.abs(values) <= 1)  # NaN is outside, too
    if outside.any():
        i = int(outside.argmax())
        raise InvalidInput(
            f"relevance {i} is {values[i]:.6g}, and must be from -1 to 1: "
            "divide all by the largest absolute value"
        )
    return values


def _number(i: int, value: Any, count: int) -> float:
    import numpy as np

    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        raise _no_vector((count, len(value)))
    shape = getattr(value, "shape", ())
    if len(shape):
        raise _no_vector((count, *shape))
    try:
        if not isinstance(value, str | bytes | complex | np.complexfloating):
            return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise InvalidInput(f"relevance {i} is {value!r:.80}, and must be a real number")


def _no_vector(shape: Sequence[int]) -> InvalidInput:
    return InvalidInput(
        f"relevances have shape {list(shape)}, and must be one number for each word: [words]"
    )


def _colours(values: "np.ndarray", cmap: "str | Colormap") -> list[str]:
    rgba = _apply_colormap(values, cmap)
    on_white = rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])
    return ["#" + bytes(rgb).hex() for rgb in (on_white * 255).round().astype("uint8")]


def _scale(cmap: "str | Colormap") -> list[str]:
    import numpy as np

    return _colours(np.linspace(-1, 1, 101), cmap)


def _colormap(cmap: "str | Colormap") -> "Colormap":
    import matplotlib as mpl
    from matplotlib.colors import Colormap

    if isinstance(cmap, Colormap):
        return cmap
    names = list(mpl.colormaps)
    if cmap not in names:
        close = difflib.get_close_matches(str(cmap), names, n=3) or ["bwr", "RdBu_r", "coolwarm"]
        raise InvalidInput(
            f"matplotlib has no colour map {cmap!r}; it has {', '.join(map(repr, close))} and more"
        )
    return mpl.colormaps[cmap]


def _file(path: str | os.PathLike[str]) -> Path:
    try:
        given = os.fspath(path)
        file = Path(given)
    except TypeError as error:
        raise InvalidInput(f"path must be a text or a pathlib.Path, not {path!r:.80}") from error
    is_folder = given.endswith(("/", os.sep)) or os.path.isdir(given)  # noqa: PTH112 - never raises
    if is_folder or not file.name:
        raise UnwritableFile(
            f"can't write {given!r}: it names {'a folder' if is_folder else 'no file'}"
        )
    if not file.suffix:
        return file.with_name(file.name + ".pdf")
    if file.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(
            f"path {os.fspath(path)!r} ends with {file.suffix!r}, and must end with one of "
            f"{', '.join(_SUFFIXES)}"
        )
    return file


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnwritableFile(f"can't write {os.fspath(file)!r}: {reason}") from error
    storage.write(file, data)
