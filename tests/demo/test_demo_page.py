"""The page offers what the demo can do."""

import gradio as gr
import pytest
from web_chat.desk import Desk
from web_chat.feedback import Feedback
from web_chat.limits import Limits
from web_chat.models import Models
from web_chat.page import build


@pytest.mark.parametrize("kept", [False, True])
def test_ratings_are_asked_for_only_if_they_are_kept(tmp_path, kept):
    models = Models([tmp_path / name for name in "ab" if not (tmp_path / name).mkdir()], lambda path: None)
    page = build(Desk(models, Limits(), tmp_path, feedback=Feedback(tmp_path) if kept else None))
    events = [event for function in page.fns.values() for _, event in function.targets]
    assert events.count("like") == (2 if kept else 0)
    chats = [block for block in page.blocks.values() if isinstance(block, gr.Chatbot)]
    assert [bool(chat.feedback_options) for chat in chats] == [kept] * 2
    (votes,) = [block for block in page.blocks.values() if block.elem_id == "votes"]
    shows_votes = [function for function in page.fns.values() if votes in function.outputs]
    assert len(shows_votes) == kept
