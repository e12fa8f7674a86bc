"""The dashboard in a real browser: what it shows, what it changes, and that it needs nothing from elsewhere."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from matplotlib.image import imread

from objmapper_client import Client
from objmapper_server import Concurrency, Config, Server
from tests.support.raw_client import COPY, NOT_FOUND, OK, RawClient

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, Browser, Locator, Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
TOKEN = "a token of sixteen characters"

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium (Debian: chromium) is not installed")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container does not have; the pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def config(config: Config) -> Config:
    return Config(root=config.root, unix=config.unix, tcp=config.tcp, admin=config.admin, admin_token=TOKEN)


@contextmanager
def shown(browser: "Browser", server: Server, path: str = "/", **look: Any) -> "Iterator[Page]":
    """The page; what goes wrong in it, and what it asks of others, fails the test."""
    home = f"{server.admin_address}/"
    context = browser.new_context(**look)
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(home.rstrip("/") + path)
        yield page
        assert wrong == []
        assert [url for url in asked if not url.startswith((home, "data:"))] == []
    finally:
        context.close()


@contextmanager
def load(server: Server) -> Iterator[None]:
    """A client requests objects all the time."""
    ended = threading.Event()

    def ask() -> None:
        with RawClient(server.addresses["unix"]) as unix, RawClient(server.addresses["tcp"]) as tcp:
            while not ended.wait(0.001):
                assert unix.ask(COPY, "/a").status == OK
                assert tcp.ask(COPY, "/none").status == NOT_FOUND

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


def until(page: "Page", condition: str, *given: object) -> None:
    page.wait_for_function(condition, arg=list(given), timeout=30_000)


def switch(page: "Page", choice: "Locator", model: str) -> None:
    """Chooses a model and presses its button, by keys alone."""
    choice.focus()
    choice.select_option(model)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")


def text(page: "Page", name: str) -> str:
    """The value of a tile."""
    return page.locator(".tile", has=page.locator(f"dt:text-is('{name}')")).locator("dd").inner_text()


SAYS = """([title, words]) => {
  const canvas = document.querySelector(`canvas[aria-label^='${title}']`);
  return canvas && words.every(word => canvas.ariaLabel.includes(word));
}"""
COLOURED = """([title]) => {
  const canvas = document.querySelector(`canvas[aria-label^='${title}']`);
  const {data} = canvas.getContext('2d').getImageData(70, 10, canvas.width - 90, canvas.height - 40);
  let found = 0;
  for (let at = 0; at < data.length; at += 4) found += data[at + 3] > 200 && Math.abs(data[at] - data[at + 2]) > 40;
  return found > 20;
}"""


def test_it_shows_what_happens(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page, load(server):
        until(page, "() => document.getElementById('state').textContent === 'ready'")
        until(page, SAYS, "Latency", ["p50", "p99", "µs"])
        until(page, SAYS, "Requests", ["unix", "tcp", "/s"])
        until(page, SAYS, "Where the requests lie", ["since the look before"])
        until(page, SAYS, "Threads by model", ["epoll"])
        for title in ("Where the requests lie", "Latency", "Requests"):
            until(page, COLOURED, title)
        assert text(page, "p99").endswith(("µs", "ms", " s"))
        assert text(page, "Connections") == "2"
        until(page, "() => !document.querySelector('.tile dd').textContent.startsWith('0/s')")
        assert page.title().endswith("objmapper")


def test_datagrams_are_listed_by_kind(server: Server, root: Path, browser: "Browser") -> None:
    with shown(browser, server) as page:
        until(page, "() => document.getElementById('state').textContent === 'ready'")
        assert not page.get_by_text("Datagrams since start").is_visible()
    with Server(Config(root=root, udp="127.0.0.1:0", admin="127.0.0.1:0")) as served:
        with Client(served.addresses["udp"]) as client:
            client.read("/a")
        with shown(browser, served) as page:
            for words in ("Datagrams since start", "0 plain · 1 pull · 0 noise", "1 data"):
                page.get_by_text(words).first.wait_for()


def test_the_pointer_and_the_keys_read_the_charts(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page, load(server):
        chart = page.locator("canvas[aria-label^='Latency']")
        until(page, SAYS, "Latency", ["µs"])
        until(page, "() => history.length > 3")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        until(page, SAYS, "Latency", [" at "])
        # Not what it says: two looks may be in the same second.
        before = page.evaluate("pointed")
        page.keyboard.press("ArrowRight")
        until(page, "([before]) => pointed > before", before)
        page.keyboard.press("Escape")
        chart.hover(position={"x": 300, "y": 60})
        until(page, "() => document.querySelector('.legend li').textContent.match(/^\\d\\d:\\d\\d:\\d\\d$/)")


def test_whose_latency_and_how_long_is_a_choice(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page, load(server):
        page.get_by_label("tcp", exact=True).check()
        until(page, SAYS, "Latency", ["µs"])
        page.get_by_label("15 min").check()
        page.get_by_role("button", name="Pause").click()
        assert page.get_by_role("button", name="Go on").get_attribute("aria-pressed") == "true"


def test_a_model_is_switched_by_keys_alone_with_the_token(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        choice = page.get_by_label("Model of tcp")
        until(page, "() => document.querySelector('[aria-label=\"Model of tcp\"]')?.value === 'epoll'")
        switch(page, choice, "work-stealing")
        assert page.locator("#token").evaluate("field => field === document.activeElement")
        page.keyboard.type("not the token at all")
        page.keyboard.press("Enter")
        until(page, "() => document.getElementById('ask-why').textContent.startsWith('That was not the token')")
        assert server.statistics().concurrency_model["tcp"] == "epoll"
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        until(page, "() => document.getElementById('said').textContent === 'tcp is served by work-stealing now.'")
        assert server.statistics().concurrency_model["tcp"] == "work-stealing"
        # The token is known now, and nowhere but in the page.
        switch(page, choice, "thread-pool")
        until(page, "() => document.getElementById('said').textContent === 'tcp is served by thread-pool now.'")
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_a_choice_is_kept_while_figures_from_before_it_arrive(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        choice = page.get_by_label("Model of tcp")
        until(page, "() => document.querySelector('[aria-label=\"Model of tcp\"]')?.value === 'epoll'")
        late: list[tuple[Route, APIResponse]] = []
        page.route("**/overview", lambda route: late.append((route, route.fetch())), times=1)
        until(page, "() => polling")
        switch(page, choice, "work-stealing")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        until(page, "() => document.getElementById('said').textContent === 'tcp is served by work-stealing now.'")
        # What was chosen last is not chosen again by figures that are older than the switch, nor by those after it.
        choice.focus()
        choice.select_option("thread-pool")
        page.keyboard.press("Tab")
        seen = page.evaluate("history.length")
        [(route, answer)] = late
        assert answer.json()["stats"]["transports"]["tcp"]["concurrency_model"] == "epoll"
        route.fulfill(response=answer)
        until(page, "([seen]) => history.length > seen + 1", seen)
        assert page.evaluate("history.flatMap(sample => sample.marks)") == ["tcp: work-stealing"]
        assert choice.input_value() == "thread-pool"
        page.keyboard.press("Enter")
        until(page, "() => document.getElementById('said').textContent === 'tcp is served by thread-pool now.'")
        # And what was served until a moment ago can be had again at once.
        switch(page, choice, "work-stealing")
        until(page, "() => document.getElementById('said').textContent === 'tcp is served by work-stealing now.'")
        assert server.statistics().concurrency_model["tcp"] == "work-stealing"


def test_escape_leaves_everything_as_it_was(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        choice = page.get_by_label("Model of unix")
        switch(page, choice, "thread-pool")
        page.locator("#token").press("Escape")
        until(page, "() => !document.getElementById('ask').open")
        assert server.statistics().concurrency_model["unix"] == "epoll"
        assert choice.input_value() == "thread-pool"


def test_a_switch_by_another_process_is_seen(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        until(page, "() => history.length > 1")
        server.set_concurrency(unix=Concurrency.THREAD_POOL)
        until(page, "() => history.some(sample => sample.marks.includes('unix: thread-pool'))")
        until(page, "() => document.querySelector('[aria-label=\"Model of unix\"]').value === 'thread-pool'")


def test_draining_and_stopped_servers_are_reported(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        until(page, "() => document.getElementById('state').textContent === 'ready'")
        server.drain(timeout=10)
        until(page, "() => document.getElementById('state').textContent === 'draining'")
        server.stop()
        until(page, "() => document.getElementById('state').textContent.startsWith('not reached since')")


def test_nothing_that_is_put_into_the_page_runs(server: Server, browser: "Browser") -> None:
    with shown(browser, server) as page:
        page.evaluate("""() => {
            window.kept_out = [];
            document.addEventListener('securitypolicyviolation', it => window.kept_out.push(it.effectiveDirective));
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            const image = document.createElement('img');
            image.src = '/stats';
            document.body.append(image);
        }""")
        until(page, "() => window.kept_out.length >= 2")
        assert page.evaluate("window.ran") is None
        assert set(page.evaluate("window.kept_out")) == {"script-src-elem", "img-src"}


def test_a_name_with_markup_stays_text(root: Path, tmp_path: Path, browser: "Browser") -> None:
    (tmp_path / "<img src=x>").mkdir()
    config = Config(root=root, unix=tmp_path / "<img src=x>" / "s", admin="127.0.0.1:0")
    with Server(config) as server, shown(browser, server) as page:
        until(page, "() => document.getElementById('about').textContent.includes('<img src=x>')")
        assert page.locator("img").count() == 0


def test_its_pictures_are_taken_under_load(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "screenshots.py"
    run = subprocess.run(
        [sys.executable, script, "--seconds", "12", "--into", tmp_path], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")
    pictures = {name: imread(tmp_path / f"{name}.png") for name in ("dashboard", "dashboard-dark", "dashboard-phone")}
    assert {name: picture.shape[1] for name, picture in pictures.items()} == {
        "dashboard": 1400,
        "dashboard-dark": 1400,
        "dashboard-phone": 400,
    }
    light, dark = pictures["dashboard"], pictures["dashboard-dark"]
    assert light[..., :3].mean() > 0.8 > 0.3 > dark[..., :3].mean()
    # Lines, areas and a heat map: without a load the buttons are all that has a colour, two thirds of this at most.
    coloured = {name: (abs(picture[..., 0] - picture[..., 2]) > 0.15).mean() for name, picture in pictures.items()}
    assert coloured["dashboard"] > 0.005
    assert coloured["dashboard-dark"] > 0.005
    assert coloured["dashboard-phone"] > 0.015


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1400])
def test_it_fits_and_follows_the_light(server: Server, browser: "Browser", scheme: str, width: int) -> None:
    with shown(browser, server, color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        until(page, "() => history.length > 0")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"))
        assert (red < 60) == (scheme == "dark")


def test_the_reference_lists_and_tries_every_path(server: Server, browser: "Browser") -> None:
    with shown(browser, server, "/docs") as page:
        until(page, "() => document.querySelectorAll('#paths details').length > 5")
        page.locator("summary", has_text="/healthz").click()
        page.get_by_role("button", name="Send").locator("visible=true").click()
        until(page, "() => [...document.querySelectorAll('pre')].some(each => each.textContent.startsWith('200 OK'))")
        shown_answer = page.locator("pre:visible").inner_text()
        assert json.loads(shown_answer.partition("\n\n")[2]) == {"status": "ok"}
