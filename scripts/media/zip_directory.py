"""The members of a zip archive, read from its central directory, none of whose statements is trusted.

`zipfile` refuses the whole archive for one name that is not UTF-8, and accepts a member that claims a petabyte. Here
every member that cannot be what it claims gets a fault, and the others stay usable.
"""

import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from scripts.media.opening import MAX_BYTES

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED

_END = struct.Struct("<4s4HIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_MEMBER = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s22x2H")
_LONGEST_COMMENT = 65_535
_UTF8, _ENCRYPTED = 0x800, 1
_ZIP64_FIELD = 1


class Member(NamedTuple):
    """A member.

    Attributes:
        name: as in the archive; bytes that are not UTF-8 are replaced.
        method: STORED, DEFLATED or another one.
        offset, length: of its data in the archive; 0 with a fault.
        crc: CRC-32 of its content.
        fault: why it cannot be read, or "".
    """

    name: str
    method: int
    offset: int
    length: int
    crc: int
    fault: str


def members(file: int) -> Iterator[Member]:
    """The members of the open archive `file`, folders apart, in the order of its directory.

    Raises:
        zipfile.BadZipFile: it is not a zip archive, or its directory is damaged.
    """
    size = os.fstat(file).st_size
    directory, shift = _directory(file, size)
    at = 0
    while at < len(directory):
        if len(directory) - at < _MEMBER.size or directory[at : at + 4] != b"PK\x01\x02":
            raise zipfile.BadZipFile(f"no member at byte {at} of the directory")
        fields = _MEMBER.unpack_from(directory, at)
        flags, method, crc = fields[3], fields[4], fields[7]
        name_length, extra_length, comment_length = fields[10:13]
        start = at + _MEMBER.size
        at = start + name_length + extra_length + comment_length
        name, fault = _name(directory[start : start + name_length], flags)
        if name.endswith("/"):
            continue
        extra = directory[start + name_length : start + name_length + extra_length]
        _, length, header = _wide((fields[9], fields[8], fields[16]), extra)
        offset = _data_offset(file, size, header + shift)
        if stat.S_ISLNK(fields[15] >> 16):
            fault = "symlink"
        elif flags & _ENCRYPTED:
            fault = "encrypted"
        elif method not in (STORED, DEFLATED):
            fault = "unsupported_compression"
        elif length > MAX_BYTES:
            fault = fault or "too_large"
        elif offset < 0 or offset + length > size:
            fault = fault or "corrupt"
        yield Member(name, method, 0, 0, crc, fault) if fault else Member(name, method, offset, length, crc, "")


def _directory(file: int, size: int) -> tuple[bytes, int]:
    """The bytes of the central directory, and how far the archive is behind the beginning of the file."""
    begin = max(0, size - _END.size - _LONGEST_COMMENT)
    tail = os.pread(file, size - begin, begin)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise zipfile.BadZipFile("the directory at its end is missing")
    end = begin + found
    _, _, _, _, _, length, offset, _ = _END.unpack_from(tail, found)
    locator = os.pread(file, _END64_LOCATOR.size, max(0, end - _END64_LOCATOR.size))
    if locator.startswith(b"PK\x06\x07") and len(locator) == _END64_LOCATOR.size:
        # It is followed by the locator; its stated position does not count what precedes the archive.
        position = end - _END64_LOCATOR.size - _END64.size
        record = os.pread(file, _END64.size, max(0, position))
        if not record.startswith(b"PK\x06\x06") or len(record) < _END64.size:
            raise zipfile.BadZipFile("the end of its zip64 directory is missing")
        *_, length, offset = _END64.unpack(record)
        end = position
    if length > end:
        raise zipfile.BadZipFile("its directory claims more bytes than there are")
    return os.pread(file, length, end - length), end - length - offset


def _name(raw: bytes, flags: int) -> tuple[str, str]:
    """The name of a member, and its fault."""
    if not flags & _UTF8:
        return raw.decode("cp437"), ""
    try:
        return raw.decode(), ""
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), "invalid_utf8"


def _wide(fields: tuple[int, ...], extra: bytes) -> list[int]:
    """The fields of a member, those that are 2^32 - 1 replaced by the 64 bits that its zip64 field has for them."""
    values = list(fields)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64_FIELD:
            wide = struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8][: (len(extra) - at - 4) // 8 * 8])
            for number, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    values[number] = next(wide, (value,))[0]
            break
        at += 4 + length
    return values


def _data_offset(file: int, size: int, header: int) -> int:
    """Where the data of a member begin: behind its local header, of a length of its own; -1 if it has none."""
    if not 0 <= header <= size - _LOCAL.size:
        return -1
    signature, name, extra = _LOCAL.unpack(os.pread(file, _LOCAL.size, header))
    return header + _LOCAL.size + name + extra if signature == b"PK\x03\x04" else -1
