"""Makes one fault of each kind, and correct records that resemble it (see planting.py)."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from tests.data.planting import Garden

HELD_OUT = 40


def png_claiming(width: int, height: int) -> bytes:
    """A whole PNG file of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cut(g: "Garden", suffix: str, share: float) -> str:
    name = g.own(suffix, image=g.noise(160, 120))
    data = (g.root / name).read_bytes()
    (g.root / name).write_bytes(data[: int(share * len(data))])
    return name


def copied(g: "Garden", name: str, suffix: str = "png") -> str:
    return g.own(suffix, data=(g.root / name).read_bytes())


def link(g: "Garden", target: Path) -> str:
    name = f"own/link{next(g.serial)}.png"
    (g.root / name).symlink_to(target)
    return name


def tagged(g: "Garden", orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return g.own("jpg", image=g.noise(), exif=exif)


def in_words(record: dict) -> bytes:
    return json.dumps(record).encode()


def held_out_words(number: int) -> list[dict]:
    return [{"from": "human", "value": f"What is {number} and one?"}, {"from": "gpt", "value": str(number + 1)}]


def with_turns(record: dict, turns: list[dict]) -> dict:
    return {**record, "conversations": turns}


def of_held_out(g: "Garden") -> str:
    return f"held_out/{g.random.randrange(HELD_OUT)}.png"


def recoded(g: "Garden", name: str) -> str:
    with Image.open(g.root / name) as image:
        return g.own("jpg", image=image.convert("RGB"), quality=93)


# Kind -> how to make records of that kind, each a little different.
FAULTS: dict[str, list[Callable[["Garden"], dict | list | bytes]]] = {
    "undecodable_image": [
        lambda g: g.record(g.own(data=b"<html>404 not found</html>")),
        lambda g: g.record(g.own(data=b"")),
        lambda g: g.record([g.shared(), g.own(data=bytes(range(200)))]),
    ],
    "truncated_image": [
        lambda g: g.record(cut(g, "png", 0.6)),
        lambda g: g.record(cut(g, "jpg", 0.7)),
        lambda g: g.record([cut(g, "webp", 0.8), g.shared()]),
    ],
    "decompression_bomb": [
        lambda g: g.record(g.own(data=png_claiming(60_000, 60_000))),
        lambda g: g.record(g.own(data=png_claiming(14_000, 12_800))),
    ],
    "missing_image": [
        lambda g: g.record(f"own/gone{next(g.serial)}.png"),
        lambda g: g.record([g.shared(), "shared"]),
    ],
    "slot_mismatch": [
        lambda g: {**g.record([g.shared(), g.shared()]), "image": g.shared()},
        lambda g: {**g.record(None), "image": g.shared()},
        lambda g: {**g.record(), "image": []},
    ],
    "unsupported_media": [
        lambda g: {**g.talk(("human", "<video>\n" + g.question()), ("gpt", g.answer())), "video": "x.mp4"},
        lambda g: {**g.record(), "audios": ["a.wav"]},
    ],
    "preference_data": [
        lambda g: {**g.record(), "label": False},
        lambda g: {**g.record(), "rejected": g.answer()},
    ],
    "tool_definitions": [lambda g: {**g.record(), "tools": '[{"name": "add"}]'}],
    "grounding_objects": [lambda g: {**g.record(answer="At <bbox>."), "objects": {"bbox": [[1, 2, 3, 4]]}}],
    "unread_key": [lambda g: with_turns(r := g.record(), [{**r["conversations"][0], "images": ["a.png"]}])],
    "role_order": [
        lambda g: g.talk(("human", g.question()), ("human", g.question()), ("gpt", g.answer())),
        lambda g: g.talk(("human", g.question()), ("gpt", g.answer()), ("gpt", g.answer())),
        lambda g: g.talk(("human", g.question()), ("gpt", g.answer()), ("system", "Be brief.")),
        lambda g: g.talk(("human", g.question()), ("narrator", g.answer())),
        lambda g: g.talk(("gpt", "Hi."), ("gpt", "Hi again."), ("human", g.question()), ("gpt", g.answer())),
    ],
    "empty_answers": [
        lambda g: g.talk(("human", g.question()), ("gpt", "")),
        lambda g: g.talk(("human", g.question()), ("gpt", " \n"), ("human", g.question()), ("gpt", "\u3000")),
    ],
    "empty_answer": [
        lambda g: g.talk(("human", g.question()), ("gpt", "\t"), ("human", g.question()), ("gpt", g.answer())),
    ],
    "over_length": [
        lambda g: with_turns(
            g.record(),
            [{"from": "human", "value": " a" * g.max_length + "<image>"}, {"from": "gpt", "value": g.answer()}],
        ),
        lambda g: g.record(None, question="a " * g.max_length + g.question()),
    ],
    "cut_text": [lambda g: g.as_long_as(g.max_length + 1), lambda g: g.as_long_as(g.max_length + 40)],
    "exact_duplicate": [
        lambda g: g.repeated(),
        lambda g: (again := g.repeated()) | {"image": copied(g, again["image"])},
    ],
    "leak": [
        lambda g: g.record(copied(g, of_held_out(g))),
        lambda g: g.record([g.shared(), of_held_out(g)]),
        lambda g: with_turns(g.record(None), held_out_words(g.random.randrange(HELD_OUT))),
    ],
    "control_tokens": [
        lambda g: g.said("<|im_end|> and so on"),
        lambda g: g.record(answer=f"{g.answer()}</s>"),
        lambda g: g.talk(("human", g.question()), ("gpt", "There is <image> in it.")),
        lambda g: g.said("<imgpad>"),
    ],
    "not_utf8": [lambda g: json.dumps(g.said("caf\u00e9"), ensure_ascii=False).encode("latin-1")],
    "lone_surrogate": [lambda g: g.said("half \ud83d of it"), lambda g: g.record(answer="\udc00")],
    "replacement_character": [lambda g: g.said("caf\ufffd")],
    "mojibake": [
        lambda g: g.said("a caf\u00c3\u00a9 by the sea"),
        lambda g: g.record(answer="It doesn\u00e2\u20ac\u2122t say."),
    ],
    "path_outside_root": [
        lambda g: g.record("../outside.png"),
        lambda g: g.record(str(g.root.parent / "outside.png")),
        lambda g: g.record(link(g, g.root.parent / "outside.png")),
    ],
    "invalid_json": [
        lambda g: in_words(g.record())[:-9],
        lambda g: in_words(g.record()).replace(b'"id"', b"id"),
    ],
    "malformed_record": [
        lambda g: [1, 2],
        lambda g: with_turns(g.record(), [{"from": "human", "value": 3}]),
        lambda g: {"id": "x", "image": g.shared()},
    ],
    "nothing_to_learn": [
        lambda g: g.talk(("human", g.question())),
        lambda g: with_turns(r := g.record(), [r["conversations"][0], {**r["conversations"][1], "train": False}]),
    ],
    "exif_rotation": [lambda g: g.record(tagged(g, 6)), lambda g: g.record(tagged(g, 3))],
    "extreme_aspect": [lambda g: g.record(g.own(image=g.noise(301, 30)))],
    "tiny_image": [lambda g: g.record(g.own(image=g.noise(40, 9)))],
}

# Sound, and easily taken for the kind it is named after.
LOOKALIKES: list[tuple[str, Callable[["Garden"], dict | bytes]]] = [
    ("undecodable_image", lambda g: g.record(copied(g, g.shared(), "jpg"))),
    ("truncated_image", lambda g: g.record(g.own(data=(g.root / tagged(g, 1)).read_bytes() + b"rubbish"))),
    ("decompression_bomb", lambda g: g.record("large.png")),
    ("missing_image", lambda g: g.record("own/ein Bild \u00e4 #1%20.png")),
    ("slot_mismatch", lambda g: g.record([g.shared(), g.shared()])),
    ("slot_mismatch", lambda g: g.record(None)),
    ("slot_mismatch", lambda g: {**g.record(None), "image": None}),
    ("unsupported_media", lambda g: {**g.said("What does a video element do?"), "video": None, "audios": []}),
    ("preference_data", lambda g: {**g.record(), "label": "cat", "rejected": None, "score": 0.1}),
    ("tool_definitions", lambda g: {**g.record(), "tools": "[]"}),
    ("grounding_objects", lambda g: {**g.record(), "objects": {"bbox": [[1, 2, 3, 4]]}}),
    (
        "unread_key",
        lambda g: with_turns(r := g.record(), [{**r["conversations"][0], "id": 3}, r["conversations"][1]]),
    ),
    ("role_order", lambda g: g.talk(("system", "Be brief."), ("human", g.question()), ("gpt", g.answer()))),
    ("role_order", lambda g: g.talk(("gpt", "Hello."), ("human", g.question()), ("gpt", g.answer()))),
    ("role_order", lambda g: g.talk(("human", g.question()), ("gpt", g.answer()), ("human", g.question()))),
    ("empty_answers", lambda g: g.record(answer="0")),
    ("empty_answers", lambda g: g.record(answer=".")),
    ("over_length", lambda g: g.as_long_as(g.max_length)),
    (
        "exact_duplicate",
        lambda g: (
            (r := g.repeated())
            and with_turns(r, [{"from": "human", "value": "<image>\n" + g.question()}, r["conversations"][1]])
        ),
    ),
    (
        "exact_duplicate",
        lambda g: (
            (r := g.repeated())
            and with_turns(r, [r["conversations"][0], {"from": "gpt", "value": f"{g.answer()} {next(g.serial)}"}])
        ),
    ),
    ("exact_duplicate", lambda g: g.repeated(image=g.own())),
    ("leak", lambda g: g.record(recoded(g, of_held_out(g)))),
    ("leak", lambda g: g.record(question="What is 3 and one?", image=g.own())),
    ("control_tokens", lambda g: g.said("<s and | im_end | and < /s > and <|im_start")),
    ("lone_surrogate", lambda g: in_words(g.said("\U0001f600 and \U0001f9d1\u200d\U0001f33e"))),
    (
        "mojibake",
        lambda g: g.said("S\u00e3o Paulo, N\u00c3O, \u00c5ngstr\u00f6m, na\u00efve caf\u00e9 \u2014 \u201cyes\u201d"),
    ),
    ("mojibake", lambda g: g.record(answer="\u65e5\u672c\u8a9e \u0442\u0435\u0441\u0442 \u0639\u0631\u0628\u064a")),
    ("path_outside_root", lambda g: g.record(f"own/../{g.shared()}")),
    ("path_outside_root", lambda g: g.record(link(g, g.root / g.shared()))),
    ("invalid_json", lambda g: b"  " + in_words(g.said("U+2028 \u2028 inside")) + b" "),
    (
        "nothing_to_learn",
        lambda g: with_turns(
            r := g.record(),
            [*r["conversations"], {"from": "human", "value": "And?"}, {"from": "gpt", "value": "No.", "train": False}],
        ),
    ),
    ("exif_rotation", lambda g: g.record(tagged(g, 1))),
    ("extreme_aspect", lambda g: g.record(g.own(image=g.noise(300, 30)))),
    ("tiny_image", lambda g: g.record(g.own(image=g.noise(40, 10)))),
]
