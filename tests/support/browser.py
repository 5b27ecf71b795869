"""Chromium without a window, for tests that look at pages as people see them, if it is installed.

On Debian: `chromium chromium-driver`, and selenium by the extra `browser`.
"""

import contextlib
import importlib.util
import os
import shutil

import pytest

REQUIRED = "browser" in os.environ.get("POOLSAVE_TEST_REQUIRE", "").split(",")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1280, 400
"""Widths of a screen in pixels: of a desk, and of a hand."""


def missing() -> str | None:
    """What has to be installed before any page can be looked at."""
    absent = [] if _path_of(BROWSERS) else ["chromium"]
    absent += [name for name in ("chromedriver",) if shutil.which(name) is None]
    absent += [name for name in ("selenium",) if importlib.util.find_spec(name) is None]
    if absent and REQUIRED:
        raise RuntimeError(f"a browser is required, but not installed: {', '.join(absent)}")
    return f"not installed: {', '.join(absent)}" if absent else None


def mark():
    """What a module with such tests has as its `pytestmark`, besides others."""
    reason = missing()
    return [pytest.mark.browser, pytest.mark.skipif(bool(reason), reason=str(reason))]


@contextlib.contextmanager
def opened(folder):
    """Give a WebDriver with a wide screen, whose profile and other files are in the folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _path_of(BROWSERS)
    for argument in (
        "--headless=new",
        "--hide-scrollbars",
        "--no-sandbox",  # which a container or root may not have; only pages of the tests are opened
        "--disable-dev-shm-usage",  # 64 MB in a container
        f"--user-data-dir={folder}/profile",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        resize(driver, WIDE)
        yield driver
    finally:
        driver.quit()


def _path_of(names):
    return next(filter(None, map(shutil.which, names)), None)


def resize(driver, width, height=900):
    """Show pages as on a screen of this width: that of a window has a least one."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == NARROW}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def is_wider_than_the_screen(driver):
    """Whether one has to scroll sideways to see the whole page."""
    return driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")


def wait_for(driver, condition, seconds=60):
    """Wait for what a page, or the process behind it, does in its own time, and give it."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [NoSuchElementException, StaleElementReferenceException]
    return WebDriverWait(driver, seconds, poll_frequency=0.1, ignored_exceptions=ignored).until(condition)
