"""Names of images that have none of their own: a hash of their bytes, or of the address from which they come.

An image that a row holds as bytes or base64 is listed by a hash of its bytes, so that the same image in many rows is
one entry and a row finds it again. A downloaded image is a file with a hash of its address as name, so that every
address is downloaded once, whatever characters it has.
"""

from scripts.common.files import bytes_sha256
from scripts.media.keys import extension_of

EMBEDDED = "embedded/"
"""The folder, below the data path, in which the table of images lists the images inside of rows."""
_DIGITS = 32


def embedded_path(data: bytes) -> str:
    """The path under which the table of images lists the image of these bytes."""
    return f"{EMBEDDED}{_short_hash(data)}{extension_of(data[:32])}"


def hash_of(path: str) -> int:
    """The hash in a path that `embedded_path` made, which takes less memory than the path."""
    return int(path.removeprefix(EMBEDDED)[:_DIGITS], 16)


def downloaded_stem(url: str) -> str:
    """The file name, without extension, of the image that was downloaded from an address."""
    # JSON may write half of a surrogate pair, which UTF-8 has not.
    return _short_hash(url.encode("utf-8", "surrogatepass"))


def _short_hash(data: bytes) -> str:
    return bytes_sha256(data)[:_DIGITS]
