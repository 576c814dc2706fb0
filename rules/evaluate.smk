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
        suites=suite_options,
        root=folder(),
        out=subpath(output[0], parent=True),
    message:
        "Evaluating {wildcards.run}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.evaluate --name {wildcards.run:q} --settings {params.settings:q} "
        "{params.models:q} --heldout {params.heldout:q} {params.kinds:q} {params.without_kinds:q} "
        "{params.suites:q} --root {params.root:q} --out {params.out:q}"
