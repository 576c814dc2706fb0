"""Makes turns for tests of metrics, with defaults for the fields that do not matter."""

from typing import Any

from scripts.evaluation.turns import Turn


def turn(
    output: str, *references: str, test: str = "", number: int = 1, shown: list[int] | None = None, **more: Any
) -> Turn:
    """A turn of round `number` with one image per entry of `shown`. The default of `test` is the output."""
    images = [{"sha256": str(number)} for number in range(len(shown or ()))]
    base = {"question": "?", "prompt": "", "images": images, "new_images": 0, "correct": None, "shown": shown}
    return Turn(test=test or output, round=number, output=output, references=list(references), **(base | more))


def points(vectors) -> list[float | None]:
    """The first number of every vector of a metric."""
    return [None if vector is None else vector[0] for vector in vectors]
