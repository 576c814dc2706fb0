"""A plan row as a conversation: the only place where choices, image numbers and rounds become text.

Reads a row of the plan and the records it names; gives messages in the chat form of `transformers`, whose image parts
index the row's images from 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.blending.corpus import PERMUTE
from scripts.blending.slots import name_image, render_slots


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
            if named:
                question = name_image(question)
            images: Sequence[int] = round_["images"]
            if drawn_order:
                images = range(len(record["images"])) if position == 0 else []
            # Numbers rise in the order of appearance, so an image with a lower one has been shown by an earlier piece.
            new = [offset + image for image in images if offset + image >= n_shown]
            n_shown += len(new)
            result.append(_message("user", render_slots(question, offset), new))
            result.append(_message("assistant", render_slots(answer, offset)))
    return result


def _chosen(alternatives: list[str], group: int, choices: list[int]) -> str:
    return alternatives[choices[group] if group >= 0 else 0]


def _message(role: str, text: str, images: Sequence[int] = ()) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "index": index} for index in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}
