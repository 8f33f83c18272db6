"""The demo in a real browser: a subprocess serves it with tiny models, Chromium uploads images and asks."""

import time
from pathlib import Path

from browser import add, answered, ask, bubbles, press, requested, thumbnails, toast, until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny_site import FAILURE, calls, start


def image(root: Path) -> Path:
    return root / "data/quickstart/heldout/000000.png"


def test_an_answer_about_an_image_is_streamed(page, site):
    root, reply, _ = site
    question = "<b>How</b> many? <script>document.title='broken'</script> <imgpad> & &lt; `a<b`"
    ask(page, question, image(root))
    seen = answered(page)
    assert bubbles(page, "user")[-1] == question.replace("`", "")
    assert page.title == "mmchat"
    assert bubbles(page, "bot") == [reply] and "<b>" in reply
    assert len(seen) > 1 and all(reply.startswith(part) for part in seen)

    ask(page, "And now?", root / "data/quickstart/heldout/000001.png")
    answered(page)
    ask(page, "And without an image?")
    answered(page)
    first, second, third = calls(root)
    assert (first["question"], first["images"], len(first["messages"])) == (question, 1, 1)
    assert second["images"] == third["images"] == 2
    assert [turn["role"] for turn in third["messages"]] == [*["user", "assistant"] * 2, "user"]
    assert third["messages"][1]["content"] == reply
    strangers = [url for url in requested(page) if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not strangers


def test_a_question_without_any_image(page, site):
    ask(page, "Hello?")
    answered(page)
    assert bubbles(page, "bot") == [site[1]]
    assert calls(site[0])[0]["images"] == 0


def test_an_example_is_asked_with_its_image(page, site):
    page.find_element(By.CSS_SELECTOR, "button.example").click()
    answered(page)
    assert bubbles(page, "bot") == [site[1]]
    assert calls(site[0])[0]["images"] == 1


def test_stop_keeps_the_partial_answer_and_the_chat_continues(page, site):
    root, reply, _ = site
    ask(page, "Go on")
    until(page, lambda: "".join(bubbles(page, "bot")))
    page.find_element(By.CSS_SELECTOR, ".stop-button").click()
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, ".submit-button"))
    time.sleep(0.5)
    (part,) = bubbles(page, "bot")
    assert reply.startswith(part) and part != reply
    ask(page, "Again")
    answered(page)
    assert bubbles(page, "bot")[-1] == reply
    assert calls(root)[1]["messages"][1]["content"] == part


def test_a_new_chat_stops_the_answer_and_clears_the_history(page, site):
    root, reply, _ = site
    ask(page, "Go on", image(root))
    until(page, lambda: "".join(bubbles(page, "bot")))
    press(page, "New chat")
    until(page, lambda: not bubbles(page, "bot") and page.find_elements(By.CSS_SELECTOR, ".submit-button"))
    time.sleep(0.5)
    assert not bubbles(page, "user") and not bubbles(page, "bot")
    ask(page, "Again")
    answered(page)
    assert bubbles(page, "bot") == [reply]
    assert (calls(root)[1]["images"], len(calls(root)[1]["messages"])) == (0, 1)


def test_a_failure_shows_its_own_message_and_returns_the_question(page, site):
    root, reply, _ = site
    ask(page, "fail", image(root))
    answered(page)
    assert bubbles(page, "bot") == [f"⚠ RuntimeError: {FAILURE}"]
    box = page.find_element(By.CSS_SELECTOR, "#box textarea")
    assert box.get_attribute("value") == "fail" and len(thumbnails(page)) == 1
    box.clear()
    ask(page, "What now?")
    answered(page)
    assert bubbles(page, "bot")[-1] == reply
    assert (calls(root)[-1]["images"], len(calls(root)[-1]["messages"])) == (1, 1)


def test_a_broken_image_is_named_and_the_question_stays(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no image")
    add(page, broken)
    until(page, lambda: thumbnails(page))
    box = page.find_element(By.CSS_SELECTOR, "#box textarea")
    box.send_keys("What is it?", Keys.ENTER)
    until(page, lambda: "broken.png is not in a format" in toast(page))
    assert not bubbles(page, "user")
    assert box.get_attribute("value") == "What is it?" and len(thumbnails(page)) == 1


def test_mistakes_on_the_command_line_are_one_line(site, served):
    root = site[0]
    port = served.rstrip("/").rpartition(":")[2]
    attempts = (["--model", "nowhere"], ["--port", port])
    running = [start(root, "demo/app.py", *words) for words in attempts]
    (_, missing), (_, busy) = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [2, 2]
    assert "nowhere" in missing and "scripts/quickstart.sh" in missing and missing.count("\n") == 1
    assert f"127.0.0.1:{port}" in busy and "--port" in busy and busy.count("\n") == 1
