"""Helpers that drive the demo in a real browser, for the tests and `screenshot.py`."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
QUIET = ("background-networking", "component-update", "default-apps", "sync", "gpu", "dev-shm-usage")
FLAGS = ("--headless=new", "--no-sandbox", "--no-first-run", "--no-proxy-server", "--hide-scrollbars")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""A camera that shows a test image, and no question whether the page may use it."""
LOCAL_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@contextmanager
def browsing(
    url: str, profile: Path, width: int, height: int, dark: bool = False, ready: str = "textarea, input"
) -> Iterator[WebDriver]:
    """Open `url` in a fresh Chromium and wait for an element `ready`. Below a width of 500 px it emulates a phone."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    flags = (*FLAGS, *CAMERA, LOCAL_ONLY, *(f"--disable-{name}" for name in QUIET), f"--user-data-dir={profile}")
    for flag in (*flags, f"--window-size={width},{height}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get_log("performance")  # what the browser's own first page asked for
        driver.get(url)
        until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, ready))
        yield driver
    finally:
        driver.quit()


def fresh(driver: WebDriver) -> None:
    """Load the page as a new tab would, without the conversation of this one."""
    driver.execute_script("sessionStorage.clear()")
    reload(driver)


def reload(driver: WebDriver) -> None:
    """Load the page again and wait until it can be used."""
    driver.execute_script("window.before = true")
    driver.refresh()
    box = "return !window.before && window.mmchat && !!document.querySelector('#box .submit-button')"
    until(driver, lambda: driver.execute_script(box))


def until(driver: WebDriver, condition, seconds: float = 30):
    """The first true value of `condition()`. An element that was replaced meanwhile is looked for again."""
    again = [StaleElementReferenceException]
    return WebDriverWait(driver, seconds, 0.05, ignored_exceptions=again).until(lambda _: condition())


def ask(driver: WebDriver, question: str, *images: Path) -> None:
    """Put images and a question into the box, send it, and wait until it is in the chat."""
    asked = len(bubbles(driver, "user"))
    for image in images:
        shown = len(thumbnails(driver))
        add(driver, image)
        until(driver, lambda shown=shown: len(thumbnails(driver)) > shown)
    box = until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#box textarea"))[0]
    box.send_keys(question)
    box.send_keys(Keys.ENTER)
    until(driver, lambda: len(bubbles(driver, "user")) > asked)


def add(driver: WebDriver, image: Path) -> None:
    """Choose a file for the box."""
    chooser = until(driver, lambda: driver.find_elements(By.CSS_SELECTOR, "#box input[type=file]"))[0]
    driver.execute_script("arguments[0].value = ''", chooser)  # WebDriver adds to what was chosen before
    chooser.send_keys(str(image.resolve()))


def toast(driver: WebDriver) -> str:
    """The texts of messages that are shown for a few seconds."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.toast-wrap')].map((one) => one.innerText).join()"
    )


def thumbnails(driver: WebDriver) -> list:
    return driver.find_elements(By.CSS_SELECTOR, ".thumbnail-item")


def bubbles(driver: WebDriver, role: str, chat: str = "a") -> list[str]:
    """The texts in the bubbles of `user` or `bot`, without Gradio's status (three dots) and invisible characters."""
    chosen = "`#chat-${arguments[1]} .${arguments[0]}.message:not([role=status])`"
    text = "b.innerText.trim().replaceAll('\\u200b', '')"
    texts = driver.execute_script(f"return [...document.querySelectorAll({chosen})].map(b => {text})", role, chat)
    return [text for text in texts if text or role == "bot"]  # not those that hold images


def icon(driver: WebDriver, label: str, number: int = -1, chat: str = "a") -> None:
    """Click one of the small buttons below bubbles."""
    buttons = driver.find_elements(By.CSS_SELECTOR, f"#chat-{chat} button[aria-label='{label}']")
    [button for button in buttons if button.is_displayed()][number].click()


def edit(driver: WebDriver, number: int, text: str) -> str:
    """Change the text of a bubble; returns what it was."""
    icon(driver, "Edit", number)
    area = until(driver, lambda: driver.find_element(By.CSS_SELECTOR, "#chat-a textarea"))
    before = area.get_attribute("value").replace("\u200b", "")
    area.clear()
    area.send_keys(text)
    icon(driver, "Submit")
    return before


def choose(driver: WebDriver, dropdown: str, option: str) -> None:
    """Choose an option of a dropdown, `#id`."""
    driver.find_element(By.CSS_SELECTOR, f"{dropdown} input").click()
    offered = f"//ul[@role='listbox']/li[contains(., '{option}')]"
    until(driver, lambda: driver.find_elements(By.XPATH, offered))[0].click()


def unfold(driver: WebDriver, title: str) -> None:
    """Open the panel with one part of it open."""
    if not driver.find_element(By.CSS_SELECTOR, "#panel").is_displayed():
        press(driver, "Settings")
    for head in driver.find_elements(By.CSS_SELECTOR, "#panel > * > button.label-wrap"):
        if (title in head.text) != ("open" in head.get_attribute("class").split()):
            head.click()


def status(driver: WebDriver) -> str:
    """The line about the last answer."""
    return driver.find_element(By.CSS_SELECTOR, ".line").text


def answered(driver: WebDriver, seconds: float = 120) -> list[str]:
    """Wait for the answer to the last question; returns the texts that its bubble showed while streaming."""
    seen: list[str] = []

    def over() -> bool:
        answers = bubbles(driver, "bot")
        if answers[len(bubbles(driver, "user")) - 1 :] and answers[-1] and answers[-1] not in seen:
            seen.append(answers[-1])
        return bool(seen and driver.find_elements(By.CSS_SELECTOR, ".submit-button"))

    until(driver, over, seconds)
    return seen


def press(driver: WebDriver, label: str) -> None:
    driver.find_element(By.XPATH, f"//button[normalize-space()='{label}']").click()


def requested(driver: WebDriver) -> list[str]:
    """Every URL that the page requested since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Chromium's own start page, and the frames in it, may still load when the log is cleared.
    own = ("chrome://", "chrome-untrusted://")
    return [one["request"]["url"] for one in requests if not one["documentURL"].startswith(own)]
