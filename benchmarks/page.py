"""How long a page of many tokens takes until it can be used, and how large its file is.

A headless Chromium opens the file from disk. A page counts as interactive once a token was clicked
and its relevance is read; that is the time from the start of the navigation, over several openings.

    python benchmarks/page.py
    python benchmarks/page.py --tokens 1000 10000 --targets 1000
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lxt.explained import ExplainedTarget
from lxt.explanation import Explanation

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def explanation(tokens: int, targets: int | None) -> Explanation:
    """Made-up relevance of heavy tails, of words and line ends."""
    generator = torch.Generator().manual_seed(0)
    shape = (tokens,) if targets is None else (targets, tokens)
    each = [
        ExplainedTarget("logit", f'" word{i}"', 1.0, min(i, tokens - 1), '" word"')
        for i in range(targets or 1)
    ]
    return Explanation(
        relevance=torch.randn(shape, generator=generator) ** 3,
        tokens=[f" word{i % 97}" if i % 23 else ".\n" for i in range(tokens)],
        token_ids=torch.arange(tokens),
        mask=torch.ones(tokens, dtype=torch.bool),
        target=each[0] if targets is None else each,
        provenance={"model": "none", "composite": "none"},
    )


def opened(browser: Any, file: Path) -> tuple[float, float]:
    """Milliseconds until a token was read, and those of a step of the slider."""
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    page.goto(file.as_uri())
    page.locator('[data-role="tokens"] span').nth(3).click()
    read = page.evaluate(
        """() => new Promise(done => requestAnimationFrame(() => done(
        document.querySelector('[data-role="reading"]').hidden ? NaN : performance.now())))"""
    )
    slid = page.evaluate(
        """() => { const slider = document.querySelector('[data-role="full"]');
        const start = performance.now(); slider.value = 90;
        slider.dispatchEvent(new Event("input")); document.body.offsetHeight;
        return performance.now() - start; }"""
    )
    page.close()
    return read, slid


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--targets", type=int, nargs="*", default=[1000], help="of as many tokens")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    works = [(n, None) for n in options.tokens] + [(n, n) for n in options.targets]
    print("| tokens | targets | MB | written in s | interactive after ms | slider ms |")
    print("| --: | --: | --: | --: | --: | --: |")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        for tokens, targets in works:
            made, file = explanation(tokens, targets), Path(folder, "page.html")
            start = time.perf_counter()
            made.to_html(file)
            written = time.perf_counter() - start
            times = [opened(browser, file) for _ in range(options.repeats)]
            read, slid = (statistics.median(column) for column in zip(*times, strict=True))
            size = file.stat().st_size / 1e6
            count = f"| {tokens:,} | {targets or 1:,} | {size:.2f} | {written:.2f} "
            print(f"{count}| {read:.0f} | {slid:.0f} |")
        browser.close()


if __name__ == "__main__":
    main()
