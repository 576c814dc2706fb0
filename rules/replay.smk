# Replay: text-only datasets of a decoder's own answers, which blends mix in so that training does not make it forget how to talk.


# Of a model only the decoder is needed: the miniature's vision encoder depends on the hold-out, and so on all images.
rule replay:
    input:
        bases=replay_bases,
        prompts=lambda w: local(SETTINGS.replay[w.replay].prompts) if SETTINGS.replay[w.replay].prompts else [],
        records=lambda w: below_root("records/{dataset}.report.json", dataset=SETTINGS.replay[w.replay].questions_of),
    output:
        rows=f"{ROOT}/replay/{{replay}}/rows.jsonl",
        manifest=f"{ROOT}/replay/{{replay}}/manifest.json",
    log:
        f"{ROOT}/logs/replay/{{replay}}.log",
    benchmark:
        f"{ROOT}/benchmarks/replay/{{replay}}.tsv"
    conda:
        "../envs/train.yaml"
    threads: SETTINGS.evaluate.threads
    params:
        threads=SETTINGS.evaluate.threads,
        settings=lambda w: SETTINGS.replay[w.replay].rerun_key(model=""),
        tokens=lambda w: SETTINGS.tokens[replay_tokens(w)].rerun_key(),
        tokenizer=lambda w: tokenizer_folder(replay_tokens(w)),
        language=lambda w: base_folder(SETTINGS.replay[w.replay].model, "language"),
        digests=lambda w: [
            base_digest(tokenizer_folder(replay_tokens(w)), PREFIXED_ROOT, weights=False),
            base_digest(base_folder(SETTINGS.replay[w.replay].model, "language"), PREFIXED_ROOT),
        ],
        code=code("scripts.replay"),
        prompts=assets("scripts/inference/replay_prompts.yaml"),
        libraries=versions("tokenizers"),
        records=folder("records"),
        root=folder(),
        out=subpath(output.manifest, parent=True),
    message:
        "Answering the prompts of {wildcards.replay}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.replay --settings {params.settings:q} --tokens {params.tokens:q} "
        "--language {params.language:q} --tokenizer {params.tokenizer:q} --records {params.records:q} "
        "--threads {params.threads:q} --root {params.root:q} --out {params.out:q}"
