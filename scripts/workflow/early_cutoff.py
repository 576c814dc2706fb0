"""Early cut-off: what follows a step whose files came out the same is not run again.

When Snakemake runs a step, it runs everything that depends on it, whether or not its files have changed. Here, after
each job, the jobs that wait for it are looked at: one that has no reason of its own to run (not forced; no other
parameters, input files, code or environment; no output missing or changed) and whose input files all have the content
that they had when it ran last is finished already. Its files get the present time, and the jobs behind it are looked at
in turn.

This is safe because a step is a pure function of its inputs, parameters and code, which tests hold: what would be
written is there. The record of what a job has read (`products.py`) is made when it finishes, and a job without a record
runs. Jobs of a group, which a cluster runs as one, are not skipped.

Snakemake has no interface for this, so the methods of its graph are used that it uses itself after a checkpoint.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from scripts.common.files import canonical_json, text_sha256
from scripts.workflow.preflight import describe
from scripts.workflow.products import FILE, Products

_PROGRAM = re.compile(r"-m scripts\.(\w+)")
_NEEDED = ("_finished", "_needrun", "_running", "_ready_jobs", "_n_until_ready", "_len")
"""What skipping needs of Snakemake's graph. In a version without it all jobs run that Snakemake plans."""


def install(dag: Any, persistence: Any, products: Products) -> None:
    """Record every job of Snakemake's graph that finishes, and skip the jobs behind it that need not run."""
    can_skip = all(hasattr(dag, name) for name in _NEEDED)
    finish = dag.finish

    async def finish_and_skip(job: Any, update_checkpoint_dependencies: bool = True) -> Any:
        jobs = list(job) if job.is_group() else [job]
        result = await finish(job, update_checkpoint_dependencies=update_checkpoint_dependencies)
        for each in jobs:
            _record(persistence, products, each)
        skipped = can_skip and _skip_behind(dag, persistence, products, jobs)
        return result or skipped

    dag.finish = finish_and_skip


def _record(persistence: Any, products: Products, job: Any) -> None:
    program = _PROGRAM.search(job.rule.shellcmd or "")
    outputs = [str(path) for path in job.output]
    if program and outputs and all(map(os.path.exists, outputs)):
        cause = _cause(persistence, job)
        started = persistence.metadata(job.output[0])
        try:
            products.record(
                program[1],
                outputs,
                map(str, job.input),
                str(job.benchmark or ""),
                cause,
                started.starttime if started else None,
            )
        except OSError as error:
            # An older record does not fit the new files; without one, the step runs whenever one before it has.
            print(f"warning: {products.path(FILE)} cannot be written: {error}", file=sys.stderr)


def _cause(persistence: Any, job: Any) -> str:
    """A hash of a job's parameters, its code among them, and of its command."""
    return text_sha256(canonical_json([sorted(map(str, persistence._params(job))), job.rule.shellcmd]))[:16]


def _skip_behind(dag: Any, persistence: Any, products: Products, finished: Iterable[Any]) -> bool:
    """Skip jobs that depend on `finished` ones; return whether the graph has changed."""
    pending = list(finished)
    changed = False
    while pending:
        for job in _waiting(dag, pending.pop()):
            if _ready(dag, job) and is_current(dag, job, persistence, products):
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


def is_current(dag: Any, job: Any, persistence: Any, products: Products, same: Collection[str] = ()) -> bool:
    """Whether a job that Snakemake would run, because one of its inputs was made again, would change nothing.

    `same` are input files that are taken to have the content that they had.
    """
    outputs, inputs = [str(path) for path in job.output], [str(path) for path in job.input]
    # Snakemake does not look for reasons of jobs that run because others do, so that `dag.reason(job)` lacks them.
    if job.rule.shellcmd is None or not outputs or job.rule in dag.forcerules or dag.forcefiles & set(job.output):
        return False
    changes = (persistence.input_changed, persistence.code_changed, persistence.software_stack_changed)
    if persistence.params_changed(job) or any(any(changed(job)) for changed in changes):
        return False
    product = products.of(outputs)
    return (
        product is not None
        and product.cause == _cause(persistence, job)
        and products.is_intact(product)
        and products.has_same_inputs(product, inputs, same)
    )


def force(dag: Any, persistence: Any, products: Products, damaged: Mapping[str, str], dry_run: bool) -> None:
    """Make the jobs with the outputs `damaged` run, before the graph is planned; print which of them it contains.

    A dry run leaves out what would be skipped if they come out as they were. Jobs also run whose parameters are others
    than those of their record, where Snakemake's own records are gone.
    """
    dag.forcefiles.update(damaged)
    update = dag.update_needrun

    async def update_and_look(create_inventory: bool = False) -> None:
        dag.forcefiles.update(_changed(dag, persistence, products))
        await update(create_inventory)
        forced = {path: fault for job in dag.jobs for path in map(str, job.output) if (fault := damaged.get(path))}
        if text := describe(forced):
            print(text, file=sys.stderr)
        if dry_run and all(hasattr(dag, name) for name in _NEEDED):
            _leave_out(dag, persistence, products, forced)

    dag.update_needrun = update_and_look


def _changed(dag: Any, persistence: Any, products: Products) -> Iterator[str]:
    """The outputs of jobs that Snakemake has no record of, and whose parameters have changed according to ours."""
    for job in dag.jobs:
        if job.rule.shellcmd is not None and job.output and not persistence.has_metadata(job):
            product = products.of(map(str, job.output))
            if product is not None and product.cause != _cause(persistence, job):
                yield str(job.output[0])


def _leave_out(dag: Any, persistence: Any, products: Products, forced: Mapping[str, str]) -> None:
    """Take the jobs out of the plan that would be skipped if the jobs with the outputs `forced` change nothing."""
    planned = set(dag.needrun_jobs())
    same: set[str] = set()
    for level in dag.toposorted():
        for job in planned.intersection(level):
            outputs = set(map(str, job.output))
            before = [other for other in dag.dependencies[job] if other in planned]
            if not all(same.issuperset(map(str, other.output)) for other in before):
                continue
            if outputs & forced.keys():
                same |= outputs
            elif before and job.group is None and is_current(dag, job, persistence, products, same):
                same |= outputs
                dag._needrun.discard(job)
    dag._len = len(dag._needrun)


def _skip(dag: Any, job: Any) -> None:
    """Take a job that need not run out of the graph's plan, as if it had finished."""
    for path in [*job.output, *([job.benchmark] if job.benchmark and os.path.exists(job.benchmark) else [])]:
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
