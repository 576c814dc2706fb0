"""The miniature's rows in the raw formats of datasets that do not use the images of COCO, field by field.

Each album has a writer like those of `formats`; the table at the end has the paths of file and folder. An album has at
least three images, or none if its share is zero.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from scripts.synthetic.language import Question, captions, name, pair_question, question, questions
from scripts.synthetic.scenes import CELLS
from scripts.synthetic.world import Album, World

_SPLITS = (1,) * 8 + (2, 3)
_FEWEST = 3


def filter_cap(album: Album) -> dict:
    """MiniGPT-4 `filter_cap.json`: one caption per image."""
    rows = []
    for number in range(len(album)):
        caption = album.draw("caption", number).pick(captions(album.scene(number), album.draw("captions", number)))
        rows.append({"image_id": album.image_id(number), "caption": f"The image shows {caption}."})
    return {"annotations": rows}


def covers(album: Album) -> dict:
    """OCR-VQA `dataset.json`: several questions about the cover of a book; its title names what is on it."""
    rows = {}
    for number in range(len(album)):
        draw, scene = album.draw("cover", number), album.scene(number)
        all_questions = questions([scene], draw, album.settings)
        rows[album.image_id(number)] = {
            "imageURL": f"http://ecx.images-amazon.com/images/I/{number:08d}L.jpg",
            "questions": [each.text for each in all_questions],
            "answers": [each.answer for each in all_questions],
            "title": " and ".join(name(thing) for thing in scene),
            "authorName": "",
            "genre": CELLS[scene[0].cell],
            "split": draw.pick(_SPLITS),
        }
    return rows


def dialogues(album: Album) -> list[dict]:
    """Sparkles `SparklesDialogue*.json`: two images, a question about them, then a third image and a question."""
    rows = []
    for first in range(0, len(album) - 2, 3):
        draw, numbers = album.draw("dialogue", first), (first, first + 1, first + 2)
        scenes = [album.scene(number) for number in numbers]
        entries = [_entry(album, number) for number in numbers]
        ids = [entry["image_id"] for entry in entries]
        pair = pair_question((scenes[0], scenes[1]), draw, album.settings)
        third = question(scenes[2], draw, album.settings, image=3)
        shown = "IMAGE#{}<Img><ImageHere></Img>"
        turns: list[dict] = []
        if pair:
            opening = f"Here are {shown.format(ids[0])} and {shown.format(ids[1])}."
            turns += _exchange(opening, pair, entries[:2], ids)
        if third:
            turns += _exchange(f"Here is {shown.format(ids[2])}.", third, entries[2:], ids)
        rows.append({"dialogue": turns})
    return rows


def _entry(album: Album, number: int) -> dict:
    return {
        "image_id": album.image_id(number),
        "caption": captions(album.scene(number), album.draw("captions", number))[0],
    }


def _exchange(opening: str, asked: Question, entries: list[dict], ids: list[str]) -> list[dict]:
    """A question and its answer as two turns, in which images are named by their ids."""

    def with_ids(text: str) -> str:
        for number, id_ in enumerate(ids, start=1):
            text = text.replace(f"image {number}", f"IMAGE#{id_}")
        return text

    return [
        {"role": "user", "content": f"{opening} {with_ids(asked.text)}", "images": entries},
        {"role": "assistant", "content": with_ids(asked.answer), "images": []},
    ]


class _AlbumFormat(NamedTuple):
    """How one album is made: its name and folder, the setting with its share, and the writer of its annotations."""

    name: str
    folder: str
    setting: str
    write: Callable[[Album], Any]


_ALBUMS = {
    "cc_sbu_align/filter_cap.json": _AlbumFormat("minigpt4", "cc_sbu_align/image", "minigpt4", filter_cap),
    "OCR_VQA/dataset.json": _AlbumFormat("ocr_vqa", "OCR_VQA/images", "ocr_vqa", covers),
    **{
        f"SparklesDialogue{part}/annotations/SparklesDialogue{part}.json": _AlbumFormat(
            f"sparkles {part}", f"SparklesDialogue{part}/images", "sparkles", dialogues
        )
        for part in ("CC", "VG")
    },
}


def albums(world: World) -> dict[str, tuple[Album, Callable[[Album], Any]]]:
    """The albums of a world and their writers, by the path of their annotation file below the data path."""
    result = {}
    for path, format_ in _ALBUMS.items():
        share = getattr(world.settings.rows, format_.setting)
        if share:
            size = max(_FEWEST, round(share * len(world)))
            result[path] = (Album(world, format_.name, format_.folder, size), format_.write)
    return result


TOP_FOLDERS = frozenset(path.split("/")[0] for path in _ALBUMS)
"""The folders of all albums below the data path."""
