"""The runs of a configuration as command lines of `train`, where their data are built already: for dry runs."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

from scripts.common.errors import UserError
from scripts.config import settings
from scripts.config.run import RunConfig
from scripts.workflow import targets


def recipe_runs(path: Path, only: str | None, steps: int) -> Iterator[tuple[argparse.Namespace, RunConfig]]:
    """The arguments and settings of the runs of the configuration `path`, or of the run `only`.

    Raises:
        UserError: there is no such run, or its data or model have not been built; the message has the command.
    """
    configuration = settings.read_configuration(path)
    if only and only not in configuration.runs:
        raise UserError(f"{path} has no run {only!r}, but {', '.join(configuration.runs)}")
    for name in [only] if only else configuration.runs:
        yield _arguments(path, configuration, name, steps), configuration.runs[name]


def _arguments(path: Path, configuration: settings.Settings, name: str, steps: int) -> argparse.Namespace:
    """The command line of the run `name`, as the rule `train_run` gives it."""
    run, root = configuration.runs[name], Path(configuration.results)
    blend = root / "blend" / run.blend
    pixels = [Path(file) for file in targets.training_pixels(configuration, name)]
    features = [Path(file) for file in targets.feature_manifests(configuration, name)]
    parts = [blend / part for part in targets.epoch_parts(configuration, name)]
    model, heldout = root / "models" / run.model, blend / targets.HELDOUT
    needed = [*(folder / "manifest.json" for folder in dict.fromkeys([model, *parts, heldout])), *pixels, *features]
    missing = [str(file) for file in needed if not file.is_file()]
    if missing:
        command = shlex.join(["snakemake", "--cores", "all", *missing, "--configfile", str(path)])
        raise UserError(f"a dry run of {name} needs its data and its model, which have not been built: run `{command}`")
    start = run.started_from
    return argparse.Namespace(
        name=name,
        model=model,
        blend=parts,
        heldout=heldout,
        root=root,
        start=None if start is None else root / "train" / start.run,
        pixels=pixels,
        features=features,
        hang_timeout=60.0,
        dry_run_steps=steps,
    )
