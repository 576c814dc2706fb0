# Blends: the plan (which conversations, in which order, with which of their alternatives), and the shards written from it.


rule plan:
    input:
        records=records_inputs,
        tokens=tokens_inputs,
        media=below_root("media/{source}/manifest.json", source=IMAGE_SOURCES),
        split=rules.holdout.output.manifest,
    output:
        table=f"{ROOT}/plan/{{blend}}/{{part}}.parquet",
        manifest=f"{ROOT}/plan/{{blend}}/{{part}}.json",
    log:
        f"{ROOT}/logs/plan/{{blend}}/{{part}}.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: dag.plan_cause(SETTINGS, w.blend),
        tokens=lambda w: f"{ROOT}/tokens/{SETTINGS.blends[w.blend].tokens}",
        code=code("scripts.plan"),
        records=folder(f"{ROOT}/records"),
        split=folder(f"{ROOT}/split"),
        media=" ".join(f"{source}={ROOT}/media/{source}" for source in IMAGE_SOURCES),
        out=subpath(output.manifest, parent=True),
    message:
        "Planning {wildcards.part} of the blend {wildcards.blend}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.plan --name {wildcards.blend} --settings {params.settings:q} "
        "--epoch {wildcards.part} --records {params.records:q} --tokens {params.tokens:q} --split {params.split:q} "
        "--media {params.media} --out {params.out:q}"


# The number of shards is part of their names, so each blend and part has a rule of its own.
for _blend in SETTINGS.blends:
    for _part in dag.blend_parts(SETTINGS, _blend):

        rule:
            name:
                f"blend_{_blend}_{_part.replace('-', '_')}"
            input:
                plan=f"{ROOT}/plan/{_blend}/{_part}.parquet",
                manifest=f"{ROOT}/plan/{_blend}/{_part}.json",
            output:
                manifest=f"{ROOT}/blend/{_blend}/{_part}/manifest.json",
                tars=[f"{ROOT}/{shard}.tar" for shard in dag.blend_shards(SETTINGS, _blend, _part)],
                offsets=[f"{ROOT}/{shard}.tar.idx" for shard in dag.blend_shards(SETTINGS, _blend, _part)],
            log:
                f"{ROOT}/logs/blend/{_blend}/{_part}.log",
            conda:
                "../envs/data.yaml"
            params:
                settings=SETTINGS.blends[_blend].cause(only=("images", "shards", "tokens")),
                code=code("scripts.blend"),
                root=folder(ROOT),
                records=folder(f"{ROOT}/records"),
                media=" ".join(f"{source}={ROOT}/media/{source}" for source in IMAGE_SOURCES),
                out=subpath(output.manifest, parent=True),
            message:
                f"Writing the shards of {_part} of the blend {_blend}"
            shell:
                "VISUALCHAT_LOG={log:q} python -m scripts.blend --plan {input.plan:q} --records {params.records:q} "
                "--media {params.media} --settings {params.settings:q} --root {params.root:q} --out {params.out:q}"


rule preview:
    input:
        manifest=f"{ROOT}/blend/{{blend}}/epoch-000/manifest.json",
        tokenizer=lambda w: tokenizer_input(SETTINGS.blends[w.blend].tokens),
    output:
        f"{ROOT}/blend/{{blend}}/preview.html",
    log:
        f"{ROOT}/logs/preview/{{blend}}.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: SETTINGS.tokens[SETTINGS.blends[w.blend].tokens].cause(),
        tokenizer=lambda w: tokenizer_folder(SETTINGS.blends[w.blend].tokens),
        code=code("scripts.preview"),
        assets=assets("scripts/blending/*.jinja"),
        root=folder(ROOT),
        blend=subpath(input.manifest, parent=True),
    message:
        "Rendering ten conversations of the blend {wildcards.blend}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.preview --blend {params.blend:q} --root {params.root:q} "
        "--tokenizer {params.tokenizer:q} --settings {params.settings:q} --out {output:q}"
