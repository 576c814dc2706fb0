"""Writing large files with O_DIRECT (bypassing the page cache), in a separate thread.

Shards are written once, hundreds of gigabytes of them, while the CPU decodes images. Copying them into the page cache
takes CPU time and evicts what other processes read; where the file system allows it, they are written directly to disk.
Files smaller than a block are written normally, because they are likely to be read again soon.
"""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

BLOCK = 4 << 20
"""Bytes written at a time: a multiple of the alignment that any disk requires of a direct write."""

_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectWriter:
    """Writes to the open, empty file `descriptor`.

    One block is filled while the previous one is written. `close` must be called, also after an error.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Memory maps are aligned to pages, as direct writes require, and take no memory before they are filled.
        self._block, self._other = mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK)
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, "direct-writer")
        self._writing: Future[None] | None = None
        self._direct = False

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            OSError: these or earlier bytes cannot be written.
        """
        rest = memoryview(data)
        while rest:
            taken = min(len(rest), BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == BLOCK:
                self._submit()

    def finish(self) -> None:
        """Write what is left; raises OSError as `write` does."""
        self._wait()
        self._set_direct(False)
        self._put(self._block, self._filled)
        self._filled = 0

    def close(self) -> None:
        """Release the thread and the blocks; data that `finish` has not written is lost."""
        self._thread.shutdown()
        self._block.close()
        self._other.close()

    def _submit(self) -> None:
        """Give the full block to the thread, once the other one is written."""
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
