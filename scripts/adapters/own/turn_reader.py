"""Turns of own data: lists of objects with role and content, of pairs, or of plain texts, as `Turn`s.

Roles are words in many spellings. A turn may have a switch that says whether its answer is trained on.
"""

from itertools import permutations
from typing import Any, Literal

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import Role, ShownImage, Turn
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import image_value
from scripts.adapters.own.listed_images import ListedImages
from scripts.adapters.own.part_reader import PartReader
from scripts.adapters.own.text_markers import Part
from scripts.adapters.own.values import as_list, as_text, has_value, one_line, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig

_TURN, _PAIR = FORMS.turn, FORMS.pair
_LOSS, _TOOL_CALLS, _MEDIA, _IMAGES = map(frozenset, (_TURN.loss, _TURN.tool_calls, _TURN.media, _TURN.images))
_MASKS = frozenset(_TURN.masks)
_KINDS: tuple[Literal["user", "assistant", "system", "tool"], ...] = ("user", "assistant", "system", "tool")


class TurnReader:
    """Reads turns; one per dataset."""

    def __init__(self, columns: ColumnsConfig) -> None:
        """Read with the members, roles and placeholder that `columns` names, or the usual ones."""
        parts = PartReader(columns)
        self._parts, self._split, self.is_plain = parts.parts, parts.splitter.split, parts.splitter.is_plain
        self._role_members = (columns.role,) if columns.role else _TURN.role
        self._content_members = (columns.content,) if columns.content else _TURN.content
        self._roles = {word: role for role in _KINDS for word in getattr(FORMS.roles, role)}
        self._roles |= {word.strip().lower(): role for word, role in columns.roles.items()}
        self._usable_roles: dict[str, Role] = {word: role for word, role in self._roles.items() if role != "tool"}
        own = {role: tuple(word for word, each in columns.roles.items() if each == role) for role in _KINDS}
        self._pair_members: tuple[tuple[Role, tuple[str, ...]], ...] = (
            ("system", (*own["system"], *_PAIR.system, *FORMS.roles.system)),
            ("user", (*own["user"], *_PAIR.user, *FORMS.roles.user)),
            ("assistant", (*own["assistant"], *_PAIR.assistant, *FORMS.roles.assistant)),
        )
        self._ignore = frozenset(columns.ignore)
        # The role and the content of objects of two members, by their names.
        self._plain_members: dict[tuple[str, ...], tuple[str, str]] = {}
        for names in permutations({*self._role_members, *self._content_members}, 2):
            role_member = next((name for name in self._role_members if name in names), None)
            others = (name for name in self._content_members if name in names and name != role_member)
            content_member = next(others, None)
            if role_member is not None and content_member is not None:
                self._plain_members[names] = (role_member, content_member)

    def turns(
        self, value: Any, member: str, images: ListedImages, notes: list[Note], texts: bool = False
    ) -> list[Turn]:
        """The turns of a list.

        Args:
            value: of the member.
            member: its name, for messages.
            images: that the row lists.
            notes: what is ignored or repaired is appended.
            texts: whether plain texts may be turns, of the user and the assistant in turn.

        Raises:
            RowError: bad_row, unknown_role, unsupported_tool_calls, unsupported_loss, image_in_answer,
                image_in_system, and those of `PartReader.parts`.
        """
        if not isinstance(value, list | tuple):
            raise RowError("bad_row", f"{member!r:.40} is {shown(value)}, not a list of turns")
        turns: list[Turn] = []
        number = 0
        try:
            for number, element in enumerate(value):
                if type(element) is dict:
                    plain = self.role_and_text(element)
                    if plain is not None and self.is_plain(plain[1]):
                        text = plain[1].strip()
                        turns.append(Turn(plain[0], (text,) if text else ()))
                    else:
                        self._object(element, member, images, notes, turns)
                elif _is_pair(element):
                    turns.append(self.turn("user", as_text(element[0], "question"), images, notes))
                    turns.append(self.turn("assistant", as_text(element[1], "answer"), images, notes))
                elif isinstance(element, str) and texts:
                    turns.append(self.turn("assistant" if number % 2 else "user", element, images, notes))
                elif isinstance(element, list) and element and isinstance(element[0], dict):
                    raise RowError("bad_row", "a conversation inside of a list: a row should have one")
                else:
                    raise RowError("bad_row", f"{shown(element)} is not a turn: an object with role and content")
        except RowError as error:
            raise RowError(error.reason, f"{member!s:.40}[{number}]: {error.detail}") from None
        if turns and isinstance(value[0], str):
            notes.append(Note("turns_without_roles", "texts are taken as of the user and the assistant in turn"))
        return turns

    def turn(self, role: Role, content: Any, images: ListedImages, notes: list[Note]) -> Turn:
        """A turn of a content: a text or a list of parts.

        Raises:
            RowError: as `turns`.
        """
        return _turn(role, self._parts(content, images, notes), True)

    def is_turn(self, value: Any) -> bool:
        """Whether a value is an object with a role."""
        return isinstance(value, dict) and any(has_value(value.get(name)) for name in self._role_members)

    def is_turn_with_content(self, value: Any) -> bool:
        """Whether a value is an object with a role and a content."""
        return self.is_turn(value) and any(has_value(value.get(name)) for name in self._content_members)

    def role_and_text(self, turn: dict[str, Any]) -> tuple[Role, str] | None:
        """The role and the text of an object that has nothing else, as most turns; None: it is another object."""
        members = self._plain_members.get(tuple(turn))
        if members is None:
            return None
        word, content = turn[members[0]], turn[members[1]]
        role = self._usable_roles.get(word) if type(word) is str else None
        return (role, content) if role is not None and type(content) is str else None

    def _object(
        self, turn: dict[str, Any], member: str, images: ListedImages, notes: list[Note], turns: list[Turn]
    ) -> None:
        """Append the turn, or the turns of a pair, that an object is."""
        for role_member in self._role_members:
            word = turn.get(role_member)
            if word is not None and word != "":
                break
        else:
            self._pair(turn, member, images, notes, turns)
            return
        role = self._usable_roles.get(word) if type(word) is str else None
        if role is None:
            role = self._role(word)
        for content_member in self._content_members:
            content = turn.get(content_member)
            if content is not None and content != "" and content_member != role_member:
                break
        else:
            content = content_member = ""
        supervised = True
        beside: list[ShownImage] = []
        if len(turn) > (2 if content_member else 1):
            supervised, beside = self._further(turn, (role_member, content_member), member, role, notes)
        parts = self._split(content, images.named) if type(content) is str else self._parts(content, images, notes)
        turns.append(_turn(role, _with_images(parts, beside) if beside else parts, supervised))

    def _role(self, word: Any) -> Role:
        role = self._roles.get(word.strip().lower()) if isinstance(word, str) else None
        if role is None:
            raise RowError("unknown_role", f"the role {shown(word)} is not known: add it to `columns: {{roles: ...}}`")
        if role == "tool":
            raise RowError("unsupported_tool_calls", f"the role {shown(word)}: calls of tools are not trained on")
        return role

    def _further(
        self, turn: dict[str, Any], read: tuple[str, ...], member: str, role: Role, notes: list[Note]
    ) -> tuple[bool, list[ShownImage]]:
        """Whether a turn is supervised, and the images that it lists beside its content."""
        supervised = True
        images: list[ShownImage] = []
        for name, value in turn.items():
            if name in read or not has_value(value):
                continue
            if name in _LOSS:
                supervised &= loss_switch(name, value, role, notes)
            elif name in _TOOL_CALLS:
                raise RowError("unsupported_tool_calls", f"it has {name!r}: calls of tools are not trained on")
            elif name in _MEDIA:
                raise RowError("unsupported_media", f"it has {name!r}, which this model does not read")
            elif name in _IMAGES:
                listed = as_list(value)
                images += [ShownImage(image_value(each)) for each in (listed if isinstance(listed, list) else [listed])]
            elif name not in self._ignore and f"{member}.{name}" not in self._ignore:
                if name in _MASKS and value:
                    raise RowError("unsupported_loss", f"{name!r} excludes parts of the turn; `weight: 0` excludes all")
                notes.append(Note(f"ignored:{member!s:.40}.{name!s:.40}", ""))
        return supervised, images

    def _pair(
        self, pair: dict[str, Any], member: str, images: ListedImages, notes: list[Note], turns: list[Turn]
    ) -> None:
        """Append the turns of an object whose members are named like roles."""
        read: list[str] = []
        for role, members in self._pair_members:
            name = next((name for name in members if has_value(pair.get(name))), None)
            if name is not None:
                read.append(name)
                turns.append(self.turn(role, pair[name], images, notes))
        if not read:
            names = one_line(", ".join(map(str, pair)), 60) or "none"
            expected = f"{' or '.join(map(repr, self._role_members[:2]))}, or a question and its answer"
            raise RowError("bad_row", f"a turn should have {expected}; its members are {names}")
        supervised, beside = self._further(pair, tuple(read), member, turns[-1].role, notes)
        if beside:
            raise RowError("bad_row", "images inside of a pair of question and answer")
        if not supervised:
            turns[-1] = Turn(turns[-1].role, turns[-1].parts, False)


def _is_pair(element: Any) -> bool:
    """Whether an element of a list of turns is a list of a question and an answer."""
    return isinstance(element, list | tuple) and len(element) == 2 and not isinstance(element[0], dict | list)


def loss_switch(name: str, value: Any, role: Role, notes: list[Note]) -> bool:
    """Whether a turn with a switch is trained on; true for users' turns, which never are.

    Raises:
        RowError: unsupported_loss (neither true or false, nor a number).
    """
    if type(value) not in (bool, int, float):
        raise RowError("unsupported_loss", f"{name!r} is {shown(value)}: expected true, false, 0 or 1 for a whole turn")
    if role != "assistant":
        if value is True:
            notes.append(Note("unsupervised_question", f"{name}: true has no effect in a turn that is not an answer"))
        return True
    if value not in (0, 1):
        notes.append(Note("loss_weight", f"{name}: {value} is taken as 1, because answers have no weights"))
    return value != 0


def _with_images(parts: list[Part], images: list[ShownImage]) -> list[Part]:
    """`parts` with the images that the turn lists in the places that have none, or before all, if there is no place."""
    places = sum(isinstance(part, ShownImage) and part.value is None for part in parts)
    if not places:
        return [*images, *parts]
    if len(images) != places:
        raise RowError("image_count", f"placeholders in the turn: {places}, images that it lists: {len(images)}")
    each = iter(images)
    return [next(each) if isinstance(part, ShownImage) and part.value is None else part for part in parts]


def _turn(role: Role, parts: list[Part], supervised: bool) -> Turn:
    """A turn with its parts stripped at both ends.

    Raises:
        RowError: image_in_answer, image_in_system.
    """
    if len(parts) == 1 and type(parts[0]) is str:
        text = parts[0].strip()
        return Turn(role, (text,) if text else (), supervised)
    if role != "user" and any(isinstance(part, ShownImage) for part in parts):
        if role == "system":
            raise RowError("image_in_system", "a system text shows an image")
        raise RowError("image_in_answer", "an answer has the place of an image, which this model cannot generate")
    if parts and isinstance(parts[0], str):
        first = parts[0].lstrip()
        parts = [first, *parts[1:]] if first else parts[1:]
    if parts and isinstance(parts[-1], str):
        last = parts[-1].rstrip()
        parts = [*parts[:-1], last] if last else parts[:-1]
    return Turn(role, tuple(parts), supervised)
