# What all rules share: the checked configuration, its root, the shell they run in, and the lists of targets.

import os
import shlex
import sys
from importlib.metadata import version

sys.path.insert(0, str(workflow.basedir))

from snakemake.exceptions import WorkflowError

from scripts.workflow import targets, graph
from scripts.config import settings as typed
from scripts.common.fingerprint import asset_fingerprint as assets
from scripts.common.fingerprint import code_fingerprint as code
from scripts.common.errors import UserError

try:
    SETTINGS = typed.load(config)
    ROOT = SETTINGS.results
    targets.check_root(ROOT, SETTINGS.name)
except UserError as error:
    raise WorkflowError(str(error)) from None

CONDA = any(str(method) == "conda" for method in workflow.deployment_settings.deployment_method)
shell.prefix(targets.shell_prefix(str(workflow.basedir), CONDA))

REGISTRY = SETTINGS.registry()
IMAGE_SOURCES = targets.image_sources(SETTINGS)
SUBSET_ANNOTATION_SOURCES = sorted({source for name in targets.subset_datasets(SETTINGS) for source in REGISTRY.annotation_sources(name)})
BASES = f"{ROOT}/bases/miniature"


wildcard_constraints:
    source="|".join(sorted(REGISTRY.sources)),
    dataset="|".join(sorted(REGISTRY.datasets)),
    tokens="|".join(SETTINGS.tokens),
    blend="|".join(SETTINGS.blends),
    model="|".join(SETTINGS.models),
    run="|".join(SETTINGS.runs) or "none",
    part=r"epoch-\d{3}|heldout",


def below_root(pattern, **lists):
    """Paths below the results root for every combination of the given names."""
    return expand(f"{ROOT}/{pattern}", **lists)


def folder(path):
    """A folder as a parameter; a function, so that Snakemake does not take it for a hard-coded path."""
    return lambda wildcards: path.format(**wildcards)


def raw_folders(wildcards):
    """`--raw` of a dataset: every source that it reads."""
    return " ".join(f"{source}={ROOT}/raw/{source}" for source in REGISTRY.sources_of(wildcards.dataset))


def subset_input(wildcards):
    """The choice of images that limits a dataset, where only a taste is asked for."""
    return f"{ROOT}/raw/subset.json" if wildcards.dataset in targets.subset_datasets(SETTINGS) else []


def tokenizer_folder(tokens):
    """Where the tokenizer of a `tokens` entry lies: made by the DAG, or a folder or hub name of the user."""
    name = SETTINGS.tokens[tokens].tokenizer
    return f"{ROOT}/bases/miniature/tokenizer" if name == "miniature" else name


def tokenizer_input(tokens):
    """The manifest to wait for where the DAG makes the tokenizer."""
    return [f"{ROOT}/bases/miniature/tokenizer/manifest.json"] if SETTINGS.tokens[tokens].tokenizer == "miniature" else []


def base_folder(model, kind):
    """A base of a model: made by the DAG, or a folder or hub name of the user."""
    name = getattr(SETTINGS.models[model], kind)
    return f"{BASES}/{kind}" if name == "miniature" else name


def base_inputs(wildcards):
    """The manifests to wait for where the DAG makes the bases."""
    kinds = [kind for kind in ("vision", "language") if getattr(SETTINGS.models[wildcards.model], kind) == "miniature"]
    return [f"{BASES}/{kind}/manifest.json" for kind in kinds] + tokenizer_input(SETTINGS.models[wildcards.model].tokens)


def training(resource):
    """What a job of a run asks for of `resource`."""
    return lambda wildcards: targets.training_resources(SETTINGS, wildcards.run)[resource]


def records_inputs(wildcards):
    """The reports of every dataset that a blend reads; the tables lie beside them."""
    return below_root("records/{dataset}.report.json", dataset=targets.datasets_of(SETTINGS, wildcards.blend))


def tokens_inputs(wildcards):
    """The token tables' manifests of every dataset that a blend reads."""
    tokens = SETTINGS.blends[wildcards.blend].tokens
    return below_root(f"tokens/{tokens}/{{dataset}}.json", dataset=targets.datasets_of(SETTINGS, wildcards.blend))


def all_data(wildcards):
    """Blend manifests and previews of every part that a run needs."""
    return [
        f"{ROOT}/blend/{blend}/{file}"
        for blend in SETTINGS.blends
        for file in [*(f"{part}/manifest.json" for part in targets.blend_parts(SETTINGS, blend)), "preview.html"]
    ]


def all_exports(wildcards):
    """The exported folders of every run."""
    return below_root("exported/{run}/{which}/manifest.json", run=SETTINGS.runs, which=["final", "best"])


def all_metrics(wildcards):
    """The scores of every run."""
    return below_root("evaluate/{run}/metrics.json", run=SETTINGS.runs)


onstart:
    targets.claim_root(ROOT, SETTINGS.name)
    if workflow.is_main_process:
        graph.write(workflow.dag, ROOT, sys.argv)


onerror:
    shell("echo 'A step failed. Its message stands above and in the log file named there.' >&2")
