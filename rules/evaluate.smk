# Scores of a run: held-out loss, exact match by kind of question, and suites. A killed evaluation is resumed.


rule evaluate_run:
    input:
        model=expand(f"{ROOT}/exported/{{{{run}}}}/{{which}}/manifest.json", which=SETTINGS.evaluate.checkpoints),
        heldout=lambda w: f"{ROOT}/blend/{SETTINGS.runs[w.run].blend}/heldout/manifest.json",
        kinds=[] if SETTINGS.data_path else rules.miniature.output.kinds,
        suites=targets.suite_inputs(SETTINGS, ROOT),
    output:
        report(
            f"{ROOT}/evaluate/{{run}}/metrics.json",
            caption="captions/metrics.rst",
            category="Runs",
            labels={"run": "{run}", "file": "scores"},
        ),
    log:
        f"{ROOT}/logs/evaluate/{{run}}.log",
    conda:
        "../envs/evaluate.yaml"
    threads: SETTINGS.evaluate.threads
    params:
        settings=SETTINGS.evaluate.rerun_key(),
        code=code("scripts.evaluate"),
        model=folder(f"{ROOT}/exported/{{run}}"),
        heldout=lambda w, input: os.path.dirname(input.heldout),
        kinds=lambda w, input: f"--kinds {shlex.quote(input.kinds)}" if input.kinds else "",
        suites=" ".join(
            f"--suite {shlex.quote(f'{name}={path}')}" for name, path in targets.suites(SETTINGS, ROOT).items()
        ),
        root=folder(ROOT),
        out=subpath(output[0], parent=True),
    message:
        "Evaluating {wildcards.run}"
    shell:
        "VISUALCHAT_LOG={log:q} python -m scripts.evaluate --name {wildcards.run} --settings {params.settings:q} "
        "--model {params.model:q} --heldout {params.heldout:q} {params.kinds} {params.suites} "
        "--root {params.root:q} --out {params.out:q}"
