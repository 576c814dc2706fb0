# The provenance of a run: size and hash of all of its inputs and outputs. Written last; the report shows it.


rule lock:
    input:
        lambda w: [f"{ROOT}/{manifest}" for manifest in lock_inputs.provenance_manifests(SETTINGS, w.run)],
    output:
        report(
            f"{ROOT}/train/{{run}}/lock.json",
            caption="captions/lock.rst",
            category="Runs",
            labels={"run": "{run}", "file": "provenance"},
        ),
    log:
        f"{ROOT}/logs/lock/{{run}}.log",
    conda:
        "../envs/train.yaml"
    params:
        programs=lambda w: lock_inputs.provenance_programs(SETTINGS, w.run),
        code=lambda w: code("scripts.lock", *lock_inputs.provenance_programs(SETTINGS, w.run)),
        root=folder(),
    message:
        "Writing the provenance of {wildcards.run}"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.lock --root {params.root:q} --run {wildcards.run:q} "
        "--manifests {input:q} --programs {params.programs:q} --out {output:q}"
