"""A captioning job resumes after any interruption: no image is lost or captioned twice."""

import pytest

from mmchat.errors import UserError
from mmchat.inference.captioning import caption_files
from mmchat.inference.jobs.job import JobSummary
from tests.inference.jobs.fakes import FakeGenerator, lines


@pytest.fixture
def files(tmp_path, make_image):
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        make_image(number, width=10 + number).save(path)
    return paths


TEXT = "{prompt} {width}\u2028 \x85é"


def caption(files, out, generator=None):
    generator = generator or FakeGenerator(text=TEXT)
    return caption_files(generator, files, out, "Width", batch_size=2, max_new_tokens=9), len(generator.asked)


def by_path(out):
    return sorted(lines(out), key=lambda line: line["path"])


def text(number):
    return f"Width {10 + number}\u2028 \x85é"


def test_one_line_per_image_and_nothing_twice(files, tmp_path):
    out = tmp_path / "deep" / "captions.jsonl"
    assert caption([*files, files[0]], out) == (JobSummary(done=5), 5)
    assert by_path(out) == [{"path": str(path), "caption": text(number)} for number, path in enumerate(files)]
    before = out.read_bytes()
    assert caption(files, out) == (JobSummary(skipped=5), 0)
    assert out.read_bytes() == before


def test_a_broken_image_is_a_line_and_is_tried_again(files, tmp_path):
    out = tmp_path / "captions.jsonl"
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:100])
    assert caption(files, out) == (JobSummary(done=4, failed=1), 4)
    assert [set(line) for line in by_path(out)] == [{"path", "error" if n == 1 else "caption"} for n in range(5)]
    assert "1.png is broken or cut off" in by_path(out)[1]["error"]
    assert caption(files, out)[0] == JobSummary(failed=1, skipped=4)
    files[1].write_bytes(whole)
    assert caption(files, out) == (JobSummary(done=1, skipped=4), 1)
    assert {line["path"]: line["caption"] for line in lines(out)} == {str(p): text(n) for n, p in enumerate(files)}


def test_broken_images_only(files, tmp_path):
    for path in files:
        path.write_bytes(b"")
    assert caption(files, tmp_path / "captions.jsonl")[0] == JobSummary(failed=5)


def test_an_interrupted_run_resumes(files, tmp_path):
    out = tmp_path / "captions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        caption(files, out, FakeGenerator(0.01, fail_after=2, text=TEXT))
    done = len(lines(out))
    assert done <= 2
    assert caption(files, out)[0] == JobSummary(done=5 - done, skipped=done)
    assert len(lines(out)) == 5


@pytest.mark.parametrize("kept", [1, 5, 15, -4, -3, -1])
def test_an_incomplete_line_is_redone(files, tmp_path, kept):
    out = tmp_path / "captions.jsonl"
    caption(files, out)
    whole = out.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    out.write_bytes(whole[:last] + whole[last:][:kept])
    assert caption(files, out)[0] == JobSummary(done=1, skipped=4)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"dear diary",
        b"dear diary\n",
        b'{"path": "a", "caption": "b"}\nnotes\n',
        b'{"path": "a", "sha256": "b"}\n',
        b'["path", "caption"]\n',
        b"7",
        b"{}\n",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_a_file_of_another_kind_is_not_overwritten(files, tmp_path, content):
    out = tmp_path / "captions.jsonl"
    out.write_bytes(content)
    with pytest.raises(UserError, match=r"captions\.jsonl.* not overwritten; choose another --out"):
        caption(files, out)
    assert out.read_bytes() == content


def test_a_folder_as_out(files, tmp_path):
    with pytest.raises(UserError, match="is a folder; --out must be a file"):
        caption(files, tmp_path)
