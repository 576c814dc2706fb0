"""What a published file should be, whether what arrived is that file, and how the answer is said.

Size and hashes are taken while the bytes pass by, so that no file is read a second time; a file gets its name only
after they were found right. An address that fails raises `AddressError`: another address may still give the file.
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
    """An address does not give the file, and will not at the next try.

    Args:
        status: of HTTP, where that is the reason.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class AccessDenied(AddressError):
    """The server knows the file and does not give it to us: status 401 or 403."""


class WrongContent(AddressError):
    """The whole file arrived and is not the published one."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is there."""

    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None

    def known(self) -> dict[str, int | str]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def joined(self, other: "Expected") -> "Expected":
        """What either knows.

        Raises:
            AddressError: they contradict each other.
        """
        for name, value in other.known().items():
            if self.known().get(name, value) != value:
                raise AddressError(f"it offers another version of the file: {_words({name: value}, self.known())}")
        return Expected(**(other.known() | self.known()))


UNKNOWN = Expected()


@dataclass(frozen=True)
class Fetched:
    """A file that arrived and was found right."""

    bytes: int
    sha256: str


class Check:
    """Compares bytes that pass by, piece after piece, with what is expected."""

    def __init__(self, expected: Expected):
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.bytes = 0

    def update(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            WrongContent: more has come than the file has.
        """
        self._sha256.update(data)
        # The receipt wants a sha256 in any case, a second hash only pays where there is one to compare it with.
        if self._expected.md5:
            self._md5.update(data)
        self.bytes += len(data)
        if self._expected.bytes is not None and self.bytes > self._expected.bytes:
            raise WrongContent(f"it sends more than the {self._expected.bytes:,} bytes of the published file")

    def finish(self) -> Fetched:
        """The verdict, when all pieces have been taken.

        Raises:
            WrongContent: size or hash is another one.
        """
        found = {"bytes": self.bytes, "sha256": self._sha256.hexdigest(), "md5": self._md5.hexdigest()}
        wrong = {name: found[name] for name, value in self._expected.known().items() if found[name] != value}
        if wrong:
            difference = _words(wrong, self._expected.known())
            raise WrongContent(f"it gives a file that is not the published one: {difference}")
        return Fetched(self.bytes, found["sha256"])


def _words(found: dict[str, int | str], expected: dict[str, int | str]) -> str:
    # One difference is enough, and a hash says more than a size.
    name = next((name for name in _HASHES if name in found), "bytes")
    if name == "bytes":
        return f"{found[name]:,} bytes instead of {expected[name]:,}"
    return f"{name} {found[name]} instead of {expected[name]}"


def keep(pieces: Iterable[bytes], place: Path, expected: Expected = UNKNOWN) -> Fetched:
    """Write `pieces` to `place`, which appears whole and right or not at all. May be called in threads.

    Raises:
        WrongContent: the pieces are not what is expected.
        UserError: the disk refuses.
    """
    check = Check(expected)
    # `atomic` asks for the umask by setting it, which is not safe beside other threads.
    temporary = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "wb")
        with file:
            for piece in pieces:
                check.update(piece)
                with writing(place):
                    file.write(piece)
            fetched = check.finish()
            with writing(place):
                file.flush()
                os.fsync(file.fileno())
        with writing(place):
            os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return fetched


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """A block that writes `place`: an error of the disk becomes a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror or error}") from None
