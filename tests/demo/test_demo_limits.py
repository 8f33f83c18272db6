"""What visitors may send: sizes are checked before anything is decoded, and no file stays."""

import asyncio
import io
import os
import struct
import time
import zlib

import pytest
from PIL import Image
from web_chat.files import Intake, sweep
from web_chat.limits import Limits, Turnstile, admit, check_text, take_uploads

from mmchat.errors import UserError


def png(width=8, height=6, color="red"):
    with io.BytesIO() as encoded:
        Image.new("RGB", (width, height), color).save(encoded, "PNG")
        return encoded.getvalue()


def claiming(width, height):
    """A PNG of a few bytes that claims a size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


def test_an_image_is_kept_in_memory():
    image = admit("a.png", png(), [], Limits())
    assert image.size == (8, 6) and image.data == png() and image.thumbnail.startswith("data:image/png;base64,")
    large = admit("b.png", png(900, 300), [], Limits())
    assert large.thumbnail.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("limits", "before", "data", "message"),
    [
        (Limits(images=1), 1, png(), "2 images are more than the limit of 1"),
        (Limits(file_mb=0), 0, png(), "bytes, more than the limit of 0"),
        (Limits(), 0, claiming(13_000, 13_000), "has 13000x13000 pixels, more than the limit"),
        (Limits(total_pixels=60), 1, png(), "96 pixels in all images, more than the limit of 60"),
        (Limits(), 0, b"no image", "not in a format"),
        (Limits(), 0, png(300, 300)[:200], "broken or cut off"),
    ],
)
def test_refusals(limits, before, data, message):
    earlier = [admit("first.png", png(), [], Limits())] * before
    with pytest.raises(UserError, match=message) as error:
        admit("x.png", data, earlier, limits)
    assert "x.png" in str(error.value)


def test_uploads_are_deleted_once_all_are_taken(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    paths[0].write_bytes(png())
    paths[1].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png is not in a format"):
        take_uploads(paths, [], Limits())
    assert all(path.exists() for path in paths)  # they are still in the visitor's box
    paths[1].write_bytes(png())
    assert [image.name for image in take_uploads(paths, [], Limits())] == ["a.png", "b.png"]
    assert not any(path.exists() for path in paths)


def test_long_texts_are_refused():
    assert check_text("ab", Limits(characters=2)) == "ab"
    with pytest.raises(UserError, match="the system prompt has 3 characters; the limit is 2"):
        check_text("abc", Limits(characters=2), "system prompt")


def test_an_address_has_a_few_answers_at_a_time():
    turnstile = Turnstile(Limits(in_flight=2, waiting=1))
    assert [turnstile.enter("a") for _ in range(3)] == [True, True, False]
    assert turnstile.enter("b")
    with turnstile.waiting("a"):
        with pytest.raises(UserError, match="2 of your questions are being answered"), turnstile.waiting("a"):
            pass
        turnstile.leave("a")
        assert turnstile.enter("a")
    with turnstile.waiting("a"):
        pass


def test_old_files_and_the_oldest_of_too_many_are_swept(tmp_path):
    for age, name in ((0, "new"), (50, "older"), (100, "oldest"), (5000, "expired")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "file"
        path.write_bytes(b"x" * 10)
        os.utime(path, (time.time() - age,) * 2)
    sweep(tmp_path, kept=1000, most_bytes=100)
    assert sorted(path.parent.name for path in tmp_path.rglob("file")) == ["new", "older", "oldest"]
    sweep(tmp_path, kept=1000, most_bytes=20)
    assert sorted(path.parent.name for path in tmp_path.rglob("file")) == ["new", "older"]


def post(limit, chunks, length=None, path="/x", folder=None):
    """Send chunks through the middleware; returns the status and how much the application read."""
    read, sent = [], []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append(len(message["body"]))
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 200})
                return

    async def receive():
        body = chunks.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Intake(app, limit, folder)(scope, receive, send))
    return [message["status"] for message in sent if "status" in message], sum(read)


def test_bodies_are_limited_while_they_arrive():
    assert post(10, [b"x" * 5, b"x" * 5]) == ([200], 10)
    assert post(10, [b"x" * 11], length=11) == ([413], 0)
    assert post(10, [b"x"], length="1e3") == ([413], 0)
    status, read = post(10, [b"x" * 8] * 5)
    assert status == [] and read == 8


def test_room_is_made_before_an_upload(tmp_path):
    old = tmp_path / "old"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    post(10, [b"x"], folder=tmp_path)
    assert old.exists()
    post(10, [b"x"], path="/gradio_api/upload", folder=tmp_path)
    assert not old.exists()
