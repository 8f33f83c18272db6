"""Page makers and `mmchat ocr` use one prompt: a model is asked what it was trained on."""

import re
from pathlib import Path

import make_lines
import make_negatives
import make_pages
import pytest

from mmchat.cli.main import build_parser
from mmchat.constants import OCR_PROMPT
from mmchat.inference.ocr import OcrTask

ROOT = Path(__file__).parents[1]


def test_the_prompt_is_that_of_varys_demo():
    assert OCR_PROMPT == "Provide the ocr results of this image."  # vary/demo/run_qwen_vary.py


def test_the_prompt_is_written_once():
    files = [path for folder in ("mmchat", "data_tools", "bench", "demo") for path in (ROOT / folder).rglob("*.py")]
    spelled_out = {
        path.relative_to(ROOT).as_posix() for path in files if re.search("ocr results of", path.read_text(), re.I)
    }
    assert spelled_out == {"mmchat/constants.py"}


@pytest.mark.parametrize("program", [make_pages, make_lines, make_negatives])
def test_page_makers_ask_with_it(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert f"(default: {OCR_PROMPT})" in " ".join(capsys.readouterr().out.split())


def test_ocr_asks_with_it():
    assert build_parser("ocr").get_default("prompt") == OcrTask().prompt == OCR_PROMPT
