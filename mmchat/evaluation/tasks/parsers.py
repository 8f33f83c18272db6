"""What is read from an answer, by name."""

from collections.abc import Callable, Mapping

from mmchat.evaluation.tasks.metrics.choices import first_letter, letter_or_text, mmstar_letter, scienceqa_letter
from mmchat.evaluation.tasks.metrics.yes_no import mme_word, pope_word
from mmchat.evaluation.tasks.samples import Sample

Parser = Callable[[str, Sample], str]

PARSERS: Mapping[str, Parser] = {
    "text": lambda answer, sample: answer,
    "letter_or_text": lambda answer, sample: letter_or_text(answer, sample.options),
    "first_letter": lambda answer, sample: first_letter(answer, sample.options),
    "scienceqa_letter": lambda answer, sample: scienceqa_letter(answer, sample.options),
    "mmstar_letter": lambda answer, sample: mmstar_letter(answer, sample.options),
    "pope_word": lambda answer, sample: pope_word(answer),
    "mme_word": lambda answer, sample: mme_word(answer),
}
