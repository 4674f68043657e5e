"""The built site as a reader meets it: in a real browser, from files, without a network, at the width of a phone and of a desk."""

import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api")

SITE = Path(__file__).resolve().parents[2] / "build/site"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("google-chrome", "chromium", "chromium-browser"))), None)
WIDTHS = 390, 1440
PAGES = sorted(
    str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.relative_to(SITE).parts[0] not in ("_modules", "_static")
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no browser: apt-get install chromium, or name one by CHROMIUM"),
    pytest.mark.skipif(not PAGES, reason="no pages: make site"),
]
FAULTS = r"""async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const found = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`${root.scrollWidth} px wide`);
  const scrolls = (one) => one && (/auto|scroll/.test(getComputedStyle(one).overflowX) || scrolls(one.parentElement));
  for (const one of document.querySelectorAll("main *, body > *"))
    if (one.getBoundingClientRect().right > innerWidth + 1 && one.checkVisibility() && !scrolls(one.parentElement)) found.push(`cut off: ${one.textContent.slice(0, 60)}`);
  for (const image of document.images) {
    await image.decode().catch(() => {});
    if (!image.naturalWidth) found.push(`no image: ${image.src}`);
  }
  for (const one of document.querySelectorAll(".math")) if (!one.querySelector("mjx-container svg")) found.push(`raw mathematics: ${one.textContent}`);
  for (const one of document.querySelectorAll("[data-mjx-error]")) found.push(`mathematics: ${one.dataset.mjxError}`);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const { parentElement, data } = words.currentNode;
    if (/\$\$|\\\(|\\\[/.test(data) && !parentElement.closest("pre, code, script, style")) found.push(`raw mathematics: ${data.trim()}`);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        with started.chromium.launch(executable_path=CHROMIUM, args=sandbox) as browser:
            yield browser


@pytest.fixture(params=WIDTHS)
def tab(browser, request):
    with browser.new_context(viewport={"width": request.param, "height": 900}) as context:
        yield context.new_page()


def faults(tab, path: Path) -> list[str]:
    """What is wrong with a page."""
    told = []
    tab.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else told.append(f"asks for {request.url}"))
    tab.goto(path.as_uri())
    return tab.evaluate(FAULTS) + told


@pytest.mark.parametrize("page", PAGES)
def test_page(tab, page):
    assert not faults(tab, SITE / page)


@pytest.mark.parametrize(
    "body, fault",
    [
        ("<table><tr><td style='min-width: 2000px'>wide</table>", "px wide"),
        ("<body style='overflow-x: hidden'><div style='width: 500px'>cut", "cut off"),
        ("<img src='absent.png'>", "no image"),
        ("<span class='math'>\\(x\\)</span>", "raw mathematics"),
        ("<p>$$x^2$$", "raw mathematics"),
        ("<script>console.error('no')</script>", "no"),
        ("<script>absent()</script>", "absent is not defined"),
        ("<script src='https://cdn.invalid/x.js'></script>", "asks for"),
    ],
)
def test_a_fault_is_found(browser, tmp_path, body, fault):
    (tmp_path / "page.html").write_text(f"<!doctype html><meta name='viewport' content='width=device-width'>{body}")
    with browser.new_context(viewport={"width": 390, "height": 900}) as context:
        assert any(fault in one for one in faults(context.new_page(), tmp_path / "page.html"))


def test_mathematics_is_there(tab):
    tab.goto((SITE / "notebooks/01_bilp.html").as_uri())
    tab.evaluate(FAULTS)
    assert tab.locator("mjx-container svg").count() > 20


@pytest.mark.parametrize("word, page", [("FlexRand", "selection"), ("trajectory", "03_ftd")])
def test_search_finds_a_page(tab, word, page):
    tab.goto(f"{(SITE / 'search.html').as_uri()}?q={word}")
    found = tab.locator(f"#search-results li a[href*='{page}']").first
    found.click()
    assert word.lower() in tab.locator("main").inner_text().lower()


def test_tables_are_sorted_by_a_click(tab):
    tab.goto((SITE / "results/00_quickstart.html").as_uri())
    table = tab.locator("table", has=tab.locator("th", has_text="± networks")).first
    head = table.locator("th", has_text="accuracy")
    before = column(table, 3)
    for order in ("descending", "ascending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        found = column(table, 3)
        numbers = [float(one) for one in found if one != "not run"]
        assert len(numbers) > 3 and numbers == sorted(numbers, reverse=order == "descending")
        assert set(found[len(numbers) :]) == {"not run"}
    head.locator("button").click()
    assert column(table, 3) == before


def column(table, number: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({number + 1})").all_inner_texts()


class Links(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found.get("id"), found.get("name")}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def test_links_lead_somewhere():
    read = {path: Links(path.read_text()) for path in SITE.rglob("*.html") if "_static" not in path.parts}
    broken = []
    for page, found in read.items():
        for link in map(urlsplit, found.links):
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            if link.scheme or link.netloc:
                continue
            if not target.is_file() or target in read and link.fragment and unquote(link.fragment) not in read[target].names:
                broken.append(f"{page.relative_to(SITE)}: {link.geturl()}")
    assert len(read) > 100 and not broken
