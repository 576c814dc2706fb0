# Blends: the plan (which conversations, in which order, with which alternative texts), and the shards written from it.


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
    benchmark:
        f"{ROOT}/benchmarks/plan/{{blend}}/{{part}}.tsv"
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: targets.plan_rerun_key(SETTINGS, w.blend),
        tokens=lambda w: f"{PREFIXED_ROOT}/tokens/{SETTINGS.blends[w.blend].tokens}",
        code=code("scripts.plan"),
        records=folder("records"),
        split=folder("split"),
        media=named_folders("media", IMAGE_SOURCES),
        out=subpath(output.manifest, parent=True),
    message:
        "Planning {wildcards.part} of the blend {wildcards.blend}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.plan --name {wildcards.blend:q} --settings {params.settings:q} "
        "--epoch {wildcards.part:q} --records {params.records:q} --tokens {params.tokens:q} --split {params.split:q} "
        "--media {params.media:q} --out {params.out:q}"


rule blend:
    input:
        plan=rules.plan.output.table,
        manifest=rules.plan.output.manifest,
        # The plan names images and the hashes of its records; the bytes of an image may change without it.
        images=lambda w: below_root(
            "media/{source}/manifest.json", source=targets.blend_image_sources(SETTINGS, w.blend)
        ),
    output:
        tar=f"{ROOT}/blend/{{blend}}/{{part}}/{{stem}}-{{number}}-of-{{total}}.tar",
        offsets=f"{ROOT}/blend/{{blend}}/{{part}}/{{stem}}-{{number}}-of-{{total}}.tar.idx",
        part_manifest=f"{ROOT}/blend/{{blend}}/{{part}}/parts/{{stem}}-{{number}}-of-{{total}}.json",
    log:
        f"{ROOT}/logs/blend/{{blend}}/{{part}}/{{stem}}-{{number}}-of-{{total}}.log",
    benchmark:
        f"{ROOT}/benchmarks/blend/{{blend}}/{{part}}/{{stem}}-{{number}}-of-{{total}}.tsv"
    wildcard_constraints:
        stem="train|heldout",
        number=r"\d{5}",
        total=r"\d{5}",
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: SETTINGS.blends[w.blend].rerun_key(only=("images",), tokens=""),
        code=code("scripts.blend"),
        root=folder(),
        records=folder("records"),
        media=named_folders("media", IMAGE_SOURCES),
        out=subpath(output.tar, parent=True),
    message:
        "Writing shard {wildcards.number} of {wildcards.total} of {wildcards.part} of the blend {wildcards.blend}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.blend --plan {input.plan:q} --records {params.records:q} "
        "--media {params.media:q} --settings {params.settings:q} --root {params.root:q} --shards {wildcards.total:q} "
        "--index {wildcards.number:q} --out {params.out:q}"


rule blend_manifest:
    input:
        plan=rules.plan.output.table,
        manifest=rules.plan.output.manifest,
        tars=lambda w: [f"{ROOT}/{shard}.tar" for shard in targets.blend_shards(SETTINGS, w.blend, w.part)],
        offsets=lambda w: [f"{ROOT}/{shard}.tar.idx" for shard in targets.blend_shards(SETTINGS, w.blend, w.part)],
        part_manifests=lambda w: [
            f"{ROOT}/{shard}.json" for shard in targets.blend_shards(SETTINGS, w.blend, w.part, "parts/")
        ],
    output:
        units=f"{ROOT}/blend/{{blend}}/{{part}}/units.idx",
        counts=f"{ROOT}/blend/{{blend}}/{{part}}/counts.npy",
        manifest=f"{ROOT}/blend/{{blend}}/{{part}}/manifest.json",
    log:
        f"{ROOT}/logs/blend_manifest/{{blend}}/{{part}}.log",
    conda:
        "../envs/data.yaml"
    params:
        code=code("scripts.blend_manifest"),
        shards=lambda w, input: len(input.tars),
        out=subpath(output.manifest, parent=True),
    message:
        "Describing the shards of {wildcards.part} of the blend {wildcards.blend}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.blend_manifest --plan {input.plan:q} --shards {params.shards:q} "
        "--out {params.out:q}"


rule preview:
    input:
        manifest=f"{ROOT}/blend/{{blend}}/epoch-000/manifest.json",
        tokenizer=lambda w: tokenizer_input(SETTINGS.blends[w.blend].tokens),
    output:
        report(
            f"{ROOT}/blend/{{blend}}/preview.html",
            caption="captions/preview.rst",
            category="Data",
            subcategory="Blends",
            labels={"blend": "{blend}", "file": "ten conversations"},
        ),
    log:
        f"{ROOT}/logs/preview/{{blend}}.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=lambda w: SETTINGS.tokens[SETTINGS.blends[w.blend].tokens].rerun_key(),
        tokenizer=lambda w: tokenizer_folder(SETTINGS.blends[w.blend].tokens),
        digest=lambda w: base_digest(tokenizer_folder(SETTINGS.blends[w.blend].tokens), PREFIXED_ROOT, weights=False),
        code=code("scripts.preview"),
        assets=assets("scripts/blending/*.jinja"),
        root=folder(),
        blend=subpath(input.manifest, parent=True),
    message:
        "Rendering ten conversations of the blend {wildcards.blend}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.preview --blend {params.blend:q} --root {params.root:q} "
        "--tokenizer {params.tokenizer:q} --settings {params.settings:q} --out {output:q}"
