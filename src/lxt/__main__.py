"""`python -m lxt` is `lxt`."""

from lxt.cli import app

app(prog_name="lxt")
