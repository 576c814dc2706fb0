"""The miniature's rows in the formats of MIMIC-IT with images in base64: SD, SN, TVC and VST.

Every conversation has a few separate images, which are stored in one JSON object by id. The instructions are like those
in `CGD_instructions.json`; only ids and numbers of images differ.
"""

import base64
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from scripts.synthetic.language import Question, pair_question, question
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.world import Album, World


class Form(NamedTuple):
    """The sizes and ids of one of the datasets.

    Attributes:
        images: number per conversation.
        rounds: number per conversation.
        image_id: (conversation, index of the image in it) -> id of an image.
        round_id: (conversation, round) -> id of an instruction, without the dataset's prefix.
    """

    images: int
    rounds: int
    image_id: Callable[[int, int], str]
    round_id: Callable[[int, int], str]


FORMS = {
    "SD": Form(
        2, 2, lambda talk, index: f"{talk:05d}_{index + 1}", lambda talk, round_: f"INS_{2 * talk + round_:05d}"
    ),
    "SN": Form(
        3,
        2,
        lambda talk, index: f"scene{talk:04d}_00_color_{100 * index + 7}",
        lambda talk, round_: f"00_INS_scene{talk:04d}_00_activity0_round{round_}",
    ),
    "TVC": Form(
        3,
        2,
        lambda talk, index: f"s01e{1 + talk // 20:02d}_seg01_clip_{talk % 20:02d}_{12 * index + 5:05d}",
        lambda talk, round_: f"INS_{2 * talk + round_:06d}",
    ),
    "VST": Form(3, 1, lambda talk, index: f"{70_000_000 + 31 * talk + index}", lambda talk, round_: f"INS_{talk:05d}"),
}


class Clips(Album):
    """The images of the conversations of one form."""

    def __init__(self, world: World, name: str, conversations: int) -> None:
        self.form = FORMS[name]
        super().__init__(world, name, "MIMIC-IT", conversations * self.form.images)
        self.name, self.conversations = name, conversations

    def image_id(self, number: int) -> str:
        """The id of an image in the form of the dataset."""
        talk, index = divmod(number, self.form.images)
        return f"{self.name}_IMG_{self.form.image_id(talk, index)}"

    def base64_images(self) -> dict[str, str]:
        """All images by id, as PNG in base64, as MIMIC-IT has them."""
        return {self.image_id(number): _png_base64(self.image(number)) for number in range(len(self))}


def instructions(clips: Clips) -> dict[str, Any]:
    """`<name>_instructions.json`: rounds about the images of each conversation, which name each other."""
    data: dict[str, dict] = {}
    for talk in range(clips.conversations):
        draw = clips.draw("talk", talk)
        numbers = range(talk * clips.form.images, (talk + 1) * clips.form.images)
        asked = _rounds(clips, list(numbers), draw)
        ids = [f"{clips.name}_{clips.form.round_id(talk, round_)}" for round_ in range(len(asked))]
        for id_, each in zip(ids, asked, strict=True):
            data[id_] = {
                "instruction": each.text,
                "answer": each.answer,
                "image_ids": [clips.image_id(number) for number in numbers],
                "rel_ins_ids": [related for related in ids if related != id_],
            }
    return {"meta": {"version": "0.0.1", "time": "2023-06", "author": "miniature"}, "data": data}


def _rounds(clips: Clips, numbers: list[int], draw: RandomStream) -> list[Question]:
    scenes = [clips.scene(number) for number in numbers]
    asked: list[Question] = []
    while len(asked) < clips.form.rounds:
        known = [each.text for each in asked]
        if len(scenes) == 2:
            found = pair_question((scenes[0], scenes[1]), draw, clips.settings, known)
        else:
            index = draw.below(len(scenes))
            found = question(scenes[index], draw, clips.settings, index + 1, known)
        if found is None:
            break
        asked.append(found)
    return asked


def _png_base64(data: bytes) -> str:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def clips(world: World) -> list[Clips]:
    """The clips of a world: none where their share is zero, else at least one conversation of each form."""
    share = world.settings.rows.mimicit
    return [
        Clips(world, name, max(2, round(share * len(world) / form.images))) for name, form in FORMS.items() if share
    ]
