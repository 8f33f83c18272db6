"""The rest of the demo in a real browser: what visitors change, compare, look at, save and rate."""

import base64
import io
import json
import re
import time
import urllib.error
import urllib.request
import zipfile

import pytest
from browser import (
    add,
    answered,
    ask,
    bubbles,
    choose,
    edit,
    fresh,
    icon,
    press,
    reload,
    status,
    thumbnails,
    toast,
    unfold,
    until,
)
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_app import image
from tiny_site import calls, log, start

from mmchat.data.sources import open_source
from mmchat.inference.repetition import REPEATS
from mmchat.training.distributed.launch import free_port

pytestmark = pytest.mark.slow


def ready(page):
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, ".submit-button"))


def asked_and_answered(page, question, *images):
    ask(page, question, *images)
    answered(page)


def test_retry_edit_and_undo(page, site):
    root, reply, _ = site
    asked_and_answered(page, "First?", image(root))
    asked_and_answered(page, "Second?")
    icon(page, "Retry")
    until(page, lambda: len(calls(root)) == 3)
    answered(page)
    assert [call["question"] for call in calls(root)] == ["First?", "Second?", "Second?"]
    assert len(calls(root)[2]["messages"]) == 3 and bubbles(page, "bot") == [reply] * 2

    assert edit(page, 0, "Really first?") == "First?"
    until(page, lambda: len(calls(root)) == 4)
    answered(page)
    assert bubbles(page, "user") == ["Really first?"] and calls(root)[3]["images"] == 1

    icon(page, "Undo")
    until(page, lambda: not bubbles(page, "user"))
    box = page.find_element(By.CSS_SELECTOR, "#box textarea")
    assert box.get_attribute("value") == "Really first?" and len(thumbnails(page)) == 1
    box.send_keys(Keys.ENTER)
    answered(page)
    assert calls(root)[4]["images"] == 1


def test_settings_reach_the_model_and_do_not_hide_the_answer(page, site):
    root = site[0]
    asked_and_answered(page, "Short?")
    unfold(page, "Answers")
    assert page.find_elements(By.CSS_SELECTOR, "#chat-a .bot.message")[-1].is_displayed()
    for label, value in (("Max new tokens", "3"), ("Temperature", "0.5"), ("Seed", "7")):
        field = page.find_element(
            By.XPATH, f"//*[@id='panel']//input[@type='number'][contains(@aria-label, '{label}')]"
        )
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.TAB)
    page.find_element(By.CSS_SELECTOR, "#panel textarea").send_keys("Be kind.")
    time.sleep(0.5)
    ask(page, "Again?")
    answered(page)
    assert re.search(r"3 tokens · .*cut off: at the limit of 3 tokens", status(page), re.DOTALL)
    call = calls(root)[1]
    assert call["options"] == {"max_new_tokens": 3, "temperature": 0.5, "seed": 7, "repeats": REPEATS}
    assert call["messages"][0] == {"role": "system", "content": "Be kind."}
    assert re.search(r"context \d+ of 1,024", status(page))
    fresh(page)


def test_two_models_answer_side_by_side(page, site):
    root, reply, other = site
    asked_and_answered(page, "First?", image(root))
    choose(page, "#against", "other")
    until(page, lambda: page.find_element(By.ID, "chat-b").is_displayed())
    assert bubbles(page, "user", "b") == ["First?"]
    ask(page, "Both?")
    until(page, lambda: bubbles(page, "bot", "b")[-1:] == [other])
    ready(page)
    assert bubbles(page, "bot") == [reply] * 2 and bubbles(page, "bot", "b") == [reply, other]
    assert calls(root)[-1]["images"] == calls(root)[-2]["images"] == 1

    press(page, "The second is better")
    until(page, lambda: "it is noted" in toast(page))
    good = json.loads((root / "feedback/feedback.jsonl").read_text().splitlines()[-1])
    bad = json.loads((root / "feedback/rejected.jsonl").read_text().splitlines()[-1])
    assert (good["model"], good["messages"][-1]["content"]) == ("other", other)
    assert (bad["model"], bad["messages"][-1]["content"]) == ("quickstart", reply)
    choose(page, "#against", "no comparison")
    until(page, lambda: not any(chat.is_displayed() for chat in page.find_elements(By.ID, "chat-b")))


def test_another_model_continues_the_conversation(page, site):
    _, reply, other = site
    asked_and_answered(page, "First?")
    choose(page, "#model", "other")
    time.sleep(1)
    asked_and_answered(page, "And you?")
    assert bubbles(page, "bot") == [reply, other] and "other · " in status(page)
    choose(page, "#model", "quickstart")
    time.sleep(1)


def test_thumbs_and_corrections_are_kept(page, site):
    root, reply, _ = site
    asked_and_answered(page, "Rate me?", image(root))
    icon(page, "Like")
    until(page, lambda: "it is noted" in toast(page))
    edit(page, 1, "A corrected answer.")
    until(page, lambda: bubbles(page, "bot") == ["A corrected answer."])
    until(page, lambda: "A corrected answer." in (root / "feedback/feedback.jsonl").read_text())
    record = list(open_source(root / "feedback/feedback.jsonl", root / "feedback"))[-1]
    assert record.answers == ["A corrected answer."] and record.extra["corrected_from"] == reply
    assert record.images[0].open().size == (64, 64)
    asked_and_answered(page, "Next?")
    assert calls(root)[1]["messages"][1]["content"] == "A corrected answer."


def test_what_the_model_saw(page, site):
    root, reply, _ = site
    asked_and_answered(page, "Look?", image(root))
    unfold(page, "What the model saw")
    page.find_element(By.ID, "look").click()
    words = until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#views .word"))
    assert [word.text for word in words] == reply.split()
    words[2].click()
    alpha = "const c = document.querySelector('#views canvas'); return [c.width, c.height, "
    alpha += "Math.max(...c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 == 3))]"
    assert page.execute_script(alpha) == [2, 2, 204]
    assert words[2].get_attribute("aria-pressed") == "true"
    press(page, "Settings")


def downloaded(page, kind):
    """The bytes of a file that the page gives to the browser, which is not asked to write it."""
    page.execute_script("window.mmchat.download = (text) => { window.given = text; return ''; }; window.given = ''")
    page.find_element(By.ID, f"save-{kind}").click()
    file = json.loads(until(page, lambda: page.execute_script("return window.given")))
    assert file["name"] == f"conversation.{kind}"
    return base64.b64decode(file["data"])


def test_save_export_share_and_open(page, site, tmp_path):
    root, reply, _ = site
    asked_and_answered(page, "Keep <this>?", image(root))
    unfold(page, "Save and share")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "zip"))) as archive:
        archive.extractall(tmp_path)
    (record,) = open_source(tmp_path / "conversation.json", tmp_path)
    assert record.answers == [reply] and record.images[0].open().getpixel((0, 0)) == (255, 0, 0)
    shared = downloaded(page, "html").decode()
    assert "Keep &lt;this&gt;?" in shared and "data:image/png" in shared and "<script" not in shared
    saved = tmp_path / "saved.json"
    saved.write_bytes(downloaded(page, "json"))

    press(page, "New chat")
    until(page, lambda: not bubbles(page, "user"))
    page.find_element(By.CSS_SELECTOR, "#panel input[type=file][accept*=json]").send_keys(str(saved))
    until(page, lambda: bubbles(page, "bot") == [reply])
    asked_and_answered(page, "And now?")
    assert calls(root)[-1]["images"] == 1 and len(calls(root)[-1]["messages"]) == 3
    press(page, "Settings")


def test_a_reload_keeps_the_conversation(page, site):
    root, reply, _ = site
    asked_and_answered(page, "Remember?", image(root))
    time.sleep(0.5)
    reload(page)
    until(page, lambda: bubbles(page, "bot") == [reply])
    assert bubbles(page, "user") == ["Remember?"]
    asked_and_answered(page, "Still?")
    assert calls(root)[-1]["images"] == 1 and len(calls(root)[-1]["messages"]) == 3


def test_two_browsers_at_once(page, site, browser):
    root, reply, _ = site
    with browser(dark=True) as second:
        ask(page, "One?", image(root))
        ask(second, "Two?", root / "data/quickstart/heldout/000001.png")
        answered(page)
        answered(second)
        assert bubbles(page, "bot") == bubbles(second, "bot") == [reply]
        assert (bubbles(page, "user"), bubbles(second, "user")) == (["One?"], ["Two?"])
        dark = second.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert dark != page.execute_script("return getComputedStyle(document.body).backgroundColor")
    events = log(root)
    started = {event["question"]: place for place, event in enumerate(events) if "question" in event}
    ended = {event["ended"]: place for place, event in enumerate(events) if "ended" in event}
    assert started["Two?"] < ended["One?"] and started["One?"] < ended["Two?"]
    assert [call["images"] for call in calls(root)] == [1, 1]


def test_a_visitor_that_leaves_frees_the_model(site, browser, page):
    root = site[0]
    with browser() as second:
        ask(second, "Long?")
        until(second, lambda: "".join(bubbles(second, "bot")))
    until(page, lambda: any(event.get("ended") == "Long?" for event in log(root)))
    (read,) = [event["pieces"] for event in log(root) if "ended" in event]
    assert read < len(site[1].split())


def test_a_phone(browser, site):
    with browser(400, 800) as phone:
        asked_and_answered(phone, "Small?", image(site[0]))
        press(phone, "Settings")
        time.sleep(0.5)
        assert phone.execute_script("return document.documentElement.scrollWidth") <= 400
        answer = phone.find_elements(By.CSS_SELECTOR, "#chat-a .bot.message")[-1].rect
        panel, box = (phone.find_element(By.ID, name).rect for name in ("panel", "box"))
        assert answer["y"] + answer["height"] <= box["y"] <= panel["y"] and panel["y"] + panel["height"] <= 801


def test_keys(page, site):
    page.find_element(By.CSS_SELECTOR, "#about").click()
    page.switch_to.active_element.send_keys("/")
    page.switch_to.active_element.send_keys("By key?", Keys.ENTER)
    until(page, lambda: "".join(bubbles(page, "bot")))
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    ready(page)
    assert "stopped" in status(page) and bubbles(page, "bot") != [site[1]]


def test_uploads_are_limited_and_deleted(page, site, served, tmp_path):
    root = site[0]
    large = tmp_path / "large.png"
    Image.effect_noise((1300, 1300), 100).save(large)
    assert large.stat().st_size > 2**20
    add(page, large)
    until(page, lambda: "1" in toast(page) and "size" in toast(page).lower())
    fresh(page)

    body = b"x" * (20 * 2**20)
    request = urllib.request.Request(f"{served}gradio_api/upload", body, {"content-type": "multipart/form-data"})
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        urllib.request.urlopen(request)
    assert not isinstance(refused.value, urllib.error.HTTPError) or refused.value.code == 413

    bomb = tmp_path / "bomb.png"
    Image.new("1", (12_000, 12_000)).save(bomb)
    assert bomb.stat().st_size < 2**16
    add(page, bomb)
    until(page, lambda: thumbnails(page))
    page.find_element(By.CSS_SELECTOR, "#box textarea").send_keys("What?", Keys.ENTER)
    until(page, lambda: "has 12000x12000 pixels" in toast(page))
    fresh(page)

    asked_and_answered(page, "Gone?", image(root))
    kept = [path for path in (root / "uploads").rglob("*.png") if path.name == image(root).name]
    assert not kept


GIVE = """
const [data, kind] = arguments;
const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], kind + ".png", { type: "image/png" }));
const area = document.querySelector("#box textarea");
const options = { bubbles: true, cancelable: true };
area.dispatchEvent(kind === "paste"
  ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
  : new DragEvent("drop", { ...options, dataTransfer: transfer }));
"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_images_are_pasted_and_dropped(page, site, kind):
    page.execute_script(GIVE, base64.b64encode(image(site[0]).read_bytes()).decode(), kind)
    until(page, lambda: thumbnails(page))
    asked_and_answered(page, "Given?")
    assert calls(site[0])[0]["images"] == 1


def test_a_photo_of_the_camera(page, site):
    unfold(page, "Camera")
    asks = "//*[@id='camera']//button[contains(., 'Access Webcam')]"
    until(page, lambda: page.find_elements(By.XPATH, asks))[0].click()
    shutter = "#camera button[aria-label='capture photo']"
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, shutter))
    time.sleep(1)
    page.find_element(By.CSS_SELECTOR, shutter).click()
    until(page, lambda: thumbnails(page))
    asked_and_answered(page, "Who?")
    assert calls(site[0])[0]["images"] == 1
    press(page, "Settings")


def test_a_password(site, browser, tmp_path):
    (tmp_path / "users").write_text("ada:secret\n")
    port = str(free_port())
    process = start(site[0], "demo/app.py", "--port", port, "--auth", str(tmp_path / "users"))
    try:
        assert f":{port}" in process.stdout.readline()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/config")
        assert refused.value.code == 401
        with browser(url=f"http://127.0.0.1:{port}/") as page:
            name, password = until(page, lambda: page.find_elements(By.CSS_SELECTOR, "form input, input")[:2])
            name.send_keys("ada")
            password.send_keys("secret")
            page.find_element(By.XPATH, "//button[contains(., 'Login')]").click()
            until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#box textarea"))
    finally:
        process.terminate()
        process.wait(20)
