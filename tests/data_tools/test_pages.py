"""Synthetic pages: the label is what is drawn, complete, determined by the seed, in fonts that cover the text."""
# ruff: noqa: RUF001  Chinese punctuation is intended.

import random
from dataclasses import replace
from pathlib import Path

import make_pages
import numpy as np
import pytest
from PIL import Image
from synthetic import generate
from synthetic.degradation import LEVELS, Degradation, degrade, sample_degradation
from synthetic.fonts import SHIPPED, SYSTEM, Face, find_faces
from synthetic.label_check import DefectError, Piece, check_label, check_rotation
from synthetic.line_breaking import break_lines
from synthetic.pages import PageMaker, draw
from synthetic.text_folder import normalise_text, open_texts

from mmchat.constants import OCR_PROMPT
from mmchat.data.sources import open_source
from mmchat.errors import UserError
from mmchat.files import read_json_lines

WORDS = "river stone window evening letter garden bread winter harbour lantern paper silence wheel mountain".split()  # noqa: SIM905
CHINESE = "春天来了，院子里的树开始发芽。孩子们在河边放风筝，老人坐在门口晒太阳，说着去年的收成。"


def tale(seed: int, paragraphs: int = 60) -> str:
    rng = random.Random(seed)
    return "\n\n".join(
        " ".join(rng.choices(WORDS, k=rng.randint(20, 90))).capitalize() + "." for _ in range(paragraphs)
    )


@pytest.fixture(scope="module")
def faces():
    return find_faces([SHIPPED])


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(tale(0))
    (folder / "b.md").write_text("# A walk\n\n" + tale(1) + "\n\n## Home again\n\n" + tale(2))
    return folder


@pytest.fixture(scope="module")
def maker(text_folder, faces):
    return PageMaker(0, open_texts(text_folder), faces, 512, (9, 14), "light", "Read.")


def words_of(folder: Path) -> str:
    return " ".join(normalise_text(path.read_text()) for path in sorted(folder.iterdir()))


def test_label_is_in_the_source_text_and_all_ink_is_in_the_boxes(maker, text_folder):
    whole = words_of(text_folder)
    formulas = tables = 0
    for number in range(12):
        page, degradation = maker.compose(number)
        maker.check(number, page, degradation)
        blocks = page.text.split("\n")
        assert max(blocks, key=len) in whole
        formulas += bool(set("=≈≤≥≠≡∝") & set(page.text))
        tables += len(page.rules) > 2
        ink = np.asarray(draw(page)) < 128
        for left, top, right, bottom in (run.piece.box for run in page.runs):
            assert ink[int(top) : int(bottom), int(left) : int(right)].any()
            ink[max(0, int(top) - 1) : int(bottom) + 1, max(0, int(left) - 1) : int(right) + 1] = False
        for left, top, right, bottom in page.rules:
            ink[round(top) - 1 : round(bottom) + 1, round(left) - 1 : round(right) + 2] = False
        assert not ink.any()
    assert formulas and tables


def test_a_clipped_line_is_a_defect(maker):
    page, degradation = maker.compose(3)
    for change, problem in (
        ({"x": page.side - 20}, "leaves its room"),
        ({"baseline": -3}, "leaves its room"),
        ({"text": page.runs[4].text[:-1]}, "is drawn and the label is"),
        ({"text": page.runs[4].text + " and on and on over the edge of the page and far beyond it"}, "leaves its room"),
    ):
        runs = list(page.runs)
        runs[4] = replace(runs[4], **change)
        with pytest.raises(DefectError, match=f"page 3 of seed 0: .*{problem}"):
            maker.check(3, replace(page, runs=tuple(runs)), degradation)
    with pytest.raises(DefectError, match="is drawn and the label is"):
        maker.check(3, replace(page, runs=page.runs[:-1]), degradation)
    with pytest.raises(DefectError, match="is drawn and the label is"):
        maker.check(3, replace(page, runs=(*page.runs[1::-1], *page.runs[2:])), degradation)


def test_a_page_with_a_defect_is_redrawn_and_listed():
    def attempt(number):
        if number < failures:
            raise DefectError(f"attempt {number}")
        return generate.Sample({"pages": [{"id": number}]})

    failures = 0
    assert generate.retry_defects(attempt).records == {"pages": [{"id": 0}]}
    failures = 2
    listed = [{"reason": "attempt 0"}, {"reason": "attempt 1"}]
    assert generate.retry_defects(attempt).records == {"pages": [{"id": 2}], "skipped/redrawn": listed}
    failures = 9
    with pytest.raises(DefectError, match="attempt 4"):
        generate.retry_defects(attempt)


def test_skew_that_moves_ink_off_the_page_is_a_defect():
    corner = [Piece("x", (2, 2, 10, 10), (0, 0, 100, 100))]
    check_label(corner, "x", (0, 0, 100, 100), "")
    check_rotation(corner, 0.5, 100, "")
    with pytest.raises(DefectError, match=r"turned by 9\.00 degrees, 'x' leaves the page"):
        check_rotation(corner, 9.0, 100, "")
    turned = Image.new("L", (100, 100), 255)
    turned.paste(0, (2, 2, 4, 4))
    assert (np.asarray(degrade(turned, Degradation(degrees=9.0), [0])) > 128).all()


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_degradation_is_seeded_and_text_stays_darker_than_paper(maker, level):
    page, _ = maker.compose(0)
    clean = draw(page)
    for seed in range(6):
        degradation = replace(sample_degradation(random.Random(seed), level), degrees=0.0)
        degraded = np.asarray(degrade(clean, degradation, [seed])).astype(int)
        again = np.asarray(degrade(clean, degradation, [seed]))
        assert (degraded == again).all() and (level != "none" or (degraded == np.asarray(clean)).all())
        ink = np.asarray(clean) < 100
        assert np.median(degraded[ink]) < np.median(degraded[~ink]) - 40


def bytes_made(make, out: Path, workers: int = 0) -> dict[Path, bytes]:
    generate.generate_dataset(make, 7, out, {"seed": 0}, workers, chunk_size=2)
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path, maker):
    one, two = (bytes_made(replace(maker, side=256), tmp_path / str(workers), workers) for workers in (1, 2))
    assert one == two == bytes_made(replace(maker, side=256), tmp_path / "here") and len(one) == 9


def test_same_bytes_after_a_kill(tmp_path, maker):
    maker, made = replace(maker, side=256), []

    def killed(number):
        if number == 5:
            raise KeyboardInterrupt
        return maker(number)

    def counted(number):
        made.append(number)
        return maker(number)

    whole = bytes_made(maker, tmp_path / "here")
    assert len(whole) == 9
    with pytest.raises(KeyboardInterrupt):
        bytes_made(killed, tmp_path / "cut")
    assert bytes_made(counted, tmp_path / "cut") == whole and made == [4, 5, 6]
    assert bytes_made(counted, tmp_path / "cut") == whole and len(made) == 3


def test_a_font_that_does_not_cover_the_text_is_not_chosen(maker, faces, text_folder, tmp_path):
    poor = Face(faces[0].path, 0, "Poor", "Regular", frozenset("abc "))
    able = replace(maker, faces=[poor, *faces])
    assert {able.sample_body(random.Random(seed), "Evening.").family for seed in range(40)} == {f.family for f in faces}
    (tmp_path / "zh.txt").write_text(CHINESE)
    with pytest.raises(UserError, match="no font has the characters of these texts"):
        replace(maker, texts=open_texts(tmp_path)).compose(0)
    (tmp_path / "en.txt").write_text(tale(5))  # text that can be drawn is drawn
    page, _ = replace(maker, texts=open_texts(tmp_path)).compose(0)
    assert page.text and not set(CHINESE) & set(page.text)


def test_chinese_breaks_between_characters_but_not_before_punctuation(maker, tmp_path):
    chinese = [face for face in find_faces([SYSTEM]) if face.covers(CHINESE)]
    if not chinese:
        pytest.skip("no font with Chinese on this machine")
    (tmp_path / "zh.txt").write_text("\n\n".join(CHINESE * 3 for _ in range(30)))
    able = replace(maker, texts=open_texts(tmp_path), faces=chinese)
    for number in range(4):
        page, degradation = able.compose(number)
        able.check(number, page, degradation)
        assert max(page.text.split("\n"), key=len) in CHINESE * 3
        assert sum(run.glue == "" for run in page.runs) > 3 and not any(run.text[0] in "，。" for run in page.runs)


def test_a_word_wider_than_a_line_is_cut_without_loss(faces):
    text = "a " + "w" * 100 + " b"
    lines = list(break_lines(text, faces[0], 20, 150, 0))
    assert len(lines) > 5 and max(line.length for line in lines) <= 150
    together = "".join(line.text + line.next_glue for line in lines)
    assert together == text and [text[: line.end] for line in lines][-1] == text


def test_random_access_gives_complete_paragraphs(tmp_path):
    (tmp_path / "long.txt").write_text(tale(7, 400))
    (tmp_path / "lines.md").write_text("# 第一章\n" + "春天来了。\n" * 20_000)
    texts = open_texts(tmp_path)
    every = {paragraph.text for paragraph in texts.paragraphs()}
    rng = random.Random(0)
    found = 0
    for _ in range(60):
        for paragraph in texts.paragraphs_from(rng.randrange(texts.size)):
            found += 1
            assert paragraph.text in every or set(paragraph.text) <= set("春天来了。 ")
    assert found > 100


def test_markdown_headings_and_skipped_text(tmp_path):
    (tmp_path / "a.md").write_text(
        "# One two #\n\nText\u200b with  a\tform\x0cfeed.\n\nSee <image> here.\n\nשלום is Hebrew.\n\n#no heading\n"
        "## Two\nits text,\nstill\n- one\n2. two"
    )
    assert [(p.text, p.heading) for p in open_texts(tmp_path).paragraphs()] == [
        ("One two", True), ("Text with a form feed.", False), ("#no heading", False),
        ("Two", True), ("its text, still", False), ("- one", False), ("2. two", False),
    ]  # fmt: skip


def pdf(path: Path, *pages: list[tuple[float, float, str]]) -> None:
    """Write pages of (x, y, text), in fractions of the page, with selectable text."""
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(path) as file:
        for texts in pages:
            figure = Figure((4, 6))
            for x, y, text in texts:
                figure.text(x, y, text)
            file.savefig(figure)


def test_pdf_pages_have_their_text_and_unreadable_ones_are_listed(tmp_path):
    pytest.importorskip("pypdfium2")
    (tmp_path / "in").mkdir()
    good = [(0.1, 0.9, "The harbour lay in silence."), (0.1, 0.1, "Below, the lanterns burned.")]
    pdf(tmp_path / "in" / "a.pdf", good, [], [(0.7, 0.5, "this line runs over the edge of its page")])
    words = ["--text", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "300", "--degrade", "none"]
    make_pages.main([*words, "--count", "3", "--workers", "0", "--preview", "0", "--fonts", SHIPPED])
    (record,) = read_json_lines(tmp_path / "out" / "pages.jsonl")
    assert record["conversations"][1]["value"] == "The harbour lay in silence.\nBelow, the lanterns burned."
    assert record["where"] == "a.pdf:1"
    with Image.open(tmp_path / "out" / record["image"]) as image:
        ink = np.asarray(image) < 128
        assert image.size == (200, 300) and ink[10:40].any() and ink[255:285].any() and not ink[60:240].any()
    skipped = read_json_lines(tmp_path / "out" / "skipped" / "pages.jsonl")
    assert [line["where"] for line in skipped] == ["a.pdf:2", "a.pdf:3"]
    assert skipped[0]["reason"] == "0 characters of text" and "outside the visible page" in skipped[1]["reason"]


def test_the_script_writes_readable_data_and_reports_mistakes(text_folder, tmp_path, capsys):
    def run(*more):
        make_pages.main(["--text", str(text_folder), "--size", "256", "--workers", "0", "--fonts", SHIPPED, *more])

    run("--out", str(tmp_path / "out"), "--count", "3")
    source = open_source(str(tmp_path / "out"))
    assert len(source) == 3 and OCR_PROMPT in source[2].turns[0].parts[-1]
    assert (tmp_path / "out" / "preview.png").exists()
    for words, told in (
        (["--out", str(tmp_path / "out"), "--count", "4"], "was started with other settings (count;"),
        (["--out", str(text_folder)], "exists and is not empty"),
        (["--out", str(tmp_path / "x"), "--letters", "30", "20"], "--letters 30 20: expected 4 to 16"),
        (["--out", str(tmp_path / "x"), "--text", str(tmp_path / "out" / "pages")], "no .txt, .md or .pdf"),
    ):
        with pytest.raises(SystemExit) as end:
            run(*words)
        assert end.value.code == 2 and told in capsys.readouterr().err
