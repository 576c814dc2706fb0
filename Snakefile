# VisualChat: from raw datasets to a chat model, as one graph of files.
#
#   raw/<source>        raw files: downloaded, generated or provided      rules/sources.smk
#   media/<source>      every image once, in tar shards                   rules/media.smk
#   replay/<name>       a decoder's own answers as rows                   rules/replay.smk
#   records/<dataset>   rows as conversations; tokens/ counts tokens      rules/records.smk
#   plan/, blend/       training data, in training order                  rules/blends.smk
#   models/, bases/     models before training                            rules/models.smk
#   train/, exported/   runs, and their models as folders                 rules/train.smk
#   evaluate/           scores and dialogues                              rules/evaluate.smk
#   train/*/lock.json   the provenance of a run                           rules/lock.smk
#   report.html         the report                                        rules/report.smk
#
# All paths are below the results root of the configuration. Targets: all (default), data, train, evaluate, report.

from snakemake.utils import min_version

min_version("9.25")

# A recipe given with --configfile is complete: keys of the default configuration must not leak into it.
if not workflow.config_settings.configfiles:

    configfile: f"{workflow.current_basedir}/config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/sources.smk"
include: "rules/media.smk"
include: "rules/replay.smk"
include: "rules/records.smk"
include: "rules/blends.smk"
include: "rules/models.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/lock.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        f"{ROOT}/report.html",
        all_data,


rule data:
    input:
        all_data,


rule train:
    input:
        all_exports,


rule evaluate:
    input:
        all_metrics,
        below_root("train/{run}/lock.json", run=EVALUATED_RUNS),
        below_root("evaluate/{run}/forgetting.json", run=FORGETTING_RUNS),


rule report:
    input:
        f"{ROOT}/report.html",
