"""Take the pictures of ``explore.md`` in Chromium: ``python docs/screenshots.py [folder]`` writes them to ``docs/img``."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import crossent
from crossent.tools.explore.scenes import explore_page

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
COLOURS = 128  # of a picture, which keeps it small
WIDTHS, THEMES = (1280, 360), ("light", "dark")
STILL = ".controls, .modes { display: none !important; } .scene { margin: 0 !important; } SELECTOR { padding: 1rem; }"


def own_page() -> str:
    """Score the rows of docs/tools.md, which are made up."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 2 * np.eye(4)[labels]
    return crossent.score(logits, labels, class_names=["cat", "dog", "fox", "owl"], top=5).to_html()


def shots(browser: Any, folder: Path) -> dict[str, bytes]:
    """Take every picture."""
    taken = {}
    for name, text, selector, wide in (
        ("first-frame", explore_page(), "#push", WIDTHS),
        ("deaf-corner", explore_page(), "#corner", WIDTHS),
        ("explore-labels", explore_page(), "#labels", WIDTHS[:1]),
        ("explore-digits", explore_page(), "#digits", WIDTHS[:1]),
        ("your-data", own_page(), "main", WIDTHS),
    ):
        path = folder / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        for width in wide:
            for theme in THEMES:
                taken[f"{name}-{width}-{theme}.png"] = shot(browser, path, selector, width, theme)
    return taken


def shot(browser: Any, path: Path, selector: str, width: int, theme: str) -> bytes:
    """Take one picture of what stands still."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    page.goto(path.as_uri())
    place = "css => { const s = new CSSStyleSheet(); s.replaceSync(css); document.adoptedStyleSheets = [s]; }"
    page.evaluate(place, STILL.replace("SELECTOR", selector))
    picture: bytes = page.locator(selector).screenshot()
    page.close()
    return picture


def main(folder: Path) -> None:
    """Take the pictures and write them with few colours."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as pages:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for name, picture in shots(browser, Path(pages)).items():
            few = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(folder / name, optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "img")
