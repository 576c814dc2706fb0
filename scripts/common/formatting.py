"""Numbers and identifiers, formatted for people to read."""


def format_count(number: int) -> str:
    """A count with thousands separators: 1234 becomes "1,234"."""
    return f"{number:,}"


def format_bytes(number: int) -> str:
    """A number of bytes with three digits and a decimal unit: 1234567 becomes "1.23 MB"."""
    amount, units = float(number), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"


def humanize(name: str) -> str:
    """An identifier as words: "image_missing" becomes "image missing"."""
    return name.replace("_", " ")
