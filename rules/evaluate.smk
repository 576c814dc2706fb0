# Scores of a run: held-out loss, exact match by kind of question, and suites. A killed evaluation is resumed.


rule evaluate_run:
    input:
        model=below_root("exported/{{run}}/{which}/manifest.json", which=SETTINGS.evaluate.checkpoints),
        heldout=lambda w: f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/heldout/manifest.json",
        kinds=[] if SETTINGS.data_path else rules.miniature.output.kinds,
        suites=SUITE_INPUTS,
        # Of the miniature's suites also the images count, which its manifest covers.
        world=[] if SETTINGS.data_path else rules.miniature.output.manifest,
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
        suites=suite_options,
        root=folder(),
        out=subpath(output[0], parent=True),
    message:
        "Evaluating {wildcards.run}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.evaluate --name {wildcards.run:q} --settings {params.settings:q} "
        "{params.models:q} --heldout {params.heldout:q} {params.kinds:q} {params.suites:q} "
        "--root {params.root:q} --out {params.out:q}"
