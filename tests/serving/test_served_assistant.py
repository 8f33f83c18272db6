"""The server over a real assistant: its answers are those of `Generator`, no matter who else asks."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmchat.inference import Generator
from mmchat.inference.engine import EngineSettings
from mmchat.serving.assistant import ServedAssistant
from tests.serving.live import image_part, running, text_part

OPTIONS = {"max_tokens": 12}


@pytest.fixture(scope="module")
def served(assistant_dir):
    with running(ServedAssistant(assistant_dir, EngineSettings(slots=4), device="cpu")) as live:
        yield live


def uri(image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_answers_are_those_of_the_generator_and_do_not_cross(served, assistant_dir, make_image):
    images = [make_image(number) for number in range(6)]
    questions = ["What is this?", "Is <image> </s> here?", "Name the colour of it."]
    cases = [(image, question) for image in images for question in questions]
    with Generator(assistant_dir, "cpu") as generator:
        expected = [generator.chat(question, image, max_new_tokens=12) for image, question in cases]
    assert len(set(expected)) == len(cases)

    def ask(case):
        image, question = case
        return served.chat([image_part(uri(image)), text_part(question)], **OPTIONS).json()

    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(ask, cases))
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == expected
    assert {answer["usage"]["prompt_tokens"] > 16 for answer in answers} == {True}


def test_a_seed_repeats_a_sample_and_choices_differ(served):
    asked = [served.chat("Say something.", temperature=1, seed=3, n=3, **OPTIONS).json() for _ in range(2)]
    first, second = [[choice["message"]["content"] for choice in answer["choices"]] for answer in asked]
    assert first == second
    assert len(set(first)) == 3
    assert asked[0]["usage"]["completion_tokens"] > 12


def test_what_is_too_long_is_the_callers_mistake(served):
    response = served.chat("a b " * 2000)
    assert response.status_code == 400
    assert "the model's context is 512" in response.json()["error"]["message"]


def test_an_image_cut_off_ends_its_own_request(served, make_image):
    broken = uri(make_image())[:-400]
    response = served.chat([image_part(broken + "A" * (-len(broken.partition(",")[2]) % 4)), text_part("What?")])
    assert response.status_code == 400
    assert "messages[0].content[0]" in response.text
    assert served.chat("Hello", **OPTIONS).status_code == 200


def test_metrics_name_slots_and_tokens(served):
    served.chat("Hello", **OPTIONS)
    lines = dict(line.rsplit(" ", 1) for line in served.client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["mmchat_cache_slots"]) == 4
    assert float(lines["mmchat_generated_tokens_total"]) > 0
    assert float(lines["mmchat_time_to_first_token_seconds_count"]) > 0
    assert float(lines["mmchat_answers_running"]) == float(lines["mmchat_answers_queued"]) == 0
