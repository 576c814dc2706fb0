"""docs/forms.md shows the cases of the suite as they are."""

from tests.forms.docs_page import PAGE, page
from tests.workflow.project import ROOT


def test_the_page_is_up_to_date():
    assert (ROOT / PAGE).read_text() == page(), "run `make docs`"
