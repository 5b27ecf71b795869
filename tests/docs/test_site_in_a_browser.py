"""The site in a browser: no page is wider than its screen, and a message pasted into the search leads to its page.

Messages are as software prints them: with names, numbers and classes of a user's project.
"""

import contextlib
import http.server
import importlib.util
import subprocess
import sys
import threading
from functools import partial

import pytest

from poolsave.errors import DatabaseUnreachable, InsideTransaction, TimedOut, WorkerDied
from tests.docs.pages import ROOT
from tests.support import browser

pytestmark = [
    *browser.mark(),
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not (browser.REQUIRED or importlib.util.find_spec("sphinx")), reason="not installed: the extra docs"
    ),
]
PAGES = ["index.html", "tutorial.html", "howto/csv-import.html", "reference/operations.html", "troubleshooting.html"]
TROUBLESHOOTING, PITFALLS = "troubleshooting.html", "pitfalls.html"
MESSAGES = {
    "django.db.utils.OperationalError: SSL error: decryption failed or bad record mac": PITFALLS,
    "django.db.utils.OperationalError: server closed the connection unexpectedly\n\tThis probably means the server "
    "terminated abnormally before or while processing the request.": PITFALLS,
    "django.core.exceptions.AppRegistryNotReady: Apps aren't loaded yet.": PITFALLS,
    "connection to server at 10.1.2.3, port 5432 failed: FATAL:  sorry, too many clients already": PITFALLS,
    "django.db.utils.InternalError: current transaction is aborted, commands ignored until end of transaction block": (
        PITFALLS
    ),
    "sqlite3.OperationalError: database is locked": TROUBLESHOOTING,
    f"poolsave.errors.InsideTransaction: {InsideTransaction('shop')}": TROUBLESHOOTING,
    "the function shop.views.<lambda> cannot be pickled for workers that do not share the caller's memory": (
        TROUBLESHOOTING
    ),
    "'import_order' is a generator function, which does nothing when it is called": TROUBLESHOOTING,
    str(TimedOut(30, {"order": 4711})): TROUBLESHOOTING,
    str(WorkerDied(-9, "SIGKILL", {"order": 4711})): TROUBLESHOOTING,
    f"poolsave.errors.DatabaseUnreachable: {DatabaseUnreachable('replica', 'connection refused')}": TROUBLESHOOTING,
}
"""By what is pasted: the page that must be the first or the second hit."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site, as it is built from these pages."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", str(ROOT / "docs"), str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, timeout=240)
    with served(folder) as address:
        yield address


@contextlib.contextmanager
def served(folder):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def driver(tmp_path):
    with browser.opened(tmp_path) as driver:
        yield driver


def test_a_pasted_message_leads_to_its_page(site, driver):
    driver.get(f"{site}/index.html")
    found = {message: hits(driver, message)[:2] for message in MESSAGES}
    assert {message: pages for message, pages in found.items() if MESSAGES[message] not in pages} == {}


def hits(driver, message):
    """Type it into the search of the page that is open, and give the pages that are found, the first one first."""
    box = driver.find_element("css selector", "input.sidebar-search")
    box.clear()
    box.send_keys(message.replace("\n", " ").replace("\t", " ") + "\n")
    browser.wait_for(driver, lambda driver: "Results" in driver.find_element("css selector", "#search-results h2").text)
    links = driver.execute_script(
        "return [...document.querySelectorAll('#search-results ul.search > li > a')].map(a => a.pathname.slice(1))"
    )
    return list(dict.fromkeys(links))


def test_what_is_no_message_is_searched_as_ever(site, driver):
    driver.get(f"{site}/index.html")
    assert "howto/dask.html" in hits(driver, "dask cluster")
    assert hits(driver, "xyzzy") == []


def test_a_hit_leads_to_the_row_of_the_message(site, driver):
    driver.get(f"{site}/index.html")
    hits(driver, "OperationalError: database is locked")
    driver.find_element("css selector", "#search-results ul.search > li > a").click()
    row = browser.wait_for(driver, lambda driver: driver.find_element("css selector", ":target"))
    assert "database is locked" in row.text
    assert row.tag_name == "tr"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_screen(scheme, site, driver):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    for width in (browser.WIDE, browser.NARROW):
        browser.resize(driver, width)
        for page in PAGES:
            driver.get(f"{site}/{page}")
            assert not browser.is_wider_than_the_screen(driver), (page, width)
            dark = (
                driver.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            )
            assert dark == (scheme == "dark")
