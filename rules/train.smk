# A run: training on the parts of its blend, and the export of the trained model.


# On a cluster the limit of profiles/default does not apply, because the jobs do not run on this machine.
resource_scopes:
    trainings="local",


rule train_run:
    input:
        model=lambda w: f"{ROOT}/models/{SETTINGS.runs[w.run].model}/manifest.json",
        parts=lambda w: [
            f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/{part}/manifest.json"
            for part in targets.epoch_parts(SETTINGS, w.run)
        ],
        heldout=lambda w: f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/heldout/manifest.json",
        pixels=lambda w: targets.training_pixels(SETTINGS, w.run),
        features=lambda w: targets.feature_manifests(SETTINGS, w.run),
        start=lambda w: targets.start_result(SETTINGS, w.run),
    output:
        # `update` keeps the last good result until a newer one has succeeded. Checkpoints are not declared as outputs:
        # Snakemake would delete them before a retry.
        update(f"{ROOT}/train/{{run}}/finished.json"),
    log:
        f"{ROOT}/logs/train/{{run}}.log",
    benchmark:
        f"{ROOT}/benchmarks/train/{{run}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: lambda w: targets.training_threads(SETTINGS, w.run)
    resources:
        trainings=1,
        gpu=training("gpu"),
        mem_mb=training("mem_mb"),
        nodes=training("nodes"),
        tasks=training("tasks"),
        tasks_per_gpu=training("tasks_per_gpu"),
        mpi=training("mpi"),
        slurm_extra=training("slurm_extra"),
        # Minutes after which the run stops with a checkpoint, to be continued by another attempt; 0: no limit. Profiles
        # set it.
        runtime=0,
        # Not a parameter: another number of ranks, which gives the same numbers, is no reason to train again.
        execution=lambda w: targets.run_execution(SETTINGS, w.run),
    params:
        settings=lambda w: targets.run_rerun_key(SETTINGS, w.run),
        code=code("scripts.train", "scripts.training.node_launcher", "scripts.training.worker"),
        model=lambda w, input: os.path.dirname(input.model),
        parts=lambda w, input: [os.path.dirname(part) for part in input.parts],
        heldout=lambda w, input: os.path.dirname(input.heldout),
        pixels=lambda w, input: option("--pixels", input.pixels),
        features=lambda w, input: option("--features", input.features),
        start=lambda w, input: option("--start", [os.path.dirname(path) for path in input.start]),
        root=folder(),
        out=subpath(output[0], parent=True),
    message:
        "Training {wildcards.run}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.train --name {wildcards.run:q} --settings {params.settings:q} "
        "--execution {resources.execution:q} --model {params.model:q} --blend {params.parts:q} "
        "--heldout {params.heldout:q} {params.pixels:q} {params.features:q} {params.start:q} "
        "--root {params.root:q} --out {params.out:q} --minutes {resources.runtime:q}"


rule export:
    input:
        finished=rules.train_run.output,
        model=lambda w: f"{ROOT}/models/{SETTINGS.runs[w.run].model}/manifest.json",
    output:
        update(f"{ROOT}/exported/{{run}}/final/manifest.json"),
        update(f"{ROOT}/exported/{{run}}/best/manifest.json"),
    log:
        f"{ROOT}/logs/export/{{run}}.log",
    benchmark:
        f"{ROOT}/benchmarks/export/{{run}}.tsv"
    conda:
        "../envs/train.yaml"
    params:
        code=code("scripts.export"),
        run=folder("train/{run}"),
        model=lambda w, input: os.path.dirname(input.model),
        form=lambda w: SETTINGS.runs[w.run].export,
        root=folder(),
        out=folder("exported/{run}"),
    message:
        "Exporting {wildcards.run} as Hugging Face folders"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.export --form {params.form:q} --run {params.run:q} "
        "--model {params.model:q} --root {params.root:q} --out {params.out:q}"
