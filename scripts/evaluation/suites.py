"""Suites: conversations that are put to a model as a person would, and how its answers are judged.

This module holds what a suite is, and reads the one form of it that the original has, {"test name": [["question",
"image.jpg other.jpg"], ["question"], ...]}: rounds in order, with the images that are new in a round, several with
spaces between them. Paths are relative to the file, to a folder above it if they lead back, or to a given one.
`answers.json` beside it, {"test name": ["answer", ["answer", "also right"], null, ...]}, gives a suite a score; `null`
or a test that it does not name is generated but not judged. The other form, task files, is in tasks.py.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json
from scripts.evaluation.results import HELDOUT
from scripts.evaluation.scoring import MetricSpec, metric_spec
from scripts.inference.generation import GenerationOptions
from scripts.inference.image_files import decode, read_file, resolve_inside, split_paths
from scripts.inference.image_files import find_image_root as find_root

ANSWERS = "answers.json"


@dataclass(frozen=True)
class SuiteImage:
    """An image as the suite names it, with its bytes and their hash."""

    path: str
    data: bytes
    sha256: str


@dataclass(frozen=True)
class SuiteRound:
    """A question, the images that are shown with it for the first time, and the answers that count as right.

    `given` is an answer that is part of the conversation: the model is told it and not asked. `choices` is what can be
    chosen, `target` the place of the right one.
    """

    question: str
    images: tuple[SuiteImage, ...]
    references: tuple[str, ...] = ()
    given: str | None = None
    choices: tuple[str, ...] = ()
    target: int | None = None


@dataclass(frozen=True)
class Dialogue:
    """One test of a suite. `cluster` is a name that versions of one test share, `system` what is said before it."""

    name: str
    rounds: tuple[SuiteRound, ...]
    system: str | None = None
    cluster: str | None = None


GENERATE, ROUNDS = "generate_until", "generate_until_multi_round"
CHOICES, LIKELIHOOD = "multiple_choice", "loglikelihood"


@dataclass(frozen=True)
class Suite:
    """What is asked, how it is answered and what counts.

    `output_type` is one of lmms-eval's: an answer to the last question of each test, answers to all of them, the
    likeliest of choices, or how likely the reference is. The first of the `metrics` decides what is called right.
    `filters` are named pipelines that outputs pass before they are judged. `files` are the hashes of what was read,
    images apart.
    """

    dialogues: tuple[Dialogue, ...]
    output_type: str = ROUNDS
    metrics: tuple[MetricSpec, ...] = (metric_spec("exact_match"), metric_spec("which_image"), metric_spec("recall"))
    generation: GenerationOptions = GenerationOptions()
    filters: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = ()
    version: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def suite_paths(values: Iterable[str]) -> dict[str, Path]:
    """Parse the values of repeated `--suite NAME=FILE` flags.

    Raises:
        UserError: no such form, a name that is not fit for a folder or taken, or one that comes twice.
    """
    suites: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"--suite {value}: write NAME=FILE, with a name of letters, digits, - and _")
        if name in suites or name == HELDOUT:
            raise UserError(f"--suite {value}: the name {name} is taken")
        suites[name] = Path(path)
    return suites


def read_dialogues(path: str | Path, image_root: str | Path | None = None, allow_outside: bool = False) -> Suite:
    """Read dialogues with all of their images; every image is decoded once, so that a broken one is found before any
    work.

    Args:
        path: the suite's JSON file.
        image_root: folder that the image paths are relative to; found by `images.image_root` if not given.
        allow_outside: accept absolute paths and paths that leave `image_root`.

    Raises:
        UserError: bad JSON, a bad round, a missing, broken or forbidden image, answers that do not fit; the message
            names the test and the round (from 1).
    """
    path = Path(path)
    tests = read_json(path)
    if not isinstance(tests, dict) or not tests:
        raise UserError(f"{path} must be a JSON object of tests, and not an empty one")
    answers = read_json(path.parent / ANSWERS) if (path.parent / ANSWERS).exists() else {}
    if not isinstance(answers, dict):
        raise UserError(f"{path.parent / ANSWERS} must be a JSON object with the answers of each test")
    root = Path(image_root) if image_root is not None else find_root(path.parent, image_names(tests))

    dialogues = []
    for name, rounds in tests.items():
        where = f"{path}: test {name!r}"
        if not isinstance(rounds, list) or not rounds:
            raise UserError(f"{where} must be a list of rounds, and not an empty one")
        references = _references(answers.get(name, [None] * len(rounds)), len(rounds), where)
        dialogues.append(
            Dialogue(
                name,
                tuple(
                    _round(entry, given, root, allow_outside, f"{where}, round {number}")
                    for number, (entry, given) in enumerate(zip(rounds, references, strict=True), start=1)
                ),
            )
        )
    files = {file.name: file_sha256(file) for file in (path, path.parent / ANSWERS) if file.exists()}
    return Suite(tuple(dialogues), files=files)


def image_names(tests: Any) -> list[str]:
    """The images that dialogues name, wherever these are of the right form."""
    rounds = [each for value in tests.values() if isinstance(value, list) for each in value]
    texts = [each[1] for each in rounds if isinstance(each, list) and len(each) == 2 and isinstance(each[1], str)]
    names = []
    for text in texts:
        try:
            names += split_paths(text)
        except UserError:
            continue  # said with its place when the round is read
    return names


def _references(answers: Any, rounds: int, where: str) -> list[tuple[str, ...]]:
    if not isinstance(answers, list) or len(answers) != rounds:
        raise UserError(f"{where} has {rounds} rounds, so {ANSWERS} must list {rounds} answers for it")
    references = []
    for number, answer in enumerate(answers, start=1):
        accepted = [] if answer is None else [answer] if isinstance(answer, str) else answer
        if not isinstance(accepted, list) or not all(isinstance(text, str) for text in accepted):
            raise UserError(f"{where}, round {number}: an answer in {ANSWERS} must be a text, a list of texts or null")
        references.append(tuple(accepted))
    return references


def _round(entry: Any, references: Sequence[str], root: Path, allow_outside: bool, where: str) -> SuiteRound:
    shaped = isinstance(entry, list) and len(entry) in (1, 2) and all(isinstance(text, str) for text in entry)
    if not shaped or not entry[0].strip():
        raise UserError(f'{where} must be ["question"] or ["question", "image.jpg other.jpg"], not {entry!r}')
    try:
        names = split_paths(entry[1]) if len(entry) == 2 else []
        images = tuple(image_file(name, root, allow_outside) for name in names)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return SuiteRound(entry[0].strip(), images, tuple(references))


def image_file(name: str, root: Path, allow_outside: bool = False, shown_as: str | None = None) -> SuiteImage:
    """Read an image that a suite names relative to `root`; `shown_as` is its path in the results.

    Raises:
        UserError: it is missing, broken or outside of `root`.
    """
    return image_bytes(read_file(resolve_inside(root, name, allow_outside), name), shown_as or name)


def image_bytes(data: bytes, name: str) -> SuiteImage:
    """An image from its encoded bytes.

    Raises:
        UserError: these are no image.
    """
    decode(data, name)
    return SuiteImage(name, data, hashlib.sha256(data).hexdigest())
