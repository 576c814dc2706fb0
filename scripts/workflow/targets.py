"""What the rules ask about a configuration: which files, in which order, with which cause.

Pure functions over `Settings`, importable and tested without Snakemake, so that the `.smk` files stay a table of
contents. All paths are relative to the working directory and begin with the results root.
"""

import glob
import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path

from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.config.settings import Settings
from scripts.evaluation.task_files import task_data
from scripts.fetching.receipts import is_partial, valid
from scripts.synthetic.tasks import TASKS

HELDOUT = "heldout"
DRAWN_SUITE = "raw/miniature/dialogues/dialogues.json"
_SECONDS_TO_SAVE = 300
_GB_PER_RANK = 4
_TO_THE_LOG = (
    'if [ -n "${{VISUALCHAT_LOG_ONLY-}}" ]; then '
    'python() {{ exec >> "$VISUALCHAT_LOG" 2>&1; unset VISUALCHAT_LOG; exec python "$@"; }}; fi; '
)


def check_root(root: str, name: str) -> None:
    """Refuse a results folder that another configuration has claimed.

    Raises:
        UserError: the folder holds the results of another configuration; building into it would overwrite them.
    """
    marker = Path(root) / "configuration.json"
    if marker.exists() and (owner := read_json(marker)["name"]) != name:
        raise UserError(
            f"{root} holds the results of the configuration {owner!r}, not of {name!r}. "
            f"Give each configuration its own `results:` folder, or remove {root} if it is no longer wanted."
        )


def claim_root(root: str, name: str) -> None:
    """Mark a results folder as belonging to the configuration `name`; done once, when something is first built."""
    check_root(root, name)
    marker = Path(root) / "configuration.json"
    if not marker.exists():
        write_json(marker, {"v": 1, "name": name})


def image_sources(settings: Settings) -> list[str]:
    """Sources whose images the configured datasets show."""
    registry = settings.registry()
    return sorted({source for dataset in settings.datasets() for source in registry.image_sources(dataset)})


def media_shards(settings: Settings, source: str) -> list[str]:
    """Shard files of a source without their endings."""
    count = settings.media[source].shards if source in settings.media else 1
    return [f"media/{source}/{source}-{i:05d}-of-{count:05d}" for i in range(count)]


def blend_shards(settings: Settings, blend: str, part: str, inner: str = "") -> list[str]:
    """Shard files of one epoch (or the held-out part) of a blend, without their endings; or what lies in `inner` beside
    them, a folder that ends in "/"."""
    stem, count = (HELDOUT, 1) if part == HELDOUT else ("train", settings.blends[blend].shards)
    return [f"blend/{blend}/{part}/{inner}{stem}-{i:05d}-of-{count:05d}" for i in range(count)]


def encoder_name(vision: str) -> str:
    """A vision encoder's name as one of a folder: a hub name or a path with what cannot stand there replaced."""
    return re.sub(r"[^\w.-]+", "--", vision).strip("-")


def processor_folder(settings: Settings, encoder: str) -> str:
    """The folder or hub name of the vision encoder whose folder name is `encoder`."""
    visions = {encoder_name(model.vision): model.vision for model in settings.models.values()}
    return f"{settings.results}/bases/miniature/vision" if encoder == "miniature" else visions[encoder]


def processor_input(settings: Settings, encoder: str) -> list[str]:
    """The file to wait for where the DAG makes the encoder. Its small text changes less often than its weights."""
    return [f"{processor_folder(settings, encoder)}/preprocessor_config.json"] if encoder == "miniature" else []


def pixel_manifests(settings: Settings, run: str) -> list[str]:
    """What tells of the crops that a run reads: of every image of the sources that its blend shows."""
    if not settings.runs[run].pixels:
        return []
    registry, encoder = settings.registry(), encoder_name(settings.models[settings.runs[run].model].vision)
    records = settings.blends[settings.runs[run].blend].records()
    sources = sorted({source for dataset in records for source in registry.image_sources(dataset)})
    shards = [os.path.basename(shard) for source in sources for shard in media_shards(settings, source)]
    return [f"{settings.results}/pixels/{encoder}/{shard}.json" for shard in shards]


def epoch_parts(settings: Settings, run: str) -> list[str]:
    """The parts of its blend that a run trains on, epoch by epoch; a fixed blend is the same part again and again."""
    blend = settings.blends[settings.runs[run].blend]
    return [f"epoch-{epoch if blend.redraw else 0:03d}" for epoch in range(settings.runs[run].epochs)]


def blend_parts(settings: Settings, blend: str) -> list[str]:
    """Every part of a blend that some run needs (at least its first epoch), and the held-out part."""
    parts = {"epoch-000"}
    for name, run in settings.runs.items():
        if run.blend == blend:
            parts.update(epoch_parts(settings, name))
    return [*sorted(parts), HELDOUT]


def datasets_of(settings: Settings, blend: str) -> list[str]:
    """Datasets whose records a blend reads."""
    return settings.blends[blend].records()


def needs_followups(settings: Settings, tokens: str, dataset: str) -> bool:
    """Whether some blend counted with `tokens` has a join that takes follow-ups from `dataset`."""
    return any(blend.tokens == tokens and dataset in blend.followup_datasets() for blend in settings.blends.values())


def training_resources(settings: Settings, run: str) -> dict[str, int | str | None]:
    """What a job of a run asks for, in Snakemake's words; None is not asked for.

    A run in bf16 or fp16 computes on GPUs, one per rank. `gpu` counts them on all nodes together, as Slurm does. A job
    of several nodes has one task on each: the launcher's `srun` (`mpi` keeps Snakemake from starting one of its own),
    and `tasks_per_gpu: 0`, since Snakemake would take `tasks` for tasks per GPU.
    """
    section = settings.runs[run]
    gpus = 0 if section.precision == "fp32" else section.ranks
    several = section.nodes > 1
    # Slurm tells the ranks in time that the job's end is near, which is one more net below the launcher's own budget.
    extra = [f"--signal=TERM@{_SECONDS_TO_SAVE}"]
    extra += ["--ntasks-per-node=1"] if several else []
    extra += [f"--gpus-per-node={gpus // section.nodes}"] if several and gpus else []
    return {
        "gpu": gpus or None,
        "mem_mb": 1000 * (section.memory_gb or _GB_PER_RANK * section.ranks // section.nodes),
        "nodes": section.nodes if several else None,
        "tasks": section.nodes if several else None,
        "tasks_per_gpu": 0 if several and gpus else None,
        "mpi": "srun" if several else None,
        "slurm_extra": " ".join(extra),
    }


def training_threads(settings: Settings, run: str) -> int:
    """CPUs that a run uses on each of its nodes: for its ranks, and for the processes that prepare their batches."""
    section = settings.runs[run]
    return section.ranks // section.nodes * (section.threads + section.workers)


def suites(settings: Settings, root: str) -> dict[str, str]:
    """Evaluation suites by name: the miniature's own, or files of the user."""
    return {name: _suite(path, root) for name, path in sorted(settings.suites.items())}


def _suite(path: str, root: str) -> str:
    if path == "miniature":
        return f"{root}/{DRAWN_SUITE}"
    drawn, slash, task = path.partition("/")
    return f"{root}/raw/miniature/tasks/{task}.yaml" if slash and drawn == "miniature" and task in TASKS else path


def suite_inputs(settings: Settings, root: str) -> list[str]:
    """The files of all suites; with a task file of the user, the data that it names."""
    files = suites(settings, root)
    own = [path for name, path in files.items() if path == settings.suites[name]]
    data = [str(file) for path in own if path.endswith((".yaml", ".yml")) for file in task_data(path)]
    return [*files.values(), *data]


def plan_rerun_key(settings: Settings, blend: str) -> str:
    """What decides the rows of a blend: not how its shards are stored."""
    return settings.blends[blend].rerun_key(without=("images", "shards"), mixed=settings.holdout.mixed)


def world_rerun_key(settings: Settings) -> str:
    """What decides how the miniature's scenes look and what is asked about them: not how many of them are drawn, nor
    what is wrong with their files."""
    return settings.miniature.rerun_key(without=("images", "rows", "faults"))


def data_path(settings: Settings, source: str) -> str:
    """The folder in which the raw files of a source are."""
    if source in settings.custom:
        return settings.custom[source].folder
    return settings.data_path or f"{settings.results}/raw/miniature"


def source_rerun_key(settings: Settings, source: str) -> str:
    """The source's entry in the registry: what fetch looks for, and what it writes on the card."""
    return settings.registry().sources[source].rerun_key()


def dataset_rerun_key(settings: Settings, dataset: str) -> str:
    """The dataset's entry in the registry."""
    return settings.registry().datasets[dataset].rerun_key()


def raw_digest(settings: Settings, source: str) -> str:
    """A cheap cause for files that are not ours: a hash of (name, size, time of change) of all that fetch may read.

    Absent ones are left to fetch, whose message knows how to get them. The miniature's files are outputs of ours.
    """
    if not settings.data_path and source not in settings.custom:
        return ""
    entry = settings.registry().sources[source]
    required = settings.registry().requirements(source, settings.datasets())
    places = [form for file in entry.files if file.path in required for form in file.forms()]
    places += [place for images in entry.images for place in (images.folder, *images.containers)]
    return folder_digest(data_path(settings, source), tuple(sorted({*places, *entry.optional_files})))


def subset_sources(settings: Settings) -> list[str]:
    """Sources of images whose images a taste chooses: those that hold nothing else."""
    if settings.subset is None:
        return []
    registry = settings.registry()
    return [source for source in image_sources(settings) if not registry.sources[source].files]


def subset_datasets(settings: Settings) -> list[str]:
    """Datasets that choose the images of a taste, in the registry's order."""
    registry, sources = settings.registry(), set(subset_sources(settings))
    return [name for name in settings.datasets() if sources & set(registry.datasets[name].image_sources)]


def provenance_manifests(settings: Settings, run: str) -> list[str]:
    """The manifests of every step behind a run and of what it left, relative to the root: what its passport is made of.

    Small files only, so that a touched archive makes no passport anew.
    """
    registry, entry = settings.registry(), settings.runs[run]
    blend, model = settings.blends[entry.blend], settings.models[entry.model]
    datasets, images = datasets_of(settings, entry.blend), image_sources(settings)
    sources = sorted({*images, *(source for dataset in datasets for source in registry.sources_of(dataset))})
    parts = sorted({*epoch_parts(settings, run), HELDOUT})
    made = [f"bases/miniature/{kind}" for kind in ("vision", "language") if getattr(model, kind) == "miniature"]
    made += ["bases/miniature/tokenizer"] * (settings.tokens[model.tokens].tokenizer == "miniature")
    return [
        *(["raw/miniature/miniature.json"] * (not settings.data_path)),
        *(["raw/subset.json"] * bool(set(subset_sources(settings)) & set(sources))),
        *(f"raw/{source}/source.json" for source in sources),
        *(f"validated/source/{source}.json" for source in sources),
        *(f"validated/{dataset}.json" for dataset in datasets),
        *(f"media/{source}/manifest.json" for source in images),
        "split/manifest.json",
        *(f"records/{dataset}.report.json" for dataset in datasets),
        *(f"tokens/{blend.tokens}/{dataset}.json" for dataset in datasets),
        *(f"plan/{entry.blend}/{part}.json" for part in parts),
        *(f"blend/{entry.blend}/{part}/manifest.json" for part in parts),
        *(shard.removeprefix(f"{settings.results}/") for shard in pixel_manifests(settings, run)),
        *(f"{folder}/manifest.json" for folder in made),
        f"models/{entry.model}/manifest.json",
        f"train/{run}/finished.json",
        *(f"exported/{run}/{which}/manifest.json" for which in ("final", "best")),
        f"evaluate/{run}/metrics.json",
    ]


def provenance_programs(settings: Settings, run: str) -> list[str]:
    """The modules that were run for what is behind a run, adapters among them, as the rules name them for `code`."""
    registry, entry = settings.registry(), settings.runs[run]
    model = settings.models[entry.model]
    steps = ["fetch", "validate", "shard", "media_index", "holdout", "convert", "count_tokens", "plan", "blend"]
    steps += ["blend_manifest", "make_model", "train", "training.worker", "export", "evaluate"]
    steps += [] if settings.data_path else ["miniature"]
    steps += ["select_subset"] if subset_datasets(settings) else []
    steps += ["preprocess_images"] if entry.pixels else []
    steps += [f"pretraining.{kind}" for kind in ("vision", "language") if getattr(model, kind) == "miniature"]
    steps += ["pretraining.tokenizer"] * (settings.tokens[model.tokens].tokenizer == "miniature")
    steps += sorted({f"adapters.{registry.datasets[name].adapter}" for name in datasets_of(settings, entry.blend)})
    return [f"scripts.{step}" for step in steps]


@cache
def folder_digest(folder: str, places: tuple[str, ...]) -> str:
    """Hash of (name, size, time of change) of the files at `places`: paths, folders ending in "/", or patterns.

    What was fetched does not count: its cause is the registry, and it is not there yet when the first digest is taken.
    """
    digest = hashlib.sha256()
    for place in places:
        if place.endswith("/") and is_partial(Path(folder), place):
            continue
        files = _walk(os.path.join(folder, place)) if place.endswith("/") else sorted(glob.glob(f"{folder}/{place}"))
        for path in files:
            if os.path.isfile(path) and not valid(Path(folder), os.path.relpath(path, folder)):
                status = os.stat(path)
                digest.update(f"{os.path.relpath(path, folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _walk(folder: str) -> list[str]:
    return sorted(os.path.join(inner, name) for inner, _, names in os.walk(folder) for name in names)


def shell_prefix(basedir: str, conda: bool) -> str:
    """What every shell command of the rules starts with.

    The repository is importable from any working directory, and no folder of the user named `scripts` can shadow it.
    The interpreter that runs Snakemake also runs the steps, unless conda provides one. With VISUALCHAT_LOG_ONLY set, all
    that a step prints, its libraries' warnings too, goes to its log file and not to the terminal. Snakemake formats the
    text, so braces are doubled.
    """
    path = "" if conda else f'export PATH="{os.path.dirname(sys.executable)}:$PATH"; '
    return f'export PYTHONSAFEPATH=1 PYTHONPATH="{basedir}"; {path}{_TO_THE_LOG}set -euo pipefail; '
