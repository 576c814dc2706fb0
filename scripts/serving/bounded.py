"""Things kept by name in a bounded number of bytes: what was not used for longest goes first. Safe between threads."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


class Bounded(Generic[Name, Value]):
    """A cache; `nbytes` never exceeds `room`."""

    def __init__(self, room: int):
        """`room` in bytes."""
        self.room, self.nbytes = room, 0
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
        """Keep a value of `nbytes`, in place of an older one; returns whether there is room for it at all."""
        with self._lock:
            self._drop(name)
            if nbytes > self.room:
                return False
            self._kept[name] = (value, nbytes)
            self.nbytes += nbytes
            while self.nbytes > self.room:
                self._drop(next(iter(self._kept)))
            return True

    def drop(self, name: Name) -> bool:
        """Forget a name; returns whether it was kept."""
        with self._lock:
            return self._drop(name)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def items(self) -> list[tuple[Name, Value]]:
        """What is kept now, the next to go first."""
        with self._lock:
            return [(name, value) for name, (value, _) in self._kept.items()]

    def __len__(self) -> int:
        return len(self._kept)

    def _drop(self, name: Name) -> bool:
        _, nbytes = self._kept.pop(name, (None, None))
        if nbytes is None:
            return False
        self.nbytes -= nbytes
        return True
