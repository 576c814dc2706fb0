"""Faults for the miniature: the defects of real downloads, each put into a different file, row or image.

A fault is a function that damages the written files of a world, at a random position given by the seed. `FAULTS` lists
for each fault the report in which it has to appear and the reason under which it is counted.
"""

import io
import json
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from scripts.synthetic.randomness import RandomStream

COCO = "coco/train2017"
DIAL = "llava/conversation_58k.json"
REASONING = "llava/complex_reasoning_77k.json"
CGD = "MIMIC-IT/CGD_instructions.json"
AOKVQA = "aokvqa/annotations/aokvqa_v1p0_train.json"
SPARKLES = "SparklesDialogueCC/annotations/SparklesDialogueCC.json"


class Damage:
    """The written files of a world, and what has been damaged already, so that no row or image gets two faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._seed = folder, seed
        self._used: set[tuple[str, Any]] = set()

    def choose(self, kind: str, items: list[Any]) -> Any:
        """A random one of `items` that has no fault yet.

        Raises:
            ValueError: there are too few.
        """
        draw = RandomStream(self._seed, "fault", kind, len(self._used))
        for item in draw.shuffled(items):
            if (kind, item) not in self._used:
                self._used.add((kind, item))
                return item
        raise ValueError(f"the world is too small for so many faults: no {kind} is left to damage")

    def image(self) -> Path:
        """The path of a random COCO image."""
        return self.folder / COCO / self.choose(COCO, sorted(path.name for path in (self.folder / COCO).iterdir()))

    def opened_image(self) -> tuple[Path, Image.Image]:
        """The path of a random COCO image, and the image."""
        path = self.image()
        return path, Image.open(io.BytesIO(path.read_bytes())).convert("RGB")

    def edit(self, path: str, change: Callable[[Any], None]) -> None:
        """Change the JSON value of a file."""
        value = json.loads((self.folder / path).read_text(encoding="utf-8"))
        change(value)
        (self.folder / path).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")

    def edit_row(self, path: str, change: Callable[[Any], None]) -> None:
        """Change a random row of a file that is a list of rows."""

        def row(rows: list) -> None:
            change(rows[self.choose(path, [number for number, each in enumerate(rows) if self._is_sound(each)])])

        self.edit(path, row)

    def edit_related(self, change: Callable[[dict, str, str], None]) -> None:
        """Change the CGD instructions; `change` gets all rows by id, and the ids of two that name each other."""

        def related(value: dict) -> None:
            data = value["data"]
            pairs = [
                (id_, row["rel_ins_ids"][0]) for id_, row in data.items() if row["rel_ins_ids"] and self._is_sound(row)
            ]
            change(data, *self.choose(CGD, [pair for pair in pairs if pair[0] < pair[1]]))

        self.edit(CGD, related)

    def _is_sound(self, row: dict) -> bool:
        """Whether no image of a row has been damaged; that fault would hide another one of the row."""
        numbers = [row.get("image", row.get("image_id", "0")), *row.get("image_ids", ())]
        names = {f"{int(re.sub('[^0-9]', '', str(number)) or 0):012d}.jpg" for number in numbers}
        return not any((COCO, name) in self._used for name in names)


def _write(path: Path, image: Image.Image, format_: str, **options: Any) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    path.write_bytes(buffer.getvalue())


def _content(data: bytes) -> Callable[[Damage], None]:
    """A fault that replaces the bytes of an image file."""

    def write(damage: Damage) -> None:
        damage.image().write_bytes(data)

    return write


def _truncated(damage: Damage) -> None:
    path = damage.image()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _bomb(damage: Damage) -> None:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100)))
    framed = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    damage.image().write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def _as(format_: str, mode: str = "RGB", **options: Any) -> Callable[[Damage], None]:
    """A fault that saves an image in another format or mode, under its old name."""

    def write(damage: Damage) -> None:
        path, image = damage.opened_image()
        # Pillow converts to 16 bits only from grey.
        _write(path, image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode), format_, **options)

    return write


def _rotated(damage: Damage) -> None:
    path, image = damage.opened_image()
    exif = Image.Exif()
    exif[0x0112] = 6
    _write(path, image, "JPEG", exif=exif.tobytes())


def _long_text(damage: Damage) -> None:
    path, image = damage.opened_image()
    history = PngImagePlugin.PngInfo()
    history.add_text("history", "layer " * 400_000, zip=True)
    _write(path, image, "PNG", pnginfo=history)


def _padded_id(damage: Damage) -> None:
    def pad(data: dict, first: str, second: str) -> None:
        for id_ in (first, second):
            images = data[id_]["image_ids"]
            data[id_]["image_ids"] = [f"CGD_IMG_{int(image.removeprefix('CGD_IMG_')):016d}" for image in images]

    damage.edit_related(pad)


def _doubled_clip(damage: Damage) -> None:
    def double(images: dict) -> None:
        for id_ in list(images):
            clip, _, frame = id_.removeprefix("TVC_IMG_").rpartition("_")
            images[f"TVC_IMG_{clip}_{clip}_{frame}"] = images.pop(id_)

    damage.edit("MIMIC-IT/TVC.json", double)


def _expired_image(damage: Damage) -> None:
    def expire(images: dict) -> None:
        id_ = damage.choose("VST", list(images))
        del images[id_]
        listed = json.dumps([id_.removeprefix("VST_IMG_")])
        (damage.folder / "MIMIC-IT/expired_images.json").write_text(listed, encoding="utf-8")

    damage.edit("MIMIC-IT/VST.json", expire)


def _lost_side(damage: Damage) -> None:
    damage.edit("MIMIC-IT/SD.json", lambda images: images.pop(damage.choose("SD", list(images))))


def _lost_round(damage: Damage) -> None:
    def lose(value: dict) -> None:
        id_ = damage.choose("SN", [id_ for id_ in value["data"] if id_.endswith("_round0")])
        value["data"][id_]["answer"] = ""

    damage.edit("MIMIC-IT/SN_instructions.json", lose)


def _prefix_id(damage: Damage) -> None:
    """Two images of a dialogue get ids of which one is a prefix of the other, and files with these names."""

    def rename(row: dict) -> None:
        shown = [entry for turn in row["dialogue"] for entry in turn["images"]][:2]
        old = [entry["image_id"] for entry in shown]
        text = json.dumps(row)
        for id_, new in zip(old, ("7000", "70001"), strict=True):
            text = text.replace(f'"image_id": "{id_}"', f'"image_id": "{new}"').replace(
                f"IMAGE#{id_}<", f"IMAGE#{new}<"
            )
            text = text.replace(f"IMAGE#{id_} ", f"IMAGE#{new} ").replace(f"IMAGE#{id_}?", f"IMAGE#{new}?")
            text = text.replace(f'IMAGE#{id_}"', f'IMAGE#{new}"')
            images = damage.folder / "SparklesDialogueCC/images"
            shutil.copy(images / f"{id_}.jpg", images / f"{new}.jpg")
        row.clear()
        row.update(json.loads(text))

    damage.edit_row(SPARKLES, rename)


def _doubled_key(damage: Damage) -> None:
    """The first instruction occurs twice in its object, which a JSON library would not write."""
    path = damage.folder / CGD
    text = path.read_text(encoding="utf-8")
    id_, row = next(iter(json.loads(text)["data"].items()))
    start = text.index('"data": {') + len('"data": {')
    path.write_text(f"{text[:start]}{json.dumps(id_)}: {json.dumps(row)}, {text[start:]}", encoding="utf-8")


def _doubled_id(damage: Damage) -> None:
    damage.edit(AOKVQA, lambda rows: rows.append(rows[damage.choose(AOKVQA, list(range(len(rows))))]))


def _invalid_utf8(damage: Damage) -> None:
    """One byte of an answer is not UTF-8."""
    damage.edit_row(DIAL, lambda row: row["conversations"][-1].update(value="§"))
    path = damage.folder / DIAL
    path.write_bytes(path.read_bytes().replace("§".encode(), b"\xff", 1))


def _image_name(name: str) -> Callable[[Damage], None]:
    return lambda damage: damage.edit_row(REASONING, lambda row: row.update(image=name))


def _archive(damage: Damage) -> None:
    """The images of cc_sbu_align are put into an archive, with a link and a member that leads out of the folder."""
    folder = damage.folder / "cc_sbu_align/image"
    link = zipfile.ZipInfo("image/linked.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(damage.folder / "cc_sbu_align/cc_sbu_align.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(f"image/{path.name}"), path.read_bytes())
        archive.writestr(link, "/etc/passwd")
        archive.writestr(zipfile.ZipInfo("../../outside.jpg"), b"x")
    shutil.rmtree(folder)


class Fault(NamedTuple):
    """A fault, and how it is reported.

    Attributes:
        apply: damages the files.
        where: the source or dataset in whose report it appears.
        kind: "rejected" or "flags" for images of a source; "dropped" or "notes" for rows of a dataset.
        reason: under which it is counted there.
    """

    apply: Callable[[Damage], None]
    where: str
    kind: str
    reason: str


FAULTS: dict[str, Fault] = {
    "truncated": Fault(_truncated, "coco", "rejected", "truncated"),
    "zero_bytes": Fault(_content(b""), "coco", "rejected", "zero_bytes"),
    "not_an_image": Fault(_content(b"<html>Not found</html>"), "coco", "rejected", "not_an_image"),
    "one_pixel": Fault(
        lambda damage: _write(damage.image(), Image.new("RGB", (1, 1)), "GIF"), "coco", "rejected", "one_pixel"
    ),
    "bomb": Fault(_bomb, "coco", "rejected", "too_large"),
    "gif_named_jpg": Fault(_as("GIF"), "coco", "flags", "extension"),
    "png_named_jpg": Fault(_as("PNG"), "coco", "flags", "extension"),
    "cmyk": Fault(_as("JPEG", "CMYK"), "coco", "flags", "cmyk"),
    "palette": Fault(_as("PNG", "P"), "coco", "flags", "palette"),
    "sixteen_bit": Fault(_as("PNG", "I;16"), "coco", "flags", "16-bit"),
    "alpha": Fault(_as("PNG", "RGBA"), "coco", "flags", "alpha"),
    "rotated": Fault(_rotated, "coco", "flags", "rotated"),
    "long_text": Fault(_long_text, "coco", "flags", "long-text"),
    "missing_image": Fault(lambda damage: damage.image().unlink(), "llava", "dropped", "missing_image"),
    "padded_id": Fault(_padded_id, "otter_mimicit_cgd", "notes", "padded_id"),
    "doubled_clip": Fault(_doubled_clip, "otter_mimicit_tvc", "notes", "doubled_clip_name"),
    "expired_image": Fault(_expired_image, "otter_mimicit_vst", "dropped", "expired_image"),
    "lost_side": Fault(_lost_side, "otter_mimicit_sd", "dropped", "missing_image"),
    "lost_round": Fault(_lost_round, "otter_mimicit_sn", "dropped", "incomplete_dialogue"),
    "self_reference": Fault(
        lambda damage: damage.edit_related(lambda data, first, _: data[first]["rel_ins_ids"].append(first)),
        "otter_mimicit_cgd",
        "notes",
        "self_reference",
    ),
    "dangling_reference": Fault(
        lambda damage: damage.edit_related(lambda data, first, _: data[first]["rel_ins_ids"].append("CGD_INS_999999")),
        "otter_mimicit_cgd",
        "notes",
        "reference_to_nothing",
    ),
    "one_sided_reference": Fault(
        lambda damage: damage.edit_related(lambda data, first, second: data[second]["rel_ins_ids"].remove(first)),
        "otter_mimicit_cgd",
        "notes",
        "one_sided_reference",
    ),
    "other_images": Fault(
        lambda damage: damage.edit_related(lambda data, first, _: data[first]["image_ids"].reverse()),
        "otter_mimicit_cgd",
        "notes",
        "reference_to_other_images",
    ),
    "prefix_id": Fault(_prefix_id, "sparkles_dialogue", "notes", "prefix_id"),
    "odd_turns": Fault(
        lambda damage: damage.edit_row(
            DIAL, lambda row: row["conversations"].append({"from": "human", "value": "And?"})
        ),
        "llava_dial",
        "notes",
        "unanswered_question",
    ),
    "doubled_key": Fault(_doubled_key, "otter_mimicit_cgd", "notes", "duplicate_key"),
    "doubled_id": Fault(_doubled_id, "aokvqa", "notes", "duplicate_id"),
    "wrong_type": Fault(
        lambda damage: damage.edit_row(AOKVQA, lambda row: row.update(choices="a, b, c, d")),
        "aokvqa",
        "dropped",
        "bad_row",
    ),
    "empty_answer": Fault(
        lambda damage: damage.edit_row(DIAL, lambda row: row["conversations"][1].update(value=" \n ")),
        "llava_dial",
        "dropped",
        "empty_text",
    ),
    "invalid_utf8": Fault(_invalid_utf8, "llava_dial", "dropped", "invalid_utf8"),
    "absolute_path": Fault(_image_name("/etc/passwd"), "llava", "dropped", "unsafe_path"),
    "parent_path": Fault(_image_name("../../../etc/passwd"), "llava", "dropped", "unsafe_path"),
    "archive_link": Fault(_archive, "cc_sbu_align", "rejected", "symlink"),
}


def damage(folder: Path, seed: int, names: tuple[str, ...]) -> None:
    """Damage the written world in `folder` with the faults `names`, in the order of `FAULTS`."""
    state = Damage(folder, seed)
    for name, fault in FAULTS.items():
        if name in names:
            fault.apply(state)
