"""Hash of the values of a table, independent of the file that holds it."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.blending.ragged import flat


def logical_sha256(table: pa.Table) -> str:
    """Hash of a table's logical content, column by column.

    It does not depend on chunks, compression or the library's version. Values are hashed in their fixed binary form,
    lists as their lengths and their values, so that a million rows take seconds.

    Raises:
        ValueError: a field is empty (null).
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}\0".encode())
        _feed(digest, flat(table, name))
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", array: pa.Array) -> None:
    if array.null_count:
        raise ValueError("the tables of this project have no empty fields")
    # Not str(array.type): it holds the name of list elements, which a file does not keep.
    if pa.types.is_list(array.type):
        digest.update(b"list\0")
        digest.update(_numbers(pc.list_value_length(array)))
        _feed(digest, array.flatten())
    elif pa.types.is_struct(array.type):
        for field, values in zip(array.type, array.flatten(), strict=True):
            digest.update(f"{field.name}\0".encode())
            _feed(digest, values)
    elif pa.types.is_string(array.type):
        digest.update(b"string\0" + _numbers(pc.binary_length(array)))
        digest.update(_text(array))
    else:
        digest.update(f"{array.type}\0".encode() + _numbers(array))


def _text(array: pa.StringArray) -> memoryview:
    """The UTF-8 bytes of all strings, one after the other."""
    _, starts, data = array.buffers()
    offsets = np.frombuffer(starts, np.int32)[array.offset : array.offset + len(array) + 1] if len(array) else [0]
    return memoryview(data or b"")[offsets[0] : offsets[-1]]


def _numbers(array: pa.Array) -> bytes:
    values = array.to_numpy(zero_copy_only=False)
    return values.astype(values.dtype.newbyteorder("<")).tobytes()
