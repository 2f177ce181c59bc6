"""pyarrow, which only an atlas needs: imported when it is first asked for."""

from __future__ import annotations

from typing import Any

from lxt.errors import MissingPackage

__all__ = ["pyarrow_of"]


def pyarrow_of() -> Any:
    """The package, with `pyarrow.parquet`.

    Raises:
        MissingPackage: it can't be imported.

    """
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackage(
            f"pyarrow can't be imported ({error}): pip install lxt[atlas]"
        ) from error
    return pyarrow
