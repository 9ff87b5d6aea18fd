"""TensorBoard as a person sees it: the real server on a real run, in a real browser."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Error, Locator, Page, sync_playwright

from destruct.launching.surroundings import free_port
from destruct.loop import train
from destruct.summarizing import summarize
from destruct.tracking.board_protos import CHARTS
from destruct.tracking.sinks import Sample
from tests.tiny import tiny_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
NASTY = "<script>window.broken = true</script><img src=x onerror='window.broken = true'> `a` | b\n\n# no heading"
PATIENCE_S = 60.0


@contextmanager
def served(folder: str) -> Iterator[str]:
    """The address of a TensorBoard of the folder."""
    port = free_port()
    place = ["--logdir", folder, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    """A browser on the board of a run of six updates, one sample of which does its worst; `page.faults` are told."""
    folder = tmp_path_factory.mktemp("browser")
    with tiny_run(folder) as run:
        train(run)
        run.sinks.samples(5, [Sample("prose", "a", NASTY, "", False, reward=0.5, kl=0.25, terms={"eos": 1.0})])
        run.sinks.finish(run.state.update, summarize(run).finals)
    faults: list[str] = []
    with served(str(folder)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1500, "height": 3000})
        shown.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        shown.on("pageerror", lambda error: faults.append(str(error)))
        come_up(shown, address)
        shown.faults = faults
        yield shown
        browser.close()


def come_up(page: Page, address: str) -> None:
    """Wait for the server, and until it has read the run."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            page.goto(address)
            if page.evaluate("async () => (await (await fetch('data/runs')).json()).length") >= 2:
                return
        except Error:
            pass
        assert time.monotonic() < until, "the server did not come up"
        time.sleep(0.5)


def tab(page: Page, name: str) -> None:
    """Open one of them anew: a page that is still coming up would go to its first tab instead."""
    address = page.url.partition("#")[0]
    page.goto("about:blank")
    page.faults.clear()
    page.goto(f"{address}#{name}")


def test_every_chart_of_several_curves_is_drawn(page):
    """Each category has its charts; a curve is there twice, as it is and smoothed."""
    tab(page, "custom_scalars")
    titles = [title for charts in CHARTS.values() for title in charts] + ["difficulty of", "progress of"]
    cards = page.locator("tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card")
    for title in titles:
        card = cards.filter(has_text=title)
        card.wait_for(timeout=PATIENCE_S * 1000)
        until = time.monotonic() + PATIENCE_S
        while curves(card) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        assert curves(card) >= 2, title
    assert cards.count() == len(titles)
    for category in CHARTS:
        assert page.get_by_text(category, exact=True).count() >= 1
    assert page.faults == []


def curves(card: Locator) -> int:
    """Lines of a chart that go all the way; the marks on them and the lines of the grid do not."""
    wide = "paths => paths.filter(path => path.getBBox().width > 100 && path.getBBox().height > 0).length"
    return card.locator("path").evaluate_all(wide)


def test_a_text_of_the_model_is_a_text(page):
    tab(page, "text")
    page.get_by_text("samples/prose").first.wait_for(timeout=PATIENCE_S * 1000)
    shown = page.locator("tf-text-dashboard pre", has_text="window.broken").first
    shown.wait_for(timeout=PATIENCE_S * 1000)
    assert shown.inner_text().strip() == NASTY
    assert page.evaluate("window.broken") is None and page.locator("tf-text-dashboard img").count() == 0
    assert page.faults == []


def test_ratios_and_advantages_are_drawn(page):
    tab(page, "histograms")
    page.get_by_text("ppo/ratio").first.wait_for(timeout=PATIENCE_S * 1000)
    charts = page.locator("vz-histogram-timeseries")
    for chart in (charts.nth(0), charts.nth(1)):
        chart.locator("path").nth(5).wait_for(state="attached", timeout=PATIENCE_S * 1000)
    assert charts.count() == 2
    assert page.faults == []


def test_the_run_is_one_line_among_the_runs_with_its_outcome(page):
    """And with the five figures of it that the tab shows by itself."""
    tab(page, "hparams")
    page.get_by_text("tiny/logs", exact=True).first.wait_for(timeout=PATIENCE_S * 1000)
    for name in ("best_validation_loss", "kl_from_initial", "kl_max", "reward", "validation_loss"):
        heading = page.locator(".table-header").get_by_text(f"at_the_end/{name}", exact=True)
        heading.wait_for(state="attached", timeout=PATIENCE_S * 1000)  # of exactly one
    assert page.get_by_text("tiny/logs/warmup").count() == 0
    assert page.faults == []
