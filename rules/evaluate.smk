# Scores of a run: held-out loss, exact match by kind of question, and suites. A killed evaluation is resumed.


rule evaluate_run:
    input:
        model=below_root("exported/{{run}}/{which}/manifest.json", which=SETTINGS.evaluate.checkpoints),
        heldout=lambda w: f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/heldout/manifest.json",
        kinds=lambda w: (
            rules.miniature.output.kinds if targets.has_kinds(SETTINGS, SETTINGS.runs[w.run].blend) else []
        ),
        suites=SUITE_INPUTS,
        # Of the miniature's suites also the images count, which its manifest covers.
        world=rules.miniature.output.manifest if targets.miniature_suites(SETTINGS) else [],
    output:
        report(
            f"{ROOT}/evaluate/{{run}}/metrics.json",
            caption="captions/metrics.rst",
            category="Runs",
            labels={"run": "{run}", "file": "scores"},
        ),
    log:
        f"{ROOT}/logs/evaluate/{{run}}.log",
    benchmark:
        f"{ROOT}/benchmarks/evaluate/{{run}}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: SETTINGS.evaluate.threads
    params:
        settings=SETTINGS.evaluate.rerun_key(),
        images=raw_files.suite_images(SETTINGS) if PRODUCTS else "",
        code=code("scripts.evaluate"),
        models=lambda w, input: [
            f"--model={os.path.basename(os.path.dirname(path))}={os.path.dirname(path)}" for path in input.model
        ],
        heldout=lambda w, input: os.path.dirname(input.heldout),
        kinds=lambda w, input: option("--kinds", input.kinds),
        without_kinds=lambda w: option("--without-kinds", targets.without_kinds(SETTINGS, SETTINGS.runs[w.run].blend)),
        loss_only=lambda w: option("--loss-only", targets.replay_datasets(SETTINGS, SETTINGS.runs[w.run].blend)),
        suites=suite_options,
        root=folder(),
        out=subpath(output[0], parent=True),
    message:
        "Evaluating {wildcards.run}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.evaluate --name {wildcards.run:q} --settings {params.settings:q} "
        "{params.models:q} --heldout {params.heldout:q} {params.kinds:q} {params.without_kinds:q} "
        "{params.loss_only:q} {params.suites:q} --root {params.root:q} --out {params.out:q}"


# What a run on a pretrained decoder still says to text without images, beside what its model said before training.
rule forgetting:
    input:
        model=lambda w: f"{ROOT}/models/{SETTINGS.runs[w.run].model}/manifest.json",
        exported=f"{ROOT}/exported/{{run}}/final/manifest.json",
        heldout=lambda w: f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/heldout/manifest.json",
    output:
        report(
            f"{ROOT}/evaluate/{{run}}/forgetting.json",
            caption="captions/forgetting.rst",
            category="Runs",
            labels={"run": "{run}", "file": "text answers before and after"},
        ),
    log:
        f"{ROOT}/logs/forgetting/{{run}}.log",
    benchmark:
        f"{ROOT}/benchmarks/forgetting/{{run}}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: SETTINGS.evaluate.threads
    params:
        threads=SETTINGS.evaluate.threads,
        device=SETTINGS.evaluate.device,
        confidence=SETTINGS.evaluate.confidence,
        without=lambda w: option("--without", targets.replay_datasets(SETTINGS, SETTINGS.runs[w.run].blend)),
        code=code("scripts.forgetting"),
        prompts=assets("scripts/evaluation/forgetting_prompts.yaml"),
        model=lambda w, input: os.path.dirname(input.model),
        exported=lambda w, input: os.path.dirname(input.exported),
        heldout=lambda w, input: os.path.dirname(input.heldout),
        cache=lambda w: f"{PREFIXED_ROOT}/evaluate/.before_training/{SETTINGS.runs[w.run].model}",
        root=folder(),
    message:
        "Comparing the text answers of {wildcards.run} with those before training"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.forgetting --name {wildcards.run:q} --model {params.model:q} --exported {params.exported:q} "
        "--heldout {params.heldout:q} {params.without:q} --root {params.root:q} --cache {params.cache:q} "
        "--device {params.device:q} --threads {params.threads:q} --confidence {params.confidence:q} --out {output:q}"
