"""Random formulas on one line of plain Unicode characters, so that the label is exactly what is drawn."""

# ruff: noqa: RUF001  Greek letters and signs are intended.
import random

_LETTERS = "abcdfhkmnpqrstuvxyzABCDEFGHKLMNPQRSTUVWXYZαβγδεθλμπρστφψωΓΔΘΛΣΦΨΩ"
_DIGITS_BELOW, _DIGITS_ABOVE = "₀₁₂₃₄₅₆₇₈₉", "⁰¹²³⁴⁵⁶⁷⁸⁹"
_RELATIONS, _OPERATIONS = "=≈≤≥≠≡∝", "+−·×±"
_BIG = ("∑", "∏", "∫", "√", "∂", "∇")
_NAMES = ("sin", "cos", "log", "exp", "max", "min")


def formula(rng: random.Random) -> str:
    """A relation with a few terms on each side."""
    return f"{_sum(rng, 2)} {rng.choice(_RELATIONS)} {_sum(rng, 4)}"


def _sum(rng: random.Random, most: int) -> str:
    terms = [_term(rng) for _ in range(rng.randint(1, most))]
    return "".join(term if at == 0 else f" {rng.choice(_OPERATIONS)} {term}" for at, term in enumerate(terms))


def _term(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return _variable(rng)
    if kind < 0.6:
        return f"{rng.randint(2, 99)}{_variable(rng)}"
    if kind < 0.75:
        return f"{_variable(rng)}({_variable(rng)})"
    if kind < 0.87:
        return f"{rng.choice(_NAMES)} {_variable(rng)}"
    return f"{rng.choice(_BIG)}{_variable(rng)}"


def _variable(rng: random.Random) -> str:
    below = rng.choice(_DIGITS_BELOW) if rng.random() < 0.35 else ""
    above = rng.choice(_DIGITS_ABOVE[2:]) if rng.random() < 0.25 else ""
    return rng.choice(_LETTERS) + below + above
