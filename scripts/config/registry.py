"""The registry: all datasets, the files that they need, where these are published, and under which terms.

Two typed tables, `scripts/adapters/sources.yaml` and `datasets.yaml`. A *source* is obtained as a whole (a folder of
images, a set of annotation files); a *dataset* is made by an adapter from annotation files and images of one or more
sources. Paths are those of the original project, below the user's data path. Known sizes, counts and hashes of files
that the user provides are only compared: a smaller or newer copy is accepted.

The tables are data, not code: a rule that depends on one source has only that entry as a parameter.
"""

import posixpath
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scripts.config.base import Section
from scripts.config.custom import CustomDatasetConfig, OwnRowsConfig
from scripts.config.paths import is_archive, without_archive_extension

_TABLES = Path(__file__).resolve().parents[1] / "adapters"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$")]


def _below(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("should be a path below the data path")
    return path


Below = Annotated[str, AfterValidator(_below)]
"""A path below the data path: relative and without "..". If it ends in "/" it is a folder."""


def path_matches(path: str, pattern: str) -> bool:
    """Whether a path matches a pattern: `*` stands for any characters of a name, `**` for any number of folders."""
    return _path_expression(pattern).fullmatch(path) is not None


@cache
def _path_expression(pattern: str) -> re.Pattern[str]:
    *folders, last = posixpath.normpath(pattern).split("/")
    text = "".join(_ANY_FOLDERS if part == "**" else f"{_name_expression(part)}/" for part in folders)
    return re.compile(text + (f"{_ANY_FOLDERS}[^/]+" if last == "**" else _name_expression(last)), re.DOTALL)


_ANY_FOLDERS = "(?:[^/]+/)*"


def _name_expression(part: str) -> str:
    return re.escape(part).replace(r"\*", "[^/]*")


def glob_pattern(name: str) -> str:
    """The pattern for `glob` of a file name in which `*` stands for any characters and all others for themselves."""
    return name.translate({ord("?"): "[?]", ord("["): "[[]"})


WHOLE_FOLDER = "./"
"""The whole folder of a dataset, or data path: all files of rows in it, or all images."""


def image_prefix(folder: str) -> str:
    """What the paths of the images of a set begin with."""
    return "" if folder == WHOLE_FOLDER else folder


class Address(Section):
    """Where a file is published."""

    url: Annotated[str, Field(pattern=r"^(https?|hub|drive|drive-folder)://.+$")]
    """`http(s)://...`; `hub://datasets/OWNER/NAME[@REVISION]/FILE` on the Hugging Face hub, where FILE may be a
    pattern; `drive://ID` and `drive-folder://ID/FILE` on Google Drive."""
    member: str = ""
    """If the address is that of an archive (.zip, .tar.gz): the name of the file in it. Empty: the file itself."""


def _address(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class Download(Section):
    """A published file, and its path below the data path."""

    path: Below
    """File; or a folder ending in "/", if the address is a pattern that several files match."""
    addresses: tuple[Annotated[Address, BeforeValidator(_address)], ...] = ()
    """In order of preference. None: it must be downloaded by hand."""
    bytes: int | None = None
    sha256: Annotated[Hex, Field(min_length=64, max_length=64)] | None = None
    md5: Annotated[Hex, Field(min_length=32, max_length=32)] | None = None
    agreement: str = ""
    """Page on which an agreement must be accepted first; then the addresses need a token of the hub."""


class AnnotationFile(Section):
    """A file of rows: JSON, or Parquet."""

    path: Below
    container: Literal["list", "dict", "any"] = "list"
    """`dict`: the rows are the values of an object and its keys their ids; `any`: the only list in the file."""
    key: str | None = None
    """Member of the top-level object that contains the rows; empty: the top level itself."""
    others: tuple[Below, ...] = ()
    """Alternative files (or patterns of Parquet files) with the same rows in another form; the first that exists is
    used if `path` does not."""

    def forms(self) -> tuple[str, ...]:
        """All paths and patterns of files that may contain the rows, in order of preference."""
        return (self.path, *self.others)


class ImageSet(Section):
    """The images of one folder, however they are stored."""

    folder: Annotated[Below, Field(pattern=r"/$")]
    """Images are identified by their path in this folder, also if they are stored in one of the containers. "./": the
    whole data path, without the folders of other sets."""
    containers: tuple[Below, ...] = ()
    """Files (or patterns) that may replace the folder: .zip, .json (an object of base64 by id), .parquet."""
    archived: bool = False
    """Whether the images are in the containers even where the folder exists."""
    optional: bool = False
    """Whether the whole set may be absent; its images then count as missing."""
    expected: int | None = None
    """Number of images in the published set."""

    @property
    def prefix(self) -> str:
        """The folder as the beginning of the paths of its images."""
        return image_prefix(self.folder)


class Source(Section):
    """Files that are obtained and validated as a whole."""

    name: Name
    version: str = ""
    licence: str
    """Free text."""
    terms: tuple[str, ...]
    """The terms as keywords, which a configuration can allow or refuse."""
    files: tuple[AnnotationFile, ...] = ()
    images: tuple[ImageSet, ...] = ()
    downloads: tuple[Download, ...] = ()
    how_to_get: str
    """How to download the files by hand."""
    optional_files: tuple[Below, ...] = ()
    """Files that are read if they exist."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of images below the data path."""
        return tuple(images.folder for images in self.images)

    def paths(self) -> list[str]:
        """All that belongs to the source, below the data path."""
        return [*(file.path for file in self.files), *self.folders]


class Dataset(Section):
    """Conversations made from one or more sources."""

    name: Name
    licence: str
    terms: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Annotation files that the dataset reads."""
    image_sources: tuple[str, ...] = ()
    adapter: str | None = None
    """Module in `scripts/adapters`; none for a join."""
    expected: int | None = None
    """Number of rows in the published files, if known."""
    parts: tuple[str, ...] = ()
    """Datasets that it joins; such a dataset is made by the plan and has no adapter and no records."""
    only_source: str | None = None
    """The only source of its files, for custom datasets, whose files may have equal names."""
    own: OwnRowsConfig | None = None
    """How the rows of a custom dataset are read."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Dataset":
        if bool(self.parts) == bool(self.adapter) or bool(self.adapter) != bool(self.files):
            raise ValueError("a dataset has either an adapter and files, or the parts that it joins")
        return self


def custom_files(config: CustomDatasetConfig) -> tuple[str, ...]:
    """The files of a custom dataset: those of its `split` too, which `files` need not name again."""
    if not config.files:
        return (WHOLE_FOLDER,)
    kept = config.split.files if config.split else ()
    return config.files + tuple(file for file in kept if not any(path_matches(file, each) for each in config.files))


def custom_source(name: str, config: CustomDatasetConfig) -> Source:
    """The source of a custom dataset."""
    places = config.images or (WHOLE_FOLDER,)
    images = tuple(
        ImageSet(
            folder=without_archive_extension(place),
            containers=(place,) if is_archive(place) else (),
            archived=is_archive(place),
            optional=not config.images,
        )
        for place in places
    )
    return Source(
        name=name,
        licence=config.licence,
        terms=config.terms,
        files=tuple(AnnotationFile(path=file, container="any") for file in custom_files(config)),
        images=images,
        how_to_get=f"see `custom.{name}` in the configuration, which names files below {config.folder}",
    )


def custom_dataset(name: str, config: CustomDatasetConfig) -> Dataset:
    """A custom dataset; it reads one source, which has the same name."""
    return Dataset(
        name=name,
        licence=config.licence,
        terms=config.terms,
        files=custom_files(config),
        image_sources=(name,),
        adapter="custom",
        only_source=name,
        own=OwnRowsConfig(columns=config.columns, split=config.split, entry=config.entry),
    )


class Registry:
    """Sources and datasets by name."""

    def __init__(self, sources: Iterable[Source], datasets: Iterable[Dataset]) -> None:
        self.sources = {source.name: source for source in sources}
        self.datasets = {dataset.name: dataset for dataset in datasets}

    def with_more(self, sources: Iterable[Source], datasets: Iterable[Dataset]) -> "Registry":
        """A registry with the entries of this one and further ones."""
        return Registry([*self.sources.values(), *sources], [*self.datasets.values(), *datasets])

    def component_datasets(self, dataset: str) -> list[str]:
        """The datasets whose records make up `dataset`: itself, or those that it joins."""
        return list(self.datasets[dataset].parts) or [dataset]

    def users_of(self, source: str, path: str) -> list[str]:
        """The datasets of the registry that need `path`, a file or folder of `source`."""
        return [name for name in self.datasets if path in self.requirements(source, [name])]

    def annotation_sources(self, dataset: str) -> list[str]:
        """Names of the sources of the annotation files of `dataset`."""
        parts = self.component_datasets(dataset)
        return sorted(name for name in self.sources if any(self._files(name, part) for part in parts))

    def image_sources(self, dataset: str) -> list[str]:
        """Names of the sources of the images of `dataset`."""
        return sorted(
            {source for part in self.component_datasets(dataset) for source in self.datasets[part].image_sources}
        )

    def sources_of(self, dataset: str) -> list[str]:
        """Names of all sources that `dataset` needs."""
        return sorted({*self.annotation_sources(dataset), *self.image_sources(dataset)})

    def terms_of(self, dataset: str) -> set[str]:
        """Terms of the conversations of `dataset`: of its texts and of its images."""
        of_texts = {term for part in self.component_datasets(dataset) for term in self.datasets[part].terms}
        return of_texts | {term for source in self.image_sources(dataset) for term in self.sources[source].terms}

    def requirements(self, source: str, datasets: Iterable[str]) -> list[str]:
        """What `datasets` need of `source`: paths of annotation files, and of folders of images, ending in "/"."""
        parts = list(dict.fromkeys(part for dataset in datasets for part in self.component_datasets(dataset)))
        used = {file for part in parts for file in self._files(source, part)}
        files = [file.path for file in self.sources[source].files if file.path in used]
        needs_images = any(source in self.datasets[part].image_sources for part in parts)
        return [*files, *(self.sources[source].folders if needs_images else ())]

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
"""The published sources and datasets. A configuration may add custom ones."""
SOURCES, DATASETS = REGISTRY.sources, REGISTRY.datasets
