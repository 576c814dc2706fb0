"""Numbers and names as people read them."""


def format_count(number: int) -> str:
    """A count with thousands separated."""
    return f"{number:,}"


def format_bytes(number: int) -> str:
    """A number of bytes in the unit that suits it."""
    amount, units = float(number), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"


def humanize(reason: str) -> str:
    """A reason's name as words."""
    return reason.replace("_", " ")
