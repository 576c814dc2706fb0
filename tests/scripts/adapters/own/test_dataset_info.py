"""LLaMA-Factory's `dataset_info.json`: which file an entry names, what its columns mean, and what is refused."""

import json

import pytest

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.own.dataset_info import described, is_dataset_info
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.config.custom import ColumnsConfig, CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source
from scripts.fetch import fetch


def write(folder, **entries):
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder


def columns_of(tmp_path, **entry):
    found = described(write(tmp_path, own={"file_name": "rows.json", **entry}), None, "own")
    return found.columns.model_dump(exclude_defaults=True)


def test_alpaca_is_the_default_and_its_usual_columns_need_no_mapping(tmp_path):
    assert columns_of(tmp_path) == {}
    usual = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "images": "images"}
    assert columns_of(tmp_path, columns=usual) == {}
    assert columns_of(tmp_path, columns={"prompt": "q", "images": "pictures"}) == {
        "question": "q",
        "answer": "output",
        "images": "pictures",
    }
    mapped = {"prompt": "q", "query": "more", "response": "a", "history": "before", "system": "sys"}
    assert columns_of(tmp_path, columns=mapped) == {
        "question": "q",
        "context": "more",
        "answer": "a",
        "history": "before",
        "system": "sys",
    }


def test_sharegpt_has_its_own_defaults_and_tags(tmp_path):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    assert columns_of(tmp_path, formatting="sharegpt") == {
        "messages": "conversations",
        "role": "from",
        "content": "value",
        "roles": roles,
    }
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "customer", "assistant_tag": "agent"}
    assert columns_of(tmp_path, formatting="sharegpt", columns={"messages": "talk"}, tags=tags) == {
        "messages": "talk",
        "role": "who",
        "content": "says",
        "roles": {"customer": "user", "agent": "assistant", "system": "system"},
    }
    assert columns_of(tmp_path, formatting="openai")["messages"] == "messages"


def test_which_entry(tmp_path):
    folder = write(tmp_path, a={"file_name": "a.json"}, b={"file_name": "b.json"}, c={"hf_hub_url": "x/y"})
    assert described(folder, "b", "own").file == "b.json" and described(folder, None, "a").file == "a.json"
    with pytest.raises(UserError, match=r"has no entry 'd'; it has a, b, c"):
        described(folder, "d", "own")
    with pytest.raises(UserError, match=r"2 entries with a file \(a, b\), and none is named 'own': choose one with"):
        described(folder, None, "own")
    assert described(write(tmp_path, a={"file_name": "a.json"}, c={"hf_hub_url": "x/y"}), None, "own").name == "a"
    with pytest.raises(UserError, match=r"custom\.own\.entry: there is no dataset_info\.json"):
        described(tmp_path / "none", "a", "own")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hf_hub_url": "owner/name"}, "names 'owner/name' as its hf_hub_url, which is not fetched"),
        ({"script_url": "loader"}, "as its script_url"),
        ({"file_name": ""}, "has no `file_name`"),
        ({"ranking": True}, r"is preference data \(ranking\)"),
        ({"columns": {"chosen": "better", "rejected": "worse"}}, r"is preference data \(columns\.chosen\)"),
        ({"columns": {"kto_tag": "good"}}, r"is preference data \(columns\.kto_tag\)"),
        ({"formatting": "other"}, "has the formatting 'other'; known are alpaca, sharegpt and openai"),
        ({"num_samples": 5}, "takes num_samples 5 of its rows"),
        ({"fromat": "alpaca"}, "has the key 'fromat', which is not known"),
        ({"columns": {"prmpt": "q"}}, "has the column 'prmpt', which is not known"),
        ({"columns": ["q"]}, "`columns` should be an object of texts"),
        ({"file_name": "../rows.json"}, r"names \.\./rows\.json, which leads out of"),
        ({"file_name": "/elsewhere/rows.json"}, "names /elsewhere/rows.json, which is not below"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, entry, message):
    with pytest.raises(UserError, match=rf"dataset_info\.json, entry 'own'.*{message}"):
        described(write(tmp_path, own={"file_name": "rows.json", **entry}), None, "own")


def test_what_changes_nothing_is_noted(tmp_path):
    columns = {"messages": "conversations", "tools": "tools", "videos": "videos"}
    folder = write(
        tmp_path, own={"file_name": "rows.json", "formatting": "sharegpt", "split": "test", "columns": columns}
    )
    assert [note.reason for note in described(folder, None, "own").notes] == [
        "ignored:videos",
        "ignored:tools",
        "ignored:split",
    ]


def test_an_absolute_path_below_the_folder_is_one_below_it(tmp_path):
    folder = write(tmp_path, own={"file_name": str(tmp_path / "d" / "rows.json")})
    assert described(folder, None, "own").file == "d/rows.json"


def test_the_datasets_library_has_a_file_of_that_name_too(tmp_path):
    assert not is_dataset_info(tmp_path)
    (tmp_path / "dataset_info.json").write_text('{"features": {}, "splits": {"train": {"name": "train"}}}')
    assert not is_dataset_info(tmp_path)
    assert is_dataset_info(write(tmp_path, own={"file_name": "rows.json"}))


def convert(tmp_path, folder, **settings):
    config = CustomDatasetConfig(folder=str(folder), **settings)
    fetch(custom_source("own", config), folder, tmp_path / "raw", dataset=custom_dataset("own", config))
    raw = RawFiles({"own": tmp_path / "raw"})
    conversion = Conversion("own", raw, ImageLookup.from_listing(raw, []))
    return list(conversion), conversion


def test_a_folder_of_llama_factory_needs_no_other_configuration(tmp_path):
    entry = {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "talk", "tools": "tools"}}
    folder = write(tmp_path / "data", pets=entry | {"tags": {"user_tag": "customer", "assistant_tag": "agent"}})
    turns = [{"from": "customer", "value": "Who?"}, {"from": "agent", "value": "Me."}]
    (folder / "talk.json").write_text(json.dumps([{"talk": turns}]))
    (folder / "other.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    records, conversion = convert(tmp_path, folder)
    assert [(round_.question, round_.answer) for round_ in records[0].rounds] == [(("Who?",), ("Me.",))]
    assert conversion.rows == 1 and "ignored:tools" in conversion.noted.as_dict()


def test_columns_of_the_configuration_come_before_those_of_the_entry(tmp_path):
    folder = write(tmp_path / "data", pets={"file_name": "rows.json", "columns": {"prompt": "q", "response": "bad"}})
    (folder / "rows.json").write_text(json.dumps([{"q": "Who?", "bad": "They.", "good": "Me."}]))
    records, _ = convert(tmp_path, folder, entry="pets", columns=ColumnsConfig(answer="good", ignore=("bad",)))
    assert records[0].rounds[0].answer == ("Me.",)


def test_a_column_of_the_entry_may_be_empty_in_all_rows(tmp_path):
    columns = {"prompt": "q", "query": "more", "response": "a", "history": "before"}
    folder = write(tmp_path / "data", pets={"file_name": "rows.json", "columns": columns})
    (folder / "rows.json").write_text(json.dumps([{"q": "Who?", "more": "", "a": "Me.", "before": []}]))
    records, _ = convert(tmp_path, folder)
    assert records[0].rounds[0].question == ("Who?",)
    (folder / "rows.json").write_text(json.dumps([{"q": "Who?", "a": "Me."}]))
    with pytest.raises(UserError, match=r"no row has the members of `context: more, history: before`; .* have q, a"):
        convert(tmp_path, folder)


def test_files_and_an_entry_exclude_each_other():
    with pytest.raises(ValueError, match="should have `files` or `entry`"):
        CustomDatasetConfig(folder="data", files=("a.json",), entry="a")
