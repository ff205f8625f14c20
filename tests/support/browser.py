"""Pages in a real browser without a window: Chromium, through Playwright. Tests skip without it."""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")

OVERFLOW = """width => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > width + 1 && !e.closest(".scroll, pre"))
  .map((e) => e.outerHTML.slice(0, 100))"""

# Contrast of each text with what is behind it (WCAG 2, 1.4.3), where it is below 4.5.
PALE = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = pixel(getComputedStyle(e).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("script, style, title, desc")) continue;
    const style = getComputedStyle(element);
    const a = light(pixel(element.closest("svg") ? style.fill : style.color).slice(0, 3));
    const b = light(behind(element).slice(0, 3));
    if (Math.max(a, b) / Math.min(a, b) < 4.5) found.push(texts.currentNode.data.slice(0, 40));
  }
  return found;
}"""


@contextmanager
def chromium():
    """The browser. $MINQKV_BROWSER names another program than the one on the path. Where it is set,
    tests do not skip: a browser that does not start is an error.
    """
    own = os.environ.get("MINQKV_BROWSER")
    if not own:
        pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    import playwright.sync_api as api

    path = own or next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path)
        except api.Error as error:
            if own:
                raise
            pytest.skip(f"Chromium does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@contextmanager
def visit(browser, file, width=1000, scheme="light", scripts=True):
    """A page opened from this file. At the end, whatever the browser complained about, and whatever
    the page asked the network for, fails the test.
    """
    options = {"color_scheme": scheme, "java_script_enabled": scripts}
    page, complaints = browser.new_page(viewport={"width": width, "height": 900}, **options), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not
            request.url.startswith("file:") else None)  # fmt: skip
    page.goto(file.as_uri())
    yield page
    page.close()
    assert complaints == []


def unfold(page):
    """Open every fold-out."""
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")


def overflow(page):
    """Whatever reaches over the right edge of the window, outside boxes that scroll."""
    width = page.viewport_size["width"]
    wide = page.evaluate("document.documentElement.scrollWidth")
    return page.evaluate(OVERFLOW, width) if wide <= width else [f"{wide} pixels on {width}"]


def pale(page):
    """Texts that are hard to read on what is behind them."""
    return page.evaluate(PALE)
