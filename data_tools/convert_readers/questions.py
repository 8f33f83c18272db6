"""Images with questions and short answers: VQAv2, GQA, TextVQA, OCR-VQA, DocVQA, ChartQA.

As in LLaVA-1.5's mix of 665K (Liu et al. 2023, arXiv:2310.03744), questions about one image form one conversation (here
consecutive questions of the file, so that it can be streamed). The first turn asks for a short answer with the prompt
of LLaVA's docs/Evaluation.md. Of several answers the most common is used; of equally common ones the first.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlparse

from convert_readers.interface import (
    ConversionJob,
    Converted,
    Skipped,
    UnusableItem,
    convert_items,
    make_turns,
    plain_text,
    text_field,
)
from convert_readers.json_streams import DiskIndex, read_list, read_object, read_scalar
from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError

SHORT_ANSWER = "Answer the question using a single word or phrase."
OCRVQA_SPLITS = {1: "train", 2: "val", 3: "test"}


class Question(NamedTuple):
    where: str
    id: str
    image: str
    text: str
    answer: str


def vqav2(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """Two files, joined by `question_id`: v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json.

    Answers are indexed on disk, so the files may be in any order and neither is held in memory.
    """
    if len(job.inputs) != 2:
        raise UserError(f"vqav2 needs two files, the questions' and then the annotations'; got {len(job.inputs)}")
    questions, annotations = job.inputs
    subtype = read_scalar(questions, "data_subtype")
    answers = DiskIndex()

    def remember(where: str, item: Any) -> None:
        try:
            answer = most_common_answer(item)
        except UnusableItem:
            answer = ""  # reported once, with the question
        if not answers.add(text_field(item, "question_id"), json.dumps([text_field(item, "image_id"), answer])):
            raise UnusableItem("a second annotation for the question")

    def ask(where: str, item: Any) -> Question:
        name, image = text_field(item, "question_id"), text_field(item, "image_id")
        entry = answers.pop(name)
        if entry is None:
            raise UnusableItem("no annotation for the question")
        annotated, answer = json.loads(entry)
        if annotated != image:
            raise UnusableItem("question and annotation name different images", f"{image} and {annotated}")
        file = f"COCO_{subtype}_{image:0>12}.jpg"
        return make_question(where, name, job.image_path(file, f"{subtype}/{file}"), {**item, "answer": answer})

    yield from filter(None, convert_items(read_list(annotations, "annotations", job.advance), remember))
    yield from conversations(job, convert_items(read_list(questions, "questions", job.advance), ask))
    for name in answers.keys():  # noqa: SIM118 - an index, not a dict
        yield Skipped(annotations.name, name, "no question for the annotation")


def gqa(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """{train,val}_{balanced,all}_questions.json: {question id: {imageId, question, answer, ...}}."""

    def ask(name: str, item: Any) -> Question:
        file = f"{text_field(item, 'imageId')}.jpg"
        return make_question(name, name, job.image_path(file, f"images/{file}"), item)

    for path in job.inputs:
        yield from conversations(job, convert_items(read_object(path, job.advance), ask))


def textvqa(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """TextVQA_0.5.1_{train,val}.json: `data` [{question_id, image_id, question, answers: ten texts, ...}]."""

    def ask(where: str, item: Any) -> Question:
        file = f"{text_field(item, 'image_id')}.jpg"
        return make_question(where, text_field(item, "question_id"), job.image_path(file, f"train_images/{file}"), item)

    yield from _convert_list(job, "data", ask)


def docvqa(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """{train,val}_v1.0.json, also _withQT: `data` [{questionId, question, image: "documents/...", answers, ...}]."""

    def ask(where: str, item: Any) -> Question:
        image = text_field(item, "image")
        return make_question(
            where, text_field(item, "questionId"), job.image_path(image, PurePosixPath(image).name), item
        )

    yield from _convert_list(job, "data", ask)


def chartqa(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """{train,val}_{human,augmented}.json: [{imgname, query, label}], with the images in png/ next to it.

    There are no ids; they are formed from the file name and the item number.
    """

    def ask(where: str, item: Any) -> Question:
        file = text_field(item, "imgname")
        return make_question(
            where, where.replace(".json item ", "_"), job.image_path(f"png/{file}", file), item, "query"
        )

    yield from _convert_list(job, "", ask)


def ocrvqa(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """dataset.json: {book id: {imageURL, questions, answers, split: 1 train | 2 val | 3 test, ...}}.

    Image names are the id with .jpg (LLaVA's docs) or with the suffix of the URL (loadDataset.py).
    """

    def ask(name: str, item: Any) -> list[Question | Skipped]:
        split = OCRVQA_SPLITS.get(item.get("split")) if isinstance(item, dict) else None
        if split is None:
            raise UnusableItem("no `split` of 1, 2 or 3", item)
        if split != job.split:
            return [Skipped(name, name, f"of the {split} split", deselected=True)]
        questions, answers = item.get("questions"), item.get("answers")
        if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
            raise UnusableItem("questions and answers differ in number", item)
        files = (f"{name}.jpg", name + PurePosixPath(urlparse(text_field(item, "imageURL")).path).suffix)
        image = job.image_path(*files, *(f"images/{file}" for file in files))
        pairs = enumerate(zip(questions, answers, strict=True))
        items = ((f"{name}_{number}", {"question": q, "answer": a}) for number, (q, a) in pairs)
        return list(convert_items(items, lambda where, pair: make_question(where, where, image, pair)))

    for path in job.inputs:
        books = convert_items(read_object(path, job.advance), ask)
        yield from conversations(job, (q for book in books for q in (book if isinstance(book, list) else [book])))


def make_question(where: str, name: str, image: str, item: Any, key: str = "question") -> Question:
    """Raises UnusableItem if question or answer is missing, blank, or contains an image placeholder."""
    return Question(where, name, image, plain_text(text_field(item, key)), plain_text(most_common_answer(item)))


def most_common_answer(item: Any) -> str:
    """The most common answer under `answer`, `label` or `answers`: a text, texts, or objects with `answer`.

    Raises:
        UnusableItem: there is no answer, as in test splits, or it is blank.
    """
    key = next((key for key in ("answer", "label", "answers") if isinstance(item, dict) and key in item), None)
    if key is None:
        raise UnusableItem("no answer", item)
    answers = item[key] if isinstance(item[key], list) else [item[key]]
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    counts = Counter(str(text).strip() for text in texts if isinstance(text, str | int | float) and str(text).strip())
    if not counts:
        raise UnusableItem("empty answer", item)
    return counts.most_common(1)[0][0]


def conversations(job: ConversionJob, questions: Iterable[Question | Skipped]) -> Iterator[Converted | Skipped]:
    """One record for consecutive questions about one image, up to `job.max_turns`."""
    pending: list[Question] = []
    for each in questions:
        if isinstance(each, Skipped):
            yield each
            continue
        if pending and (each.image != pending[0].image or len(pending) == job.max_turns):
            yield _record(job, pending)
            pending = []
        pending.append(each)
    if pending:
        yield _record(job, pending)


def _record(job: ConversionJob, questions: list[Question]) -> Converted:
    first = questions[0]
    prompt = SHORT_ANSWER if job.prompt is None else job.prompt
    opening = "\n".join(filter(None, (IMAGE_PLACEHOLDER, first.text, prompt)))
    turns = make_turns((opening, first.answer), *((question.text, question.answer) for question in questions[1:]))
    return Converted(first.where, {"id": first.id, "image": first.image, "conversations": turns})


def _convert_list(job: ConversionJob, key: str, ask: Callable[[str, Any], Question]) -> Iterator[Converted | Skipped]:
    for path in job.inputs:
        yield from conversations(job, convert_items(read_list(path, key, job.advance), ask))
