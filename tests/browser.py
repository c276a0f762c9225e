"""A headless Chromium for the pages that this package writes; nothing is downloaded and no network is needed."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver on the path (Debian: apt-get install chromium chromium-driver)",
)


@contextmanager
def chromium(width: int = 1440, height: int = 1000, *, dark: bool = False):  # type: ignore[no-untyped-def]
    """A driver of a fresh browser window; closed at the end, and the browser with it."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    options.add_argument("--force-device-scale-factor=1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # the driver's path is given, so that selenium does not go looking for one to download
    driver = Chrome(options=options, service=Service(DRIVER))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        yield driver
    finally:
        driver.quit()


def severe(driver) -> list[str]:  # type: ignore[no-untyped-def]
    """What the browser's console says that is worse than a warning."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
