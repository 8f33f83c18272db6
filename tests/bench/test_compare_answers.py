"""bench/compare_answers.py: which differences are accepted, and how they are shown."""

import compare_answers as script
import pytest

from mmchat.data.image_refs import ImageFile
from mmchat.errors import UserError
from mmchat.evaluation.questions import Question


@pytest.mark.parametrize(
    ("texts", "may_tie", "accepted"),
    [
        (["a", "b", "c"], False, True),
        (["a", "b", "x"], False, False),
        (["a", "b", "x"], True, True),
        (["a", "x", "c"], True, False),  # a margin of .3
        (["x", "b", "x"], True, False),  # two ties where one is allowed
    ],
)
def test_only_ties_of_llamacpp_are_accepted(texts, may_tie, accepted):
    ours, theirs = script.Answers("mmchat", ["a", "b", "c"]), script.Answers("other", texts, may_tie)
    assert script.is_accepted(ours, theirs, [0.01, 0.3, 0.019], ties=1) == accepted


def test_table_names_the_question_and_both_answers(tmp_path):
    image = ImageFile(str(tmp_path), "3.png")
    questions = [Question(image, "How many?", "2", "count"), Question(image, "Which?", "7", "digit")]
    others = [script.Answers("vLLM 1", ["2", "7"]), script.Answers("llama.cpp", ["2", "1"], may_tie=True)]
    lines = script.table(questions, script.Answers("mmchat", ["2", "7"]), [1.0, 0.0123], others).splitlines()
    assert lines[2] == "| vLLM 1 | 2 of 2 | - |"
    assert lines[3] == "| llama.cpp | 1 of 2 | 3.png, Which? '1', not '7' (0.0123) |"


def test_missing_interpreter_is_named(monkeypatch):
    monkeypatch.delenv("MMCHAT_VLLM_PYTHON", raising=False)
    with pytest.raises(UserError, match=r"MMCHAT_VLLM_PYTHON is not set; `bash scripts/foreign/vllm.sh DIR`"):
        script.named_python("MMCHAT_VLLM_PYTHON", "vllm.sh")
