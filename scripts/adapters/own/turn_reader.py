"""Turns of own data: lists of objects with role and content, of pairs, or of plain texts, as `Turn`s.

A content is a text, or a list of parts (texts and images, with or without a type). Roles are words in many spellings. A
turn may have a switch that says whether its answer is trained on.
"""

from collections.abc import Mapping
from typing import Any, Literal

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation import Role, ShownImage, Turn
from scripts.adapters.own.forms import FORMS
from scripts.adapters.own.image_values import ImageValue, image_value
from scripts.adapters.own.text_markers import Part, TextSplitter
from scripts.adapters.own.values import as_list, as_text, has_value, one_line, shown
from scripts.adapters.raw import Note
from scripts.config.custom import ColumnsConfig

_TURN, _PAIR, _PART = FORMS.turn, FORMS.pair, FORMS.part
_OF_PARTS = frozenset(_PART.text_members) | frozenset(_PART.image_members) | {"type"}


class TurnReader:
    """Reads turns; one per dataset."""

    def __init__(self, columns: ColumnsConfig) -> None:
        """Read with the members, roles and placeholder that `columns` names, or the usual ones."""
        self._splitter = TextSplitter(columns.image_tag) if columns.image_tag else TextSplitter()
        self._role_members = (columns.role,) if columns.role else _TURN.role
        self._content_members = (columns.content,) if columns.content else _TURN.content
        self._roles: dict[str, Literal["user", "assistant", "system", "tool"]] = {}
        for role in ("user", "assistant", "system", "tool"):
            self._roles |= dict.fromkeys(getattr(FORMS.roles, role), role)
        self._roles |= {word.strip().lower(): role for word, role in columns.roles.items()}
        self._pair_roles: list[tuple[Role, tuple[str, ...]]] = [
            ("system", _PAIR.system),
            ("user", (*(word for word, role in columns.roles.items() if role == "user"), *_PAIR.user)),
            ("assistant", (*(word for word, role in columns.roles.items() if role == "assistant"), *_PAIR.assistant)),
        ]
        self._ignore = frozenset(columns.ignore)

    def turns(self, value: Any, member: str, named: Mapping[str, ImageValue], notes: list[Note]) -> list[Turn]:
        """The turns of a list.

        Args:
            value: of the member.
            member: its name, for messages.
            named: images of the row by the marker that stands for each in texts.
            notes: what is ignored or repaired is appended.

        Raises:
            RowError: bad_row, unknown_role, unsupported_media, unsupported_tool_calls and others.
        """
        if not isinstance(value, list | tuple):
            raise RowError("bad_row", f"{member!r:.40} is not a list of turns but of type {type(value).__name__}")
        turns: list[Turn] = []
        for number, element in enumerate(value):
            try:
                if type(element) is dict:
                    self._object(element, member, named, notes, turns)
                elif isinstance(element, str):
                    turns.append(self.turn("assistant" if number % 2 else "user", element, named))
                elif isinstance(element, list | tuple) and len(element) == 2:
                    turns.append(self.turn("user", as_text(element[0], "question"), named))
                    turns.append(self.turn("assistant", as_text(element[1], "answer"), named))
                else:
                    raise RowError(
                        "bad_row", f"is of type {type(element).__name__}, not an object with role and content"
                    )
            except RowError as error:
                raise RowError(error.reason, f"{member}[{number}]: {error.detail}") from None
        if turns and isinstance(value[0], str):
            notes.append(Note("turns_without_roles", "texts are taken as of the user and the assistant in turn"))
        return turns

    def turn(self, role: Role, text: str, named: Mapping[str, ImageValue]) -> Turn:
        """A turn of a text.

        Raises:
            RowError: as `turns`.
        """
        return _turn(role, self._splitter.split(text, named), True)

    def content_turn(self, role: Role, value: Any, named: Mapping[str, ImageValue], notes: list[Note]) -> Turn:
        """A turn of a content: a text or a list of parts.

        Raises:
            RowError: as `turns`.
        """
        return _turn(role, self._parts(value, named, role, notes), True)

    def is_turn(self, value: Any) -> bool:
        """Whether a value is an object with a role."""
        return isinstance(value, dict) and any(has_value(value.get(name)) for name in self._role_members)

    def _object(
        self, turn: dict[str, Any], member: str, named: Mapping[str, ImageValue], notes: list[Note], turns: list[Turn]
    ) -> None:
        """Append the turn, or the turns of a pair, that an object is."""
        for role_member in self._role_members:
            word = turn.get(role_member)
            if word is not None and word != "":
                break
        else:
            self._pair(turn, member, named, notes, turns)
            return
        role = self._role(word)
        content: Any = None
        content_member = ""
        for content_member in self._content_members:
            content = turn.get(content_member)
            if content is not None and content != "" and content_member != role_member:
                break
        else:
            content = ""
        supervised = True
        images: list[Part] = []
        if len(turn) > 2:
            supervised, images = self._further(turn, (role_member, content_member), member, role, notes)
        parts = self._parts(content, named, role, notes)
        places = sum(isinstance(part, ShownImage) and part.value is None for part in parts)
        if images and not places:
            parts = [*images, *parts]
        elif images:
            parts = _filled(parts, images, places)
        turns.append(_turn(role, parts, supervised))

    def _role(self, word: Any) -> Role:
        role = self._roles.get(word) if type(word) is str else None
        if role is None and isinstance(word, str):
            role = self._roles.get(word.strip().lower())
        if role is None:
            known = "user, assistant, system and their usual names"
            raise RowError(
                "unknown_role", f"the role {shown(word)} is not known ({known}): add it to `columns: {{roles: ...}}`"
            )
        if role == "tool":
            raise RowError("unsupported_tool_calls", f"the role {shown(word)}: calls of tools are not trained on")
        return role

    def _further(
        self, turn: dict[str, Any], read: tuple[str, str], member: str, role: Role, notes: list[Note]
    ) -> tuple[bool, list[Part]]:
        """Whether a turn is supervised, and the images that it lists beside its content."""
        supervised = True
        images: list[Part] = []
        for name, value in turn.items():
            if name in read or not has_value(value):
                continue
            if name in _TURN.loss:
                supervised &= loss_switch(name, value, role, notes)
            elif name in _TURN.tool_calls:
                raise RowError("unsupported_tool_calls", f"it has {name!r}: calls of tools are not trained on")
            elif name in _TURN.media:
                raise RowError("unsupported_media", f"it has {name!r}, which this model does not read")
            elif name in _TURN.images and role == "user":
                listed = as_list(value)
                images += [ShownImage(image_value(each)) for each in (listed if isinstance(listed, list) else [listed])]
            elif name not in self._ignore and f"{member}.{name}" not in self._ignore:
                notes.append(Note(f"ignored:{member}.{name}"[:80], ""))
        return supervised, images

    def _pair(
        self, pair: dict[str, Any], member: str, named: Mapping[str, ImageValue], notes: list[Note], turns: list[Turn]
    ) -> None:
        """Append the turns of an object whose members are named like roles."""
        read = set()
        for role, members in self._pair_roles:
            name = next((name for name in members if has_value(pair.get(name))), None)
            if name is not None:
                read.add(name)
                turns.append(self.content_turn(role, pair[name], named, notes))
        if not read:
            expected = f"no role ({', '.join(map(repr, self._role_members[:2]))}), and no question and answer"
            raise RowError("bad_row", f"{expected} among the members {one_line(', '.join(map(str, pair)), 60)}")
        supervised, images = self._further(
            {name: value for name, value in pair.items() if name not in read}, ("", ""), member, "assistant", notes
        )
        if not supervised:
            turns[-1] = Turn(turns[-1].role, turns[-1].parts, False)
        if images:
            raise RowError("bad_row", "images in a pair of question and answer")

    def _parts(self, content: Any, named: Mapping[str, ImageValue], role: Role, notes: list[Note]) -> list[Part]:
        """The parts of a content: a text, a list of parts, or one part."""
        if type(content) is str:
            return self._splitter.split(content, named)
        if isinstance(content, dict) and not _OF_PARTS.isdisjoint(content):
            content = [content]
        if not isinstance(content, list | tuple):
            raise RowError(
                "bad_row", f"its content is not a text or a list of parts but of type {type(content).__name__}"
            )
        parts: list[Part] = []
        for part in content:
            for piece in self._part(part, named, notes):
                # Two texts next to each other are two paragraphs.
                if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                    parts[-1] = f"{parts[-1]}\n{piece}"
                else:
                    parts.append(piece)
        return parts

    def _part(self, part: Any, named: Mapping[str, ImageValue], notes: list[Note]) -> list[Part]:
        if isinstance(part, str):
            return self._splitter.split(part, named)
        if not isinstance(part, dict):
            raise RowError("bad_row", f"a part is of type {type(part).__name__}, not an object or a text")
        has = {name for name, value in part.items() if has_value(value)}
        kind = part["type"] if "type" in has else None
        if kind is not None and not isinstance(kind, str):
            raise RowError("bad_row", f"a part has the type {shown(kind)}")
        for members, kinds, reason in (
            (_PART.media_members, _PART.media, "unsupported_media"),
            (_PART.tool_members, _PART.tools, "unsupported_tool_calls"),
        ):
            if kind in kinds or (kind is None and not has.isdisjoint(members)):
                name = kind or next(iter(sorted(has.intersection(members))))
                raise RowError(reason, f"a part is of type {name!r:.40}: texts and images can be trained on")
        texts, images = has.intersection(_PART.text_members), has.intersection(_PART.image_members)
        if kind is None and bool(texts) == bool(images):
            raise RowError(
                "bad_row", f"a part should be a text or an image, it has {', '.join(sorted(map(str, has)))[:60]}"
            )
        if kind in _PART.image or (kind is None and images):
            if texts:
                raise RowError("bad_row", "a part is both an image and a text")
            read = {name for name in images if name in part}
            result: list[Part] = [self._shown(part, images)]
        elif kind in _PART.text or kind is None:
            if images:
                raise RowError("bad_row", "a part is both a text and an image")
            read = {next(name for name in _PART.text_members if name in part)} if texts else set()
            text = part[next(iter(read))] if read else ""
            if not isinstance(text, str) or not (texts or "text" in part):
                raise RowError("bad_row", "a part of type 'text' has no text")
            result = self._splitter.split(text, named)
        else:
            known = ", ".join((*_PART.text, *_PART.image))
            raise RowError("bad_row", f"a part is of type {kind!r:.40}; known are {known}")
        for name in sorted(has - read - {"type"}, key=str):
            if name not in self._ignore and f"content.{name}" not in self._ignore:
                notes.append(Note(f"ignored:content.{name}"[:80], ""))
        return result

    def _shown(self, part: dict[str, Any], images: set[str]) -> ShownImage:
        """The place of an image, with the image if the part has it."""
        if not images:
            return ShownImage()
        value = {name: part[name] for name in images}
        return ShownImage(image_value(next(iter(value.values())) if len(value) == 1 and "data" not in value else value))


def loss_switch(name: str, value: Any, role: Role, notes: list[Note]) -> bool:
    """Whether a turn with a switch is trained on; true for users' turns, which never are.

    Raises:
        RowError: unsupported_loss (neither true or false, nor a number).
    """
    if type(value) not in (bool, int, float):
        raise RowError(
            "unsupported_loss", f"{name!r} is {shown(value)}: true, false, 0 or 1 can be given for a whole turn"
        )
    if role != "assistant":
        if value and name not in ("weight", "loss_mask"):
            notes.append(
                Note("unsupervised_question", f"{name}: {value} of a turn that is not an answer has no effect")
            )
        return True
    if value not in (0, 1):
        notes.append(Note("loss_weight", f"{name}: {value} is taken as 1, because answers have no weights"))
    return value != 0


def _filled(parts: list[Part], images: list[Part], places: int) -> list[Part]:
    """`parts` with the images that the turn lists in the places that have none."""
    if len(images) != places:
        raise RowError("image_count", f"{places} placeholders, but the turn lists {len(images)} images")
    each = iter(images)
    return [next(each) if isinstance(part, ShownImage) and part.value is None else part for part in parts]


def _turn(role: Role, parts: list[Part], supervised: bool) -> Turn:
    """A turn with its parts stripped at both ends.

    Raises:
        RowError: image_in_answer, image_in_system.
    """
    if role != "user" and any(isinstance(part, ShownImage) for part in parts):
        if role == "system":
            raise RowError("image_in_system", "the system text shows an image")
        raise RowError("image_in_answer", "an answer shows an image, which this model cannot generate")
    if parts and isinstance(parts[0], str):
        first = parts[0].lstrip()
        parts = [first, *parts[1:]] if first else parts[1:]
    if parts and isinstance(parts[-1], str):
        last = parts[-1].rstrip()
        parts = [*parts[:-1], last] if last else parts[:-1]
    return Turn(role, tuple(parts), supervised)
