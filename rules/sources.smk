# Raw files: generated (the miniature) or provided (data_path), listed with hashes, and validated before anything else.


rule miniature:
    input:
        lambda w: look_for_damage(),
    output:
        manifest=f"{ROOT}/raw/miniature/miniature.json",
        kinds=f"{ROOT}/raw/miniature/kinds.json",
        dialogues=f"{ROOT}/raw/miniature/dialogues/dialogues.json",
        tasks=below_root("raw/miniature/tasks/{task}.yaml", task=targets.TASKS),
    log:
        f"{ROOT}/logs/miniature.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=SETTINGS.miniature.rerun_key(),
        code=code("scripts.miniature"),
        libraries=versions("pillow"),
        out=subpath(output.manifest, parent=True),
    message:
        "Generating the miniature in the raw formats of the datasets"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.miniature --settings {params.settings:q} --out {params.out:q}"


# The images of a subset are selected from the annotations, before any image is downloaded.
rule select_subset:
    input:
        below_root("raw/{source}/source.json", source=SUBSET_ANNOTATION_SOURCES),
    output:
        f"{ROOT}/raw/subset.json",
    log:
        f"{ROOT}/logs/select_subset.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=SETTINGS.subset.rerun_key() if SETTINGS.subset else "",
        datasets=SUBSET_DATASETS,
        sources=targets.subset_sources(SETTINGS),
        raw=named_folders("raw", SUBSET_ANNOTATION_SOURCES),
        code=code(
            "scripts.select_subset",
            *(f"scripts.adapters.{REGISTRY.datasets[name].adapter}" for name in SUBSET_DATASETS),
        ),
    message:
        "Selecting a subset of the images"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.select_subset --settings {params.settings:q} "
        "--datasets {params.datasets:q} --sources {params.sources:q} --raw {params.raw:q} --out {output:q}"


rule fetch:
    input:
        damage=lambda w: look_for_damage(),
        miniature=lambda w: [] if SETTINGS.data_path or w.source in OWN else rules.miniature.output.manifest,
        replay=lambda w: f"{ROOT}/replay/{w.source}/manifest.json" if w.source in SETTINGS.replay else [],
        subset=lambda w: rules.select_subset.output if w.source in targets.subset_sources(SETTINGS) else [],
    output:
        manifest=f"{ROOT}/raw/{{source}}/source.json",
        files=f"{ROOT}/raw/{{source}}/files.parquet",
        images=f"{ROOT}/raw/{{source}}/images.parquet",
    log:
        f"{ROOT}/logs/fetch/{{source}}.log",
    conda:
        "../envs/data.yaml"
    resources:
        # Limits how many sources are downloaded at once; profiles/default sets the limit.
        download=int(SETTINGS.download == "missing"),
    params:
        data_path=lambda w: targets.data_path(SETTINGS, w.source, PREFIXED_ROOT),
        require=lambda w: [f"--require={path}" for path in REGISTRY.requirements(w.source, SETTINGS.datasets())],
        custom=lambda w: option("--custom", OWN[w.source].rerun_key() if w.source in OWN else []),
        entry=lambda w: targets.source_rerun_key(SETTINGS, w.source),
        digest=raw_digest,
        download=lambda w: ["--download"] if SETTINGS.download == "missing" and w.source not in OWN else [],
        subset=lambda w, input: option("--subset", input.subset),
        code=lambda w: row_code(SETTINGS, w.source, "scripts.fetch"),
        out=subpath(output.manifest, parent=True),
    message:
        "Listing the raw files of {wildcards.source}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.fetch --source {wildcards.source:q} {params.custom:q} {params.download:q} "
        "{params.subset:q} --data-path {params.data_path:q} {params.require:q} --out {params.out:q}"


rule validate_source:
    input:
        rules.fetch.output.manifest,
    output:
        f"{ROOT}/validated/source/{{source}}.json",
    log:
        f"{ROOT}/logs/validate/source/{{source}}.log",
    conda:
        "../envs/data.yaml"
    params:
        code=lambda w: row_code(SETTINGS, w.source, "scripts.validate"),
        raw=lambda w: named_folders("raw", [w.source]),
    message:
        "Validating the files of {wildcards.source}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.validate --source {wildcards.source:q} --raw {params.raw:q} "
        "--out {output:q}"


rule validate_dataset:
    input:
        subset=subset_input,
        sources=lambda w: below_root("validated/source/{source}.json", source=REGISTRY.sources_of(w.dataset)),
    output:
        f"{ROOT}/validated/{{dataset}}.json",
    log:
        f"{ROOT}/logs/validate/{{dataset}}.log",
    conda:
        "../envs/data.yaml"
    params:
        entry=lambda w: targets.dataset_rerun_key(SETTINGS, w.dataset),
        code=lambda w: row_code(
            SETTINGS, w.dataset, "scripts.validate", f"scripts.adapters.{REGISTRY.datasets[w.dataset].adapter}"
        ),
        raw=raw_folders,
        subset=lambda w, input: option("--subset", input.subset),
    message:
        "Validating the rows of {wildcards.dataset}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.validate --dataset {wildcards.dataset:q} --raw {params.raw:q} "
        "{params.subset:q} --out {output:q}"
