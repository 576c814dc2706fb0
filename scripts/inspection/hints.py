"""What to do about lost rows: for each reason a sentence and, where there is one, the line that mends it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import yaml

from scripts.adapters.own.image_names import loose, loose_name
from scripts.adapters.own.listed_images import looks_like_image
from scripts.adapters.own.values import has_value
from scripts.inspection.survey import Hint

_LARGEST_SEARCH = 200_000
"""Files of a folder among which missing images are searched."""

IMAGES_LINE = "images: "
NO_FOLDER = f"{IMAGES_LINE}FOLDER/"
HINTS = {
    "missing_image": Hint(
        "the images are not below the folder: name the folder or archive that holds them", "images: FOLDER/"
    ),
    "ambiguous_image": Hint("several folders hold an image of this name: write its path into the rows"),
    "unreadable_image": Hint("the file is no complete image: get it again"),
    "unsafe_path": Hint(
        "images must lie below the folder: move them there, or name their common folder", "folder: FOLDER"
    ),
    "remote_image": Hint(
        "images are never downloaded while data is built: download them first",
        "python -m scripts.download_images FILE --out FOLDER/images",
    ),
    "unsupported_media": Hint(
        "the text depends on a video, a sound or a box, which the model cannot read: leave the rows out"
    ),
    "unsupported_tool_calls": Hint("the model calls no tools: leave the rows out, or write the result as an answer"),
    "image_count": Hint("write one <image> for every image, in the order of the images, or none at all"),
    "image_in_answer": Hint("the model cannot make images: leave the rows out"),
    "empty_text": Hint("a question or an answer is empty: complete the rows or leave them out"),
    "nothing_supervised": Hint("no answer of the row is to be trained on: leave the rows out, or change their weights"),
    "unknown_role": Hint("say whose role the word is", "columns: {roles: {WORD: user}}"),
    "unknown_image_member": Hint("say that it holds the image, or that it means nothing", "columns: {images: NAME}"),
    "ambiguous_form": Hint("say which members are the conversation", "columns: {messages: NAME}"),
    "ambiguous_images": Hint("say which member holds the images", "columns: {images: NAME}"),
    "missing_member": Hint("correct the name in `columns`, or complete the rows"),
    "preference_pair": Hint("train on the preferred answer, or leave the rows out", "columns: {answer: chosen}"),
    "too_many_images": Hint("divide the conversation into several rows"),
    "bad_image": Hint("a value in the place of an image is no name, address or bytes: repair the rows"),
    "assistant_first": Hint("begin with a question, or leave out the first answer"),
    "two_answers": Hint("put a question between the answers, or join them"),
    "invalid_csv": Hint("put quotes around cells that contain a delimiter"),
    "invalid_json": Hint("the line is no JSON: repair the line"),
    "invalid_utf8": Hint("the file is in another encoding: save it as UTF-8"),
}
"""By reason."""
_OTHERWISE = Hint("see the example")


def hint(reason: str, unread: Sequence[Mapping[str, Any]]) -> Hint:
    """What to do about rows that are lost for `reason`; `unread` are some rows whose form was not recognised."""
    if reason == "unknown_form" and unread:
        return Hint("say which member is what, for example", _columns_of(unread))
    return HINTS.get(reason, _OTHERWISE)


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of `columns` that may fit rows: lists of objects are turns, names of image files are images.

    Of the texts the first one is the question and the next one the answer, which is only a guess.
    """
    found: dict[str, str] = {}
    texts: list[str] = []
    for member in dict.fromkeys(name for row in rows for name in row):
        values = [row[member] for row in rows if has_value(row.get(member))]
        if not values:
            continue
        if all(isinstance(value, list) and isinstance(value[0], dict) for value in values):
            found.setdefault("messages", member)
        elif all(map(looks_like_image, values)):
            found.setdefault("images", member)
        elif all(isinstance(value, str) for value in values):
            texts.append(member)
    if "messages" not in found:
        texts = texts or ["NAME"]
        found = {"question": texts[0], "answer": (texts[1:] or ["NAME"])[0]} | found
    return f"columns: {yaml.safe_dump(found, default_flow_style=True, sort_keys=False, width=10_000).strip()}"


def better_folder(missing: Iterable[str], files: Iterable[str]) -> Hint | None:
    """The folder below which most of the missing images lie, as a hint; None if none has any.

    Args:
        missing: names in rows.
        files: paths of files below the dataset's folder.
    """
    by_name: dict[str, list[str]] = {}
    for path in islice(files, _LARGEST_SEARCH):
        by_name.setdefault(loose_name(path), []).append(path)
    found: Counter[str] = Counter()
    names = list(missing)
    for name in names:
        ending = loose(name)
        length = ending.count("/") + 1
        for path in by_name.get(loose_name(name), ()):
            parts = path.split("/")
            if len(parts) > length and loose("/".join(parts[-length:])) == ending:
                found["/".join((*parts[:-length], ""))] += 1
    if not found:
        return None
    folder, count = found.most_common(1)[0]
    return Hint(f"{folder} holds {count} of these {len(names)} images", f"{IMAGES_LINE}{folder}")
