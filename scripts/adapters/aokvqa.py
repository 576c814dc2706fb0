"""aokvqa: a question with a request for reasons; the answer is the correct choice, then the rationales.

{"split": "train", "image_id": 785, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What is the man doing?",
 "choices": ["skiing", ...], "correct_choice_idx": 0, "direct_answers": [...],
 "rationales": ["He stands on skis.", ...]}
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError, coco_path, convert_rows, field, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import SPLITS, ChoiceGroup, Record, Round

FILE = "aokvqa/annotations/aokvqa_v1p0_train.json"
REASONS = (
    "Why?",
    "Explain why.",
    "Why do you think so?",
    "Give your reasons.",
    "What makes you say that?",
    "Justify your answer.",
    "How can you tell?",
)


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per question."""

    def convert(row: RawRow) -> Iterator[Record]:
        question = text(field(row.value, "question", str), "the question")
        answer = f"The answer is {_choice(row)}. {_rationales(row)}"
        split = row.value.get("split", "train")
        if split not in SPLITS:
            raise RowError("bad_row", f"unknown split {split!r}")
        image = images.find("coco", coco_path(field(row.value, "image_id", int)))
        questions = tuple(f"{question} {reason}" for reason in REASONS)
        id_ = text(str(row.value.get("question_id", row.id)), "'question_id'")
        group = ChoiceGroup("reason", "pick", len(REASONS))
        yield Record(id_, (image,), (Round(questions, (answer,), (0,), 0),), (group,), split)

    yield from convert_rows(raw.rows(FILE), convert, FILE)


def _choice(row: RawRow) -> str:
    choices, index = field(row.value, "choices", list), field(row.value, "correct_choice_idx", int)
    if not 0 <= index < len(choices):
        raise RowError("bad_row", f"correct_choice_idx {index} is not one of {len(choices)} choices")
    return text(choices[index], "the correct choice").rstrip(".")


def _rationales(row: RawRow) -> str:
    sentences = []
    for rationale in field(row.value, "rationales", list):
        if rationale != "":
            sentence = text(rationale, "a rationale")
            sentence = sentence[0].upper() + sentence[1:]
            sentences.append(sentence if sentence[-1] in ".!?" else f"{sentence}.")
    if not sentences:
        raise RowError("empty_text", "no rationale")
    return " ".join(sentences)
