"""A real browser on the demo: what the test and `screenshot.py` do in it."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-default-apps --no-proxy-server"
).split()


@contextmanager
def browsing(url: str, profile: Path, width: int, height: int, dark: bool = False) -> Iterator[WebDriver]:
    """`url` in a fresh Chromium; under 500 px wide it pretends to be a phone."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get_log("performance")  # what the browser's own first page asked for
        driver.get(url)
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "textarea"))
        yield driver
    finally:
        driver.quit()


def until(driver: WebDriver, condition, seconds: float = 20):
    """The first true value of `condition()`."""
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(lambda _: condition())


def ask(driver: WebDriver, question: str, *pictures: Path) -> None:
    """Put pictures and a question into the box and send it."""
    for picture in pictures:
        before = len(thumbnails(driver))
        driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(picture.resolve()))
        until(driver, lambda before=before: len(thumbnails(driver)) > before)
    box = driver.find_element(By.CSS_SELECTOR, "textarea")
    box.send_keys(question)
    box.send_keys(Keys.ENTER)


def thumbnails(driver: WebDriver) -> list:
    return driver.find_elements(By.CSS_SELECTOR, ".thumbnail-item, .thumbnail-image")


def bubbles(driver: WebDriver, role: str) -> list[str]:
    """What is to be read in the bubbles of `user` or `bot`."""
    script = "return [...document.querySelectorAll(`.message.${arguments[0]}`)].map(b => b.innerText.trim())"
    return driver.execute_script(script, role)


def wait_until_idle(driver: WebDriver, seconds: float = 60) -> None:
    """The button that stops an answer is gone again."""
    time.sleep(0.3)
    until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, ".submit-button"), seconds)


def requested(driver: WebDriver) -> list[str]:
    """Every address the page asked for since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
