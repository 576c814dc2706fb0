"""Archives for the tests: good ones, and such as nobody should unpack."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable


def tar_of(members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> bytes:
    """A tar archive."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """The header of a member of a tar."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_of(members: dict[str, bytes], pack: int = zipfile.ZIP_DEFLATED, links: Iterable[str] = ()) -> bytes:
    """A zip archive; members named in `links` are symbolic links."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", pack) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = pack
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            file.writestr(info, data)
    return target.getvalue()
