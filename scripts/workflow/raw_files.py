"""The files of a user as a cause: the raw files that fetch reads from a source, and the images that suites name."""

from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.config.settings import Settings
from scripts.evaluation.suites import image_names
from scripts.inference.image_files import find_image_root
from scripts.workflow.folder_digest import files_digest, folder_digest, remember
from scripts.workflow.targets import data_path


def raw_digest(settings: Settings, source: str, root: str) -> str:
    """A hash of (name, size, time of change) of all files of the user that fetch may read from a source.

    Missing files are skipped: fetch reports them. The files of the miniature and of replay are outputs of a rule and
    need no hash.
    """
    if not _of_user(settings, source):
        return ""
    return folder_digest(*_raw_files(settings, source, root))


def remember_raw(settings: Settings, root: str) -> None:
    """Keep sizes and times of the user's raw files, so that a file that is only touched is no cause."""
    registry = settings.registry()
    for source in {source for dataset in settings.datasets() for source in registry.sources_of(dataset)}:
        if _of_user(settings, source):
            remember(*_raw_files(settings, source, root))


def _of_user(settings: Settings, source: str) -> bool:
    """Whether the raw files of a source are the user's, and no rule makes them."""
    return source in settings.custom or (bool(settings.data_path) and source not in settings.replay)


def _raw_files(settings: Settings, source: str, root: str) -> tuple[str, tuple[str, ...], str, str, bool]:
    """The arguments of `folder_digest` for a source."""
    entry = settings.registry().sources[source]
    required = settings.registry().requirements(source, settings.datasets())
    paths = [form for file in entry.files if file.path in required for form in file.forms()]
    paths += [path for images in entry.images for path in (images.folder, *images.containers)]
    folder, patterns = data_path(settings, source, root), tuple(sorted({*paths, *entry.optional_files}))
    fetched, memory = f"{root}/raw/{source}/files.parquet", f"{root}/logs/raw/{source}.jsonl"
    return folder, patterns, fetched, memory, source in settings.custom


def suite_images(settings: Settings) -> str:
    """A hash of (name, size, time of change) of the images that the user's suites of dialogues name.

    What is wrong with a suite is reported when it is read.
    """
    found: list[Path] = []
    for path in sorted(path for path in settings.suites.values() if path.endswith(".json")):
        try:
            names = image_names(read_json(path))
        except (UserError, AttributeError):
            continue
        root = find_image_root(Path(path).parent, names)
        found += [root / name for name in names]
    return files_digest(found)
