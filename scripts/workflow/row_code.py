"""The code that a step depends on which reads rows: of own data also what is loaded by name, and the table of forms."""

from scripts.adapters.raw import OWN_MODULES
from scripts.common.fingerprint import asset_fingerprint, code_fingerprint
from scripts.config.settings import Settings

FORMS = "scripts/adapters/own/*.yaml"


def row_code(settings: Settings, name: str, *modules: str) -> str:
    """The fingerprint of a step that reads the rows of a source or dataset.

    Args:
        settings: the configuration.
        name: of the source or dataset; one of own data or of replay is both.
        modules: the program of the step, and the adapter, if it runs one.
    """
    if name not in settings.own():
        return code_fingerprint(*modules)
    return f"{code_fingerprint(*modules, *OWN_MODULES)} {asset_fingerprint(FORMS)}"
