"""A plan row as a conversation: the only place where choices, image numbers and rounds become text.

Reads a row of the plan and the records it names; gives messages in the chat form of `transformers`, whose image parts
index the row's images from 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from model.question_parts import text_with_names
from scripts.blending.corpus import PERMUTE
from scripts.blending.slots import follow_up, question_parts, question_text, render_slots

Part = dict[str, Any]


def messages(row: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a plan row; `records` holds the records that it names, by uid."""
    result: list[dict[str, Any]] = []
    if system := records[row["uids"][0]]["system"]:
        result.append(_message("system", system))
    n_shown = 0
    pieces = zip(row["uids"], row["choices"], row["rounds"], row["offsets"], row["named"], strict=True)
    for uid, choices, rounds, offset, named in pieces:
        record = records[uid]
        drawn_order = any(group["kind"] == PERMUTE for group in record["groups"])
        for position, index in enumerate(rounds):
            round_ = record["rounds"][index]
            question = _chosen(round_["question"], round_["question_group"], choices)
            answer = _chosen(round_["answer"], round_["answer_group"], choices)
            images: Sequence[int] = round_["images"]
            if drawn_order:
                images = range(len(record["images"])) if position == 0 else []
            # Numbers rise in the order of appearance, so an image with a lower one has been shown by an earlier piece.
            new = [offset + image for image in images if offset + image >= n_shown]
            n_shown += len(new)
            parts = _followed_up(question, offset, new) if named else _question(question, offset, new)
            result.append({"role": "user", "content": parts})
            message = _message("assistant", render_slots(answer, offset))
            result.append(message if round_["supervised"] else message | {"supervised": False})
    return result


def _question(question: str, offset: int, new: Sequence[int]) -> list[Part]:
    """The parts of a question: `new` images without a place in it, then its texts and the others in their places."""
    parts = question_parts(question, offset)
    placed = [part - 1 for part in parts if isinstance(part, int)]
    if not placed or any(index not in new for index in placed):
        # An image that an earlier piece has shown is only named; the others keep no place either.
        return [*map(_image, new), _text(question_text(question, offset))]
    unplaced = [index + 1 for index in new if index not in placed]
    content = [part for part in parts if part != ""]
    if text_with_names([*unplaced, *content]) != text_with_names([*unplaced, "", *content]):
        content.insert(0, "")
    return [_text(part) if isinstance(part, str) else _image(part - 1) for part in [*unplaced, *content]]


def _followed_up(question: str, offset: int, new: Sequence[int]) -> list[Part]:
    return [*map(_image, new), _text(follow_up(question, offset))]


def _chosen(alternatives: list[str], group: int, choices: list[int]) -> str:
    return alternatives[choices[group] if group >= 0 else 0]


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [_text(text)]}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _image(index: int) -> Part:
    return {"type": "image", "index": index}
