"""What the rules derive from a configuration: files, rerun keys, resources.

Functions of `Settings` that can be imported and tested without Snakemake, so that the `.smk` files contain no logic.
All paths are relative to the working directory.
"""

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.config.base_facts import made_by_graph
from scripts.config.holdout import KeptRowsConfig
from scripts.config.paths import declared
from scripts.config.run import RunConfig
from scripts.config.settings import Settings
from scripts.evaluation.task_files import task_data
from scripts.synthetic.tasks import TASKS

HELDOUT = "heldout"
MINIATURE_SUITE = "raw/miniature/dialogues/dialogues.json"
_SECONDS_TO_SAVE = 300
_GB_PER_RANK = 4
_TO_THE_LOG = (
    'if [ -n "${VISUALCHAT_LOG_ONLY-}" ]; then python() { '
    'if [ -n "${VISUALCHAT_LOG-}" ]; then exec >> "$VISUALCHAT_LOG" 2>&1; unset VISUALCHAT_LOG; exec python "$@"; fi; '
    'command python "$@"; }; fi; '
)


def check_root(root: str, name: str) -> None:
    """Refuse a results folder that another configuration has claimed.

    Raises:
        UserError: the folder contains the results of another configuration, which would be overwritten.
    """
    marker = Path(root) / "configuration.json"
    if marker.exists() and (owner := read_json(marker)["name"]) != name:
        raise UserError(
            f"{root} holds the results of the configuration {owner!r}, not of {name!r}. "
            f"Give each configuration its own `results:` folder, or remove {root} if it is no longer needed."
        )


def claim_root(root: str, name: str) -> None:
    """Mark a results folder as that of the configuration `name`, before the first job."""
    check_root(root, name)
    marker = Path(root) / "configuration.json"
    if not marker.exists():
        write_json(marker, {"v": 1, "name": name})


def image_sources(settings: Settings) -> list[str]:
    """Names of the sources whose images the configured datasets show."""
    registry = settings.registry()
    return sorted({source for dataset in settings.datasets() for source in registry.image_sources(dataset)})


def blend_image_sources(settings: Settings, blend: str) -> list[str]:
    """Names of the sources whose images a blend shows."""
    registry = settings.registry()
    records = settings.blends[blend].records()
    return sorted({source for dataset in records for source in registry.image_sources(dataset)})


def media_shards(settings: Settings, source: str) -> list[str]:
    """Paths of a source's shards below the root, without extension."""
    count = settings.media[source].shards if source in settings.media else 1
    return [f"media/{source}/{source}-{i:05d}-of-{count:05d}" for i in range(count)]


def blend_shards(settings: Settings, blend: str, part: str, inner: str = "") -> list[str]:
    """Paths of the shards of one part of a blend below the root, without extension.

    Args:
        settings: the configuration.
        blend: its name.
        part: an epoch, `epoch-000`, or `heldout`.
        inner: a subfolder, ending in "/", for files that exist once per shard.
    """
    stem, count = (HELDOUT, 1) if part == HELDOUT else ("train", settings.blends[blend].shards)
    return [f"blend/{blend}/{part}/{inner}{stem}-{i:05d}-of-{count:05d}" for i in range(count)]


def encoder_name(vision: str) -> str:
    """The hub name or path of a vision encoder as the name of a folder; no two of them share one."""
    hub_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", vision)
    if hub_name and "--" not in vision and len(vision) < 100:
        return vision.replace("/", "--")
    readable = re.sub(r"[^\w.-]+", "--", vision).strip("-.")[-40:] or "encoder"
    return f"{readable}-{hashlib.sha256(vision.encode()).hexdigest()[:12]}"


def processor_folder(settings: Settings, encoder: str, root: str) -> str:
    """The folder or hub name of the vision encoder whose folder name is `encoder`; `root` is the results root."""
    visions = {encoder_name(model.vision): model.vision for model in settings.models.values()}
    return f"{root}/bases/miniature/vision" if encoder == "miniature" else visions[encoder]


def processor_input(settings: Settings, encoder: str) -> list[str]:
    """The file to depend on if the encoder is made by the graph: one that changes less often than the weights."""
    folder = processor_folder(settings, encoder, settings.results)
    return [f"{folder}/preprocessor_config.json"] if encoder == "miniature" else []


def pixel_manifests(settings: Settings, run: str) -> list[str]:
    """The manifests of the preprocessed images of a run with `pixels`: those of all sources that its blend shows."""
    if not settings.runs[run].pixels:
        return []
    encoder = encoder_name(settings.models[settings.runs[run].model].vision)
    return [f"{settings.results}/pixels/{encoder}/{shard}.json" for shard in _shown_shards(settings, run)]


def feature_manifests(settings: Settings, run: str) -> list[str]:
    """The manifests of the image features that a run reads: those of all sources that its blend shows."""
    if not settings.runs[run].features:
        return []
    return [f"{_feature_folder(settings, run)}/{shard}.json" for shard in _shown_shards(settings, run)]


def training_pixels(settings: Settings, run: str) -> list[str]:
    """The manifests of the preprocessed images that the training of a run reads: none if it reads features."""
    return [] if settings.runs[run].features else pixel_manifests(settings, run)


def encoding_pixels(settings: Settings, manifest: str) -> list[str]:
    """The preprocessed images from which the features that `manifest` describes are computed, if there are some.

    They are decoded instead unless a run with `pixels` reads these features.
    """
    for name in settings.runs:
        pairs = zip(feature_manifests(settings, name), pixel_manifests(settings, name), strict=False)
        if pixels := dict(pairs).get(manifest):
            return [pixels]
    return []


def _feature_folder(settings: Settings, run: str) -> str:
    model = settings.models[settings.runs[run].model]
    output = f"layer{model.vision_layer}-{model.class_token}-{settings.runs[run].precision}"
    return f"{settings.results}/features/{encoder_name(model.vision)}/{output}"


def _shown_shards(settings: Settings, run: str) -> list[str]:
    """The names of the media shards of all sources that the blend of a run shows, without extension."""
    sources = blend_image_sources(settings, settings.runs[run].blend)
    return [os.path.basename(shard) for source in sources for shard in media_shards(settings, source)]


def epoch_parts(settings: Settings, run: str) -> list[str]:
    """The parts of its blend that a run trains on, one per epoch; a blend with `redraw: false` repeats one part."""
    blend = settings.blends[settings.runs[run].blend]
    return [f"epoch-{epoch if blend.redraw else 0:03d}" for epoch in range(settings.runs[run].epochs)]


def blend_parts(settings: Settings, blend: str) -> list[str]:
    """The parts of a blend that some run needs (at least the first epoch), and the held-out part."""
    parts = {"epoch-000"}
    for name, run in settings.runs.items():
        if run.blend == blend:
            parts.update(epoch_parts(settings, name))
    return [*sorted(parts), HELDOUT]


def datasets_of(settings: Settings, blend: str) -> list[str]:
    """Names of the datasets whose records a blend reads."""
    return settings.blends[blend].records()


def needs_followups(settings: Settings, tokens: str, dataset: str) -> bool:
    """Whether a blend that is counted with `tokens` has a join with follow-ups from `dataset`."""
    return any(blend.tokens == tokens and dataset in blend.followup_datasets() for blend in settings.blends.values())


def evaluated_runs(settings: Settings) -> list[str]:
    """Names of the runs that are evaluated, and so also exported and locked: those without `evaluate: false`."""
    return [name for name, run in settings.runs.items() if run.evaluate]


def start_result(settings: Settings, run: str) -> list[str]:
    """The `finished.json` of the run that a run starts from, if it starts from one."""
    start = settings.runs[run].started_from
    return [] if start is None else [f"{settings.results}/train/{start.run}/finished.json"]


def training_resources(settings: Settings, run: str) -> dict[str, int | str | None]:
    """The resources of a training job, by Snakemake's names; None: not requested.

    A run in bf16 or fp16 uses one GPU per rank; `gpu` is the total of all nodes, as in Slurm. A job on several nodes
    has one task per node, which is started by the launcher's `srun`: `mpi` keeps Snakemake from calling srun itself,
    and `tasks_per_gpu: 0` keeps it from interpreting `tasks` as tasks per GPU.
    """
    section = settings.runs[run]
    gpus = 0 if section.precision == "fp32" else section.ranks
    multi_node = section.nodes > 1
    # Slurm signals the ranks before the time limit, in addition to the launcher's own time budget.
    extra = [f"--signal=TERM@{_SECONDS_TO_SAVE}"]
    extra += ["--ntasks-per-node=1"] if multi_node else []
    extra += [f"--gpus-per-node={gpus // section.nodes}"] if multi_node and gpus else []
    return {
        "gpu": gpus or None,
        "mem_mb": 1000 * (section.memory_gb or _GB_PER_RANK * section.ranks // section.nodes),
        "nodes": section.nodes if multi_node else None,
        "tasks": section.nodes if multi_node else None,
        "tasks_per_gpu": 0 if multi_node and gpus else None,
        "mpi": "srun" if multi_node else None,
        "slurm_extra": " ".join(extra),
    }


def training_threads(settings: Settings, run: str) -> int:
    """CPUs that a run uses per node: for its ranks, and for the worker processes that prepare their batches."""
    section = settings.runs[run]
    return section.ranks // section.nodes * (section.threads + section.workers)


def suites(settings: Settings, root: str) -> dict[str, str]:
    """The files of the evaluation suites by name: those of the miniature, or files of the user."""
    return {name: _suite(path, root) for name, path in sorted(settings.suites.items())}


def _suite(path: str, root: str) -> str:
    if path == "miniature":
        return f"{root}/{MINIATURE_SUITE}"
    task = path.removeprefix("miniature/")
    return f"{root}/raw/miniature/tasks/{task}.yaml" if path != task and task in TASKS else path


def needs_miniature(settings: Settings) -> bool:
    """Whether the miniature is drawn: for a dataset of some blend that no folder provides, or for a suite."""
    if settings.data_path:
        return False
    return bool(set(settings.datasets()) - set(settings.own())) or bool(miniature_suites(settings))


def miniature_suites(settings: Settings) -> list[str]:
    """Names of the suites that are generated with the miniature."""
    return [name for name, path in settings.suites.items() if _suite(path, "") != path]


def has_kinds(settings: Settings, blend: str) -> bool:
    """Whether the questions of a blend have kinds: those of the miniature do, which its generator knows."""
    return not settings.data_path and bool(set(datasets_of(settings, blend)) - set(settings.own()))


def without_kinds(settings: Settings, blend: str) -> list[str]:
    """The entries of a blend that the kinds of the miniature's questions are not about: own data and replay."""
    section = settings.blends[blend]
    return sorted(name for name in section.datasets if set(section.component_datasets(name)) & set(settings.own()))


def measures_forgetting(settings: Settings, run: str) -> bool:
    """Whether what a run says to text is compared with what its model said before: not of a decoder of the graph."""
    return settings.runs[run].evaluate and not made_by_graph(settings.models[settings.runs[run].model].language)


def replay_datasets(settings: Settings, blend: str) -> list[str]:
    """The entries of a blend that are made of a decoder's own answers."""
    section = settings.blends[blend]
    return sorted(name for name in section.datasets if set(section.component_datasets(name)) & set(settings.replay))


def suite_inputs(settings: Settings, root: str) -> list[str]:
    """The files of all suites, and the data files that task files of the user name.

    Raises:
        UserError: a data file with a name that Snakemake cannot take; and see `task_data`.
    """
    files = suites(settings, root)
    of_user = [path for name, path in files.items() if path == settings.suites[name]]
    data = [str(file) for path in of_user if path.endswith((".yaml", ".yml")) for file in task_data(path)]
    for path in data:
        try:
            declared(path)
        except ValueError as error:
            raise UserError(f"{path}, which a task file of `suites` names, {error}") from None
    return [*files.values(), *data]


def plan_rerun_key(settings: Settings, blend: str) -> str:
    """The settings that determine the rows of a blend, without those of its storage.

    Its entry of `tokens` counts by the token tables, not by its name.
    """
    own = sorted(set(datasets_of(settings, blend)) & set(settings.own())) if settings.holdout.share else []
    extra = {"own": own} if own else {}
    return settings.blends[blend].rerun_key(
        without=("images", "shards"), tokens="", mixed=settings.holdout.mixed, **extra
    )


def kept_rows(settings: Settings, dataset: str) -> str:
    """The share of rows of own data or of replay that are kept for evaluation, as a rerun key; "" where there is none.

    A dataset with a `split` has that; of others, rows without images are kept with the share of `holdout`.
    """
    own = settings.own()
    if dataset not in own:
        return ""
    split, holdout = own[dataset].split, settings.holdout
    share = split.rows if split else holdout.share
    if not share:
        return ""
    return KeptRowsConfig(share=share, seed=holdout.seed, text_only=split is None).rerun_key()


def model_rerun_key(settings: Settings, model: str) -> str:
    """The settings of a model. Its entry of `tokens` counts by what it contains, not by its name."""
    return settings.models[model].rerun_key(tokens="")


def run_rerun_key(settings: Settings, run: str) -> str:
    """The settings of a run that change its numbers."""
    return settings.runs[run].rerun_key(without=RunConfig.RESULT_NEUTRAL)


def run_execution(settings: Settings, run: str) -> str:
    """The settings of a run that do not change its numbers: how its work is divided, and what else is made of it."""
    return settings.runs[run].rerun_key(only=RunConfig.RESULT_NEUTRAL)


def world_rerun_key(settings: Settings) -> str:
    """The settings that determine the miniature's scenes and questions, without their number and their faults."""
    return settings.miniature.rerun_key(without=("images", "rows", "faults"))


def data_path(settings: Settings, source: str, root: str) -> str:
    """The folder with the raw files of a source; `root` is the results root."""
    if source in settings.custom:
        return settings.custom[source].folder
    if source in settings.replay:
        return f"{root}/replay/{source}"
    return settings.data_path or f"{root}/raw/miniature"


def source_rerun_key(settings: Settings, source: str) -> str:
    """The source's entry in the registry: the files that fetch looks for, and what it writes into the manifest."""
    return settings.registry().sources[source].rerun_key()


def dataset_rerun_key(settings: Settings, dataset: str) -> str:
    """The dataset's entry in the registry."""
    return settings.registry().datasets[dataset].rerun_key()


def subset_sources(settings: Settings) -> list[str]:
    """Names of the sources from which a subset of images is selected: those that contain only images."""
    if settings.subset is None:
        return []
    registry = settings.registry()
    return [source for source in image_sources(settings) if not registry.sources[source].files]


def subset_datasets(settings: Settings) -> list[str]:
    """Names of the datasets by whose conversations the subset is selected, in the order of the registry."""
    registry, sources = settings.registry(), set(subset_sources(settings))
    return [name for name in settings.datasets() if sources & set(registry.datasets[name].image_sources)]


def versions(*libraries: str) -> str:
    """The installed versions of libraries that decide bytes of a step's results."""
    return " ".join(f"{name}=={version(name)}" for name in libraries)


def shell_prefix(basedir: str, conda: bool) -> str:
    """The beginning of every shell command of the rules, as a pattern for Snakemake, which formats it.

    It makes the repository importable from any working directory. The commands of the rules set PYTHONSAFEPATH, so that
    no folder `scripts` of the user shadows it; commands of a workflow that uses these rules as a module keep theirs.
    The interpreter that runs Snakemake also runs the steps, unless conda provides one. With VISUALCHAT_LOG_ONLY set,
    all output of a step, warnings of libraries included, goes to its log file and not to the terminal.

    Raises:
        UserError: a folder with a character in its path that cannot work.
    """
    interpreter = os.path.dirname(sys.executable)
    if os.pathsep in basedir + interpreter or "{" in basedir or "}" in basedir:
        raise UserError(
            f"the repository ({basedir}) and the interpreter ({interpreter}) cannot lie in folders with {os.pathsep!r} "
            "in their names, at which lists of folders are split, nor the repository in one with braces, in which "
            "Snakemake looks for wildcards; move it"
        )
    path = "" if conda else f'export PATH={shlex.quote(interpreter)}:"$PATH"; '
    prefix = f"export PYTHONPATH={shlex.quote(basedir)}; {path}{_TO_THE_LOG}set -euo pipefail; "
    return prefix.replace("{", "{{").replace("}", "}}")


def one_of(names: Iterable[str]) -> str:
    """A regular expression for a wildcard that stands for one of `names`; without names it matches nothing."""
    return "|".join(re.escape(name) for name in sorted(names)) or r"(?!)"
