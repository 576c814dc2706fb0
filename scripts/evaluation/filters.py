"""Filters that change an output before it is scored, for instance to extract the answer from an explanation.

Names and options are those of lmms-eval: `regex` (the `group_select`-th match of `regex_pattern`, else `fallback`),
`lowercase`, `uppercase`, `remove_whitespace` (one space at the start), `map` (`mapping_dict`, `default_value`), and
`take_first`, which takes the first of repeated outputs and changes nothing here, where there is only one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scripts.common.errors import UserError

Filter = Callable[[str], str]


def _regex(regex_pattern: str = r"#### (\-?[0-9\.\,]+)", group_select: int = 0, fallback: str = "[invalid]") -> Filter:
    pattern = re.compile(regex_pattern)

    def apply(text: str) -> str:
        matches = pattern.findall(text)
        if not -len(matches) <= group_select < len(matches):
            return fallback
        match = matches[group_select]
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
    """Compose filters, {"function": name, option: value} each, into one function; `where` begins error messages.

    Raises:
        UserError: an unknown filter or option, or an invalid regular expression.
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
