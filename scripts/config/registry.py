"""The registry: which datasets exist, what they need on disk, where that comes from, and under which terms.

Two typed tables, `scripts/adapters/sources.yaml` and `datasets.yaml`. A *source* is something one obtains as a whole
(a folder of images, a set of annotation files); a *dataset* turns annotation files and images of one or more sources
into conversations through its adapter. Paths are those of the original project, below the user's data path. Known
sizes, counts and hashes of files that the user brings are for comparison: they never exclude a smaller or newer copy.

The tables are data, not code: a rule that depends on one source names that entry as its cause, and no other.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scripts.config.base import Section
from scripts.config.custom import CustomDatasetConfig

_TABLES = Path(__file__).resolve().parents[1] / "adapters"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def _below(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("should be a path below the data path")
    return path


Below = Annotated[str, AfterValidator(_below)]
"""A path below the data path: relative, and never upwards. Where it ends in "/" it is a folder."""


class Address(Section):
    """Where a published file is."""

    url: Annotated[str, Field(pattern=r"^(https?|hub|drive|drive-folder)://.+$")]
    """`http(s)://...`; `hub://datasets/OWNER/NAME[@REVISION]/FILE` on the Hugging Face hub, where FILE may be a
    pattern; `drive://ID` and `drive-folder://ID/FILE` on Google Drive."""
    member: str = ""
    """Where the address is that of an archive (.zip, .tar.gz): the member that is the file. Empty: the file itself."""


def _address(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class Download(Section):
    """A published file, and where it belongs below the data path."""

    path: Below
    """File, or a folder ending in "/" where the address is a pattern that several files match."""
    addresses: tuple[Annotated[Address, BeforeValidator(_address)], ...] = ()
    """In order of preference. None: a person has to get it."""
    bytes: int | None = None
    sha256: Annotated[Hex, Field(min_length=64, max_length=64)] | None = None
    md5: Annotated[Hex, Field(min_length=32, max_length=32)] | None = None
    agreement: str = ""
    """Page where an agreement must be accepted first; then a token of the hub opens the addresses."""


class AnnotationFile(Section):
    """A file of rows: JSON, or Parquet."""

    path: Below
    container: Literal["list", "dict", "any"] = "list"
    """`dict` where the rows are the values of an object and its keys their ids; `any`: whichever list the file
    holds."""
    key: str | None = None
    """Member of the top-level object that holds the container; empty: the container is the top level."""
    others: tuple[Below, ...] = ()
    """Other files (or patterns of Parquet files) that hold the same rows in another form; the first that is there
    counts, after `path`."""

    def forms(self) -> tuple[str, ...]:
        """All places where the rows may be, best first."""
        return (self.path, *self.others)


class ImageSet(Section):
    """The images of one folder, whichever way they are stored."""

    folder: Annotated[Below, Field(pattern=r"/$")]
    """Images are known by their path in this folder, also where they lie in one of the containers."""
    containers: tuple[Below, ...] = ()
    """Files (or patterns) that may stand in the folder's place: .zip, a .json object of base64 by id, .parquet."""
    optional: bool = False
    """Whether the whole set may be absent; what it lacks is counted as missing images."""
    expected: int | None = None
    """Images of the published set."""


class Source(Section):
    """Something that is obtained and checked as a whole."""

    name: Name
    version: str = ""
    licence: str
    """In words."""
    terms: tuple[str, ...]
    """The same as words that a configuration can allow or refuse."""
    files: tuple[AnnotationFile, ...] = ()
    images: tuple[ImageSet, ...] = ()
    downloads: tuple[Download, ...] = ()
    how_to_get: str
    """What a person does to have it."""
    optional_files: tuple[Below, ...] = ()
    """Files that are read where they are there."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of images below the data path."""
        return tuple(images.folder for images in self.images)

    def paths(self) -> list[str]:
        """All that belongs to the source, below the data path."""
        return [*(file.path for file in self.files), *self.folders]

    def file(self, path: str) -> AnnotationFile | None:
        """The annotation file that is known by `path`."""
        return next((file for file in self.files if file.path == path), None)


class Dataset(Section):
    """Conversations made of one or more sources."""

    name: Name
    licence: str
    terms: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Annotation files that the dataset reads."""
    image_sources: tuple[str, ...] = ()
    adapter: str | None = None
    """Module in `scripts/adapters`; none for a join."""
    expected: int | None = None
    """Rows of the published files, where known."""
    parts: tuple[str, ...] = ()
    """Datasets that it is a join of; the plan makes such a dataset, it has no adapter and no records."""
    only_source: str | None = None
    """Where its files are in one source and nowhere else (datasets of the user's own, whose names of files may
    agree)."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Dataset":
        if bool(self.parts) == bool(self.adapter) or bool(self.adapter) != bool(self.files):
            raise ValueError("a dataset has an adapter and files, or the parts that it is a join of")
        return self


def custom_source(name: str, own: CustomDatasetConfig) -> Source:
    """The source of a dataset of the user's own."""
    images = own.images or ""
    sets = [ImageSet(folder=images)] if images.endswith("/") else []
    sets += (
        [ImageSet(folder=images.removesuffix(".zip") + "/", containers=(images,))] if images.endswith(".zip") else []
    )
    return Source(
        name=name,
        licence=own.licence,
        terms=own.terms,
        files=tuple(AnnotationFile(path=file, container="any") for file in own.files),
        images=tuple(sets),
        how_to_get=f"see `custom.{name}` in the configuration, which names files below {own.folder}",
    )


def custom_dataset(name: str, own: CustomDatasetConfig) -> Dataset:
    """A dataset of the user's own; it reads one source, which has its name."""
    images = (name,) if own.images else ()
    return Dataset(
        name=name,
        licence=own.licence,
        terms=own.terms,
        files=own.files,
        image_sources=images,
        adapter="own",
        only_source=name,
    )


class Registry:
    """Sources and datasets by name."""

    def __init__(self, sources: Iterable[Source], datasets: Iterable[Dataset]):
        self.sources = {source.name: source for source in sources}
        self.datasets = {dataset.name: dataset for dataset in datasets}

    def with_more(self, sources: Iterable[Source], datasets: Iterable[Dataset]) -> "Registry":
        """This registry and further entries."""
        return Registry([*self.sources.values(), *sources], [*self.datasets.values(), *datasets])

    def component_datasets(self, dataset: str) -> list[str]:
        """The datasets whose records `dataset` is made of: itself, or those that it joins."""
        return list(self.datasets[dataset].parts) or [dataset]

    def users_of(self, source: str, path: str) -> list[str]:
        """The datasets that need `path`, a file or folder of `source`, whether they are configured or not."""
        return [name for name in self.datasets if path in self.requirements(source, [name])]

    def annotation_sources(self, dataset: str) -> list[str]:
        """Sources of the annotation files of `dataset`."""
        parts = self.component_datasets(dataset)
        return sorted(name for name in self.sources if any(self._files(name, part) for part in parts))

    def image_sources(self, dataset: str) -> list[str]:
        """Sources of the images of `dataset`."""
        return sorted(
            {source for part in self.component_datasets(dataset) for source in self.datasets[part].image_sources}
        )

    def sources_of(self, dataset: str) -> list[str]:
        """All sources that `dataset` needs."""
        return sorted({*self.annotation_sources(dataset), *self.image_sources(dataset)})

    def terms_of(self, dataset: str) -> set[str]:
        """Terms of the conversations of `dataset`: of its texts and of its images."""
        own = {term for part in self.component_datasets(dataset) for term in self.datasets[part].terms}
        return own | {term for source in self.image_sources(dataset) for term in self.sources[source].terms}

    def requirements(self, source: str, datasets: Iterable[str]) -> list[str]:
        """What of `source` is needed so that `datasets` can be built: annotation files, and folders ending in "/"."""
        parts = list(dict.fromkeys(part for dataset in datasets for part in self.component_datasets(dataset)))
        wanted = {file for part in parts for file in self._files(source, part)}
        needed = [file.path for file in self.sources[source].files if file.path in wanted]
        shown = any(source in self.datasets[part].image_sources for part in parts)
        return needed + list(self.sources[source].folders) * shown

    def _files(self, source: str, dataset: str) -> list[str]:
        """The files of `source` that `dataset` reads."""
        entry = self.datasets[dataset]
        if entry.only_source not in (None, source):
            return []
        return [file.path for file in self.sources[source].files if file.path in entry.files]


def _table(name: str, entry: type[Section]) -> list[Any]:
    rows = yaml.load((_TABLES / name).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return [entry.model_validate(row) for row in rows]


REGISTRY = Registry(_table("sources.yaml", Source), _table("datasets.yaml", Dataset))
"""What is published. A configuration adds the user's own to it."""
SOURCES, DATASETS = REGISTRY.sources, REGISTRY.datasets
