"""The rows of a custom dataset: where fetch finds them, what it notes about them, and how they are read again.

Loaded by name, as adapters are, so that published datasets do not depend on this code.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.adapters.own.dataset_info import described, is_dataset_info
from scripts.adapters.own.row_files import find_row_files
from scripts.adapters.own.row_readers import read_rows
from scripts.adapters.own.splits import SPLIT_MEMBER
from scripts.adapters.own.table_rows import NESTED
from scripts.adapters.raw import OWN, Note, RawRow
from scripts.common.errors import UserError
from scripts.config.custom import ColumnsConfig, OwnRowsConfig
from scripts.config.registry import WHOLE_FOLDER, Dataset


def found_rows(
    dataset: Dataset, folder: Path, archives: tuple[str, ...] = ()
) -> tuple[Dataset, dict[str, dict[str, Any]], list[Note]]:
    """Find the files of rows of a custom dataset.

    Args:
        dataset: its entry.
        folder: its folder.
        archives: paths of its archives of images.

    Returns:
        Its entry with the files that were found, in their order, and with the columns that an entry of LLaMA-Factory
        gives; the annotations of the manifest, by file; notes about files that are left out, and about that entry.

    Raises:
        UserError: see `find_row_files` and `described`.
    """
    own, names = dataset.own or OwnRowsConfig(), dataset.files
    notes: list[Note] = []
    if own.entry is not None or (names == (WHOLE_FOLDER,) and is_dataset_info(folder)):
        entry = described(folder, own.entry, dataset.name)
        names, notes = (entry.file,), entry.notes
        own = own.model_copy(update={"columns": _merged(own.columns, entry.columns), "entry": entry.name})
    try:
        found = find_row_files(folder, names, archives)
    except UserError as error:
        raise UserError(f"custom.{dataset.name}: {error}") from None
    notes += [Note("file_left_out", f"{path} {reason}") for path, reason in found.left_out.items()]
    annotations = {
        path: {"found": [path], "container": OWN, "key": None, "split": split} for path, split in found.splits.items()
    }
    return dataset.model_copy(update={"files": tuple(found.splits), "own": own}), annotations, notes


def _merged(given: ColumnsConfig, entry: ColumnsConfig) -> ColumnsConfig:
    """The columns of an entry, except those that the configuration gives."""
    return entry.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})


def nested_columns(columns: ColumnsConfig) -> frozenset[str]:
    """The columns of text tables that may hold lists or objects: the usual ones, and those of the configuration."""
    return NESTED.union(name for name in (columns.messages, columns.history, columns.images) if name)


def rows_of_file(
    file_path: Path,
    name: str,
    layout: Mapping[str, Any],
    dataset: Mapping[str, Any],
    sha256: str | None,
    notes: list[Note],
) -> Iterator[RawRow]:
    """The rows of a file of a custom dataset, in constant memory.

    Args:
        file_path: the file.
        name: its path below the dataset's folder.
        layout: its entry among the annotations of the manifest.
        dataset: the dataset's entry in the manifest.
        sha256: its hash, as listed by fetch; None: it is not checked.
        notes: about its rows are appended.

    Raises:
        UserError: see `read_rows`.
    """
    nested = nested_columns(ColumnsConfig.model_validate(dataset["own"]["columns"]))
    for row in read_rows(file_path, name, notes, sha256, nested):
        if layout["split"] and isinstance(row.value, dict):
            row.value.setdefault(SPLIT_MEMBER, layout["split"])
        yield row
