"""Withdraws damaged files, so that the next run of Snakemake makes them again.

Only what a step has made is removed. Missing files are looked for before Snakemake plans (`workflow/preflight.py`), and
the steps that have made them are run again; what depends on them is run only if they come out different.
"""

from collections.abc import Iterable
from pathlib import Path

from scripts.workflow.preflight import remove_leftovers
from scripts.workflow.products import Products


def withdraw(root: Path, damaged: Iterable[Path]) -> list[Path]:
    """Remove the files `damaged`, which steps have made; return those that the next run makes again.

    A file of which no step has a record, in a results folder whose records were deleted, is removed together with the
    manifest beside it, which makes Snakemake run the step.
    """
    products = Products(root)
    recorded = {products.path(name) for product in products for name in (*product.outputs, *product.extras)}
    withdrawn = sorted(set(damaged))
    for path in withdrawn:
        path.unlink(missing_ok=True)
        if path not in recorded:
            for manifest in (path.with_name("manifest.json"), path.with_suffix(".json")):
                manifest.unlink(missing_ok=True)
    remove_leftovers(root)
    return withdrawn
