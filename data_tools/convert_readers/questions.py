"""Images with questions and short answers: VQAv2, GQA, TextVQA, OCR-VQA, DocVQA, ChartQA.

As in LLaVA-1.5's mix of 665K (Liu et al. 2023, arXiv:2310.03744): questions on one image make one conversation
(here those that follow each other in the file, so that it can be streamed), and its first turn asks for a short
answer in the words of LLaVA's docs/Evaluation.md. Of several answers the commonest is taken, of equals the first.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlparse

from convert_readers.interface import Converted, Job, Skipped, UnusableItem, attempt, plain, text_of, turns
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


def vqav2(job: Job) -> Iterator[Converted | Skipped]:
    """Two files, joined by `question_id`: v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json.

    Answers wait on disk, so the files may be in any order and neither is held.
    """
    if len(job.inputs) != 2:
        raise UserError(f"vqav2 needs two files, the questions' and then the annotations'; got {len(job.inputs)}")
    questions, annotations = job.inputs
    subtype = read_scalar(questions, "data_subtype")
    answers = DiskIndex()

    def remember(where: str, item: Any) -> None:
        try:
            answer = commonest(item)
        except UnusableItem:
            answer = ""  # is told once, with the question
        if not answers.add(text_of(item, "question_id"), json.dumps([text_of(item, "image_id"), answer])):
            raise UnusableItem("a second annotation for the question")

    def ask(where: str, item: Any) -> Question:
        name, image = text_of(item, "question_id"), text_of(item, "image_id")
        entry = answers.pop(name)
        if entry is None:
            raise UnusableItem("no annotation for the question")
        annotated, answer = json.loads(entry)
        if annotated != image:
            raise UnusableItem("question and annotation name different images", f"{image} and {annotated}")
        file = f"COCO_{subtype}_{image:0>12}.jpg"
        return question(where, name, job.place(file, f"{subtype}/{file}"), {**item, "answer": answer})

    yield from filter(None, attempt(read_list(annotations, "annotations", job.advance), remember))
    yield from conversations(job, attempt(read_list(questions, "questions", job.advance), ask))
    for name in answers.keys():  # noqa: SIM118 - an index, not a dict
        yield Skipped(annotations.name, name, "no question for the annotation")


def gqa(job: Job) -> Iterator[Converted | Skipped]:
    """{train,val}_{balanced,all}_questions.json: {question id: {imageId, question, answer, ...}}."""

    def ask(name: str, item: Any) -> Question:
        file = f"{text_of(item, 'imageId')}.jpg"
        return question(name, name, job.place(file, f"images/{file}"), item)

    for path in job.inputs:
        yield from conversations(job, attempt(read_object(path, job.advance), ask))


def textvqa(job: Job) -> Iterator[Converted | Skipped]:
    """TextVQA_0.5.1_{train,val}.json: `data` [{question_id, image_id, question, answers: ten texts, ...}]."""

    def ask(where: str, item: Any) -> Question:
        file = f"{text_of(item, 'image_id')}.jpg"
        return question(where, text_of(item, "question_id"), job.place(file, f"train_images/{file}"), item)

    yield from _each(job, "data", ask)


def docvqa(job: Job) -> Iterator[Converted | Skipped]:
    """{train,val}_v1.0.json, also _withQT: `data` [{questionId, question, image: "documents/...", answers, ...}]."""

    def ask(where: str, item: Any) -> Question:
        image = text_of(item, "image")
        return question(where, text_of(item, "questionId"), job.place(image, PurePosixPath(image).name), item)

    yield from _each(job, "data", ask)


def chartqa(job: Job) -> Iterator[Converted | Skipped]:
    """{train,val}_{human,augmented}.json: [{imgname, query, label}], with the images in png/ beside it.

    It has no ids; they are made of the file's name and the item's number.
    """

    def ask(where: str, item: Any) -> Question:
        file = text_of(item, "imgname")
        return question(where, where.replace(".json item ", "_"), job.place(f"png/{file}", file), item, "query")

    yield from _each(job, "", ask)


def ocrvqa(job: Job) -> Iterator[Converted | Skipped]:
    """dataset.json: {book id: {imageURL, questions, answers, split: 1 train | 2 val | 3 test, ...}}.

    Images are called after the id, with .jpg (LLaVA's docs) or with the address's suffix (loadDataset.py).
    """

    def ask(name: str, item: Any) -> list[Question | Skipped]:
        split = OCRVQA_SPLITS.get(item.get("split")) if isinstance(item, dict) else None
        if split is None:
            raise UnusableItem("no `split` of 1, 2 or 3", item)
        if split != job.split:
            return [Skipped(name, name, f"of the {split} split", unwanted=True)]
        asked, answers = item.get("questions"), item.get("answers")
        if not isinstance(asked, list) or not isinstance(answers, list) or len(asked) != len(answers):
            raise UnusableItem("questions and answers differ in number", item)
        files = (f"{name}.jpg", name + PurePosixPath(urlparse(text_of(item, "imageURL")).path).suffix)
        image = job.place(*files, *(f"images/{file}" for file in files))
        pairs = enumerate(zip(asked, answers, strict=True))
        items = ((f"{name}_{number}", {"question": q, "answer": a}) for number, (q, a) in pairs)
        return list(attempt(items, lambda where, pair: question(where, where, image, pair)))

    for path in job.inputs:
        books = attempt(read_object(path, job.advance), ask)
        yield from conversations(job, (q for book in books for q in (book if isinstance(book, list) else [book])))


def question(where: str, name: str, image: str, item: Any, key: str = "question") -> Question:
    """Raises UnusableItem where question or answer is missing, blank, or would be taken for an image."""
    return Question(where, name, image, plain(text_of(item, key)), plain(commonest(item)))


def commonest(item: Any) -> str:
    """The answer given most often under `answer`, `label` or `answers`: a text, texts, or objects with `answer`.

    Raises:
        UnusableItem: there is none, as in test splits, or it is blank.
    """
    key = next((key for key in ("answer", "label", "answers") if isinstance(item, dict) and key in item), None)
    if key is None:
        raise UnusableItem("no answer", item)
    given = item[key] if isinstance(item[key], list) else [item[key]]
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in given]
    counts = Counter(str(text).strip() for text in texts if isinstance(text, str | int | float) and str(text).strip())
    if not counts:
        raise UnusableItem("empty answer", item)
    return counts.most_common(1)[0][0]


def conversations(job: Job, asked: Iterable[Question | Skipped]) -> Iterator[Converted | Skipped]:
    """One record for the questions on one image that follow each other, up to `job.max_turns`."""
    waiting: list[Question] = []
    for each in asked:
        if isinstance(each, Skipped):
            yield each
            continue
        if waiting and (each.image != waiting[0].image or len(waiting) == job.max_turns):
            yield _record(job, waiting)
            waiting = []
        waiting.append(each)
    if waiting:
        yield _record(job, waiting)


def _record(job: Job, questions: list[Question]) -> Converted:
    first = questions[0]
    prompt = SHORT_ANSWER if job.prompt is None else job.prompt
    opening = "\n".join(filter(None, (IMAGE_PLACEHOLDER, first.text, prompt)))
    said = turns((opening, first.answer), *((question.text, question.answer) for question in questions[1:]))
    return Converted(first.where, {"id": first.id, "image": first.image, "conversations": said})


def _each(job: Job, key: str, ask: Callable[[str, Any], Question]) -> Iterator[Converted | Skipped]:
    for path in job.inputs:
        yield from conversations(job, attempt(read_list(path, key, job.advance), ask))
