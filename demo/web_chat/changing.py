"""What a visitor changes: questions asked again, answers corrected and rated, models chosen and compared."""

from collections.abc import Callable

import gradio as gr

from mmchat.errors import UserError
from web_chat import rendering
from web_chat.conversation import Conversation
from web_chat.desk import Desk
from web_chat.limits import check_text
from web_chat.widgets import NO_COMPARISON, facts_html

THANKS = "Thank you, it is noted."


class Changing:
    """Functions of the events on bubbles and models. Those of a side are made for its number."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def retry(self, number: int) -> Callable:
        """The function that asks the last question of a side again."""

        def retry_side(request: gr.Request) -> list:
            visitor = self.desk.idle(request)
            if number < len(visitor.sides) and (turns := visitor.sides[number].conversation.turns):
                visitor.ask_again(number, len(turns) - 1)
            return self.desk.chats(visitor)

        return retry_side

    def undo(self, request: gr.Request) -> list:
        """Take the last question back into the box."""
        visitor = self.desk.idle(request)
        turn = visitor.undo()
        return self.desk.chats(visitor, None if turn is None else self.desk.as_box(turn))

    def edit(self, number: int) -> Callable:
        """The function for an edited bubble: a question is asked again, an answer is corrected."""

        def edit_side(event: gr.EditData, request: gr.Request) -> list:
            visitor = self.desk.idle(request)
            turn, kind = self.desk.located(visitor, number, event.index)
            text = rendering.from_markdown(str(event.value)).strip()
            check_text(text, self.desk.limits)
            if kind == "answer" and text:
                self._correct(visitor.sides[number].conversation, turn, text)
            elif kind == "question" and text:
                visitor.ask_again(number, turn, text)
            shown = self.desk.chats(visitor)
            return shown if visitor.pending else [*shown[:-1], gr.skip()]  # what is in the box stays there

        return edit_side

    def _correct(self, conversation: Conversation, number: int, text: str) -> None:
        turn = conversation.turns[number]
        if turn.state != "done" or text == rendering.from_markdown(rendering.to_markdown(turn.answer)).strip():
            return
        turn.given = turn.given or turn.answer
        turn.answer, turn.rating = text, "corrected"
        self._keep(conversation, number)

    def like(self, number: int) -> Callable:
        """The function for a thumb."""

        def like_side(event: gr.LikeData, request: gr.Request) -> None:
            visitor = self.desk.visitor(request)
            turn, kind = self.desk.located(visitor, number, event.index)
            conversation = visitor.sides[number].conversation
            if kind == "answer" and conversation.turns[turn].state == "done":
                conversation.turns[turn].rating = _rating(event.liked)
                self._keep(conversation, turn)

        return like_side

    def prefer(self, number: int) -> Callable:
        """The function for a vote between two answers."""

        def prefer_side(request: gr.Request) -> None:
            visitor = self.desk.idle(request)
            talks = [side.conversation for side in visitor.sides]
            if len(talks) < 2 or not all(talk.turns and talk.turns[-1].state == "done" for talk in talks):
                raise UserError("Ask both models first.")
            if self.desk.feedback is not None:
                self.desk.feedback.prefer(talks[number], talks[1 - number])
                gr.Info(THANKS, duration=2)

        return prefer_side

    def _keep(self, conversation: Conversation, number: int) -> None:
        if self.desk.feedback is not None:
            self.desk.feedback.put(conversation, number)
            gr.Info(THANKS, duration=2)

    def choose(self, name: str, request: gr.Request) -> str:
        """Let another model answer from now on; returns what it is."""
        with self.desk.models.use(name) as generator:
            facts = facts_html(generator)
        self.desk.visitor(request).sides[0].model = name
        return facts

    def compare(self, name: str, request: gr.Request) -> list:
        """Put a second model next to the first, or remove it."""
        visitor = self.desk.idle(request)
        if name not in (NO_COMPARISON, *self.desk.models.names):
            raise UserError("There is no such model.")
        visitor.compare(None if name == NO_COMPARISON else name)
        return self.desk.chats(visitor)


def _rating(liked: bool | str) -> str:
    """Gradio's value of a thumb: whether it is up, or an empty text if it was taken back."""
    return {True: "up", False: "down"}.get(liked, "") if isinstance(liked, bool) else ""
