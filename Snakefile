# VisualChat: from raw datasets to a chat model, as one graph of files.
#
#   raw/<source>        what was downloaded, drawn, or already there      rules/sources.smk
#   media/<source>      every image once, in tar shards                   rules/media.smk
#   records/<dataset>   rows as conversations; tokens/ counts them        rules/records.smk
#   plan/, blend/       what is trained on, in which order                rules/blends.smk
#   models/, bases/     the network before training                       rules/models.smk
#   train/, exported/   a run, and the folders it leaves                  rules/train.smk
#   evaluate/           scores and dialogues                              rules/evaluate.smk
#   train/*/lock.json   the passport of a run                             rules/lock.smk
#   report.html         what a person looks at                            rules/report.smk
#
# All of it lies below the results root of the configuration. Targets: all (default), data, train, evaluate, report.

from snakemake.utils import min_version

min_version("9.25")

# A recipe given with --configfile is complete: the default configuration must not shine through it.
if not workflow.config_settings.configfiles:

    configfile: f"{workflow.basedir}/config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/sources.smk"
include: "rules/media.smk"
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
        below_root("train/{run}/lock.json", run=SETTINGS.runs),


rule report:
    input:
        f"{ROOT}/report.html",
