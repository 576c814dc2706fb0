"""Converts a document of a task into rounds: reads its images and splits its messages into questions and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from os.path import relpath
from pathlib import Path
from typing import Any

from model.pixels import to_rgb
from scripts.common.errors import UserError
from scripts.evaluation.suites import SuiteImage, SuiteRound, image_bytes, image_file
from scripts.evaluation.task_templates import Function, render, text_of
from scripts.inference.image_files import resolve_inside

_SOURCES = ("url", "image", "path", "index")


def images_of(
    doc_to_visual: Any,
    document: Mapping[str, Any],
    root: Path,
    allow_outside: bool,
    base: Path,
    where: str,
    extra: Mapping[str, Any],
) -> list[SuiteImage]:
    """The images of a document.

    Args:
        doc_to_visual: the key of the task: a field of the document, several, or a function.
        document: its fields.
        root: folder that image paths are relative to.
        allow_outside: accept paths that leave `root`.
        base: the task's folder; results name images by their path relative to it.
        where: the document, for error messages.
        extra: keyword arguments for a function.

    Raises:
        UserError: a field or an image is missing, an image is damaged or forbidden.
    """
    if doc_to_visual is None:
        return []
    if isinstance(doc_to_visual, Function):
        values = [doc_to_visual(document, extra)]
    else:
        fields = [doc_to_visual] if isinstance(doc_to_visual, str) else doc_to_visual
        missing = next((field for field in fields if field not in document), None)
        if missing is not None:
            raise UserError(f"{where}: doc_to_visual names {missing!r}, but the fields are {', '.join(document)}")
        values = [document[field] for field in fields]
    flat = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return [_image(each, root, allow_outside, base, f"{where}, image {n}") for n, each in enumerate(flat, 1) if each]


def conversation(
    doc_to_messages: Any,
    question: str | None,
    document: Mapping[str, Any],
    gallery: Sequence[SuiteImage],
    root: Path,
    allow_outside: bool,
    base: Path,
    where: str,
) -> tuple[list[SuiteRound], str | None]:
    """The rounds of a document, with `given` where it has an answer, and its system message.

    Without `doc_to_messages` there is one round: `question` about all of `gallery`, the images of `doc_to_visual`. The
    other arguments are those of `images_of`.

    Raises:
        UserError: the messages are not a conversation; the error names the document and the message.
    """
    if doc_to_messages is None:
        return [SuiteRound(question or "", tuple(gallery))], None
    if isinstance(doc_to_messages, list):
        messages = _filled(doc_to_messages, document, where)
    else:
        messages = text_of(doc_to_messages, document, f"{where}, doc_to_messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise UserError(f"{where}: doc_to_messages must give a list of messages with role and content")
    system: str | None = None
    rounds: list[SuiteRound] = []
    for number, message in enumerate(messages):
        location = f"{where}, message {number}"
        role = message.get("role")
        parts, images = _parts(message, gallery, root, allow_outside, base, location)
        text = "\n".join(part for part in parts if isinstance(part, str))
        if role == "system" and number == 0 and not images:
            system = text
        elif role == "user" and (not rounds or rounds[-1].given is not None or _open_ended(messages)):
            rounds.append(SuiteRound(text, tuple(images), parts=parts))
        elif role == "assistant" and rounds and rounds[-1].given is None and not images:
            rounds[-1] = replace(rounds[-1], given=text)
        else:
            raise UserError(
                f"{location}: unexpected role {role!r}; messages of user and assistant must alternate, the user first"
            )
    if not rounds:
        raise UserError(f"{where} has no question")
    return rounds, system


def _open_ended(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the messages hold only questions, all of which the model answers."""
    return not any(message.get("role") == "assistant" for message in messages)


def _parts(
    message: Mapping[str, Any],
    gallery: Sequence[SuiteImage],
    root: Path,
    allow_outside: bool,
    base: Path,
    where: str,
) -> tuple[tuple[str | int, ...], list[SuiteImage]]:
    """The texts of a message and, as numbers from 0, its images in their places; and these images."""
    content = message.get("content")
    parts: list[str | int] = []
    images: list[SuiteImage] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
            continue
        sources = [name for name in _SOURCES if kind == "image" and part.get(name) is not None]
        if len(sources) != 1:
            raise UserError(
                f"{where}: a part must be a text, or an image with exactly one of {', '.join(_SOURCES)}, not {part!r}"
            )
        parts.append(len(images))
        value = part[sources[0]]
        if sources[0] != "index":
            images.append(_image(value, root, allow_outside, base, where))
        elif str(value).isdigit() and int(value) < len(gallery):
            images.append(gallery[int(value)])
        else:
            raise UserError(f"{where}: there is no image {value!r}; doc_to_visual gives {len(gallery)}, counted from 0")
    if not any(isinstance(part, str) for part in parts):
        raise UserError(f"{where} has no text")
    return tuple(parts), images


def _filled(value: Any, document: Mapping[str, Any], where: str) -> Any:
    """Render every template in messages that are written in the task file."""
    if isinstance(value, str):
        return render(value, document, f"{where}, doc_to_messages")
    if isinstance(value, list):
        return [_filled(each, document, where) for each in value]
    return {key: _filled(each, document, where) for key, each in value.items()} if isinstance(value, dict) else value


def _image(value: Any, root: Path, allow_outside: bool, base: Path, where: str) -> SuiteImage:
    """Read an image given by its path, as stored bytes, or as a Pillow image that a function returned."""
    try:
        if isinstance(value, str):
            shown = Path(relpath(resolve_inside(root, value, allow_outside), base.resolve())).as_posix()
            return image_file(value, root, allow_outside, shown)
        if isinstance(value, Mapping) and value.get("bytes"):
            return image_bytes(value["bytes"], str(value.get("path") or "stored"))
        if isinstance(value, Mapping) and value.get("path"):
            return _image(value["path"], root, allow_outside, base, where)
        if hasattr(value, "save"):
            buffer = BytesIO()
            to_rgb(value).save(buffer, "PNG")
            return image_bytes(buffer.getvalue(), "made")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    raise UserError(f"{where} is neither a path nor a stored image: {str(value)[:80]!r}")
