"""Questions with answers, and statements, about a scene of digits.

All of them follow from the digits of a scene, with margins that leave no ambiguity. No question of a conversation
reveals the answer of another; see `converse`.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

COLORS = {
    "red": (222, 36, 36),
    "orange": (250, 140, 20),
    "yellow": (245, 228, 50),
    "green": (30, 158, 60),
    "blue": (52, 100, 240),
    "purple": (160, 60, 205),
    "white": (240, 240, 240),
    "black": (18, 18, 18),
}
PHRASES = {
    "describe": ("Describe the picture.", "What is in the picture?"),
    "count": ("How many digits are there?", "Count the digits."),
    "color_of_digit": ("What color is the {}?", "Name the color of the {}."),
    "digit_of_color": ("Which digit is {}?", "Name the {} digit."),
    "has_digit": ("Is there {}?", "Can you see {}?"),
    "count_color": ("How many digits are {}?", "Count the {} digits."),
    **{
        kind: (f"Which digit is {kind}?", f"Name the {kind} digit.")
        for kind in ("leftmost", "rightmost", "highest", "lowest")
    },
}
STATEMENT_PROMPT = "What do you see?"
# Weight of each kind of question in a conversation: kinds that fewer scenes allow have larger weights.
KIND_WEIGHTS = {"count": 0.5, "color_of_digit": 0.5, "digit_of_color": 0.6, "has_digit": 0.8, "count_color": 0.8}
KIND_WEIGHTS |= {"leftmost": 1.5, "rightmost": 1.5, "highest": 1.3, "lowest": 1.3}

# Weight of each kind of question in `lookups`.
LOOKUP_WEIGHTS = {"color_of_digit": 5, "has_digit": 3, "digit_of_color": 2}
LOOKUP_WEIGHTS |= dict.fromkeys(("leftmost", "rightmost", "highest", "lowest"), 2)


@dataclass(frozen=True)
class SceneDigit:
    """One digit of a scene. x, y (centre) and size (side of its square) are fractions of the image's side."""

    digit: int
    color: str
    x: float
    y: float
    size: float
    glyph: int = 0

    @property
    def name(self) -> str:
        return f"{self.color} {self.digit}"


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        value: the requested value.
        answer: the assistant's sentence, which contains the value.
        mentions: indices of the scene's digits that question and answer mention.
    """

    kind: str
    text: str
    value: str
    answer: str
    mentions: frozenset[int] = frozenset()


def clearly_ordered(things: tuple[SceneDigit, ...]) -> bool:
    """Whether the order from left to right is unambiguous."""
    return all(b.x - a.x >= 0.08 for a, b in itertools.pairwise(things))


def with_article(name: object) -> str:
    return f"{'an' if str(name).startswith(('orange', '8')) else 'a'} {name}"


def listing(things: tuple[SceneDigit, ...]) -> str:
    """'a red 7, a blue 3 and a white 1', in the order of the digits."""
    names = [with_article(t.name) for t in things]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def all_different(things: tuple[SceneDigit, ...]) -> bool:
    """Whether no two digits have the same value or the same colour."""
    return len({t.digit for t in things}) == len({t.color for t in things}) == len(things)


def indices_with(things: tuple[SceneDigit, ...], attribute: str, value: object) -> list[int]:
    return [i for i, thing in enumerate(things) if getattr(thing, attribute) == value]


def unique_indices(things: tuple[SceneDigit, ...], attribute: str) -> list[int]:
    """Indices of the digits whose value of the attribute no other digit has."""
    return [i for i, t in enumerate(things) if len(indices_with(things, attribute, getattr(t, attribute))) == 1]


def digit_of_color(thing: SceneDigit) -> str:
    return f"the {thing.name}"


def color_of_digit(thing: SceneDigit) -> str:
    return f"the {thing.digit} is {thing.color}"


def presence(digit: int, thing: SceneDigit | None) -> str:
    return f"there is {with_article(thing.name)}" if thing else f"there is no {digit}"


def number_of_color(color: str, number: int) -> str:
    return f"{color} digits: {number}"


def candidates(rng: random.Random, things: tuple[SceneDigit, ...]) -> list[Question]:
    """All questions with an unambiguous answer in this scene (clear margins, no ties)."""
    found: list[Question] = []

    def ask(kind: str, value: object, answer: str, mentions: list[int], slot: object = "") -> None:
        text = rng.choice(PHRASES[kind]).format(slot)
        found.append(Question(kind, text, str(value), answer, frozenset(mentions)))

    def ask_extreme(kind: str, measure: Callable[[SceneDigit], float]) -> None:
        first, second = sorted(range(len(things)), key=lambda i: measure(things[i]))[:2]
        if measure(things[second]) - measure(things[first]) >= 0.1:
            ask(kind, things[first].digit, digit_of_color(things[first]), [first])

    if clearly_ordered(things):
        ask("describe", listing(things), listing(things), [*range(len(things))])
    ask("count", len(things), str(len(things)), [])
    for i in unique_indices(things, "digit"):
        ask("color_of_digit", things[i].color, color_of_digit(things[i]), [i], things[i].digit)
    for i in unique_indices(things, "color"):
        ask("digit_of_color", things[i].digit, digit_of_color(things[i]), [i], things[i].color)
    if len(things) > 1:
        ask_extreme("leftmost", lambda t: t.x)
        ask_extreme("rightmost", lambda t: -t.x)
        ask_extreme("highest", lambda t: t.y)
        ask_extreme("lowest", lambda t: -t.y)
    single, absent = unique_indices(things, "digit"), sorted(set(range(10)) - {t.digit for t in things})
    if single and rng.random() < 0.6:
        thing = things[rng.choice(single)]
        ask("has_digit", "yes", presence(thing.digit, thing), [things.index(thing)], with_article(thing.digit))
    else:
        digit = rng.choice(absent)
        ask("has_digit", "no", presence(digit, None), [], with_article(digit))
    color = sample_color(rng, things, 0.2)
    mentioned = indices_with(things, "color", color)
    ask("count_color", len(mentioned), number_of_color(color, len(mentioned)), mentioned, color)
    return found


def sample_color(rng: random.Random, things: tuple[SceneDigit, ...], none: float) -> str:
    """A random colour. none: probability of a colour that no digit has; otherwise all counts are equally likely."""
    by_number: dict[int, list[str]] = {}
    for color in COLORS:
        by_number.setdefault(len(indices_with(things, "color", color)), []).append(color)
    number = 0 if rng.random() < none else rng.choice(sorted(by_number.keys() - {0}))
    return rng.choice(by_number[number])


def converse(rng: random.Random, things: tuple[SceneDigit, ...]) -> list[Question]:
    """Up to seven questions in random order, none of which can be answered from the others.

    Questions of a conversation mention different digits. A description mentions all digits, so it is the only question
    of its conversation. With a count or a question about absence, at most three digits are mentioned, because a scene
    has at most four. With both, at least one digit is not mentioned.
    """
    found = candidates(rng, things)
    if found[0].kind == "describe" and rng.random() < 0.35:
        return found[:1]
    found = [q for q in found if q.kind != "describe"]
    found.sort(key=lambda q: rng.random() ** (1 / KIND_WEIGHTS[q.kind]), reverse=True)
    max_questions, chosen = rng.choice((3, 4, 5, 6, 7)), []
    for question in found:
        trial = [*chosen, question]
        kinds = {q.kind for q in trial}
        mentioned = frozenset().union(*(q.mentions for q in trial))
        disjoint = len(mentioned) == sum(len(q.mentions) for q in trial)
        counting, absence = "count" in kinds, bool(kinds & {"has_digit", "count_color"})
        max_mentioned = len(things) - 1 if counting and absence else 3 if counting or absence else 4
        if len(chosen) < max_questions and disjoint and (len(mentioned) <= max_mentioned or len(trial) == 1):
            chosen = trial
    return rng.sample(chosen, len(chosen))


def statements(rng: random.Random, things: tuple[SceneDigit, ...]) -> str:
    """True sentences in random order, worded like the answers, at most one about each digit.

    In a description, digits are identified by their order from left to right. Here a digit can be identified only by
    its colour, or the colour by its digit. Answering questions requires this binding.
    """
    said, mentioned = [], set()
    for color in rng.sample(list(COLORS), len(COLORS)):
        places = indices_with(things, "color", color)
        if rng.random() < (0.08, 0.15, 0.5)[min(len(places), 2)]:
            said.append(number_of_color(color, len(places)))
            mentioned.update(places)
    digits, colors = unique_indices(things, "digit"), unique_indices(things, "color")
    for i, thing in enumerate(things):
        forms = [digit_of_color(thing)] * (i in colors) + [color_of_digit(thing)] * (i in digits)
        forms += [presence(thing.digit, thing)] * (i in digits and rng.random() < 0.3)
        if i not in mentioned and forms:
            said.append(rng.choice(forms))
    if not said or rng.random() < 0.5:
        said.append(presence(rng.choice(sorted(set(range(10)) - {t.digit for t in things})), None))
    return ", ".join(rng.sample(said, len(said)))


def lookups(rng: random.Random, things: tuple[SceneDigit, ...]) -> list[Question]:
    """A question about each of two or three different digits, in random order, most often by its digit.

    Half of the conversations also ask for a digit that is not there.

    Args:
        things: digits of different values and colours.
    """
    found = [question for question in candidates(rng, things) if question.kind != "has_digit"]
    found += [_has_digit(rng, thing.digit, thing, [i]) for i, thing in enumerate(things)]
    chosen = []
    for i in range(len(things)):
        options = [q for q in found if q.mentions == {i} and q.kind in LOOKUP_WEIGHTS]
        chosen += rng.choices(options, [LOOKUP_WEIGHTS[q.kind] for q in options])
    if rng.random() < 0.5:
        chosen.append(_has_digit(rng, rng.choice(sorted(set(range(10)) - {t.digit for t in things})), None, []))
    return rng.sample(chosen, len(chosen))


def _has_digit(rng: random.Random, digit: int, thing: SceneDigit | None, mentions: list[int]) -> Question:
    text = rng.choice(PHRASES["has_digit"]).format(with_article(digit))
    return Question("has_digit", text, "yes" if thing else "no", presence(digit, thing), frozenset(mentions))
