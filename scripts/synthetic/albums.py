"""The miniature's rows in the raw formats of datasets whose images are their own, field by field.

Each album has a writer like those of `formats`; the table at the end names file and folder. An album holds at least
three images, or none where its share is zero.
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
        asked = questions([scene], draw, album.settings)
        rows[album.image_id(number)] = {
            "imageURL": f"http://ecx.images-amazon.com/images/I/{number:08d}L.jpg",
            "questions": [each.text for each in asked],
            "answers": [each.answer for each in asked],
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
        turns = [
            (f"Here are {shown.format(ids[0])} and {shown.format(ids[1])}.", pair, entries[:2]),
            (f"Here is {shown.format(ids[2])}.", third, entries[2:]),
        ]
        rows.append({"dialogue": [part for turn in turns if turn[1] for part in _exchange(*turn, ids)]})
    return rows


def _entry(album: Album, number: int) -> dict:
    return {
        "image_id": album.image_id(number),
        "caption": captions(album.scene(number), album.draw("captions", number))[0],
    }


def _exchange(opening: str, asked: Question, entries: list[dict], ids: list[str]) -> list[dict]:
    def named(said: str) -> str:
        for number, id_ in enumerate(ids, start=1):
            said = said.replace(f"image {number}", f"IMAGE#{id_}")
        return said

    return [
        {"role": "user", "content": f"{opening} {named(asked.text)}", "images": entries},
        {"role": "assistant", "content": named(asked.answer), "images": []},
    ]


class _Made(NamedTuple):
    name: str
    folder: str
    setting: str
    write: Callable[[Album], Any]


_ALBUMS = {
    "cc_sbu_align/filter_cap.json": _Made("minigpt4", "cc_sbu_align/image", "minigpt4", filter_cap),
    "OCR_VQA/dataset.json": _Made("ocr_vqa", "OCR_VQA/images", "ocr_vqa", covers),
    **{
        f"SparklesDialogue{part}/annotations/SparklesDialogue{part}.json": _Made(
            f"sparkles {part}", f"SparklesDialogue{part}/images", "sparkles", dialogues
        )
        for part in ("CC", "VG")
    },
}


def albums(world: World) -> dict[str, tuple[Album, Callable[[Album], Any]]]:
    """The albums of a world and their writers, by the place of their annotation file below the data path."""
    found = {}
    for path, made in _ALBUMS.items():
        share = getattr(world.settings.rows, made.setting)
        if share:
            size = max(_FEWEST, round(share * len(world)))
            found[path] = (Album(world, made.name, made.folder, size), made.write)
    return found


TOP_FOLDERS = frozenset(path.split("/")[0] for path in _ALBUMS)
"""The folders of all albums below the data path."""
