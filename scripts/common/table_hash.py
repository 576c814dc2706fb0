"""Hash of the values of a table, independent of the file or the memory layout that holds it.

Columns are hashed one after the other, each in its fixed binary form: numbers as little-endian bytes, strings as all
lengths and then all UTF-8 bytes, lists as all lengths and then their elements, structs field by field. No value becomes
a Python object, so that a million rows take a second.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def table_sha256(table: pa.Table) -> str:
    """Hash of a table's logical content, as hex.

    It does not depend on chunks, slices, dictionary encoding, compression or the version of pyarrow. An empty field
    (null) differs from an empty text and from 0; NaN equals itself.

    Raises:
        ValueError: a column has a type without a fixed binary form, such as decimals or maps.
    """
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(f"{name}\0".encode())
        _feed(digest, table[name].chunks or [pa.array([], table[name].type)])
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", chunks: Sequence[pa.Array]) -> None:
    """Feed the values of one column; `chunks` has at least one array, and all have the same type."""
    if pa.types.is_dictionary(chunks[0].type):
        chunks = [chunk.dictionary_decode() for chunk in chunks]
    if any(chunk.null_count for chunk in chunks):
        digest.update(b"valid\0")
        _feed_numbers(digest, [chunk.is_valid() for chunk in chunks])
        chunks = [chunk.drop_null() for chunk in chunks]
    kind = chunks[0].type
    # Not str(kind): it holds the name of list elements, which a file does not keep.
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(b"list\0")
        _feed_numbers(digest, [pc.list_value_length(chunk).cast(pa.int32()) for chunk in chunks])
        _feed(digest, [chunk.flatten() for chunk in chunks])
    elif pa.types.is_struct(kind):
        for number, field in enumerate(kind):
            digest.update(f"{field.name}\0".encode())
            _feed(digest, [chunk.flatten()[number] for chunk in chunks])
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        digest.update(b"string\0")
        _feed_bytes(digest, chunks)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        digest.update(b"binary\0")
        _feed_bytes(digest, chunks)
    else:
        digest.update(f"{kind}\0".encode())
        _feed_numbers(digest, chunks)


def _feed_bytes(digest: "hashlib._Hash", chunks: Sequence[pa.Array]) -> None:
    """Feed the lengths of all texts, then the texts, one after the other."""
    _feed_numbers(digest, [pc.binary_length(chunk).cast(pa.int32()) for chunk in chunks])
    for chunk in chunks:
        _, starts, data = chunk.buffers()
        if len(chunk) and data is not None:
            large = pa.types.is_large_string(chunk.type) or pa.types.is_large_binary(chunk.type)
            offsets = np.frombuffer(starts, np.int64 if large else np.int32)
            digest.update(memoryview(data)[offsets[chunk.offset] : offsets[chunk.offset + len(chunk)]])


def _feed_numbers(digest: "hashlib._Hash", chunks: Sequence[pa.Array]) -> None:
    for chunk in chunks:
        values = chunk.to_numpy(zero_copy_only=False)
        if values.dtype == object and len(values):
            raise ValueError(f"columns of the type {chunk.type} cannot be hashed")
        if len(values):
            digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).data)
