# Records: each dataset's raw rows as conversations with all alternative texts, and the exact token count of each text.


rule convert:
    input:
        validated=f"{ROOT}/validated/{{dataset}}.json",
        subset=subset_input,
        media=lambda w: below_root("media/{source}/manifest.json", source=REGISTRY.image_sources(w.dataset)),
    output:
        table=f"{ROOT}/records/{{dataset}}.parquet",
        report=report(
            f"{ROOT}/records/{{dataset}}.report.json",
            caption="captions/records.rst",
            category="Data",
            subcategory="Datasets",
            labels={"dataset": "{dataset}", "file": "rows kept and dropped"},
        ),
    log:
        f"{ROOT}/logs/convert/{{dataset}}.log",
    benchmark:
        f"{ROOT}/benchmarks/convert/{{dataset}}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        entry=lambda w: targets.dataset_rerun_key(SETTINGS, w.dataset),
        code=lambda w: row_code(
            SETTINGS, w.dataset, "scripts.convert", f"scripts.adapters.{REGISTRY.datasets[w.dataset].adapter}"
        ),
        raw=raw_folders,
        media=lambda w: named_folders("media", REGISTRY.image_sources(w.dataset)),
        tolerance=lambda w: SETTINGS.tolerance.rows_of(w.dataset in OWN),
        kept_rows=lambda w: option("--kept-rows", targets.kept_rows(SETTINGS, w.dataset)),
        subset=lambda w, input: option("--subset", input.subset),
        out=subpath(output.report, parent=True),
    message:
        "Converting {wildcards.dataset} to records"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.convert --dataset {wildcards.dataset:q} --raw {params.raw:q} "
        "--media {params.media:q} --tolerance {params.tolerance:q} {params.subset:q} {params.kept_rows:q} --out {params.out:q}"


rule count_tokens:
    input:
        table=rules.convert.output.table,
        report=rules.convert.output.report,
        tokenizer=lambda w: tokenizer_input(w.tokens),
    output:
        table=f"{ROOT}/tokens/{{tokens}}/{{dataset}}.parquet",
        manifest=f"{ROOT}/tokens/{{tokens}}/{{dataset}}.json",
    log:
        f"{ROOT}/logs/count_tokens/{{tokens}}/{{dataset}}.log",
    benchmark:
        f"{ROOT}/benchmarks/count_tokens/{{tokens}}/{{dataset}}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: SETTINGS.tokens[w.tokens].rerun_key(),
        tokenizer=lambda w: tokenizer_folder(w.tokens),
        followups=lambda w: ["--followups"] if targets.needs_followups(SETTINGS, w.tokens, w.dataset) else [],
        digest=lambda w: base_digest(tokenizer_folder(w.tokens), PREFIXED_ROOT, weights=False),
        code=code("scripts.count_tokens"),
        libraries=versions("tokenizers"),
        out=subpath(output.manifest, parent=True),
    message:
        "Counting the tokens of {wildcards.dataset} ({wildcards.tokens})"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.count_tokens --dataset {wildcards.dataset:q} --records {input.table:q} "
        "--report {input.report:q} --tokenizer {params.tokenizer:q} --settings {params.settings:q} {params.followups:q} "
        "--out {params.out:q}"
