"""The data part at the true counts of the thirteen datasets: CPU time and memory of every rule.

    python -m benchmarks.scale [--fraction 0.02] [--cores 2] [--minutes 60] [--folder DIR]

Writes a synthetic data path in the raw formats of the datasets, with as many images and rows as the published files
have, times `--fraction`. Images are small (64 pixels), and after the first thousand of a source they repeat: what is
measured is what grows with counts, and decoding photographs takes as much longer as they are larger. Then
`snakemake data` runs on it, with the recipe of the paper and all thirteen datasets in one blend, while the processes of
the steps are watched: their CPU time, and their peak memory, which is only known to the last tenth of a second before
they end. Linux only.

With `--folder` a run is resumed: the data path is kept, Snakemake continues, and the table covers all runs together.
After `--minutes` Snakemake is asked to stop, and the same command continues.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import yaml
from tabulate import tabulate

from scripts.config.miniature import MiniatureConfig, RowsConfig
from scripts.synthetic.albums import covers, dialogues, filter_cap
from scripts.synthetic.clips import FORMS, Clips, instructions
from scripts.synthetic.formats import ANNOTATIONS
from scripts.synthetic.world import Album, SceneImages, World

ROOT = Path(__file__).resolve().parents[1]
COCO_IMAGES = 118_287
COCO_ROWS = RowsConfig(
    llava_detail=23 / 118,
    llava_reasoning=77 / 118,
    llava_dial=57 / 118,
    cgd=141_869 / 2 / COCO_IMAGES,
    cgd_rounds=2,
    coco_caption=1,
    aokvqa=17_056 / COCO_IMAGES,
)
CLIPS = {"SD": (26_154, 15_989), "SN": (9_000, 6_000), "TVC": (577_000, 137_000), "VST": (96_000, 32_000)}
"""Images and instructions of the sets of MIMIC-IT; where the papers give one number, the other is an estimate."""
_DISTINCT = 1000
_SECONDS_BETWEEN_LOOKS = 0.1

Write = Callable[[Album], Any]


class Sizes:
    """The numbers of a data path of a given fraction; nothing has fewer than six."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def of(self, count: int) -> int:
        """`count` times the fraction."""
        return max(6, round(count * self.fraction))


def write_data_path(folder: Path, fraction: float) -> None:
    """Write the raw files of all sources below `folder`; a file that exists is kept."""
    sizes = Sizes(fraction)
    world = World(MiniatureConfig(images=sizes.of(COCO_IMAGES), rows=COCO_ROWS))
    _write(folder / "coco/train2017.zip", partial(_zip, folder="train2017", files=_files(world, world.file_name)))
    for annotations, writer in ANNOTATIONS.items():
        _write(folder / annotations, partial(_json, value=partial(writer, world)))
    for name, (images, rows) in CLIPS.items():
        form = FORMS[name]
        stored = Clips(world, name, sizes.of(images) // form.images)
        named = Clips(world, name, min(stored.conversations, max(2, sizes.of(rows) // form.rounds)))
        _write(folder / f"MIMIC-IT/{name}.json", partial(_base64, clips=stored))
        _write(folder / f"MIMIC-IT/{name}_instructions.json", partial(_json, value=partial(instructions, named)))
    _album(folder, Album(world, "minigpt4", "cc_sbu_align/image", sizes.of(3_439)), "filter_cap.json", filter_cap)
    _album(folder, Album(world, "ocr_vqa", "OCR_VQA/images", sizes.of(207_572)), "dataset.json", covers)
    for part, images in (("CC", 3_373), ("VG", 2_000)):
        album = Album(world, f"sparkles {part}", f"SparklesDialogue{part}/images", sizes.of(images))
        _album(folder, album, f"annotations/SparklesDialogue{part}.json", dialogues)


def _album(folder: Path, album: Album, annotations: str, writer: Write) -> None:
    """The images of an album in a zip beside their folder, and their annotations."""
    source, inner = album.folder.split("/")
    archive = {"cc_sbu_align": "cc_sbu_align.zip"}.get(source, f"{inner}.zip")
    if source.startswith("Sparkles"):
        for name, data in _files(album, lambda number: album.path(number).rsplit("/", 1)[1]):
            _write(folder / album.folder / name, partial(Path.write_bytes, data=data))
    else:
        names = _files(album, lambda number: album.path(number).rsplit("/", 1)[1])
        _write(folder / source / archive, partial(_zip, folder=inner, files=names))
    _write(folder / source / annotations, partial(_json, value=partial(writer, album)))


def _files(images: SceneImages, name: Callable[[int], str]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image; after the first ones they repeat."""
    drawn = cache(images.image)
    return ((name(number), drawn(number % _DISTINCT)) for number in range(len(images)))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        building = path.with_name(f".{path.name}.tmp")
        write(building)
        os.replace(building, path)


def _zip(path: Path, folder: str, files: Iterable[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(f"{folder}/{name}", data)


def _json(path: Path, value: Callable[[], Any]) -> None:
    path.write_text(json.dumps(value(), ensure_ascii=False), encoding="utf-8")


def _base64(path: Path, clips: Clips) -> None:
    """One object of all images by id, which may be larger than memory."""
    few = Clips(World(clips.settings), clips.name, min(clips.conversations, _DISTINCT // clips.form.images))
    drawn = list(few.base64_images().values())
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
        for number in range(len(clips)):
            comma = ", " if number else ""
            file.write(f'{comma}"{clips.image_id(number)}": "{drawn[number % len(drawn)]}"')
        file.write("}")


def recipe(fraction: float) -> dict[str, Any]:
    """The recipe of the paper with all thirteen datasets in one blend, and the miniature's tokenizer."""
    settings = yaml.safe_load((ROOT / "recipes/paper-7b.yaml").read_text(encoding="utf-8"))
    (blend,) = settings["blends"].values()
    datasets = blend["datasets"] | {name: {} for name in ("coco_caption", "aokvqa", "minigpt4", "ocr_vqa")}
    shards = max(1, round(32 * fraction))
    return {
        "name": "scale",
        "results": "results",
        "data_path": "data",
        "media": {name: {"shards": max(1, round(64 * fraction))} for name in ("coco", "ocr_vqa", "mimicit_tvc")},
        "holdout": settings["holdout"],
        "tokens": {"miniature": {"tokenizer": "miniature", "image_tokens": 257}},
        "blends": {"all": blend | {"tokens": "miniature", "shards": shards, "datasets": datasets}},
        "models": {},
        "runs": {},
    }


class Watch:
    """CPU seconds and peak memory of the processes of every step, by program.

    A job is one `python -m scripts.<program>`; the processes that it starts count as its own. What was measured is kept
    in a file, to which later runs add.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._running: dict[int, tuple[str, float, float]] = {}
        earlier = json.loads(kept.read_text()) if kept.exists() else {}
        self.rules: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0], earlier)

    def look(self, snakemake: psutil.Process) -> None:
        """Read the processes once; those that have ended since the last look are counted."""
        seen = {}
        for process in snakemake.children(recursive=True):
            try:
                command, times = process.cmdline(), process.cpu_times()
                peak = _peak_megabytes(process.pid)
            except (psutil.Error, OSError):
                continue
            if program := next((word for word in command[1:3] if word.startswith("scripts.")), None):
                cpu = times.user + times.system + times.children_user + times.children_system
                seen[process.pid] = (program.removeprefix("scripts."), cpu, peak)
        for pid in self._running.keys() - seen.keys():
            self._count(*self._running[pid])
        self._running = seen

    def _count(self, program: str, cpu: float, peak: float) -> None:
        jobs, seconds, megabytes = self.rules[program]
        self.rules[program] = [jobs + 1, seconds + cpu, max(megabytes, peak)]
        self._kept.write_text(json.dumps(self.rules))

    def table(self) -> str:
        """What was measured, as a table in the order in which the steps first ran."""
        rows = [[name, f"{jobs:.0f}", f"{cpu:.1f}", f"{peak:.0f}"] for name, (jobs, cpu, peak) in self.rules.items()]
        jobs, cpu, peak = zip((0, 0, 0), *self.rules.values(), strict=True)
        rows.append(["all", f"{sum(jobs):.0f}", f"{sum(cpu):.1f}", f"{max(peak):.0f}"])
        return tabulate(rows, ["program", "jobs", "CPU s", "peak MB of a job"], "github", disable_numparse=True)


def _peak_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def run(folder: Path, cores: int, minutes: float) -> tuple[int, Watch]:
    """Run `snakemake data` on the recipe in `folder`; return its exit status and what was measured."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)]
    command += ["data", "--configfile", "scale.yaml"]
    with open(folder / "snakemake.log", "a") as log:
        snakemake = psutil.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    watch, end, asked = Watch(folder / "measured.json"), time.monotonic() + 60 * minutes, False
    while snakemake.poll() is None:
        if time.monotonic() > end and not asked:
            # Running jobs end first.
            snakemake.send_signal(signal.SIGTERM)
            asked = True
        try:
            watch.look(snakemake)
        except psutil.NoSuchProcess:
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return snakemake.wait(), watch


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fraction", type=float, default=0.02, help="of the counts of the published files")
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--minutes", type=float, default=60, help="stop Snakemake after this time")
    arguments.add_argument("--folder", type=Path, help="keep data and results here; default: a temporary folder")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        write_data_path(folder / "data", args.fraction)
        print(f"data path: {time.process_time() - begin:.0f} CPU s", flush=True)
        (folder / "scale.yaml").write_text(yaml.safe_dump(recipe(args.fraction), sort_keys=False))
        status, watch = run(folder, args.cores, args.minutes)
        print(f"counts of the published files times {args.fraction:g}, {args.cores} cores\n\n{watch.table()}")
        if status:
            sys.exit(f"snakemake ended with status {status}; see {folder / 'snakemake.log'}, and run it again")


if __name__ == "__main__":
    main()
