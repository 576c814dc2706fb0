"""Early cut-off: what follows a step whose files came out the same is not run again.

When Snakemake runs a step, it runs everything that depends on it, whether or not its files have changed. Here, after
each job, the jobs that wait for it are looked at: one that has no reason of its own to run (no other parameters, input
files, code or libraries, nothing missing) and whose input files all have the content that they had when it ran last is
finished already. Its files get the present time, and the jobs behind it are looked at in turn.

This is safe because a step is a pure function of its inputs, parameters and code, which tests hold: what would be
written is there. The record of what a job has read (`products.py`) is made when it finishes, and a job without a record
runs. Jobs of a group, which a cluster runs as one, are not skipped.

Snakemake has no interface for this, so the methods of its graph are used that it uses itself after a checkpoint.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Set
from typing import Any

from scripts.workflow.products import Products

_NEEDED = ("_finished", "_needrun", "_running", "_ready_jobs", "_n_until_ready", "_len")


def install(dag: Any, persistence: Any, products: Products) -> None:
    """Record every job of Snakemake's graph that finishes, and skip the jobs behind it that need not run."""
    if not all(hasattr(dag, name) for name in _NEEDED):
        return
    finish = dag.finish

    async def finish_and_skip(job: Any, update_checkpoint_dependencies: bool = True) -> Any:
        jobs = list(job) if job.is_group() else [job]
        result = await finish(job, update_checkpoint_dependencies=update_checkpoint_dependencies)
        for each in jobs:
            _record(products, each)
        skipped = _skip_behind(dag, persistence, products, jobs)
        return result or skipped

    dag.finish = finish_and_skip


def _record(products: Products, job: Any) -> None:
    outputs = [str(path) for path in job.output]
    if job.rule.shellcmd is not None and outputs and all(map(os.path.exists, outputs)):
        products.record(job.rule.name, outputs, map(str, job.input))


def _skip_behind(dag: Any, persistence: Any, products: Products, finished: Iterable[Any]) -> bool:
    """Skip jobs that depend on `finished` ones; return whether the graph has changed."""
    pending = list(finished)
    changed = False
    while pending:
        for job in _waiting(dag, pending.pop()):
            if _ready(dag, job) and is_current(job, dag.reason(job), persistence, products):
                _skip(dag, job)
                pending.append(job)
                changed = True
    return changed


def _waiting(dag: Any, job: Any) -> Iterator[Any]:
    """The jobs that depend on `job` and have yet to run."""
    for other in list(dag.depending[job]):
        if dag.needrun(other) and not dag.finished(other) and other not in dag._running and other.group is None:
            yield other


def _ready(dag: Any, job: Any) -> bool:
    return all(dag.finished(other) or not dag.needrun(other) for other in dag.dependencies[job])


def is_current(job: Any, reason: Any, persistence: Any, products: Products, same: Collection[str] = ()) -> bool:
    """Whether a job that Snakemake would run, because one of its inputs was made again, would change nothing.

    `same` are input files that are taken to have the content that they had.
    """
    outputs, inputs = [str(path) for path in job.output], [str(path) for path in job.input]
    own = (reason.forced, reason.missing_output, reason.nooutput, reason.noio, reason.pipe, reason.service)
    if job.rule.shellcmd is None or not outputs or any(own):
        return False
    if persistence.params_changed(job) or any(persistence.input_changed(job)) or any(persistence.code_changed(job)):
        return False
    product = products.of(outputs)
    return product is not None and not products.fault(product) and products.has_same_inputs(product, inputs, same)


def expect_equal(dag: Any, persistence: Any, products: Products, damaged: Set[str]) -> None:
    """Make a dry run leave out what would be skipped if the steps with the outputs `damaged` come out as they were."""
    if not all(hasattr(dag, name) for name in _NEEDED):
        return
    update = dag.update_needrun

    async def update_and_leave_out(create_inventory: bool = False) -> None:
        await update(create_inventory)
        same: set[str] = set()
        for level in dag.toposorted():
            for job in level:
                if not dag.needrun(job):
                    continue
                before = [other for other in dag.dependencies[job] if dag.needrun(other)]
                if not before and not damaged.isdisjoint(map(str, job.output)):
                    same.update(map(str, job.output))
                elif job.group is None and is_current(job, dag.reason(job), persistence, products, same):
                    same.update(map(str, job.output))
                    dag._needrun.discard(job)
        dag._len = len(dag._needrun)

    dag.update_needrun = update_and_leave_out


def _skip(dag: Any, job: Any) -> None:
    """Take a job that need not run out of the graph's plan, as if it had finished."""
    for path in job.output:
        os.utime(path)
    dag.reason(job).mark_finished()
    dag._needrun.discard(job)
    dag._ready_jobs.discard(job)
    dag._n_until_ready.pop(job, None)
    dag._len -= 1
    behind = [other for other in dag.depending[job] if dag.needrun(other) and not dag.finished(other)]
    for other in behind:
        if other in dag._n_until_ready:
            dag._n_until_ready[other] -= 1
    dag.update_ready(behind)
