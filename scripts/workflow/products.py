"""What the finished steps of a results folder have made, and of what: one record for every job.

`<root>/logs/products.jsonl` has a line for every finished job, the last of which counts: its output files and the other
files of its folders with size and hash, and the content of every input file at that time. So a file that is missing or
cut off is seen, and a job whose inputs have the same content as before need not run again, whatever their times are.
Without the file nothing is lost but this: Snakemake then judges by times alone.
"""

import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.adapters.raw import DATA_LINK
from scripts.common.files import atomic, canonical_json, file_sha256
from scripts.evaluation.forgetting_summary import FILE as FORGETTING

FILE = "logs/products.jsonl"
_VERSION = 1
_OF_THE_GRAPH = ("configuration.json", "graph.json")
_MOST_BYTES = 64 << 20
STATE_FILES = ("settings.json", "inputs.json", "plans.json", "finished.json")
"""The files of a run's state that describe it."""


@dataclass(frozen=True)
class Product:
    """A finished job.

    Attributes:
        step: the name of its program.
        outputs: size in bytes and sha256 of every declared output. The hash is "" for files of more than 64 MB, which
            have one elsewhere (a shard in its manifest). Paths are relative to the results folder, here and below.
        extras: the same of every other file that it has made. The size is -1 where only its presence counts: of a link
            to a folder, and of what Snakemake writes anew in every run.
        inputs: content of every input file; see `Contents`.
        benchmark: the file with its time and memory, whose time Snakemake compares as that of an output; "" if none.
        cause: a hash of its parameters and command.
    """

    step: str
    outputs: dict[str, tuple[int, str]]
    extras: dict[str, tuple[int, str]]
    inputs: dict[str, str]
    benchmark: str
    cause: str


class Contents:
    """Identifies the contents of files, reading each only once.

    A file is identified by the hash of its bytes, a tar shard by its size alone: whoever reads a shard also reads its
    index part, which holds the hash of the shard.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def __call__(self, path: str | Path) -> str:
        """The identity of the file `path`; "" if there is none."""
        try:
            status = os.stat(path)
        except OSError:
            return ""
        return f"size {status.st_size}" if str(path).endswith(".tar") else self.sha256(path)

    def sha256(self, path: str | Path) -> str:
        """The sha256 of the file `path`."""
        status = os.stat(path)
        key = (str(path), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = file_sha256(path)
        return self._known[key]


class Products:
    """The records of a results folder."""

    def __init__(self, root: str | Path) -> None:
        """Read the records of the results folder `root`; a line that is damaged or cut off is left out."""
        self.root = str(root)
        self.contents = Contents()
        self._by_output: dict[str, Product] = {}
        for product in _read(self.path(FILE)):
            self._add(product)

    def __iter__(self) -> Iterator[Product]:
        """Every record once, in no particular order."""
        return iter({id(product): product for product in self._by_output.values()}.values())

    def relative(self, path: str | Path) -> str:
        """How a record names a file: relative to the root, or as it is if it lies elsewhere."""
        absolute = os.path.abspath(path)
        below = os.path.relpath(absolute, os.path.abspath(self.root))
        return absolute if below.startswith(os.pardir) else below

    def path(self, name: str) -> Path:
        """The file that a record names."""
        return Path(self.root, name)

    def of(self, outputs: Iterable[str | Path]) -> Product | None:
        """The record of the job that has made exactly these outputs, if there is one."""
        names = {self.relative(path) for path in outputs}
        product = self._by_output.get(min(names, default=""))
        return product if product is not None and product.outputs.keys() == names else None

    def record(
        self,
        step: str,
        outputs: Iterable[str | Path],
        inputs: Iterable[str | Path],
        benchmark: str | Path = "",
        cause: str = "",
        started: float | None = None,
    ) -> None:
        """Add the record of a job that has just finished.

        An input that has changed since the job has `started`, in seconds since 1970, gets no content: what the job has
        read is not known.
        """
        made = self._described(outputs)
        others = self._described(other_files(step, Path(self.root), made))
        extras = {name: described for name, described in others.items() if name not in made}
        contents = {
            self.relative(path): "changed" if started and _changed_after(path, started) else self.contents(path)
            for path in inputs
        }
        product = Product(step, made, extras, contents, self.relative(benchmark) if benchmark else "", cause)
        self._add(product)
        path = self.path(FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(_line(product))

    def has_same_inputs(
        self, product: Product, inputs: Iterable[str | Path], same: Collection[str | Path] = ()
    ) -> bool:
        """Whether the input files of a job are those of its record, with the same contents.

        The contents of those in `same` are not looked at.
        """
        names = {self.relative(path): path for path in inputs}
        return names.keys() == product.inputs.keys() and all(
            path in same or self.contents(path) == product.inputs[name] for name, path in names.items()
        )

    def fault(self, product: Product) -> str:
        """The first of a job's files that is missing or has another size, and which; "" if there is none."""
        for name, (size, _) in (product.outputs | product.extras).items():
            try:
                found = _size(self.path(name))
            except OSError:
                return f"{self.path(name)} is missing"
            if size not in (found, -1):
                return f"{self.path(name)} has {found:,} bytes instead of {size:,}"
        return ""

    def is_intact(self, product: Product) -> bool:
        """Whether no file of a job is missing or has another size, and its outputs have the recorded contents.

        So an output that is of another run of the job than its record, because that one was killed or the program was
        started by hand, is not taken for what the record describes.
        """
        hashes = {self.path(name): sha256 for name, (_, sha256) in product.outputs.items() if sha256}
        return not self.fault(product) and all(self.contents.sha256(path) == known for path, known in hashes.items())

    def compact(self) -> None:
        """Write the file anew, with one line for every job."""
        lines = sorted(_line(product) for product in self)
        with atomic(self.path(FILE), "w") as file:
            file.writelines(lines)

    def _described(self, paths: Iterable[str | Path]) -> dict[str, tuple[int, str]]:
        """Size and hash of files, by their names in a record."""
        found = {}
        for path in paths:
            size = -1 if self.relative(path) in _OF_THE_GRAPH else _size(path)
            found[self.relative(path)] = (size, self.contents.sha256(path) if 0 <= size <= _MOST_BYTES else "")
        return found

    def _add(self, product: Product) -> None:
        for name in product.outputs:
            self._by_output[name] = product


def _size(path: str | Path) -> int:
    """The size of a file in bytes; -1 for a folder or a link to one."""
    status = os.stat(path)
    return -1 if stat.S_ISDIR(status.st_mode) else status.st_size


def _changed_after(path: str | Path, seconds: float) -> bool:
    try:
        return os.stat(path).st_mtime > seconds
    except OSError:
        return False


def _read(path: Path) -> Iterator[Product]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            value = json.loads(line)
            if value["v"] == _VERSION:
                outputs, extras = (_pairs(value[key]) for key in ("outputs", "extras"))
                yield Product(value["step"], outputs, extras, value["inputs"], value["benchmark"], value["cause"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _pairs(described: dict[str, list]) -> dict[str, tuple[int, str]]:
    return {name: (size, sha256) for name, (size, sha256) in described.items()}


def _line(product: Product) -> str:
    return canonical_json({"v": _VERSION, **asdict(product)}) + "\n"


def other_files(step: str, root: Path, outputs: Iterable[str]) -> Iterator[Path]:
    """The files that a job has made beside its declared outputs, where its rule does not declare all of them."""
    for folder in sorted({(root / name).parent for name in outputs}) if step in _FOLDERS else ():
        yield from _FOLDERS[step](folder)


def _all_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder but hidden ones."""
    for inner, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(inner, name) for name in names if not name.startswith("."))


def _evaluation_files(folder: Path) -> Iterator[Path]:
    """Every file of an evaluation but that of `forgetting`, another step."""
    yield from (path for path in _all_files(folder) if path != folder / FORGETTING)


def _link_to_files(folder: Path) -> Iterator[Path]:
    """The link to the raw files of a source."""
    yield folder / DATA_LINK


def _of_the_graph(folder: Path) -> Iterator[Path]:
    """What Snakemake writes before the first job."""
    yield from (folder / name for name in _OF_THE_GRAPH)


def _state_files(folder: Path) -> Iterator[Path]:
    """What later steps read of a run's state: its description, the weights of its two results, and those before it."""
    finished = json.loads((folder / "finished.json").read_bytes())
    yield from (folder / finished["state"] / name for name in (*STATE_FILES, "environment.json"))
    yield from {folder / finished[which]["weights"] for which in ("final", "best")}
    yield from _all_files(folder / finished["state"] / "start")


_FOLDERS: dict[str, Callable[[Path], Iterator[Path]]] = {
    "miniature": _all_files,
    "fetch": _link_to_files,
    "pretrain": _all_files,
    "make_model": _all_files,
    "train": _state_files,
    "export": _all_files,
    "evaluate": _evaluation_files,
    "report": _of_the_graph,
}
"""Programs that make more files than their rules declare -> the files below the folder of a declared one."""
