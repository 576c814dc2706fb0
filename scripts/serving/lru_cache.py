"""Things kept by name in a bounded number of bytes: what was not used for longest goes first. Safe between threads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Name, Value]):
    """A cache; `nbytes` never exceeds `max_bytes`."""

    def __init__(self, max_bytes: int, on_drop: Callable[[Name, Value], None] = lambda name, value: None):
        """`max_bytes` in bytes; `on_drop` is told of everything that goes."""
        self.max_bytes, self.nbytes, self._on_drop = max_bytes, 0, on_drop
        self._lock = threading.Lock()
        self._kept: OrderedDict[Name, tuple[Value, int]] = OrderedDict()

    def get(self, name: Name) -> Value | None:
        """Return what is kept under `name`, which now is the last to go, or None."""
        with self._lock:
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._kept[name][0]

    def put(self, name: Name, value: Value, nbytes: int) -> bool:
        """Keep a value of `nbytes`, in place of an older one; returns whether there is max_bytes for it at all."""
        with self._lock:
            self._drop(name)
            if nbytes > self.max_bytes:
                return False
            self._kept[name] = (value, nbytes)
            self.nbytes += nbytes
            while self.nbytes > self.max_bytes:
                self._drop(next(iter(self._kept)))
            return True

    def drop(self, name: Name) -> bool:
        """Forget a name; returns whether it was kept."""
        with self._lock:
            return self._drop(name)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for name in list(self._kept):
                self._drop(name)

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, name: Name) -> bool:
        if name not in self._kept:
            return False
        value, nbytes = self._kept.pop(name)
        self.nbytes -= nbytes
        self._on_drop(name, value)
        return True
