"""A survey of own data as one HTML page with everything in it."""

from pathlib import Path

import jinja2

from scripts.common.files import atomic
from scripts.inspection.survey import Survey, quantile
from scripts.reporting.report_images import data_uri

_PAGE = Path(__file__).parent / "page.html.jinja"


def write_page(survey: Survey, recipe: str, out: Path) -> None:
    """Write the page to `out`; `recipe` is the text of the recipe, or "" if there is none."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["uri"] = lambda data: data_uri(data) if data else (None, False)
    page = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    losses = sorted(survey.dropped.as_dict().items(), key=lambda item: (-item[1]["count"], item[0]))
    notes = sorted(survey.noted.as_dict().items(), key=lambda item: (-item[1]["count"], item[0]))
    lengths = {"median": quantile(survey.tokens, 0.5), "longest": max(survey.tokens, default=0)}
    with atomic(out, "w") as file:
        file.write(page.render(survey=survey, losses=losses, notes=notes, lengths=lengths, recipe=recipe))
