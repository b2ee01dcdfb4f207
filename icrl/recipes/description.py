"""What a recipe says of itself."""

from __future__ import annotations

from collections.abc import Callable

from icrl.config import Recipe


def first_line(function: Callable[[], Recipe]) -> str:
    """The first line of a recipe function's docstring, which is the recipe's description."""
    return (function.__doc__ or "").strip().splitlines()[0]
