# Models before training: the miniature's pretrained bases, and the VisualChat model assembled from two bases.

BASE_FILES = {
    "tokenizer": ["tokenizer.json", "tokenizer_config.json"],
    "vision": ["model.safetensors", "config.json", "preprocessor_config.json"],
    "language": ["model.safetensors", "config.json"],
}


# The bases are trained on separate scenes, not on the miniature's images: they depend on its settings, and the vision
# encoder on the hold-out, which it must not see.
for _base in BASE_FILES:

    rule:
        name:
            f"pretrain_{_base}"
        input:
            tokenizer=f"{BASES}/tokenizer/manifest.json" if _base == "language" else [],
            split=rules.holdout.output.manifest if _base == "vision" else [],
        output:
            manifest=f"{BASES}/{_base}/manifest.json",
            files=[f"{BASES}/{_base}/{file}" for file in BASE_FILES[_base]],
        log:
            f"{ROOT}/logs/pretrain/{_base}.log",
        benchmark:
            f"{ROOT}/benchmarks/pretrain/{_base}.tsv"
        conda:
            "../envs/train.yaml"
        params:
            part=_base,
            world=targets.world_rerun_key(SETTINGS),
            settings=getattr(SETTINGS.pretrain, _base).rerun_key(),
            # Not scripts.pretrain, which imports all three: a base depends on its own code only.
            code=code(f"scripts.pretraining.{_base}"),
            libraries=versions("pillow") if _base == "vision" else versions("tokenizers"),
            tokenizer=lambda w, input: option("--tokenizer", os.path.dirname(str(input.tokenizer))),
            split=lambda w, input: option("--split", os.path.dirname(str(input.split))),
            out=subpath(output.manifest, parent=True),
        message:
            f"Making the miniature's {_base}"
        shell:
            "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
            "python -m scripts.pretrain {params.part:q} --world {params.world:q} "
            "--settings {params.settings:q} {params.tokenizer:q} {params.split:q} --out {params.out:q}"


rule make_model:
    input:
        base_inputs,
    output:
        manifest=f"{ROOT}/models/{{model}}/manifest.json",
        config=f"{ROOT}/models/{{model}}/config.json",
        projector=f"{ROOT}/models/{{model}}/projector.safetensors",
    log:
        f"{ROOT}/logs/make_model/{{model}}.log",
    benchmark:
        f"{ROOT}/benchmarks/make_model/{{model}}.tsv"
    conda:
        "../envs/train.yaml"
    params:
        settings=lambda w: targets.model_rerun_key(SETTINGS, w.model),
        tokens=lambda w: SETTINGS.tokens[SETTINGS.models[w.model].tokens].rerun_key(),
        tokenizer=lambda w: tokenizer_folder(SETTINGS.models[w.model].tokens),
        vision=lambda w: base_folder(w.model, "vision"),
        language=lambda w: base_folder(w.model, "language"),
        digests=lambda w: [
            base_digest(tokenizer_folder(SETTINGS.models[w.model].tokens), PREFIXED_ROOT, weights=False),
            *(base_digest(base_folder(w.model, kind), PREFIXED_ROOT) for kind in ("vision", "language")),
        ],
        code=code("scripts.make_model"),
        libraries=versions("tokenizers"),
        root=folder(),
        out=subpath(output.manifest, parent=True),
    message:
        "Assembling the model {wildcards.model}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.make_model --settings {params.settings:q} --tokens {params.tokens:q} "
        "--vision {params.vision:q} --language {params.language:q} --tokenizer {params.tokenizer:q} "
        "--root {params.root:q} --out {params.out:q}"
