"""Task files: evaluation suites in the vocabulary of lmms-eval, over local data.

    task: which
    dataset_path: json                       # or csv, parquet, imagefolder, dialogues, a file, a folder (task_documents.py)
    dataset_kwargs: {data_files: {test: which.jsonl}}
    test_split: test
    output_type: generate_until              # or generate_until_multi_round, multiple_choice, loglikelihood
    doc_to_visual: images                    # a field with a path, several, or stored images
    doc_to_text: "{{question}} Answer in one word."
    doc_to_target: answer                    # one answer or a list of them; with doc_to_choice a place or a choice
    metric_list: [{metric: exact_match}]     # docs/evaluation.md lists them; the first decides what is right
    metadata: {version: 1}

`read_task` turns it into a `Suite`, every image read and decoded, so that whatever is wrong is said before a model is
loaded. Beyond lmms-eval, `doc_to_messages` may be a field or a list of messages with templates in them, whose image
parts name their image by `url` or by `index` into `doc_to_visual`; and `cluster_key` puts versions of one question
together. With `generate_until` messages that the document has answers for are told and not asked, with
`generate_until_multi_round` they are asked, and those answers are references.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.evaluation import task_documents
from scripts.evaluation.filters import pipeline
from scripts.evaluation.metric_registry import Metric
from scripts.evaluation.scoring import MetricSpec, metric_spec
from scripts.evaluation.suites import CHOICES, GENERATE, LIKELIHOOD, ROUNDS, Dialogue, Suite, SuiteRound
from scripts.evaluation.task_messages import conversation, images_of
from scripts.evaluation.task_templates import Function, literal, load_yaml, text_of
from scripts.evaluation.turns import Turn
from scripts.inference.generation import GenerationOptions

_DEFAULT_METRICS = {
    GENERATE: ["exact_match"],
    ROUNDS: ["exact_match"],
    CHOICES: ["acc", "acc_norm"],
    LIKELIHOOD: ["perplexity"],
}
_OURS = "visualchat"


class MetricEntry(BaseModel):
    """An entry of `metric_list`; what else stands in it are the metric's options."""

    model_config = ConfigDict(extra="allow")
    metric: str
    aggregation: str | None = None
    higher_is_better: bool | None = None


class GenerationEntry(BaseModel):
    """`generation_kwargs`."""

    model_config = ConfigDict(extra="forbid")
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    until: list[str] | str | None = None
    do_sample: bool = False
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1

    def generation(self) -> GenerationOptions:
        """As the evaluation takes it. A temperature of 0 is lmms-eval's way to say greedy."""
        sample = self.do_sample and self.temperature != 0
        until = [self.until] if isinstance(self.until, str) else self.until or []
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k} if sample else {}
        return GenerationOptions(self.max_new_tokens, tuple(until), sample, num_beams=self.num_beams, **drawn)


class FilterEntry(BaseModel):
    """An entry of `filter_list`: a pipeline by name."""

    model_config = ConfigDict(extra="forbid")
    name: str
    filter: list[dict[str, Any]]


class TaskFile(BaseModel):
    """The keys of a task file."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    task: str
    dataset_path: str
    dataset_kwargs: dict[str, Any] = {}
    test_split: str = "test"
    output_type: Literal["generate_until", "generate_until_multi_round", "multiple_choice", "loglikelihood"] = GENERATE
    doc_to_messages: str | list[dict[str, Any]] | Function | None = None
    doc_to_visual: str | list[str] | Function | None = None
    doc_to_text: str | Function | None = None
    doc_to_target: str | int | list[Any] | Function | None = None
    doc_to_choice: str | list[str] | dict[str, str] | Function | None = None
    cluster_key: str | None = None
    process_docs: Function | None = None
    process_results: str | list[str] | Function | None = None
    metric_list: list[MetricEntry] = []
    generation_kwargs: GenerationEntry = GenerationEntry()
    filter_list: list[FilterEntry] = []
    lmms_eval_specific_kwargs: dict[str, Any] = {}
    repeats: Literal[1] = 1
    num_fewshot: Literal[0] | None = None
    tag: str | list[str] | None = None
    task_alias: str | None = None
    metadata: dict[str, Any] | list[Any] = {}

    @property
    def extra(self) -> dict[str, Any]:
        """lmms-eval's keyword arguments for a model: ours, or those of all."""
        given = self.lmms_eval_specific_kwargs
        return given.get(_OURS, given.get("default", given))


def task_data(path: str | Path) -> list[Path]:
    """The data files that a task file names, for a workflow that waits for them; functions are not run.

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
        image_root: folder that image paths begin at; that of the data if not given.
        allow_outside: accept images outside of that folder.
        allow_code: run the Python functions that the file names with `!function`.

    Raises:
        UserError: anything that is wrong with it; the message names the file, the document and the key.
    """
    path = Path(path)
    task = _parse(path, allow_code)
    found, root, files = task_documents.read_documents(
        task.dataset_path, task.dataset_kwargs, task.test_split, path.parent, str(path)
    )
    if task.process_docs:
        found = [dict(document) for document in task.process_docs(found)]
    root = Path(image_root) if image_root is not None else root
    names = _names(found)
    dialogues, by_name = [], dict(zip(names, found, strict=True))
    for place, (name, document) in enumerate(by_name.items()):
        where = f"{path}: document {place}"
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
        judged = _judged(task, rounds, document, where)
        dialogues.append(Dialogue(name, judged, system, None if cluster is None else str(cluster)))
    version = task.metadata.get("version") if isinstance(task.metadata, dict) else None
    return Suite(
        dialogues=tuple(dialogues),
        output_type=task.output_type,
        metrics=tuple(_metrics(task, path, by_name)),
        generation=task.generation_kwargs.generation(),
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
        raise UserError(
            f"{path} is not a task file that can be used: {'; '.join(problems)}. Known keys: {known}"
        ) from None
    if (task.doc_to_text is None) == (task.doc_to_messages is None):
        raise UserError(f"{path} must say what is asked: by doc_to_text (and doc_to_visual), or by doc_to_messages")
    if task.output_type == CHOICES and task.doc_to_choice is None:
        raise UserError(f"{path}: output_type multiple_choice needs doc_to_choice")
    if task.output_type in (CHOICES, LIKELIHOOD) and task.doc_to_target is None:
        raise UserError(f"{path}: output_type {task.output_type} needs doc_to_target")
    for each in task.filter_list:
        pipeline(each.filter, f"{path}: filter_list, {each.name}")
    return task


def _names(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for every document: a field that tells all of them apart, or their place."""
    for key in ("test_name", "question_id", "id"):
        names = [str(document.get(key)) for document in found]
        if len(set(names)) == len(names) and all(key in document for document in found):
            return names
    return [str(place) for place in range(len(found))]


def _question(task: TaskFile, document: Mapping[str, Any], where: str) -> str | None:
    if task.doc_to_text is None:
        return None
    text = str(text_of(task.doc_to_text, document, f"{where}, doc_to_text", task.extra))
    if not isinstance(task.doc_to_text, Function):
        text = str(task.extra.get("pre_prompt", "")) + text + str(task.extra.get("post_prompt", ""))
    return text


def _judged(
    task: TaskFile, rounds: Sequence[SuiteRound], document: Mapping[str, Any], where: str
) -> tuple[SuiteRound, ...]:
    """Say which rounds are asked, and what is right in them."""
    multi = task.output_type == ROUNDS
    choices = _choices(task, document, f"{where}, doc_to_choice")
    target = text_of(task.doc_to_target, document, f"{where}, doc_to_target")
    if isinstance(target, str) and not isinstance(task.doc_to_target, Function) and task.doc_to_target not in document:
        # As in lmms-eval: a template can write a place or a list.
        if target.isdigit() and choices:
            target = int(target)
        elif target[:1] == "[" and target[-1:] == "]":
            target = literal(target, f"{where}, doc_to_target")
    if multi:
        targets = target if isinstance(target, list) else [target] * (target is not None)
        if targets and len(targets) != len(rounds):
            raise UserError(f"{where} asks {len(rounds)} questions, but doc_to_target has {len(targets)} answers")
        references = targets or [each.given for each in rounds]
        return tuple(
            SuiteRound(each.question, each.images, _references(right, where))
            for each, right in zip(rounds, references, strict=True)
        )
    *told, last = rounds
    if last.given is not None or any(each.given is None for each in told):
        raise UserError(
            f"{where}: with {task.output_type}, messages end with a question, and all before it are answered"
        )
    place = _place(target, choices, where) if choices else None
    right = (choices[place],) if place is not None else _references(target, where)
    return (*told, SuiteRound(last.question, last.images, right, choices=choices, target=place))


def _choices(task: TaskFile, document: Mapping[str, Any], where: str) -> tuple[str, ...]:
    given = task.doc_to_choice
    if given is None:
        return ()
    found = list(given.values()) if isinstance(given, dict) else text_of(given, document, where)
    if isinstance(found, str):
        found = literal(found, where)
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise UserError(f"{where} must give at least two choices, not {found!r}")
    return tuple(str(each) for each in found)


def _place(target: Any, choices: Sequence[str], where: str) -> int:
    """The place of the right choice, given as that, as its text, or as its letter."""
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
        raise UserError(f"{where}, doc_to_target must give texts, not {target!r}")
    return tuple(str(each) for each in values)


def _metrics(task: TaskFile, path: Path, by_name: Mapping[str, Mapping[str, Any]]) -> list[MetricSpec]:
    where, given = str(path), task.process_results
    if isinstance(given, Function):
        return [_of_function(given, entry, by_name, where) for entry in task.metric_list]
    named = [given] if isinstance(given, str) else given or []
    entries = [MetricEntry(metric=name) for name in named] + task.metric_list
    found = []
    for entry in entries or [MetricEntry(metric=name) for name in _DEFAULT_METRICS[task.output_type]]:
        one = metric_spec(entry.metric, entry.model_extra or {}, where)
        if entry.aggregation not in (None, "mean", entry.metric):
            raise UserError(
                f"{where}: {entry.metric} is aggregated in one way; leave out aggregation: {entry.aggregation}"
            )
        if one.metric.needs == "losses" and task.output_type != CHOICES:
            raise UserError(f"{where}: {entry.metric} needs output_type multiple_choice")
        if one.metric.needs is None and task.output_type == LIKELIHOOD:
            raise UserError(f"{where}: {entry.metric} judges an answer, and output_type loglikelihood writes none")
        found.append(one)
    return found


def _of_function(function: Function, entry: MetricEntry, by_name: Mapping[str, Mapping], where: str) -> MetricSpec:
    """A metric whose points the task's own `process_results` gives, averaged."""
    if entry.aggregation not in (None, "mean"):
        raise UserError(f"{where}: {entry.metric} is aggregated by {entry.aggregation!r}; here only a mean can be")

    def measure(turns: Sequence[Turn]) -> list[tuple[float, ...] | None]:
        points = [function.results(by_name[turn.test], [turn.output]).get(entry.metric) for turn in turns]
        return [None if point is None else (float(point), 1.0) for point in points]

    higher = entry.higher_is_better is not False
    return MetricSpec(Metric(entry.metric, measure, higher_is_better=higher))
