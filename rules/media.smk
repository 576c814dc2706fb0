# Images: every readable image of a source once, in tar shards with an index; which of them are held out; and, for runs
# with `pixels: true`, the images after the encoder's image processor; with `features: true`, the encoder's output.


rule shard:
    input:
        f"{ROOT}/validated/source/{{source}}.json",
    output:
        tar=f"{ROOT}/media/{{source}}/{{source}}-{{number}}-of-{{total}}.tar",
        offsets=f"{ROOT}/media/{{source}}/{{source}}-{{number}}-of-{{total}}.tar.idx",
        part=f"{ROOT}/media/{{source}}/parts/{{source}}-{{number}}-of-{{total}}.parquet",
    log:
        f"{ROOT}/logs/shard/{{source}}-{{number}}-of-{{total}}.log",
    benchmark:
        f"{ROOT}/benchmarks/shard/{{source}}-{{number}}-of-{{total}}.tsv"
    wildcard_constraints:
        number=r"\d{5}",
        total=r"\d{5}",
    conda:
        "../envs/data.yaml"
    params:
        # Archives are not hashed as a whole: without this, a change of one between two runs could go unnoticed.
        digest=raw_digest,
        code=lambda w: row_code(SETTINGS, w.source, "scripts.shard"),
        libraries=versions("pillow"),
        raw=folder("raw/{source}"),
        out=subpath(output.tar, parent=True),
    message:
        "Checking and packing images of {wildcards.source}, shard {wildcards.number} of {wildcards.total}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.shard --source {wildcards.source:q} --raw {params.raw:q} "
        "--shards {wildcards.total:q} --index {wildcards.number:q} --out {params.out:q}"


rule media_index:
    input:
        source=f"{ROOT}/raw/{{source}}/source.json",
        tars=lambda w: [f"{ROOT}/{shard}.tar" for shard in targets.media_shards(SETTINGS, w.source)],
        offsets=lambda w: [f"{ROOT}/{shard}.tar.idx" for shard in targets.media_shards(SETTINGS, w.source)],
        parts=lambda w: [
            f"{ROOT}/media/{w.source}/parts/{os.path.basename(shard)}.parquet"
            for shard in targets.media_shards(SETTINGS, w.source)
        ],
    output:
        index=f"{ROOT}/media/{{source}}/index.parquet",
        rejected=f"{ROOT}/media/{{source}}/rejected.parquet",
        manifest=f"{ROOT}/media/{{source}}/manifest.json",
    log:
        f"{ROOT}/logs/media_index/{{source}}.log",
    conda:
        "../envs/data.yaml"
    params:
        code=code("scripts.media_index"),
        shards=lambda w, input: len(input.tars),
        raw=folder("raw/{source}"),
        tolerance=SETTINGS.tolerance.images,
        out=subpath(output.manifest, parent=True),
    message:
        "Indexing the images of {wildcards.source}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.media_index --source {wildcards.source:q} --shards {params.shards:q} "
        "--raw {params.raw:q} --tolerance {params.tolerance:q} --out {params.out:q}"


rule holdout:
    input:
        below_root("media/{source}/manifest.json", source=IMAGE_SOURCES),
    output:
        table=f"{ROOT}/split/heldout.parquet",
        manifest=f"{ROOT}/split/manifest.json",
    log:
        f"{ROOT}/logs/holdout.log",
    conda:
        "../envs/data.yaml"
    params:
        settings=SETTINGS.holdout.rerun_key(without=("mixed",)),
        code=code("scripts.holdout"),
        media=named_folders("media", IMAGE_SOURCES),
        out=subpath(output.manifest, parent=True),
    message:
        "Selecting the images that are held out for evaluation"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.holdout --settings {params.settings:q} --media {params.media:q} "
        "--out {params.out:q}"


rule preprocess_images:
    input:
        media=f"{ROOT}/media/{{source}}/manifest.json",
        processor=lambda w: targets.processor_input(SETTINGS, w.encoder),
    output:
        crops=f"{ROOT}/pixels/{{encoder}}/{{source}}-{{number}}-of-{{total}}.u8",
        hashes=f"{ROOT}/pixels/{{encoder}}/{{source}}-{{number}}-of-{{total}}.sha256",
        sums=f"{ROOT}/pixels/{{encoder}}/{{source}}-{{number}}-of-{{total}}.sums",
        manifest=f"{ROOT}/pixels/{{encoder}}/{{source}}-{{number}}-of-{{total}}.json",
    log:
        f"{ROOT}/logs/preprocess_images/{{encoder}}/{{source}}-{{number}}-of-{{total}}.log",
    benchmark:
        f"{ROOT}/benchmarks/preprocess_images/{{encoder}}/{{source}}-{{number}}-of-{{total}}.tsv"
    wildcard_constraints:
        encoder=r"[\w.-]+",
        number=r"\d{5}",
        total=r"\d{5}",
    conda:
        "../envs/train.yaml"
    params:
        processor=lambda w: targets.processor_folder(SETTINGS, w.encoder, PREFIXED_ROOT),
        digest=lambda w: base_digest(
            targets.processor_folder(SETTINGS, w.encoder, PREFIXED_ROOT), PREFIXED_ROOT, weights=False
        ),
        code=code("scripts.preprocess_images"),
        libraries=versions("pillow"),
        folder=folder("media/{source}"),
        shard=subpath(output.manifest, basename=True, strip_suffix=".json"),
        out=subpath(output.crops, parent=True),
    message:
        "Preprocessing images of {wildcards.source} for {wildcards.encoder}, shard {wildcards.number} of {wildcards.total}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.preprocess_images --processor {params.processor:q} "
        "--source {wildcards.source:q} --media {params.folder:q} "
        "--shard {params.shard:q} --out {params.out:q}"


rule encode_images:
    input:
        media=f"{ROOT}/media/{{source}}/manifest.json",
        encoder=lambda w: f"{BASES}/vision/manifest.json" if w.encoder == "miniature" else [],
        pixels=feature_pixels,
    output:
        features=f"{ROOT}/{FEATURES}.bf16",
        hashes=f"{ROOT}/{FEATURES}.sha256",
        sums=f"{ROOT}/{FEATURES}.sums",
        manifest=f"{ROOT}/{FEATURES}.json",
    log:
        f"{ROOT}/logs/encode_images/{{encoder}}/layer{{layer}}-{{class_token}}-{{precision}}/{{source}}-{{number}}-of-{{total}}.log",
    benchmark:
        f"{ROOT}/benchmarks/encode_images/{{encoder}}/layer{{layer}}-{{class_token}}-{{precision}}/{{source}}-{{number}}-of-{{total}}.tsv"
    wildcard_constraints:
        encoder=r"[\w.-]+",
        layer=r"-?\d+",
        class_token="drop|keep",
        precision="fp32|bf16|fp16",
        number=r"\d{5}",
        total=r"\d{5}",
    conda:
        "../envs/train.yaml"
    resources:
        # As trainings do: a GPU unless they compute in fp32, one of them at a time on this machine.
        gpu=lambda w: None if w.precision == "fp32" else 1,
        trainings=lambda w: 0 if w.precision == "fp32" else 1,
    params:
        encoder=lambda w: targets.processor_folder(SETTINGS, w.encoder, PREFIXED_ROOT),
        digest=lambda w: base_digest(targets.processor_folder(SETTINGS, w.encoder, PREFIXED_ROOT), PREFIXED_ROOT),
        code=code("scripts.encode_images"),
        libraries=versions("pillow"),
        folder=folder("media/{source}"),
        shard=subpath(output.manifest, basename=True, strip_suffix=".json"),
        pixels=lambda w, input: option("--pixels", input.pixels),
        root=folder(),
        out=subpath(output.features, parent=True),
    message:
        "Encoding images of {wildcards.source} with {wildcards.encoder}, shard {wildcards.number} of {wildcards.total}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.encode_images --encoder {params.encoder:q} --layer {wildcards.layer:q} "
        "--class-token {wildcards.class_token:q} --precision {wildcards.precision:q} --source {wildcards.source:q} "
        "--media {params.folder:q} --shard {params.shard:q} {params.pixels:q} "
        "--root {params.root:q} --out {params.out:q}"
