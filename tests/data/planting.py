"""Data sets with known faults at random places, each next to a correct record that resembles it.

Nothing here is taken from the code that is to find them: kinds are words, images are made by hand.
"""

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.planted_kinds import FAULTS, HELD_OUT, LOOKALIKES, held_out_words, in_words

SHARED = 300
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
        """A new image file of the given bytes, or of an image; its path as records write it."""
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
        """A record with these turns and an image in front of the first human one."""
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
        """The same image and words as an earlier plain record, under another name."""
        return {**json.loads(json.dumps(self.random.choice(self.plain))), "id": f"r{next(self.serial)}", **changes}

    def as_long_as(self, tokens: int) -> dict:
        record = self.record()
        answer = record["conversations"][1]
        answer["value"] = "a"
        answer["value"] += " a" * (tokens - self.measure(record["conversations"]))
        assert self.measure(record["conversations"]) == tokens
        return record


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
