"""Names: a path of a configuration may hold almost anything, and changes nothing but itself in what programs get.

The keys that are paths are found by their types (`scripts.config.paths`). Their values are drawn at random, the graph
is built, and a real shell takes the commands of all jobs apart: the words must be those of a configuration with plain
names, with the plain names replaced by the drawn ones.
"""

import contextlib
import copy
import io
import json
import re
import shutil
import string
import subprocess
import sys
import typing
import zipfile
from pathlib import Path
from random import Random

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

from scripts.config import paths
from scripts.config.custom import ColumnsConfig
from scripts.config.settings import Settings
from scripts.config.tokens import TemplateTexts
from scripts.workflow import targets
from tests.workflow.project import ROOT, TINY, Project

OWN = copy.deepcopy(TINY) | {
    "data_path": "PLAINdata",
    "custom": {
        "pets": {"folder": "PLAINfolder", "files": ["PLAINrows.json", "PLAINlines.jsonl"], "images": ["PLAINimages/"]},
        "cars": {
            "folder": "PLAINcars",
            "files": ["PLAINothers.json"],
            "split": {"files": ["PLAINkept.json"]},
            "images": ["PLAINarchive.zip"],
        },
    },
    "replay": {"chat": {"model": "small", "prompts": "PLAINprompts.jsonl", "questions_of": ["pets"]}},
    "tokens": {"words": {"tokenizer": "PLAINtokenizer", "image_tokens": 4}},
    "models": {"small": {"vision": "PLAINvision", "language": "PLAINlanguage", "tokens": "words"}},
    "suites": {"talk": "PLAINsuite.json", "more": "PLAINmore.json"},
    "results": "PLAINresults",
}
"""Every key that is a path, with a value that occurs in no other word of a command."""
OWN["blends"]["plain"]["datasets"] |= {"pets": {}, "cars": {}, "chat": {}}

NASTY = list(" '\"$`{};&*?[]#~-\\|<>()!%^=,:@+/.éß中aB1")
NASTY += ["  ", "$(touch PWNED)", "`touch PWNED`", "$HOME", "${x", "{{", "{}", "{ }", "{-}", "[a-z]", "--", "\\n"]
NASTY += ["<X>", "%20", "%s", "a=b", "/./", "...", "e\u0301", "\N{CAT}", "\u00a0", "\u200b", "\u202e"]


Keys = dict[tuple[str, ...], paths.PathKey | None]


def text_keys(section: type[BaseModel] = Settings, prefix: tuple[str, ...] = ()) -> Keys:
    """The places of all texts below a section, with None for those that are no paths.

    "*" stands for the names of entries and the places of lists.
    """
    found: Keys = {}
    for name, field in section.model_fields.items():
        found |= _keys_of(field.annotation, field.metadata, (*prefix, name))
    return found


def _keys_of(kind: object, metadata: typing.Iterable[object], place: tuple[str, ...]) -> dict:
    if marks := [mark for mark in metadata if isinstance(mark, paths.PathKey)]:
        return {place: marks[0]}
    if kind is str:
        return {place: None}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return text_keys(kind, place)
    found = {}
    inner = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _keys_of(inner[0], inner[1:], place)
    for part in inner[1:] if origin is dict else inner:
        found |= _keys_of(part, (), (*place, "*") if origin in (dict, list, tuple) else place)
    return found


def places(config: dict, key: tuple[str, ...]) -> list[tuple]:
    """The places in a configuration that a place of `text_keys` stands for."""
    found: list[tuple] = [()]
    for part in key:
        found = [(*place, inner) for place in found for inner in _inner(_at(config, place), part)]
    return found


def _at(value, place: tuple):
    for part in place:
        value = value[part]
    return value


def _inner(value, part: str) -> list:
    if part != "*":
        return [part] if isinstance(value, dict) and part in value else []
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


KEYS = {key: mark for key, mark in text_keys().items() if mark}
# Texts that no program takes for a path.
TEXTS = {"name", "custom.*.licence", "custom.*.terms.*", "licences.allow.*", "licences.refuse.*", "runs.*.project"}
TEXTS |= {f"custom.*.columns.{name}" for name in ColumnsConfig.model_fields if name not in ("roles", "ignore")}
TEXTS |= {"custom.*.columns.ignore.*", "custom.*.entry", "custom.*.split.column", "custom.*.split.values.*"}
TEXTS |= {"blends.*.tokens", "blends.*.datasets.*.join.over", "blends.*.datasets.*.join.talk.*"}
TEXTS |= {"replay.*.model", "replay.*.questions_of.*"}
TEXTS |= {"models.*.tokens", "models.*.projector", "runs.*.model", "runs.*.blend", "runs.*.start"}
TEXTS |= {f"tokens.*.template.{name}" for name, field in TemplateTexts.model_fields.items() if field.annotation is str}
PLACES = {place: mark for key, mark in KEYS.items() for place in places(OWN, key)}
TYPES = {"results": paths.Results, "given": paths.Given, "hub": paths.FolderOrName, "declared": paths.Declared}
TYPES["below"] = paths.Below


@contextlib.contextmanager
def workflow(config: dict, folder: Path):
    """The workflow of the Snakefile with its graph, for a configuration, in the working directory `folder`."""
    folder.mkdir(exist_ok=True)
    for place, mark in PLACES.items():
        if mark.kind == "declared":
            file = folder / _at(config, place)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        elif mark.kind == "hub":
            # A decoder or encoder whose name is none of the hub's has to be there.
            base = folder / _at(config, place)
            base.mkdir(parents=True, exist_ok=True)
            (base / "config.json").write_text('{"hidden_size": 8, "vocab_size": 300, "patch_size": 8}')
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    with contextlib.chdir(folder), SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        built = api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(configfiles=(folder / "config.yaml",)),
            snakefile=ROOT / "Snakefile",
        )
        with contextlib.redirect_stdout(io.StringIO()):
            built.dag(dag_settings=DAGSettings(forceall=True)).printrulegraph()
        yield built._workflow


def words_of_commands(config: dict, folder: Path) -> dict[str, list[str]]:
    """The words that the program of each job gets, as a shell that runs the job's command passes them on."""
    with workflow(config, folder) as built:
        commands = {job.rule.name + str(sorted(job.wildcards_dict.items())): job.shellcmd for job in built.dag.jobs}
    commands = {name: command for name, command in commands.items() if command}
    script = 'python() { printf "%s\\0" "$VISUALCHAT_LOG" "$@" END; }\n' + "\n".join(commands.values())
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    programs = done.stdout.split("\0END\0")[:-1]
    assert len(programs) == len(commands)
    return {name: words.split("\0") for name, words in zip(commands, programs, strict=True)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return words_of_commands(OWN, tmp_path_factory.mktemp("plain") / "project")


def test_every_key_that_is_a_path_is_drawn():
    missing = {key for key in KEYS if not places(OWN, key)}
    assert not missing, "give it a plain name in OWN, and this test covers it"
    others = {".".join(key) for key, mark in text_keys().items() if not mark}
    assert others == TEXTS, "a new text that is a path gets a type of scripts/config/paths.py"


def test_no_shell_command_takes_an_unquoted_value(tmp_path):
    """Also of rules whose values are harmless today: then nobody has to know which ones are."""
    with workflow(OWN, tmp_path / "project") as built:
        commands = {rule.name: rule.shellcmd for rule in built.rules if rule.shellcmd}
    assert len(commands) > 20
    for name, command in commands.items():
        fields = [(field, form) for _, field, form, _ in string.Formatter().parse(command) if field is not None]
        assert [field for field, form in fields if form != "q"] == [], name


def name(random: Random, mark: paths.PathKey, number: int) -> str:
    """A path that the type of a key accepts; `number` makes it unlike all others."""
    while True:
        text = "".join(random.choices(NASTY, k=random.randint(1, 8))) + f"n{number}"
        with contextlib.suppress(ValidationError):
            return TypeAdapter(TYPES[mark.kind]).validate_python(text)


def renamed(random: Random) -> tuple[dict, dict[str, str]]:
    """A configuration with drawn names, and the drawn name of each plain one."""
    config, new = copy.deepcopy(OWN), {}
    for number, (place, mark) in enumerate(PLACES.items()):
        old = _at(config, place)
        suffix = next((end for end in ("/", ".zip", ".json", ".jsonl") if old.endswith(end)), "")
        new[old.removesuffix(suffix)] = value = name(random, mark, number)
        _at(config, place[:-1])[place[-1]] = value + suffix
    return config, new


def parsed(word: str):
    """A word of a command: the value of its JSON, or itself."""
    with contextlib.suppress(ValueError):
        return json.loads(word)
    return word


def rename(value, new: dict[str, str]):
    """A word of a plain command with new names, also inside its JSON."""
    if isinstance(value, dict):
        return {key: rename(inner, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [rename(inner, new) for inner in value]
    if isinstance(value, str):
        return re.sub("PLAIN[a-z]+", lambda match: new[match[0]], value)
    return value


@pytest.mark.integration
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 12))])
def test_a_name_changes_nothing_but_itself(seed, plain, tmp_path):
    config, new = renamed(Random(seed))
    found = words_of_commands(config, tmp_path / "project")
    encoder = targets.encoder_name(config["models"]["small"]["vision"])
    expected = {}
    for job, words in plain.items():
        of_folders = [re.sub("/PLAINvision(?=/|$)", f"/{encoder}", word) for word in words]
        expected[job.replace("PLAINvision", encoder)] = [rename(parsed(word), new) for word in of_folders]
    assert {job: [parsed(word) for word in words] for job, words in found.items()} == expected
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.long
def test_the_graph_is_built_with_names_of_all_characters(finished, tmp_path):
    """Everything that a configuration can name lies below such a name: the clone, the data, the models, the results."""
    ugly = "a b'c\"d$(touch PWNED)`touch PWNED`{-f}{g;h&i*j?k[l]m#n~o=p,q:r!s(t)u<V>w|x\\n%20ye\u0301é中@z}"
    project = Project.create(tmp_path / 'it\'s $HOME `x` "y" [z]*')
    here, made = project.folder / ugly, finished.folder / "out"
    shutil.copytree(made / "raw/miniature", here / "data")
    for base in ("tokenizer", "vision", "language"):
        shutil.copytree(made / "bases/miniature" / base, here / base)
    shutil.copytree(ROOT / "examples/images", here / ugly)
    with zipfile.ZipFile(here / f"{ugly}.zip", "w") as archive:
        for file in (ROOT / "examples/images").iterdir():
            archive.write(file, file.name)
    shutil.copy(ROOT / "examples/conversations.json", here / f"{ugly}.json")
    config = copy.deepcopy(TINY) | {
        "results": f"{ugly}/out",
        "data_path": f"{ugly}/data",
        "custom": {
            name: {"folder": ugly, "files": [f"{ugly}.json"], "images": f"{ugly}{form}"}
            for name, form in (("pets", "/"), ("cars", ".zip"))
        },
        "tokens": {"words": {"tokenizer": f"{ugly}/tokenizer", "image_tokens": 4}},
        "models": {"small": {"vision": f"{ugly}/vision", "language": f"{ugly}/language", "tokens": "words"}},
        "suites": {"talk": f"{ugly}/data/dialogues/dialogues.json"},
    }
    config["blends"]["plain"]["datasets"] |= {"pets": {}, "cars": {}}
    project.configure(config)
    project.snakemake()
    root = here / "out"
    for name in ("pets", "cars"):
        report = json.loads((root / f"records/{name}.report.json").read_text())
        assert report["kept"] == report["rows"] > 0
    assert json.loads((root / "evaluate/second/metrics.json").read_text())
    assert "Nothing to be done" in project.snakemake("-n")
    verify = [sys.executable, "-m", "scripts.verify", "--root", f"{ugly}/out"]
    assert subprocess.run(verify, cwd=project.folder, capture_output=True).returncode == 0
    assert not list(tmp_path.rglob("PWNED"))
