# Raw files: drawn (the miniature) or already on disk (data_path), listed with their hashes, and judged before anything is built.


rule miniature:
    output:
        manifest=f"{ROOT}/raw/miniature/miniature.json",
        kinds=f"{ROOT}/raw/miniature/kinds.json",
        dialogues=f"{ROOT}/raw/miniature/dialogues/dialogues.json",
    log:
        f"{ROOT}/logs/miniature.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=SETTINGS.miniature.cause(),
        code=code("scripts.miniature"),
        out=subpath(output.manifest, parent=True),
    message:
        "Drawing the miniature world and writing it in the datasets' own formats"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.miniature --settings {params.settings:q} --out {params.out:q}"


rule fetch:
    input:
        [] if SETTINGS.data_path else rules.miniature.output.manifest,
    output:
        manifest=f"{ROOT}/raw/{{source}}/source.json",
        listing=f"{ROOT}/raw/{{source}}/files.parquet",
    log:
        f"{ROOT}/logs/fetch/{{source}}.log",
    conda:
        "../envs/data.yaml"
    params:
        data_path=folder(RAW),
        require=lambda w: " ".join(f"--require {path}" for path in required_files(w.source)),
        # The user's files are no outputs of ours: their names, sizes and times are the cause.
        digest=lambda w: dag.folder_digest(RAW, tuple(required_files(w.source))) if SETTINGS.data_path else "",
        code=code("scripts.fetch"),
        out=subpath(output.manifest, parent=True),
    message:
        "Listing the raw files of {wildcards.source}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.fetch --source {wildcards.source} --data-path {params.data_path:q} "
        "{params.require} --out {params.out:q}"


rule validate_source:
    input:
        rules.fetch.output.manifest,
    output:
        f"{ROOT}/validated/source/{{source}}.json",
    log:
        f"{ROOT}/logs/validate/source-{{source}}.log",
    conda:
        "../envs/data.yaml"
    params:
        code=code("scripts.validate"),
        raw=subpath(input[0], parent=True),
    message:
        "Judging the files of {wildcards.source}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.validate --source {wildcards.source} --raw {params.raw:q} --out {output:q}"


rule validate_dataset:
    input:
        lambda w: below_root("validated/source/{source}.json", source=dag.sources_of(w.dataset)),
    output:
        f"{ROOT}/validated/{{dataset}}.json",
    log:
        f"{ROOT}/logs/validate/{{dataset}}.log",
    conda:
        "../envs/data.yaml"
    params:
        code=lambda w: code("scripts.validate", f"scripts.adapters.{w.dataset}"),
        raw=lambda w: " ".join(f"{source}={ROOT}/raw/{source}" for source in dag.sources_of(w.dataset)),
    message:
        "Judging the rows of {wildcards.dataset}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.validate --dataset {wildcards.dataset} --raw {params.raw} --out {output:q}"
