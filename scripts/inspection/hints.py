"""What to do about lost rows: for each reason a sentence and, where there is one, the line that mends it."""

import posixpath
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from scripts.inspection.survey import Hint

_LARGEST_SEARCH = 200_000
"""Files of a folder among which missing images are searched."""

HINTS = {
    "missing_image": Hint("the images are not below the folder: name the folder or archive that holds them", "images: FOLDER/"),
    "ambiguous_image": Hint("several folders hold an image of this name: write its path into the rows"),
    "unreadable_image": Hint("the file is no complete image: get it again"),
    "unsafe_path": Hint("images must lie below the folder: move them there, or name their common folder", "folder: FOLDER"),
    "remote_image": Hint("images at addresses are never fetched while data is built: fetch them into the folder first"),
    "unsupported_media": Hint("the text depends on a video, a sound or a box, which the model cannot read: leave the rows out"),
    "unsupported_tool_calls": Hint("the model calls no tools: leave the rows out, or write the result as an answer"),
    "image_count": Hint("write one <image> for every image, in the order of the images, or none at all"),
    "image_in_answer": Hint("the model cannot make images: leave the rows out"),
    "empty_text": Hint("a question or an answer is empty: complete the rows or leave them out"),
    "nothing_supervised": Hint("no answer of the row is to be trained on: leave the rows out, or change their weights"),
    "invalid_json": Hint("the line is no JSON: repair the line"),
    "invalid_utf8": Hint("the file is in another encoding: save it as UTF-8"),
}
"""By reason."""
_OTHERWISE = Hint("see the example")


def hint(reason: str, members: Iterable[str], unused: Iterable[str]) -> Hint:
    """What to do about rows that are lost for `reason`.

    Args:
        reason: as the report counts it.
        members: of the rows.
        unused: members that no form of the rows uses.
    """
    if reason in HINTS:
        return HINTS[reason]
    if reason in ("bad_row", "unknown_form"):
        names = ", ".join(sorted(unused or members)[:12])
        return Hint(f"the rows have the members {names}: say which is what", "columns: {question: NAME, answer: NAME}")
    return _OTHERWISE


def better_folder(missing: Iterable[str], files: Iterable[str]) -> Hint | None:
    """The folder below which most of the missing images lie, as a hint; None if none has any.

    Args:
        missing: names in rows.
        files: paths of files below the dataset's folder.
    """
    by_name: dict[str, list[str]] = {}
    for path in islice(files, _LARGEST_SEARCH):
        by_name.setdefault(posixpath.basename(path), []).append(path)
    found: Counter[str] = Counter()
    names = list(missing)
    for name in names:
        ending = name.replace("\\", "/").removeprefix("./")
        for path in by_name.get(posixpath.basename(ending), ()):
            if path.endswith(f"/{ending}"):
                found[path.removesuffix(ending)] += 1
    if not found:
        return None
    folder, count = found.most_common(1)[0]
    return Hint(f"{folder} holds {count} of these {len(names)} images", f"images: {folder}")
