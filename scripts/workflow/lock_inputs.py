"""What the lock of a run covers: the manifests and the programs of the run and of all steps before it.

Functions of `Settings`, as those of `targets`, for the rule that writes `lock.json`.
"""

from collections.abc import Iterable

from scripts.adapters.raw import OWN_MODULES
from scripts.config.settings import Settings
from scripts.config.stages import earlier_runs
from scripts.evaluation.forgetting_summary import FILE as FORGETTING
from scripts.workflow import targets


def provenance_manifests(settings: Settings, run: str) -> list[str]:
    """The manifests that the provenance (lock.json) of a run covers: of all steps before it, and of its outputs.

    The runs that it starts from are among the steps before it. Paths are relative to the root. Only small files, so
    that a new time of change of an archive does not count.
    """
    manifests = [
        manifest
        for name in (run, *earlier_runs(settings.runs, run))
        for manifest in _training_manifests(settings, name)
    ]
    manifests += [f"exported/{run}/{which}/manifest.json" for which in ("final", "best")]
    manifests += [f"evaluate/{run}/{FORGETTING}"] if targets.measures_forgetting(settings, run) else []
    return [*dict.fromkeys(manifests), f"evaluate/{run}/metrics.json"]


def _training_manifests(settings: Settings, run: str) -> list[str]:
    """The manifests of all steps of a run up to its training, without those of the runs that it starts from."""
    entry = settings.runs[run]
    parts = sorted({*targets.epoch_parts(settings, run), targets.HELDOUT})
    manifests = _data_manifests(settings, entry.blend)
    manifests += [f"plan/{entry.blend}/{part}.json" for part in parts]
    manifests += [f"blend/{entry.blend}/{part}/manifest.json" for part in parts]
    manifests += [shard.removeprefix(f"{settings.results}/") for shard in targets.pixel_manifests(settings, run)]
    manifests += [shard.removeprefix(f"{settings.results}/") for shard in targets.feature_manifests(settings, run)]
    manifests += [f"bases/miniature/{base}/manifest.json" for base in _miniature_bases(settings, entry.model)]
    return [*manifests, f"models/{entry.model}/manifest.json", f"train/{run}/finished.json"]


def _data_manifests(settings: Settings, blend: str) -> list[str]:
    """The manifests of all steps from raw files to token counts, for the datasets of a blend."""
    registry, tokens = settings.registry(), settings.blends[blend].tokens
    datasets, images = targets.datasets_of(settings, blend), targets.image_sources(settings)
    replay = [name for name in datasets if name in settings.replay]
    counted, datasets = datasets, [*datasets, *sorted(_asked(settings, replay) - set(datasets))]
    sources = sorted({*images, *(source for dataset in datasets for source in registry.sources_of(dataset))})
    manifests = [f"replay/{name}/manifest.json" for name in replay]
    manifests += ["raw/miniature/miniature.json"] if targets.needs_miniature(settings) else []
    if set(targets.subset_sources(settings)) & set(sources):
        manifests.append("raw/subset.json")
    manifests += [f"raw/{source}/source.json" for source in sources]
    manifests += [f"validated/source/{source}.json" for source in sources]
    manifests += [f"validated/{dataset}.json" for dataset in datasets]
    manifests += [f"media/{source}/manifest.json" for source in images]
    manifests.append("split/manifest.json")
    manifests += [f"records/{dataset}.report.json" for dataset in datasets]
    manifests += [f"tokens/{tokens}/{dataset}.json" for dataset in counted]
    return manifests


def _asked(settings: Settings, datasets: Iterable[str]) -> set[str]:
    """The datasets whose questions those of replay among `datasets` ask."""
    return {asked for name in datasets if name in settings.replay for asked in settings.replay[name].questions_of}


def _miniature_bases(settings: Settings, model: str) -> list[str]:
    """The bases of a model that the graph makes: of "vision", "language" and "tokenizer"."""
    entry = settings.models[model]
    names = {
        "vision": entry.vision,
        "language": entry.language,
        "tokenizer": settings.tokens[entry.tokens].tokenizer,
    }
    return [base for base, name in names.items() if name == "miniature"]


def provenance_programs(settings: Settings, run: str) -> list[str]:
    """The modules that were run for a run and all steps before it, adapters included, as arguments of `code`."""
    registry = settings.registry()
    runs = [run, *earlier_runs(settings.runs, run)]
    entries = [settings.runs[name] for name in runs]
    datasets = {name for entry in entries for name in targets.datasets_of(settings, entry.blend)}
    datasets |= _asked(settings, datasets)
    steps = ["fetch", "validate", "shard", "media_index", "holdout", "convert", "count_tokens", "plan", "blend"]
    steps += ["blend_manifest", "make_model", "train", "training.worker", "export", "evaluate"]
    steps += ["miniature"] if targets.needs_miniature(settings) else []
    steps += ["select_subset"] if targets.subset_datasets(settings) else []
    steps += ["preprocess_images"] if any(entry.pixels for entry in entries) else []
    steps += ["encode_images"] if any(entry.features for entry in entries) else []
    steps += [f"pretraining.{base}" for base in _miniature_bases(settings, settings.runs[run].model)]
    steps += sorted({f"adapters.{registry.datasets[name].adapter}" for name in datasets})
    steps += ["replay"] if datasets & set(settings.replay) else []
    steps += ["forgetting"] if targets.measures_forgetting(settings, run) else []
    own = OWN_MODULES if datasets & set(settings.own()) else ()
    return [*(f"scripts.{step}" for step in steps), *own]
