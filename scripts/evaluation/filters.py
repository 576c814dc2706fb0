"""Filters: what an output passes before it is judged, such as cutting the answer out of an explanation.

The names and options are lmms-eval's: `regex` (the `group_select`-th match of `regex_pattern`, else `fallback`),
`lowercase`, `uppercase`, `remove_whitespace` (one blank at the start), `map` (`mapping_dict`, `default_value`), and
`take_first`, which takes the first of repeated outputs; here there is only one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.common.errors import UserError

Filter = Callable[[str], str]


def _regex(regex_pattern: str = r"#### (\-?[0-9\.\,]+)", group_select: int = 0, fallback: str = "[invalid]") -> Filter:
    pattern = re.compile(regex_pattern)

    def apply(text: str) -> str:
        found = pattern.findall(text)
        if not -len(found) <= group_select < len(found):
            return fallback
        match = found[group_select]
        return (match if isinstance(match, str) else next((part for part in match if part), "")).strip()

    return apply


def _map(mapping_dict: Mapping[str, str], default_value: str | None = None) -> Filter:
    return lambda text: mapping_dict.get(text, text if default_value is None else default_value)


_FILTERS: dict[str, Callable[..., Filter]] = {
    "regex": _regex,
    "lowercase": lambda: str.lower,
    "uppercase": lambda: str.upper,
    "remove_whitespace": lambda: lambda text: text.removeprefix(" "),
    "map": _map,
    "take_first": lambda: str,
}


def pipeline(steps: Sequence[Mapping[str, Any]], where: str) -> Filter:
    """One function out of several filters, {"function": name, option: value} each.

    Raises:
        UserError: an unknown filter or option, or a pattern that is no regular expression.
    """
    filters = []
    for step in steps:
        options = dict(step)
        name = options.pop("function", None)
        if name not in _FILTERS:
            raise UserError(f"{where}: there is no filter {name!r}; there are {', '.join(sorted(_FILTERS))}")
        try:
            filters.append(_FILTERS[name](**options))
        except (TypeError, re.error) as error:
            raise UserError(f"{where}: filter {name}: {error}") from None

    def apply(text: str) -> str:
        for each in filters:
            text = each(text)
        return text

    return apply
