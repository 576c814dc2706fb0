"""Generate the miniature: synthetic images and annotations as raw files in the formats of the real datasets.

Reads nothing but its settings. Writes, below --out, the contents of a data path: images under coco/train2017, the
annotation files of llava, MIMIC-IT, coco_caption and aokvqa, and files and images of the other MIMIC-IT sets,
cc_sbu_align, OCR_VQA and the two SparklesDialogue sets, all in their real formats. Also written, because the contents
of the images are known: kinds.json (patterns that sort questions by kind), dialogues/ (an evaluation suite and its
right answers), tasks/ (suites as task files) and scenes.jsonl (the objects in every COCO image). miniature.json,
written last, has counts and hashes.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, naming_target, run_program
from scripts.common.files import file_sha256, text_sha256, write_json
from scripts.common.progress import track
from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.albums import TOP_FOLDERS, albums
from scripts.synthetic.clips import clips, instructions
from scripts.synthetic.dialogues import suite
from scripts.synthetic.faults import damage
from scripts.synthetic.formats import ANNOTATIONS
from scripts.synthetic.language import kinds
from scripts.synthetic.tasks import tasks
from scripts.synthetic.world import IMAGE_FOLDER, Album, World

MANIFEST = "miniature.json"


def write_world(settings: MiniatureConfig, out: Path) -> dict[str, Any]:
    """Generate the files of `settings` into the folder `out`; return the manifest.

    The folder is built beside its final path and renamed, so it is complete or absent.

    Raises:
        UserError: `out` contains files that do not belong to a miniature.
    """
    _require_ours(out)
    building = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        with naming_target(building, out):
            manifest = _write_files(World(settings), building)
            shutil.rmtree(out, ignore_errors=True)
            os.replace(building, out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


def _write_files(world: World, building: Path) -> dict[str, Any]:
    """Write all files, the manifest last, and return it."""
    settings = world.settings
    _write_images(world, building)
    values = {path: writer(world) for path, writer in ANNOTATIONS.items()}
    for path, (album, writer) in albums(world).items():
        _write_album(album, building)
        values[path] = writer(album)
    stores = {f"MIMIC-IT/{each.name}.json": each.base64_images() for each in clips(world)}
    values |= {f"MIMIC-IT/{each.name}_instructions.json": instructions(each) for each in clips(world)}
    for path, images in stores.items():
        _write(building / path, json.dumps(images) + "\n")
    for path, value in values.items():
        # Not indented: Python's indenting encoder takes as long as rendering the images.
        _write(building / path, json.dumps(value, ensure_ascii=False) + "\n")
    _write_extras(world, building)
    damage(building, settings.seed, settings.faults)
    manifest = {
        "v": 1,
        "images": len(world),
        "rows": {path: _rows(value) for path, value in values.items()},
        "files": {
            path: file_sha256(building / path) for path in sorted([*values, *stores, "kinds.json", "scenes.jsonl"])
        },
        "sha256": _files_sha256(building),
    }
    write_json(building / MANIFEST, manifest)
    return manifest


def _require_ours(out: Path) -> None:
    ours = {path.split("/")[0] for path in (IMAGE_FOLDER, *ANNOTATIONS)}
    ours |= TOP_FOLDERS | {"dialogues", "tasks", "kinds.json", "scenes.jsonl", MANIFEST}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in ours) if out.is_dir() else []
    if foreign:
        raise UserError(
            f"{out} would be replaced, but contains {foreign[0]!r}, which does not belong to a miniature; "
            "choose an empty folder"
        )


def _files_sha256(folder: Path) -> str:
    """A hash of the names and bytes of all files: the manifest is all that the next step depends on."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return text_sha256("".join(f"{file_sha256(folder / name)} {name}\n" for name in files))


def _write_images(world: World, folder: Path) -> None:
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for number in track(range(len(world)), "images generated", len(world)):
        (folder / IMAGE_FOLDER / world.file_name(number)).write_bytes(world.image(number))


def _write_album(album: Album, folder: Path) -> None:
    (folder / album.folder).mkdir(parents=True)
    for number in range(len(album)):
        (folder / album.path(number)).write_bytes(album.image(number))


def _write_extras(world: World, folder: Path) -> None:
    _write(folder / "kinds.json", _json(kinds(world.settings)))
    lines = []
    for number in range(len(world)):
        objects = [thing._asdict() for thing in world.scene(number)]
        lines.append(json.dumps({"path": f"{IMAGE_FOLDER}/{world.file_name(number)}", "objects": objects}))
    _write(folder / "scenes.jsonl", "\n".join(lines) + "\n")
    written = suite(world)
    _write(folder / "dialogues" / "dialogues.json", _json(written.dialogues))
    _write(folder / "dialogues" / "answers.json", _json(written.answers))
    extras = {f"dialogues/{path}": data for path, data in written.images.items()}
    extras |= {f"tasks/{path}": data for path, data in tasks(world).items()}
    for path, data in extras.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _rows(value: Any) -> int:
    if isinstance(value, dict):
        value = next((value[key] for key in ("data", "images", "annotations") if key in value), value)
    return len(value)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--settings", default="{}", help="JSON of the section `miniature`, or @file")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write; replaced whole")
    args = arguments.parse_args()
    manifest = write_world(load_settings(MiniatureConfig, args.settings), args.out)
    print(f"{args.out}: {manifest['images']} images, {sum(manifest['rows'].values())} rows of annotations")


if __name__ == "__main__":
    run_program(main)
