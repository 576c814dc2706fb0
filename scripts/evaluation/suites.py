"""Suites: dialogues for a model to answer, and how its answers are scored.

This module defines `Suite` and reads the format of the original:

    {"test name": [["question", "image.jpg other.jpg"], ["question"], ...]}

holds rounds in order, each with its new images, separated by spaces. Paths are relative to the file, to a folder above
it (see `find_image_root`), or to a given folder. `answers.json` in the same folder holds the references:

    {"test name": ["answer", ["answer", "also correct"], null, ...]}

A round with `null`, or of a test that is not listed, is answered but not scored. The other format, task files, is read
by task_files.py.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json
from scripts.evaluation.results import HELDOUT
from scripts.evaluation.scoring import MetricSpec, metric_spec
from scripts.inference.generation import GenerationOptions
from scripts.inference.image_files import decode_image, find_image_root, read_image_file, resolve_inside, split_paths

ANSWERS_FILE = "answers.json"


@dataclass(frozen=True)
class SuiteImage:
    """An image: its path as the suite names it, its encoded bytes and their sha256."""

    path: str
    data: bytes
    sha256: str


@dataclass(frozen=True)
class SuiteRound:
    """A question, its new images, and the answers that count as correct.

    `parts` are the texts of the question and, as numbers from 0, its images in their places; without them the images
    come first. `given` is an answer that is part of the conversation: the round is context, and the model does not
    answer it.
    `choices` are the texts to choose from, `target` is the index of the correct one.
    """

    question: str
    images: tuple[SuiteImage, ...]
    references: tuple[str, ...] = ()
    given: str | None = None
    choices: tuple[str, ...] = ()
    target: int | None = None
    parts: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """One test of a suite. `system` is its system message, `cluster` a name shared by versions of one test."""

    name: str
    rounds: tuple[SuiteRound, ...]
    system: str | None = None
    cluster: str | None = None


OutputType = Literal["generate_until", "generate_until_multi_round", "multiple_choice", "loglikelihood"]
GENERATE_UNTIL: Final = "generate_until"
MULTI_ROUND: Final = "generate_until_multi_round"
MULTIPLE_CHOICE: Final = "multiple_choice"
LOGLIKELIHOOD: Final = "loglikelihood"


@dataclass(frozen=True)
class Suite:
    """The dialogues of a suite, how they are answered and how the answers are scored.

    `output_type` is one of lmms-eval's: an answer to the last question of each test, answers to all questions, the most
    likely choice, or the likelihood of the reference. The first of the `metrics` decides whether an answer is correct.
    `filters` are named pipelines that change outputs before they are scored. `files` holds the sha256 of the files that
    were read, by name, without images.
    """

    dialogues: tuple[Dialogue, ...]
    output_type: OutputType = MULTI_ROUND
    metrics: tuple[MetricSpec, ...] = (metric_spec("exact_match"), metric_spec("which_image"), metric_spec("recall"))
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    filters: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = ()
    version: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def suite_paths(values: Iterable[str]) -> dict[str, Path]:
    """Parse the values of repeated `--suite NAME=FILE` flags.

    Raises:
        UserError: not of this form, or a name that is reserved, given twice or no valid name of a folder.
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
    """Read dialogues in the format of the original, with all of their images.

    Every image is decoded once, so that a damaged one is found before a model is loaded.

    Args:
        path: the suite's JSON file.
        image_root: folder that the image paths are relative to; see `find_image_root` if not given.
        allow_outside: accept absolute paths and paths that leave `image_root`.

    Raises:
        UserError: bad JSON, a bad round, a missing, damaged or forbidden image, answers that do not match the rounds;
            the message names the test and the round (from 1).
    """
    path = Path(path)
    tests = read_json(path)
    if not isinstance(tests, dict) or not tests:
        raise UserError(f"{path} must be a JSON object of tests and must not be empty")
    answers = read_json(path.parent / ANSWERS_FILE) if (path.parent / ANSWERS_FILE).exists() else {}
    if not isinstance(answers, dict):
        raise UserError(f"{path.parent / ANSWERS_FILE} must be a JSON object with the answers of each test")
    root = Path(image_root) if image_root is not None else find_image_root(path.parent, image_names(tests))

    dialogues = []
    for name, rounds in tests.items():
        where = f"{path}: test {name!r}"
        if not isinstance(rounds, list) or not rounds:
            raise UserError(f"{where} must be a list of rounds and must not be empty")
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
    files = {file.name: file_sha256(file) for file in (path, path.parent / ANSWERS_FILE) if file.exists()}
    return Suite(tuple(dialogues), files=files)


def image_names(tests: Any) -> list[str]:
    """The image paths in dialogues; rounds that are not well-formed are skipped."""
    rounds = [each for value in tests.values() if isinstance(value, list) for each in value]
    texts = [each[1] for each in rounds if isinstance(each, list) and len(each) == 2 and isinstance(each[1], str)]
    names = []
    for text in texts:
        try:
            names += split_paths(text)
        except UserError:
            continue  # reported with its test and round when the round is read
    return names


def _references(answers: Any, rounds: int, where: str) -> list[tuple[str, ...]]:
    if not isinstance(answers, list) or len(answers) != rounds:
        raise UserError(f"{where} has {rounds} rounds, so {ANSWERS_FILE} must list {rounds} answers for it")
    references = []
    for number, answer in enumerate(answers, start=1):
        accepted = [] if answer is None else [answer] if isinstance(answer, str) else answer
        if not isinstance(accepted, list) or not all(isinstance(text, str) for text in accepted):
            raise UserError(
                f"{where}, round {number}: an answer in {ANSWERS_FILE} must be a string, a list of strings or null"
            )
        references.append(tuple(accepted))
    return references


def _round(entry: Any, references: Sequence[str], root: Path, allow_outside: bool, where: str) -> SuiteRound:
    well_formed = isinstance(entry, list) and len(entry) in (1, 2) and all(isinstance(text, str) for text in entry)
    if not well_formed or not entry[0].strip():
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
        UserError: it is missing, damaged or outside of `root`.
    """
    return image_bytes(read_image_file(resolve_inside(root, name, allow_outside), name), shown_as or name)


def image_bytes(data: bytes, name: str) -> SuiteImage:
    """Make a `SuiteImage` of encoded bytes.

    Raises:
        UserError: the bytes are not a readable image.
    """
    decode_image(data, name)
    return SuiteImage(name, data, hashlib.sha256(data).hexdigest())
