"""Writing large files past the page cache, in a thread of its own.

Shards are written once, by the hundred gigabytes, while the processor decodes images. Copying them into the page cache
costs processor time, and drives out of it what others read; where the file system allows it, they go straight to the
disk instead. Files smaller than a block are written as usual, for they are likely to be read again at once.
"""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 4 << 20
"""Bytes written at a time; a multiple of what any disk asks of the place and the length of a direct write."""

_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectWriter:
    """Appends to the open file `descriptor` from where it stands, which must be its beginning.

    One block is filled while the one before is written. `close` must be called, also after an error.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        # Memory maps lie at page boundaries, as direct writes ask, and take no memory before they are filled.
        self._block, self._other = mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK)
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, "direct-writer")
        self._writing: Future[None] | None = None
        self._direct = False

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            OSError: this, or what was appended before, cannot be written.
        """
        rest = memoryview(data)
        while rest:
            taken = min(len(rest), BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == BLOCK:
                self._pass_on()

    def finish(self) -> None:
        """Write what is left; raises OSError as `write` does."""
        self._wait()
        self._set_direct(False)
        self._put(self._block, self._filled)
        self._filled = 0

    def close(self) -> None:
        """Let go of the thread and the blocks; what was not finished is lost."""
        self._thread.shutdown()
        self._block.close()
        self._other.close()

    def _pass_on(self) -> None:
        """Hand the full block to the thread, once the other one is written."""
        if self._writing is None:
            self._set_direct(True)
        self._wait()
        self._writing = self._thread.submit(self._put, self._block, BLOCK)
        self._block, self._other = self._other, self._block
        self._filled = 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _put(self, block: mmap.mmap, length: int) -> None:
        with memoryview(block) as whole:
            done = 0
            while done < length:
                with whole[done:length] as rest:
                    try:
                        done += os.write(self._descriptor, rest)
                    except OSError as error:
                        # Some file systems accept the flag and refuse the write.
                        if error.errno != errno.EINVAL or not self._direct:
                            raise
                        self._set_direct(False)

    def _set_direct(self, direct: bool) -> None:
        if direct == self._direct or not _DIRECT:
            return
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | _DIRECT if direct else flags & ~_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return
        self._direct = direct
