"""OCR of images and PDFs: every page once, resumable, with errors reported."""

import io
import os
from pathlib import Path

import pypdfium2
import pytest
import torch
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.inference.generator import Reading
from mmchat.inference.jobs.job import JobSummary
from mmchat.inference.jobs.outputs import journal_of
from mmchat.inference.ocr import DOCUMENT_FORMATS, OcrTask, lines_in_order, read_pages, write_document
from mmchat.inference.pages import list_pages, rasterize_page
from tests.inference.jobs.fakes import FakeAnswer, FakeReply

DOCUMENTS = tuple(DOCUMENT_FORMATS)


@pytest.fixture(scope="module")
def generator(assistant_dir):
    return Generator(assistant_dir, device="cpu")


def write_pdf(path, widths):
    """A PDF whose pages have these widths and a height of 1, in inches; red on the left, white on the right."""
    with PdfPages(path) as pdf:
        for width in widths:
            figure = Figure(figsize=(width, 1))
            figure.add_axes((0, 0, 0.5, 1), facecolor="red", xticks=[], yticks=[])
            pdf.savefig(figure)
    return path


def handmade_pdf(*objects, trailer=b""):
    """A PDF with these objects, numbered from 1. The first is the catalogue."""
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    size = b"trailer<</Size %d/Root 1 0 R%b>>" % (len(objects) + 1, trailer)
    return data + head + table + size + b"\nstartxref\n%d\n%%%%EOF" % len(data)


def encrypted_pdf():
    """A PDF with the standard security handler and keys that no password opens."""
    return handmade_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[]/Count 0>>",
        b"<</Filter/Standard/V 1/R 2/P -4/O<" + b"ab" * 32 + b">/U<" + b"cd" * 32 + b">>>",
        trailer=b"/Encrypt 3 0 R/ID[<00><00>]",
    )


def form_pdf():
    """A page with one form field, filled with blue."""
    return handmade_pdf(
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]>>>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]/Annots[4 0 R]>>",
        b"<</Type/Annot/Subtype/Widget/FT/Tx/F 4/T(a)/V(b)/P 3 0 R/Rect[0 0 72 72]/AP<</N 5 0 R>>>>",
        b"<</Type/XObject/Subtype/Form/BBox[0 0 72 72]/Length 23>>stream\n0 0 1 rg 0 0 72 72 re f\nendstream",
    )


def test_pages_of_a_pdf_are_rasterized(tmp_path):
    pages = list_pages(write_pdf(tmp_path / "two.pdf", [2, 3]), dpi=50)
    assert [page.key for page in pages] == [{"path": str(tmp_path / "two.pdf"), "page": n} for n in (1, 2)]
    for page, width in zip(pages, (100, 150), strict=True):
        drawn = page.open()
        assert (drawn.mode, drawn.size) == ("RGB", (width, 50))
        assert drawn.getpixel((width // 4, 25)) == (255, 0, 0)
        assert drawn.getpixel((width - 5, 25)) == (255, 255, 255)


def test_filled_form_fields_are_rasterized(tmp_path):
    (tmp_path / "form.pdf").write_bytes(form_pdf())
    assert rasterize_page(tmp_path / "form.pdf", 1, dpi=72).getpixel((36, 36)) == (0, 0, 255)


def test_a_pdf_is_recognised_by_its_content(tmp_path, make_image):
    write_pdf(tmp_path / "a.png", [1, 1])
    make_image().save(tmp_path / "b.pdf", format="PNG")
    assert len(list_pages(tmp_path / "a.png", dpi=20)) == 2
    assert list_pages(tmp_path / "b.pdf", dpi=20)[0].open().size == make_image().size


def test_pages_of_a_tiff(tmp_path, make_image):
    path = tmp_path / "scan.tif"
    make_image(0).save(path, save_all=True, append_images=[make_image(1, 12, 9)])
    first, second = list_pages(path, dpi=100)
    assert first.open().tobytes() == make_image(0).tobytes()
    assert second.open().tobytes() == make_image(1, 12, 9).tobytes()
    make_image(0).save(tmp_path / "film.gif", save_all=True, append_images=[make_image(1)])
    assert len(list_pages(tmp_path / "film.gif", dpi=100)) == 1


def blank_pdf(pages):
    document = pypdfium2.PdfDocument.new()
    for size in pages:
        document.new_page(*size)
    document.save(sink := io.BytesIO())
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encrypted_pdf(), r"a\.pdf is encrypted and needs a password; save it without one"),
        (b"%PDF-1.7\njunk", r"a\.pdf is broken or cut off"),
        (blank_pdf([(100, 100)])[:200], r"a\.pdf is broken or cut off"),
        (blank_pdf([]), r"a\.pdf (has 0 pages, no page 1|is broken)"),
        (blank_pdf([(14400, 14400)]), r"page 1, has 28800x28800 pixels at 144 dpi, more .*; use a smaller --dpi"),
    ],
    ids=["encrypted", "junk", "cut", "no page", "huge"],
)
def test_unreadable_files_say_why(tmp_path, content, message):
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    (page,) = list_pages(path, dpi=144)
    with pytest.raises(UserError, match=message):
        page.open()


def test_a_page_number_out_of_range(tmp_path):
    with pytest.raises(UserError, match="has 1 pages, no page 2"):
        rasterize_page(write_pdf(tmp_path / "a.pdf", [1]), 2, dpi=20)


class FakeGenerator:
    """Reads the width of an image. Wide images loop. `fail_after`: bands before a KeyboardInterrupt."""

    def __init__(self, real, fail_after=None):
        self.processor, self.read, self.fail_after = real.processor, 0, fail_after

    def submit(self, messages, images, max_new_tokens, repeats):
        if self.fail_after is not None and self.read >= self.fail_after:
            raise KeyboardInterrupt
        self.read += 1
        return FakeAnswer(lambda: self.reply(*images))

    def reply(self, image):
        return FakeReply(f"{image.width} wide", (1, 2), "repetition" if image.width > 60 else "end")


@pytest.fixture
def pages(tmp_path, make_image):
    """Three pages of a PDF, one of a broken image and one of an intact image."""
    make_image().save(tmp_path / "z.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    files = [write_pdf(tmp_path / "book.pdf", [1, 2, 1.5]), tmp_path / "broken.png", tmp_path / "z.png"]
    return [page for file in files for page in list_pages(file, dpi=40)]


TASK = OcrTask()


def test_an_interrupted_run_resumes_and_gives_the_same_file(generator, pages, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "lines.jsonl"
    assert read_pages(FakeGenerator(generator), pages, whole, TASK) == JobSummary(done=4, failed=1)
    with pytest.raises(KeyboardInterrupt):
        read_pages(FakeGenerator(generator, fail_after=2), pages, out, TASK)
    out.write_bytes(b"".join(sorted(whole.read_bytes().splitlines(keepends=True))[:2])[:-7])
    again = FakeGenerator(generator)
    assert read_pages(again, pages, out, TASK) == JobSummary(done=3, failed=1, skipped=1)
    assert again.read == 3
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert read_pages(again, pages, out, TASK) == JobSummary(failed=1, skipped=4)
    assert lines_in_order(out, pages) == lines_in_order(whole, pages)
    assert lines_in_order(whole, pages)[1] == {
        "path": str(tmp_path / "book.pdf"),
        "page": 2,
        "text": "80 wide",
        "stopped": "repetition",
        "bands": 1,
    }


def test_text_and_markdown_documents(generator, pages, tmp_path):
    lines = journal_of(tmp_path / "all.md", DOCUMENTS)
    assert lines == tmp_path / "all.md.jsonl"
    read_pages(FakeGenerator(generator), pages, lines, TASK)
    done = lines_in_order(lines, pages)
    write_document(done, tmp_path / "all.txt")
    texts = (tmp_path / "all.txt").read_text().split("\n\f")
    assert texts[:3] == ["40 wide", "80 wide", "60 wide"]
    assert texts[3].startswith("[page 1 could not be read: image") and texts[4:] == ["30 wide", ""]
    write_document(done, tmp_path / "all.md")
    parts = (tmp_path / "all.md").read_text().split("\n\n")
    assert parts[:5] == [f"# {tmp_path}/book.pdf", "<!-- page 1 -->", "40 wide", "<!-- page 2 -->", "80 wide"]
    assert [part for part in parts if part.startswith("#")][1:] == [f"# {tmp_path}/{n}.png" for n in ("broken", "z")]
    assert journal_of(tmp_path / "all.md", DOCUMENTS) == lines


def test_unknown_suffixes_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.doc must end in one of \.jsonl, \.txt, \.md"):
        journal_of(Path("a.doc"), DOCUMENTS)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="was not written by this command, so it is not overwritten"):
        journal_of(tmp_path / "README.md", DOCUMENTS)


@pytest.mark.parametrize(
    "name", ["a\nb.png", "<script>.png", "-->.png", os.fsdecode(b"\xff\xfe.png"), '"quoted".png', "\u2028.png"]
)
def test_any_file_name_works(generator, tmp_path, make_image, name):
    with (tmp_path / name).open("wb") as file:
        make_image().save(file, format="PNG")
    (page,) = list_pages(tmp_path / name, dpi=100)
    lines = tmp_path / "all.md.jsonl"
    for expected in (JobSummary(done=1), JobSummary(skipped=1)):
        assert read_pages(FakeGenerator(generator), [page], lines, TASK) == expected
    assert lines_in_order(lines, [page])[0]["path"] == str(tmp_path / name)
    write_document(lines_in_order(lines, [page]), tmp_path / "all.md")
    heading, rest = (tmp_path / "all.md").read_text(encoding="utf-8").split("\n", 1)
    assert "<" not in heading and rest == "\n<!-- page 1 -->\n\n30 wide\n"


@pytest.fixture
def tall(tmp_path, make_image):
    """A page of several bands."""
    tall = make_image(0, 40, 90)
    for top in (25, 50, 75):
        tall.paste("white", (0, top, 40, top + 8))
    tall.save(tmp_path / "tall.png")
    return list_pages(tmp_path / "tall.png", dpi=100)


def test_bands_are_read_in_order_and_counted(generator, tmp_path, tall):
    fake = FakeGenerator(generator)
    read_pages(fake, tall, tmp_path / "a.jsonl", OcrTask(tile=True))
    (line,) = lines_in_order(tmp_path / "a.jsonl", tall)
    assert fake.read == line["bands"] > 1
    assert line["text"] == "\n".join(["40 wide"] * line["bands"])


def test_a_page_reports_its_worst_band(generator, tmp_path, tall):
    class Uneven(FakeGenerator):
        def submit(self, *args, **options):
            self.read += 1
            stop = ["length", "repetition", "end", "end"][self.read - 1]
            return FakeAnswer(lambda: FakeReply(stop, (), stop))

    read_pages(Uneven(generator), tall, tmp_path / "a.jsonl", OcrTask(tile=True))
    assert lines_in_order(tmp_path / "a.jsonl", tall)[0]["stopped"] == "repetition"


@pytest.fixture(scope="module")
def looping(assistant_dir):
    """A random model that depends mostly on the last token, so that it loops sooner or later."""
    generator = Generator(assistant_dir, device="cpu")
    with torch.no_grad():
        for layer in generator.model.language_model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
    return generator


def test_a_reading_is_the_same_alone_and_beside_others(looping, make_image, monkeypatch):
    """Texts that stop at their end, at a loop and at the length limit."""
    images = [make_image(seed, 30 + seed) for seed in (1, 5, 0, 2)]
    requests = [looping.conversation("What?", one, ()) for one in images]
    tokens = [answer.result().ids for answer in looping.submit_all(requests, max_new_tokens=140)]
    end = next(token for token in tokens[-1] if not any(token in row for row in tokens[:-1]))
    monkeypatch.setattr(looping.model.generation_config, "eos_token_id", end)
    options = {"prompt": "What?", "repeats": 4, "max_new_tokens": 140}
    together = looping.read(images, **options)
    assert together == [looping.read([one], **options)[0] for one in images]
    assert {reading.stopped for reading in together} == {"end", "length", "repetition"}


def test_an_answer_without_an_end_stopped_at_its_length(generator, make_image):
    caption = generator.caption([make_image()], "What?", max_new_tokens=5)[0]
    assert generator.read([make_image()], "What?", max_new_tokens=5) == [Reading(caption, "length")]
