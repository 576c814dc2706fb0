"""Task files: evaluation suites with the keys of lmms-eval, over local data.

    task: which
    dataset_path: json                       # or csv, parquet, imagefolder, dialogues, file, folder (task_documents.py)
    dataset_kwargs: {data_files: {test: which.jsonl}}
    test_split: test
    output_type: generate_until              # or generate_until_multi_round, multiple_choice, loglikelihood
    doc_to_visual: images                    # a field with a path, several, or stored images
    doc_to_text: "{{question}} Answer in one word."
    doc_to_target: answer                    # one answer or a list of them; with doc_to_choice an index or a choice
    metric_list: [{metric: exact_match}]     # docs/evaluation.md lists them; the first decides what is correct
    metadata: {version: 1}

`read_task` turns it into a `Suite` and decodes every image, so that errors are reported before a model is loaded.
Beyond lmms-eval, `doc_to_messages` may be a field or a list of messages with templates in them, whose image parts name
their image by `url` or by `index` into `doc_to_visual`, and `cluster_key` groups versions of one question. With
`generate_until`, rounds that have an answer in the document are given as context, not generated; with
`generate_until_multi_round` they are generated, and the answers in the document are their references.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.evaluation import task_documents
from scripts.evaluation.filters import pipeline
from scripts.evaluation.metric_registry import Metric
from scripts.evaluation.scoring import MetricSpec, metric_spec
from scripts.evaluation.suites import (
    GENERATE_UNTIL,
    LOGLIKELIHOOD,
    MULTI_ROUND,
    MULTIPLE_CHOICE,
    Dialogue,
    OutputType,
    Suite,
    SuiteRound,
)
from scripts.evaluation.task_messages import conversation, images_of
from scripts.evaluation.task_templates import Function, literal, load_yaml, text_of
from scripts.evaluation.turns import Turn
from scripts.inference.generation import GenerationOptions

_DEFAULT_METRICS = {
    GENERATE_UNTIL: ["exact_match"],
    MULTI_ROUND: ["exact_match"],
    MULTIPLE_CHOICE: ["acc", "acc_norm"],
    LOGLIKELIHOOD: ["perplexity"],
}
_MODEL = "visualchat"


class MetricEntry(BaseModel):
    """An entry of `metric_list`; all other keys in it are options of the metric."""

    model_config = ConfigDict(extra="allow")
    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None


class GenerationKwargs(BaseModel):
    """`generation_kwargs`."""

    model_config = ConfigDict(extra="forbid")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    until: list[str] | str | None = None
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1

    def options(self) -> GenerationOptions:
        """Convert to `GenerationOptions`. As in lmms-eval, a temperature of 0 means greedy decoding."""
        sample = self.do_sample and self.temperature != 0
        until = [self.until] if isinstance(self.until, str) else self.until or []
        return GenerationOptions(
            max_new_tokens=self.max_new_tokens,
            until=tuple(until),
            do_sample=sample,
            temperature=self.temperature if sample else None,
            top_p=self.top_p if sample else None,
            top_k=self.top_k if sample else None,
            num_beams=self.num_beams,
        )


class FilterEntry(BaseModel):
    """An entry of `filter_list`: a named pipeline."""

    model_config = ConfigDict(extra="forbid")
    name: str
    filter: list[dict[str, Any]]


class TaskFile(BaseModel):
    """The keys of a task file; docs/evaluation.md describes them."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    task: str
    dataset_path: str
    dataset_kwargs: dict[str, Any] = {}
    test_split: str = "test"
    output_type: OutputType = GENERATE_UNTIL
    doc_to_messages: str | list[dict[str, Any]] | Function | None = None
    doc_to_visual: str | list[str] | Function | None = None
    doc_to_text: str | Function | None = None
    doc_to_target: str | int | list[Any] | Function | None = None
    doc_to_choice: str | list[str] | dict[str, str] | Function | None = None
    cluster_key: str | None = None
    process_docs: Function | None = None
    process_results: str | list[str] | Function | None = None
    metric_list: list[MetricEntry] = []
    generation_kwargs: GenerationKwargs = GenerationKwargs()
    filter_list: list[FilterEntry] = []
    lmms_eval_specific_kwargs: dict[str, Any] = {}
    repeats: Literal[1] = 1
    num_fewshot: Literal[0] | None = None
    tag: str | list[str] | None = None
    task_alias: str | None = None
    metadata: dict[str, Any] | list[Any] = {}

    @property
    def extra(self) -> dict[str, Any]:
        """The `lmms_eval_specific_kwargs` of this model, or else the default ones."""
        kwargs = self.lmms_eval_specific_kwargs
        return kwargs.get(_MODEL, kwargs.get("default", kwargs))


def task_data(path: str | Path) -> list[Path]:
    """The data files that a task file names, as inputs of a workflow; the task's functions are not run.

    Raises:
        UserError: see `read_task`.
    """
    path = Path(path)
    task = _parse(path, allow_code=True, call=False)
    return task_documents.data_files(task.dataset_path, task.dataset_kwargs, task.test_split, path.parent, str(path))


def read_task(
    path: str | Path, image_root: str | Path | None = None, allow_outside: bool = False, allow_code: bool = False
) -> Suite:
    """Read a task file, its documents and their images.

    Args:
        path: the YAML file.
        image_root: folder that image paths are relative to; that of the data if not given.
        allow_outside: accept images outside of that folder.
        allow_code: run the Python functions that the file names with `!function`.

    Raises:
        UserError: the file or its data are invalid; the message names the file, the document and the key.
    """
    path = Path(path)
    task = _parse(path, allow_code)
    documents, root, files = task_documents.read_documents(
        task.dataset_path, task.dataset_kwargs, task.test_split, path.parent, str(path)
    )
    if task.process_docs:
        documents = [dict(document) for document in task.process_docs.process(documents)]
    root = Path(image_root) if image_root is not None else root
    by_name = dict(zip(_names(documents), documents, strict=True))
    dialogues = []
    for index, (name, document) in enumerate(by_name.items()):
        where = f"{path}: document {index}"
        gallery = images_of(task.doc_to_visual, document, root, allow_outside, path.parent, where, task.extra)
        rounds, system = conversation(
            task.doc_to_messages,
            _question(task, document, where),
            document,
            gallery,
            root,
            allow_outside,
            path.parent,
            where,
        )
        cluster = text_of(task.cluster_key, document, where) if task.cluster_key else None
        scored_rounds = _with_references(task, rounds, document, where)
        dialogues.append(Dialogue(name, scored_rounds, system, None if cluster is None else str(cluster)))
    version = task.metadata.get("version") if isinstance(task.metadata, dict) else None
    return Suite(
        dialogues=tuple(dialogues),
        output_type=task.output_type,
        metrics=tuple(_metrics(task, path, by_name)),
        generation=task.generation_kwargs.options(),
        filters=tuple((each.name, tuple(each.filter)) for each in task.filter_list),
        version=None if version is None else str(version),
        files={file.name: file_sha256(file) for file in (path, *files)},
    )


def _parse(path: Path, allow_code: bool, call: bool = True) -> TaskFile:
    try:
        task = TaskFile.model_validate(load_yaml(path, allow_code, call))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        known = ", ".join(TaskFile.model_fields)
        raise UserError(f"{path} is not a valid task file: {'; '.join(problems)}. Known keys: {known}") from None
    if (task.doc_to_text is None) == (task.doc_to_messages is None):
        raise UserError(f"{path} needs either doc_to_text (and doc_to_visual) or doc_to_messages")
    if task.output_type == MULTIPLE_CHOICE and task.doc_to_choice is None:
        raise UserError(f"{path}: output_type multiple_choice needs doc_to_choice")
    if task.output_type in (MULTIPLE_CHOICE, LOGLIKELIHOOD) and task.doc_to_target is None:
        raise UserError(f"{path}: output_type {task.output_type} needs doc_to_target")
    for each in task.filter_list:
        pipeline(each.filter, f"{path}: filter_list, {each.name}")
    return task


def _names(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """A unique name for every document: one of its fields, or its index."""
    for key in ("test_name", "question_id", "id"):
        names = [str(document.get(key)) for document in documents]
        if len(set(names)) == len(names) and all(key in document for document in documents):
            return names
    return [str(index) for index in range(len(documents))]


def _question(task: TaskFile, document: Mapping[str, Any], where: str) -> str | None:
    if task.doc_to_text is None:
        return None
    text = str(text_of(task.doc_to_text, document, f"{where}, doc_to_text", task.extra))
    if not isinstance(task.doc_to_text, Function):
        text = str(task.extra.get("pre_prompt", "")) + text + str(task.extra.get("post_prompt", ""))
    return text


def _with_references(
    task: TaskFile, rounds: Sequence[SuiteRound], document: Mapping[str, Any], where: str
) -> tuple[SuiteRound, ...]:
    """The rounds of a document with references, choices and target, according to the output type."""
    choices = _choices(task, document, f"{where}, doc_to_choice")
    target = text_of(task.doc_to_target, document, f"{where}, doc_to_target")
    if isinstance(target, str) and not isinstance(task.doc_to_target, Function) and task.doc_to_target not in document:
        # As in lmms-eval, a template may give an index or a list.
        if target.isdigit() and choices:
            target = int(target)
        elif target[:1] == "[" and target[-1:] == "]":
            target = literal(target, f"{where}, doc_to_target")
    if task.output_type == MULTI_ROUND:
        targets = target if isinstance(target, list) else [target] * (target is not None)
        if targets and len(targets) != len(rounds):
            raise UserError(f"{where} has {len(rounds)} questions, but doc_to_target has {len(targets)} answers")
        answers = targets or [each.given for each in rounds]
        return tuple(
            replace(each, references=_references(answer, where), given=None)
            for each, answer in zip(rounds, answers, strict=True)
        )
    *context, last = rounds
    if last.given is not None or any(each.given is None for each in context):
        raise UserError(
            f"{where}: with {task.output_type}, messages must end with a question, and every question before it needs "
            "an answer"
        )
    index = _target_index(target, choices, where) if choices else None
    references = (choices[index],) if index is not None else _references(target, where)
    return (*context, replace(last, references=references, choices=choices, target=index))


def _choices(task: TaskFile, document: Mapping[str, Any], where: str) -> tuple[str, ...]:
    source = task.doc_to_choice
    if source is None:
        return ()
    choices = list(source.values()) if isinstance(source, dict) else text_of(source, document, where)
    if isinstance(choices, str):
        choices = literal(choices, where)
    if not isinstance(choices, list | tuple) or len(choices) < 2:
        raise UserError(f"{where} must give at least two choices, not {choices!r}")
    return tuple(str(each) for each in choices)


def _target_index(target: Any, choices: Sequence[str], where: str) -> int:
    """The index of the correct choice, given as an index, a text, or a letter."""
    if isinstance(target, int) and 0 <= target < len(choices):
        return target
    if isinstance(target, str) and choices.count(target) == 1:
        return choices.index(target)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if isinstance(target, str) and len(target) == 1 and target.upper() in letters:
        return letters.index(target.upper())
    raise UserError(f"{where}, doc_to_target: {target!r} is none of the choices {', '.join(map(repr, choices))}")


def _references(target: Any, where: str) -> tuple[str, ...]:
    if target is None:
        return ()
    values = target if isinstance(target, list | tuple) else [target]
    if not all(isinstance(each, str | int | float) for each in values):
        raise UserError(f"{where}, doc_to_target must give strings or numbers, not {target!r}")
    return tuple(str(each) for each in values)


def _metrics(task: TaskFile, path: Path, by_name: Mapping[str, Mapping[str, Any]]) -> list[MetricSpec]:
    where, results = str(path), task.process_results
    if isinstance(results, Function):
        return [_of_function(results, entry, by_name, where) for entry in task.metric_list]
    names = [results] if isinstance(results, str) else results or []
    entries = [MetricEntry(metric=name) for name in names] + task.metric_list
    specs = []
    for entry in entries or [MetricEntry(metric=name) for name in _DEFAULT_METRICS[task.output_type]]:
        spec = metric_spec(entry.metric, entry.model_extra or {}, where)
        if entry.aggregation not in (None, "mean", entry.metric):
            raise UserError(
                f"{where}: the aggregation of {entry.metric} is fixed; remove aggregation: {entry.aggregation}"
            )
        if spec.metric.needs == "losses" and task.output_type != MULTIPLE_CHOICE:
            raise UserError(f"{where}: {entry.metric} needs output_type multiple_choice")
        if spec.metric.needs is None and task.output_type == LOGLIKELIHOOD:
            raise UserError(f"{where}: {entry.metric} scores an answer, and output_type loglikelihood generates none")
        specs.append(spec)
    return specs


def _of_function(function: Function, entry: MetricEntry, by_name: Mapping[str, Mapping], where: str) -> MetricSpec:
    """A metric that is the mean of the points that the task's own `process_results` returns."""
    if entry.aggregation not in (None, "mean"):
        raise UserError(
            f"{where}: {entry.metric} has aggregation {entry.aggregation!r}; process_results supports only mean"
        )

    def measure(turns: Sequence[Turn]) -> list[tuple[float, ...] | None]:
        points = [function.results(by_name[turn.test], [turn.output]).get(entry.metric) for turn in turns]
        return [None if point is None else (float(point), 1.0) for point in points]

    higher = entry.higher_is_better is not False
    return MetricSpec(Metric(entry.metric, measure, higher_is_better=higher))
