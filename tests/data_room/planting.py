"""Data sets with known faults at random places, each beside something sound that looks like it.

Nothing here is taken from the code that is to find them: kinds are words, pictures are made by hand.
"""

import itertools
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = 300
HELD_OUT = 40
WORDS = ("red", "green", "small", "large", "cat", "dog", "house", "tree", "road", "sea", "left", "right", "many", "old")


@dataclass(frozen=True)
class Planted:
    """A JSONL file, an evaluation set, and what is wrong with the first: (line, kind)."""

    path: Path
    held_out: Path
    expected: set[tuple[int, str]]
    lookalikes: set[int]


@dataclass
class Garden:
    """Where things are planted. measure: tokens of a conversation, for those that end exactly at `max_length`."""

    root: Path
    random: random.Random
    measure: Callable[[list[dict]], int]
    max_length: int
    serial: itertools.count = field(default_factory=itertools.count)
    plain: list[dict] = field(default_factory=list)

    def shared(self) -> str:
        return f"shared/{self.random.randrange(SHARED)}.png"

    def own(self, suffix: str = "png", data: bytes | None = None, image: Image.Image | None = None, **options) -> str:
        """A new picture file of the given bytes, or of an image; its path as records write it."""
        name = f"own/{next(self.serial)}.{suffix}"
        if data is not None:
            (self.root / name).write_bytes(data)
        else:
            (image or self.noise()).save(self.root / name, **options)
        return name

    def noise(self, width: int = 48, height: int = 40) -> Image.Image:
        seed = next(self.serial)
        blocks = np.random.default_rng([7, seed]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)

    def question(self) -> str:
        words = " ".join(self.random.choices(WORDS, k=self.random.randint(3, 9)))
        return f"Is it {words}, number {next(self.serial)}?"

    def answer(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 6))) + "."

    def record(self, image: str | list[str] | None = "", question: str = "", answer: str = "", **more) -> dict:
        """A sound record with what is given in place of what is not; image None is none."""
        image = self.shared() if image == "" else image
        places = 0 if image is None else 1 if isinstance(image, str) else len(image)
        turns = [
            {"from": "human", "value": "<image>\n" * places + (question or self.question())},
            {"from": "gpt", "value": answer or self.answer()},
        ]
        record = {"id": f"r{next(self.serial)}", "conversations": turns, **more}
        return record if image is None else {**record, "image": image}

    def talk(self, *turns: tuple[str, str], **more) -> dict:
        """A record with these turns and a picture in front of the first human one."""
        record = self.record(**more)
        human = next(number for number, (speaker, _) in enumerate(turns) if speaker == "human")
        record["conversations"] = [
            {"from": speaker, "value": ("<image>\n" if number == human else "") + text}
            for number, (speaker, text) in enumerate(turns)
        ]
        return record

    def said(self, value: str) -> dict:
        """A record whose question says `value`."""
        return self.record(question=f"{self.question()} {value}")

    def repeated(self, **changes) -> dict:
        """The same picture and words as an earlier plain record, under another name."""
        return {**json.loads(json.dumps(self.random.choice(self.plain))), "id": f"r{next(self.serial)}", **changes}

    def as_long_as(self, tokens: int) -> dict:
        record = self.record()
        answer = record["conversations"][1]
        answer["value"] = "a"
        answer["value"] += " a" * (tokens - self.measure(record["conversations"]))
        assert self.measure(record["conversations"]) == tokens
        return record


def png_claiming(width: int, height: int) -> bytes:
    """A whole PNG file of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cut(g: Garden, suffix: str, share: float) -> str:
    name = g.own(suffix, image=g.noise(160, 120))
    data = (g.root / name).read_bytes()
    (g.root / name).write_bytes(data[: int(share * len(data))])
    return name


def copied(g: Garden, name: str, suffix: str = "png") -> str:
    return g.own(suffix, data=(g.root / name).read_bytes())


def link(g: Garden, target: Path) -> str:
    name = f"own/link{next(g.serial)}.png"
    (g.root / name).symlink_to(target)
    return name


def tagged(g: Garden, orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return g.own("jpg", image=g.noise(), exif=exif)


def in_words(record: dict) -> bytes:
    return json.dumps(record).encode()


def held_out_words(number: int) -> list[dict]:
    return [{"from": "human", "value": f"What is {number} and one?"}, {"from": "gpt", "value": str(number + 1)}]


def with_turns(record: dict, turns: list[dict]) -> dict:
    return {**record, "conversations": turns}


def of_held_out(g: Garden) -> str:
    return f"held_out/{g.random.randrange(HELD_OUT)}.png"


def recoded(g: Garden, name: str) -> str:
    with Image.open(g.root / name) as image:
        return g.own("jpg", image=image.convert("RGB"), quality=93)


# Kind -> how to make records of that kind, each a little different.
FAULTS: dict[str, list[Callable[[Garden], dict | list | bytes]]] = {
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
        lambda g: {"id": "x", "picture": g.shared()},
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
LOOKALIKES: list[tuple[str, Callable[[Garden], dict | bytes]]] = [
    ("undecodable_image", lambda g: g.record(copied(g, g.shared(), "jpg"))),
    ("truncated_image", lambda g: g.record(g.own(data=(g.root / tagged(g, 1)).read_bytes() + b"rubbish"))),
    ("decompression_bomb", lambda g: g.record("large.png")),
    ("missing_image", lambda g: g.record("own/ein Bild \u00e4 #1%20.png")),
    ("slot_mismatch", lambda g: g.record([g.shared(), g.shared()])),
    ("slot_mismatch", lambda g: g.record(None)),
    ("slot_mismatch", lambda g: {**g.record(None), "image": None}),
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


def plant(
    root: Path, records: int, faults: int, measure: Callable[[list[dict]], int], max_length: int, seed: int = 0
) -> Planted:
    """Write `records` records of which `faults` have one fault each; twice as many look as if they had one."""
    g = Garden(root / "data", random.Random(seed), measure, max_length)
    for folder in ("shared", "own", "held_out"):
        (g.root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(SHARED):
        g.noise().save(g.root / f"shared/{number}.png")
    for number in range(HELD_OUT):
        g.noise().save(g.root / f"held_out/{number}.png")
    g.noise().save(root / "outside.png")
    g.noise().save(g.root / "own/ein Bild \u00e4 #1%20.png")
    Image.new("1", (4000, 3000)).save(g.root / "large.png")
    held_out = g.root / "held_out.json"
    items = [{**g.record(f"held_out/{n}.png"), "id": str(n)} for n in range(HELD_OUT)]
    items += [{"id": f"text{n}", "conversations": held_out_words(n)} for n in range(HELD_OUT)]
    held_out.write_text(json.dumps(items))

    places = g.random.sample(range(20, records), 3 * faults)  # the first ones are what later ones repeat
    kinds = itertools.cycle(FAULTS)
    bad = {place: next(kinds) for place in places[:faults]}
    odd = dict(zip(places[faults:], itertools.cycle(LOOKALIKES), strict=False))
    variants = {kind: itertools.cycle(makers) for kind, makers in FAULTS.items()}
    expected, lookalikes, line = set(), set(), 0
    path = g.root / "records.jsonl"
    with path.open("wb") as file:
        for place in range(records):
            if place in bad:
                made = next(variants[bad[place]])(g)
            elif place in odd:
                made = odd[place][1](g)
            else:
                made = g.record()
                if len(g.plain) < 5000:
                    g.plain.append(made)
            if g.random.random() < 0.01:
                file.write(b"\n")
                line += 1
            file.write((made if isinstance(made, bytes) else in_words(made)) + b"\n")
            line += 1
            if place in bad:
                expected.add((line, bad[place]))
            elif place in odd:
                lookalikes.add(line)
    return Planted(path, held_out, expected, lookalikes)
