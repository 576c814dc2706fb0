# The report: counts and scores of all other stages in one self-contained page.


rule report_page:
    input:
        records=below_root("records/{dataset}.report.json", dataset=SETTINGS.datasets()),
        validated=below_root("validated/{dataset}.json", dataset=SETTINGS.datasets()),
        media=below_root("media/{source}/manifest.json", source=IMAGE_SOURCES),
        plans=[f"{ROOT}/plan/{b}/{part}.json" for b in SETTINGS.blends for part in targets.blend_parts(SETTINGS, b)],
        finished=below_root("train/{run}/finished.json", run=SETTINGS.runs),
        metrics=below_root("evaluate/{run}/metrics.json", run=EVALUATED_RUNS),
        forgetting=below_root("evaluate/{run}/forgetting.json", run=FORGETTING_RUNS),
        locks=below_root("train/{run}/lock.json", run=EVALUATED_RUNS),
        suites=[path for path in SUITE_INPUTS if path in targets.suites(SETTINGS, ROOT).values()],
    output:
        report(f"{ROOT}/report.html", caption="captions/report.rst", category="Report"),
    log:
        f"{ROOT}/logs/report.log",
    conda:
        "../envs/report.yaml"
    params:
        title=SETTINGS.name,
        # Written when Snakemake starts (see common.smk): no rule makes it, so it cannot be an input.
        graph=folder(graph.FILE),
        code=code("scripts.report"),
        assets=assets("scripts/reporting/*.jinja", "scripts/reporting/*.css"),
        suites=suite_options,
    message:
        "Writing the report"
    shell:
        "PYTHONSAFEPATH=1 VISUALCHAT_LOG={log:q} "
        "python -m scripts.report --records {input.records:q} --validated {input.validated:q} "
        "--media {input.media:q} --plans {input.plans:q} --finished {input.finished:q} --metrics {input.metrics:q} "
        "--forgetting {input.forgetting:q} "
        "--locks {input.locks:q} {params.suites:q} --graph {params.graph:q} --title {params.title:q} --out {output:q}"
