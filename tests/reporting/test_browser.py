"""The page in a real browser: Chromium without a display, without scripts and without a network."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from destruct.reporting.page import render, write
from destruct.reporting.recorded import read
from tests.reported import SAMPLES, lines, made, round_of, sample

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (test extra)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (apt-get install chromium)"),
]
PHONE, DESK = 400, 1280

SVGS = """() => [...document.querySelectorAll('svg.canvas')].map(svg => {
    const place = element => {
        const box = element.getBoundingClientRect();
        return [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY];
    };
    const shown = text => getComputedStyle(text).display != 'none';
    return {
        name: svg.querySelector('title').textContent,
        box: place(svg),
        words: [...svg.querySelectorAll('text')].filter(shown).map(text => place(text)),
    };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        # Root needs --no-sandbox; /dev/shm is small in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    texts = [*SAMPLES, sample(7, "noise", 2.0, "a-word-without-a-space-" * 60)]
    runs = {
        "one run": [made(folder, "one", lines(40), texts)],
        "one update": [made(folder, "young", lines(1))],
        "long run": [made(folder, "long", lines(900, every=30), texts)],
        "one round": [made(folder, "begun", [round_of(0, 0, {"arithmetic": 0.5, "noise": 0.5})])],
        "nothing yet": [made(folder, "empty", [])],
    }
    runs["compared"] = [runs["one run"][0], made(folder, "two", lines(30), SAMPLES, ("kl.coef=0.25",))]
    paths = {}
    for name, folders in runs.items():
        paths[name] = folder / f"{name}.html"
        write(render([read(run) for run in folders]), paths[name])
    return paths


def opened(browser, path: Path, width: int, **how):
    """The page, and what the browser complained of or asked for."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, java_script_enabled=False, **how
    )
    page, told = context.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url))
    page.goto(path.as_uri())
    assert told == [path.as_uri()]  # nothing but the page itself
    return page


LEAST = {"one run": 18, "one update": 18, "long run": 18, "one round": 3, "nothing yet": 0, "compared": 9}
"""Page -> charts that it has at least."""


@pytest.mark.parametrize(("name", "width"), [*((name, PHONE) for name in LEAST), ("one run", DESK), ("compared", DESK)])
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_screen(browser, pages, name, width):
    page = opened(browser, pages[name], width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.evaluate(SVGS)
    assert len(charts) >= LEAST[name]
    drawn = picture(page)
    page.evaluate("document.querySelectorAll('.plane').forEach(plane => plane.remove())")
    changed = np.any(drawn != picture(page), axis=2)
    for chart in charts:
        left, top, right, bottom = map(int, chart["box"])
        assert right - left > 0.35 * PHONE, chart
        assert changed[top - 4 : bottom + 4, left - 4 : right + 4].sum() > 15, f"{chart['name']} is empty"
        assert all(word[0] >= 0 and word[2] <= width for word in chart["words"]), chart
    page.context.close()


def picture(page) -> np.ndarray:
    """The whole page, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")).astype(int)


def test_the_tables_open_without_a_script(browser, pages):
    page = opened(browser, pages["one run"], DESK)
    figures = page.locator("#g1-1 details")
    table = figures.locator("table")
    assert not table.is_visible()
    figures.locator("summary").click()
    assert table.is_visible() and table.locator("tr").count() == 41
    page.context.close()


def test_dark_light_and_print_have_their_colours(browser, pages):
    seen = {}
    for scheme in ("light", "dark"):
        page = opened(browser, pages["one run"], DESK, color_scheme=scheme)
        seen[scheme] = [
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.evaluate("getComputedStyle(document.querySelector('.line')).stroke"),
        ]
        page.context.close()
    assert seen["light"][0] == "rgb(255, 255, 255)" and seen["dark"][0] == "rgb(20, 23, 27)"
    assert seen["light"][1] != seen["dark"][1]


def test_the_page_prints(browser, pages):
    page = opened(browser, pages["one run"], DESK)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()
