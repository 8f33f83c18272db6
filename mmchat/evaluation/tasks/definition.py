"""A task as a file: where its data come from, how it asks, how an answer is read and scored.

The tasks of `named/` and those of users are files of one schema.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mmchat.errors import UserError, nearest
from mmchat.evaluation.tasks.parsers import PARSERS
from mmchat.evaluation.tasks.prompts import TaskPrompt
from mmchat.evaluation.tasks.scorers import SCORERS
from mmchat.settings import load_settings, settings

NAMED = Path(__file__).parent / "named"


@settings
class JoinConfig:
    """Rows of another list or file, one for each row or several."""

    column: str = Field(description="column of a row that says which other row belongs to it")
    theirs: str = Field(description="column of the other rows that holds the same value")
    rows: str | None = Field(None, description="key of the list of other rows; null: they are a table of their own")
    many: bool = Field(False, description="several belong to a row: their columns are lists")


@settings
class LayoutConfig:
    """A published layout. Columns are named as they are there: `a.b` is b within a, or within each of a list."""

    name: str = Field(description="what is published in this layout")
    rows: str | None = Field(None, description='key of the list of rows in a JSON object; "*": its values are the rows')
    join: JoinConfig | None = None
    id: str | None = Field(None, description="column, or text with {columns}; null: the number of the row")
    image: str = Field("image", description="column, or a path with {columns}")
    question: str | None = Field("question", description="column; null: the prompt is the whole question")
    answers: str = Field("answer", description="column with the right answer or a list of them")
    options: list[str] | str = Field(
        default_factory=list, description="columns with the options, or one column with a list of them"
    )
    letters: int = Field(0, ge=0, le=26, description="number of options that the question's text already lists")
    answer_is_index: bool = Field(False, description="the right answer is the number of an option, from 0")
    where: dict[str, str] = Field(default_factory=dict, description="column: value of the rows that belong to the task")
    fields: dict[str, str] = Field(default_factory=dict, description="name in the task: column")


@settings
class TaskConfig:
    """A task."""

    title: str = Field(description="one line")
    follows: str = Field(description="the paper and program that prompt and score are from")
    layouts: list[LayoutConfig] = Field(min_length=1, description="the first whose columns are there is used")
    prompt: str = Field(description="text with {question}, {options} and fields; lines with an empty one are left out")
    remove: list[str] = Field(default_factory=list, description="texts that are taken out of questions")
    max_new_tokens: int = Field(16, gt=0, description="longest answer, in tokens")
    parser: str = Field("text", description="what is read from an answer")
    score: str = Field(description="how answers are compared with the right ones")
    by: list[str] = Field(default_factory=list, description="fields by whose values the score is shown too")
    circular: bool = Field(
        False, description="a question counts if it is answered right with its options in all orders"
    )
    only_with_image: bool = Field(False, description="rows without an image belong to another task and are left out")

    @model_validator(mode="after")
    def _names_exist(self) -> "TaskConfig":
        for key, value, known in (("parser", self.parser, PARSERS), ("score", self.score, SCORERS)):
            if value not in known:
                raise ValueError(f"{key} {value!r} is none of {', '.join(known)}")
        try:
            prompt = TaskPrompt(self.prompt)
        except UserError as error:
            raise ValueError(str(error)) from None
        known_fields = {name for layout in self.layouts for name in layout.fields}
        for name in (*(set(prompt.fields) - {"question", "options"}), *self.by):
            if name not in known_fields:
                raise ValueError(
                    f"field {name!r} is in no layout's fields: {', '.join(sorted(known_fields)) or 'none'}"
                )
        return self


def task_names() -> list[str]:
    """The named tasks."""
    return sorted(path.stem for path in NAMED.glob("*.yaml"))


def open_task(name: str) -> tuple[str, TaskConfig]:
    """A task by its name, or from a file.

    Args:
        name: One of `task_names`, or the path of a .yaml file.

    Returns:
        Its short name, and the task.

    Raises:
        UserError: There is no such task, or the file does not fit the schema.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = NAMED / f"{name}.yaml"
        if name not in task_names():
            near = nearest(name, task_names())
            hint = f"; the nearest is {near!r}" if near else ""
            raise UserError(f"there is no task {name!r}{hint}; `mmchat eval tasks` lists them, or name a .yaml file")
    return path.stem, load_settings(TaskConfig, path, [])


def as_plain(task: TaskConfig) -> dict[str, Any]:
    """What answers depend on, for the file beside them."""
    return {"prompt": task.prompt, "max_new_tokens": task.max_new_tokens, "circular": task.circular}
