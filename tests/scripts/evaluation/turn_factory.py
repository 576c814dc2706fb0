"""Turns for tests of metrics, with only what a test says about them."""

from typing import Any

from scripts.evaluation.turns import Turn


def turn(
    output: str, *references: str, test: str = "", round: int = 1, shown: list[int] | None = None, **more: Any
) -> Turn:
    """A turn; `shown` gives it as many images. Without a name every output is a conversation of its own."""
    images = [{"sha256": str(number)} for number in range(len(shown or ()))]
    base = {"question": "?", "prompt": "", "images": images, "new_images": 0, "correct": None, "shown": shown}
    return Turn(test=test or output, round=round, output=output, references=list(references), **(base | more))


def points(vectors) -> list[float | None]:
    """The points of every vector of a metric."""
    return [None if vector is None else vector[0] for vector in vectors]
