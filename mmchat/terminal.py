"""The console that all commands and runs print to."""

from typing import Any

from rich.console import Console


class PlainConsole(Console):
    """Prints text as it is: in a name, `[/b]` is not markup, which would raise, and `:warning:` is not an emoji.

    Styles are given as `Text` or by `style=`.

    Args:
        options: Of `rich.console.Console`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
