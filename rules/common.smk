# Shared by all rules: the validated configuration, its root, the shell prefix, and the lists of targets.

import os
import sys
from functools import cache

from snakemake.exceptions import WorkflowError

# This repository, which is not the folder of the main Snakefile if another workflow uses this one as a module.
if not workflow.current_basedir.is_local:
    raise WorkflowError(
        "VisualChat's programs lie beside its rules: clone it, and give the module the path of its Snakefile"
    )
REPOSITORY = os.path.dirname(str(workflow.current_basedir))
sys.path.insert(0, REPOSITORY)

import scripts

if not any(os.path.samefile(os.path.dirname(path), REPOSITORY) for path in scripts.__path__):
    raise WorkflowError(
        f"the package `scripts` of {REPOSITORY} is needed, but another one is loaded: {scripts.__path__}"
    )

from scripts.common.errors import UserError, machine_error
from scripts.common.fingerprint import asset_fingerprint as assets
from scripts.common.fingerprint import code_fingerprint as code
from scripts.config.machine import plan_here
from scripts.config.settings import load
from scripts.workflow import early_cutoff, graph, k8s_cluster, lock_inputs, preflight, raw_files, targets
from scripts.workflow.folder_digest import base_digest
from scripts.workflow.products import Products
from scripts.workflow.row_code import row_code
from scripts.workflow.targets import versions

CONDA = any(str(method) == "conda" for method in workflow.deployment_settings.deployment_method)

if workflow.is_main_process:
    plan_here(os.environ)

try:
    SETTINGS = load(config)
    # The results root in paths of inputs and outputs, and as programs get it: Snakemake adds the `prefix:` of a module to
    # inputs and outputs, but not to parameters.
    ROOT = SETTINGS.results
    PREFIXED_ROOT = str(workflow.modifier.modify_path(f"{ROOT}/")).rstrip("/")
    targets.check_root(PREFIXED_ROOT, SETTINGS.name)
    SUITE_INPUTS = [
        # `local`: a path of the user, to which no prefix belongs.
        path if path.startswith(f"{ROOT}/") else local(path)
        for path in targets.suite_inputs(SETTINGS, ROOT)
    ]
    shell.prefix(targets.shell_prefix(REPOSITORY, CONDA))
except UserError as error:
    raise WorkflowError(str(error)) from None

k8s_cluster.offer_commands()

# What earlier runs have made. In the jobs of a cluster, which see a part of the graph, it is not looked at.
PRODUCTS = Products(PREFIXED_ROOT) if workflow.is_main_process else None
if PRODUCTS:
    preflight.set_times(PRODUCTS)

REGISTRY = SETTINGS.registry()
EVALUATED_RUNS = targets.evaluated_runs(SETTINGS)
OWN = SETTINGS.own()
IMAGE_SOURCES = targets.image_sources(SETTINGS)
SUBSET_DATASETS = targets.subset_datasets(SETTINGS)
SUBSET_ANNOTATION_SOURCES = sorted({source for name in SUBSET_DATASETS for source in REGISTRY.annotation_sources(name)})
FORGETTING_RUNS = [run for run in SETTINGS.runs if targets.measures_forgetting(SETTINGS, run)]
BASES = f"{ROOT}/bases/miniature"
FEATURES = "features/{encoder}/layer{layer}-{class_token}-{precision}/{source}-{number}-of-{total}"


wildcard_constraints:
    source=targets.one_of(REGISTRY.sources),
    dataset=targets.one_of(REGISTRY.datasets),
    tokens=targets.one_of(SETTINGS.tokens),
    blend=targets.one_of(SETTINGS.blends),
    model=targets.one_of(SETTINGS.models),
    run=targets.one_of(SETTINGS.runs),
    replay=targets.one_of(SETTINGS.replay),
    part=r"epoch-\d{3}|heldout",


@cache
def look_for_damage():
    """No files: an input of the first rules of every graph, so that damaged steps are known before Snakemake plans."""
    if PRODUCTS:
        damaged = preflight.damaged_steps(PRODUCTS)
        early_cutoff.force(workflow.dag, workflow.persistence, PRODUCTS, damaged, workflow.dryrun)
    return []


# What a shell command gets is quoted (`:q`) everywhere. Of a list each element is quoted, so that arguments of which there
# may be none or several are lists of words.


def below_root(pattern, **lists):
    """Paths below the results root for all combinations of the given names."""
    return [f"{ROOT}/{path}" for path in expand(pattern, **lists)]


def folder(pattern=""):
    """A folder below the results root, or the root, as a parameter; `pattern` may contain wildcards.

    A function, so that Snakemake's lint does not take it for a hard-coded path.
    """
    return lambda wildcards: f"{PREFIXED_ROOT}/{pattern.format(**wildcards)}" if pattern else PREFIXED_ROOT


def named_folders(kind, sources):
    """The arguments SOURCE=FOLDER for folders `raw/<source>` or `media/<source>`."""
    return [f"{source}={PREFIXED_ROOT}/{kind}/{source}" for source in sources]


def option(flag, values):
    """An option and its values as words of a command; none if there is no value."""
    words = [values] if isinstance(values, str) else [*values]
    return [flag, *words] if any(words) else []


def suite_options(wildcards):
    """The options `--suite NAME=PATH` of all suites."""
    return [f"--suite={name}={path}" for name, path in targets.suites(SETTINGS, PREFIXED_ROOT).items()]


def raw_folders(wildcards):
    """The argument of `--raw` for a dataset: the folders of all sources that it reads."""
    return named_folders("raw", REGISTRY.sources_of(wildcards.dataset))


def raw_digest(wildcards):
    """The user's raw files of a source as a cause. Only the main process compares and records causes; the processes of
    jobs, three for each on Slurm, need not look at 100,000 images again."""
    return raw_files.raw_digest(SETTINGS, wildcards.source, PREFIXED_ROOT) if workflow.is_main_process else ""


def subset_input(wildcards):
    """The selected images, if the images of the dataset are limited to a subset."""
    return f"{ROOT}/raw/subset.json" if wildcards.dataset in SUBSET_DATASETS else []


def tokenizer_folder(tokens):
    """The tokenizer of a `tokens` entry: made by the graph, or a folder or hub name."""
    name = SETTINGS.tokens[tokens].tokenizer
    return f"{PREFIXED_ROOT}/bases/miniature/tokenizer" if name == "miniature" else name


def tokenizer_input(tokens):
    """The manifest of the tokenizer, if it is made by the graph."""
    return [f"{BASES}/tokenizer/manifest.json"] if SETTINGS.tokens[tokens].tokenizer == "miniature" else []


def base_folder(model, kind):
    """A base of a model: made by the graph, or a folder or hub name."""
    name = getattr(SETTINGS.models[model], kind)
    return f"{PREFIXED_ROOT}/bases/miniature/{kind}" if name == "miniature" else name


def base_inputs(wildcards):
    """The manifests of the bases of a model that are made by the graph."""
    model = SETTINGS.models[wildcards.model]
    kinds = [kind for kind in ("vision", "language") if getattr(model, kind) == "miniature"]
    return look_for_damage() + [f"{BASES}/{kind}/manifest.json" for kind in kinds] + tokenizer_input(model.tokens)


def replay_tokens(wildcards):
    """The entry of `tokens` of the model whose decoder answers the prompts of a replay dataset."""
    return SETTINGS.models[SETTINGS.replay[wildcards.replay].model].tokens


def replay_bases(wildcards):
    """The manifests of decoder and tokenizer of that model, if they are made by the graph."""
    language = SETTINGS.models[SETTINGS.replay[wildcards.replay].model].language
    made = [f"{BASES}/language/manifest.json"] if language == "miniature" else []
    return look_for_damage() + made + tokenizer_input(replay_tokens(wildcards))


def training(resource):
    """The amount of a resource that a training job requests."""
    return lambda wildcards: targets.training_resources(SETTINGS, wildcards.run)[resource]


def feature_pixels(wildcards):
    """The preprocessed images that a shard of features is computed from; none if the images are decoded for it."""
    return targets.encoding_pixels(SETTINGS, f"{ROOT}/{FEATURES.format(**wildcards)}.json")


def records_inputs(wildcards):
    """The reports of all datasets that a blend reads; the tables are in the same folder."""
    return below_root("records/{dataset}.report.json", dataset=targets.datasets_of(SETTINGS, wildcards.blend))


def tokens_inputs(wildcards):
    """The manifests of the token tables of all datasets that a blend reads."""
    tokens = SETTINGS.blends[wildcards.blend].tokens
    return below_root(
        "tokens/{tokens}/{dataset}.json", tokens=tokens, dataset=targets.datasets_of(SETTINGS, wildcards.blend)
    )


def all_data(wildcards):
    """The manifests of all parts of blends that runs need, and the previews."""
    return [
        f"{ROOT}/blend/{blend}/{file}"
        for blend in SETTINGS.blends
        for file in [*(f"{part}/manifest.json" for part in targets.blend_parts(SETTINGS, blend)), "preview.html"]
    ]


def all_exports(wildcards):
    """The exported folders of all runs that are evaluated, and the results of the others."""
    exported = below_root("exported/{run}/{which}/manifest.json", run=EVALUATED_RUNS, which=["final", "best"])
    return exported + below_root("train/{run}/finished.json", run=[*SETTINGS.runs])


def all_metrics(wildcards):
    """The scores of all runs that are evaluated."""
    return below_root("evaluate/{run}/metrics.json", run=EVALUATED_RUNS)


onstart:
    if PRODUCTS:
        try:
            targets.claim_root(PREFIXED_ROOT, SETTINGS.name)
            graph.write(workflow.dag, PREFIXED_ROOT, sys.argv)
            raw_files.remember_raw(SETTINGS, PREFIXED_ROOT)
            preflight.remove_leftovers(PREFIXED_ROOT)
            PRODUCTS.compact()
        except OSError as error:
            raise WorkflowError(machine_error(error) or str(error)) from None
        early_cutoff.install(workflow.dag, workflow.persistence, PRODUCTS)


onerror:
    shell("echo 'A step failed. Its error message is above and in the log file named there.' >&2")
