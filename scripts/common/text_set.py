"""A set of texts in few bytes each: about 20 more than the texts have, where Python's needs a hundred."""

from array import array


class TextSet:
    """Texts that were added; none can be removed.

    The texts lie one after the other in one buffer; a table of their numbers, in which a text's place follows from its
    hash (open addressing), finds them again.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])
        self._table = array("I", bytes(4 * 1024))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> bool:
        """Add `text`; return whether it was new."""
        data = text.encode("utf-8", "surrogatepass")
        place, found = self._find(data)
        if found:
            return False
        self._data += data
        self._ends.append(len(self._data))
        self._table[place] = len(self)
        if 3 * len(self) > 2 * len(self._table):
            self._grow()
        return True

    def __contains__(self, text: str) -> bool:
        return self._find(text.encode("utf-8", "surrogatepass"))[1]

    def _find(self, data: bytes) -> tuple[int, bool]:
        """The place of a text in the table, and whether it is there; places hold numbers from 1, and 0 if empty."""
        mask = len(self._table) - 1
        place = hash(data) & mask
        while number := self._table[place]:
            if self._data[self._ends[number - 1] : self._ends[number]] == data:
                return place, True
            place = (place + 1) & mask
        return place, False

    def _grow(self) -> None:
        table = array("I", bytes(8 * len(self._table)))
        mask = len(table) - 1
        data, start = memoryview(self._data), 0
        for number, end in enumerate(self._ends[1:], start=1):
            place = hash(bytes(data[start:end])) & mask
            while table[place]:
                place = (place + 1) & mask
            table[place] = number
            start = end
        data.release()
        self._table = table
