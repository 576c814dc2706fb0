"""What is looked at before Snakemake plans: files that are gone, times that mean nothing, leftovers of dead programs.

Snakemake compares the times of files, and does not look for the inputs of steps that are done. So by itself it makes
nothing again where a shard or an exported weight was deleted, and everything where a results folder was copied. From
the records of what was made (`products.py`) this module finds

- steps of whose files one is missing or has another size: they run again, and nothing else does if their files come out
  the same (`early_cutoff.py`);
- files that are newer than what was made of them although their content is the same, because a folder was copied or a
  file was touched: the files made of them get the present time.

Hashes are compared by readers and by `scripts.verify`, not here: the size of every file is known in a second.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.common.files import TEMPORARY, owner_of_temporary
from scripts.workflow.products import Product, Products

SHOWN = 5
_FOREIGN_SECONDS = 86400


def damaged_steps(products: Products) -> dict[str, str]:
    """Steps of whose files one is missing or has another size: an output as the rules name it, and what is wrong."""
    faults = {min(product.outputs): products.fault(product) for product in products}
    return {f"{products.root}/{name}": fault for name, fault in faults.items() if fault}


def describe(damaged: dict[str, str]) -> str:
    """What to print about damaged steps; "" if there are none."""
    if not damaged:
        return ""
    shown = list(damaged.values())[:SHOWN]
    if len(damaged) > SHOWN:
        shown.append(f"... and {len(damaged) - SHOWN} more")
    steps = "1 finished step" if len(damaged) == 1 else f"{len(damaged)} finished steps"
    heading = f"Files of {steps} are missing or damaged. They are made again, and what depends on them if they differ:"
    return "\n".join([heading, *(f"  {each}" for each in shown)])


def set_times(products: Products) -> int:
    """Give the present time to files that are older than what they were made of, where that has the same content.

    Returns:
        The number of jobs whose files were touched.
    """
    touched = 0
    for product in _in_order(products):
        outputs, inputs = ([products.path(name) for name in names] for names in (product.outputs, product.inputs))
        if product.benchmark and products.path(product.benchmark).exists():
            outputs.append(products.path(product.benchmark))
        made, read = _times(outputs), _times(inputs)
        if not made or not read or max(read) <= min(made) or not products.is_intact(product):
            continue
        if products.has_same_inputs(product, inputs):
            try:
                for path in outputs:
                    os.utime(path)
            except OSError:
                # A results folder that may only be read: Snakemake plans by the times that there are.
                return touched
            touched += 1
    return touched


def remove_leftovers(root: str | Path) -> list[Path]:
    """Remove temporary files below `root` whose program is dead; return what was removed.

    A file of another machine is removed if it has not changed for a day.
    """
    removed = []
    for path in _temporary_files(root):
        pid, host = owner_of_temporary(path.name)
        if host == socket.gethostname():
            dead = not Path(f"/proc/{pid}").exists() if Path("/proc").is_dir() else not _is_running(pid)
        else:
            dead = _age(path) > _FOREIGN_SECONDS
        if dead:
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _temporary_files(root: str | Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if TEMPORARY.fullmatch(name))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _times(paths: Iterable[Path]) -> list[int]:
    """When each file changed last, in nanoseconds; empty if one is missing."""
    try:
        return [path.stat().st_mtime_ns for path in paths]
    except OSError:
        return []


def _in_order(products: Products) -> list[Product]:
    """All records, those of earlier steps first."""
    makers = {name: product for product in products for name in product.outputs}
    ordered: list[Product] = []
    seen: set[int] = set()

    def visit(product: Product) -> None:
        if id(product) in seen:
            return
        seen.add(id(product))
        for name in product.inputs:
            if name in makers:
                visit(makers[name])
        ordered.append(product)

    for product in sorted(products, key=lambda product: min(product.outputs)):
        visit(product)
    return ordered
