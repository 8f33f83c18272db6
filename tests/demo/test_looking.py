"""HTML of views and attention: every view with its part of the map, scaled over all of them."""

import base64
import re

import numpy as np
import pytest
from test_demo_limits import png
from web_chat.conversation import Conversation
from web_chat.limits import Limits, admit
from web_chat.looking import look

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference import Generator
from mmchat.inference.attention_maps import attention_maps


def test_every_view_has_its_map(assistant_dir):
    generator = Generator(assistant_dir, device="cpu")
    conversation = Conversation()
    with pytest.raises(UserError, match="ask about an image first"):
        look(generator, conversation)
    uploads = [admit(f"{size}<.png", png(size, size), [], Limits()) for size in (20, 60)]
    for question, images, answer in (("One?", uploads[:1], "first"), ("Two?", uploads[1:], "a red seven")):
        turn = conversation.ask(question, images)
        turn.answer, turn.state = answer, "done"
    conversation.ask("not answered")

    page = look(generator, conversation)
    assert re.findall(r'data-word="(\d)".*?>(\w+)<', page) == [("0", "a"), ("1", "red"), ("2", "seven")]
    assert "20&lt;.png, 20 x 20 pixels, seen as 28 x 28 " in page and page.count("<img") == 2
    heat = [np.frombuffer(base64.b64decode(one), np.uint8) for one in re.findall(r'data-heat="([^"]+)"', page)]
    bright = np.stack(heat).reshape(2, 3, 16)
    assert bright.max((0, 2)).tolist() == [255] * 3 and bright.min((0, 2)).tolist() == [0] * 3
    messages, images = conversation.messages(2)
    maps = attention_maps(generator, messages, [load_image(image.data) for image in images], "a red seven")
    assert np.argmax(bright[:, 2].ravel()) == np.argmax([one[2].ravel() for (one,) in maps.heat])
