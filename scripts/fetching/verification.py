"""Verifying downloaded files against the expected size and hashes.

Size and hashes are computed while the bytes are written, so that no file is read a second time; a file gets its final
name only after they match. A failing address raises `AddressError`: another address may still give the file.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from scripts.common.errors import UserError

_HASHES = ("sha256", "md5")


class AddressError(UserError):
    """The file cannot be downloaded from an address, and a retry would not help.

    Args:
        message: the reason.
        status: HTTP status, if that is the reason.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AccessDeniedError(AddressError):
    """The server denies access to the file: status 401 or 403."""


class WrongContentError(AddressError):
    """The whole file has arrived and is not the published one."""


@dataclass(frozen=True)
class Expected:
    """What is known about a file before it is downloaded; None is unknown."""

    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None

    def known(self) -> dict[str, int | str]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def merged(self, other: "Expected") -> "Expected":
        """The fields that are known in either.

        Raises:
            AddressError: they contradict each other.
        """
        for name, value in other.known().items():
            if self.known().get(name, value) != value:
                raise AddressError(f"it offers another version of the file: {_difference({name: value}, self.known())}")
        return Expected(
            self.bytes if self.bytes is not None else other.bytes,
            self.sha256 if self.sha256 is not None else other.sha256,
            self.md5 if self.md5 is not None else other.md5,
        )


UNKNOWN = Expected()


@dataclass(frozen=True)
class Fetched:
    """Size and sha256 of a downloaded and verified file."""

    bytes: int
    sha256: str


class Verifier:
    """Compares a stream of bytes with what is expected.

    Attributes:
        bytes: received so far.
    """

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.bytes = 0

    def update(self, data: bytes) -> None:
        """Add the next bytes.

        Raises:
            WrongContentError: there are more bytes than the file has.
        """
        self._sha256.update(data)
        # The receipt needs the sha256 in any case; the md5 only if there is one to compare it with.
        if self._expected.md5:
            self._md5.update(data)
        self.bytes += len(data)
        if self._expected.bytes is not None and self.bytes > self._expected.bytes:
            raise WrongContentError(f"it sends more than the {self._expected.bytes:,} bytes of the published file")

    def finish(self) -> Fetched:
        """Verify size and hashes, after all bytes were added.

        Raises:
            WrongContentError: size or hash differs.
        """
        sha256 = self._sha256.hexdigest()
        found: dict[str, int | str] = {"bytes": self.bytes, "sha256": sha256, "md5": self._md5.hexdigest()}
        wrong = {name: found[name] for name, value in self._expected.known().items() if found[name] != value}
        if wrong:
            difference = _difference(wrong, self._expected.known())
            raise WrongContentError(f"it gives a file that is not the published one: {difference}")
        return Fetched(self.bytes, sha256)


def _difference(found: dict[str, int | str], expected: dict[str, int | str]) -> str:
    # One difference is enough, and that of a hash is the more certain one.
    name = next((name for name in _HASHES if name in found), "bytes")
    if name == "bytes":
        return f"{found[name]:,} bytes instead of {expected[name]:,}"
    return f"{name} {found[name]} instead of {expected[name]}"


def write_verified(chunks: Iterable[bytes], target: Path, expected: Expected = UNKNOWN) -> Fetched:
    """Write `chunks` to `target`, which appears complete and verified or not at all. Thread-safe.

    Raises:
        WrongContentError: the bytes are not what is expected.
        UserError: the file cannot be written.
    """
    verifier = Verifier(expected)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "wb")  # noqa: SIM115 - the next block closes it; errors of chunks are not the disk's
        with file:
            for chunk in chunks:
                verifier.update(chunk)
                with disk_errors(target):
                    file.write(chunk)
            fetched = verifier.finish()
            with disk_errors(target):
                file.flush()
                os.fsync(file.fileno())
        with disk_errors(target):
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return fetched


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A block that writes `path`: an OSError becomes a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
