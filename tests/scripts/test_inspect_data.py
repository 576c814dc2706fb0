"""inspect_data shows what the graph would make of own data, and its recipe is a configuration of it."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from scripts.common.errors import UserError
from scripts.config import settings
from scripts.inspection.hints import better_folder
from scripts.inspection.inspecting import custom_section, dataset_name
from scripts.inspection.recipe import recipe
from tests.tiny_models import make_tokenizer
from tests.workflow.project import ROOT


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scripts.inspect_data", *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )


@pytest.fixture
def pets(tmp_path) -> Path:
    """Rows of two forms about images in a folder of their own; a row in twenty names an image that is not there."""
    (tmp_path / "pets/photos").mkdir(parents=True)
    for name, colour in (("cat", "orange"), ("dog", "brown")):
        Image.new("RGB", (120, 80), colour).save(tmp_path / f"pets/photos/{name}.png")
    rows: list[dict] = [
        {"image": "cat.png", "question": f"Which animal is number {number}?", "answer": "A cat.", "source": "home"}
        for number in range(17)
    ]
    rows.append({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]})
    rows.append(
        {
            "images": ["cat.png", "dog.png"],
            "messages": [
                {"role": "user", "content": "Is <image> older than <image>?"},
                {"role": "assistant", "content": "No idea.", "weight": 0},
                {"role": "user", "content": "Guess."},
                {"role": "assistant", "content": "The dog."},
            ],
        }
    )
    rows.append({"image": "cow.png", "question": "Which animal is this?", "answer": "A cow."})
    (tmp_path / "pets/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_a_folder_is_shown_as_it_will_be_trained(pets):
    done = run(pets, "pets", "--html", "look.html")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "20 rows read of rows.jsonl" in shown
    assert "question_answer (18 rows), messages (2 rows)" in shown
    assert "ignored source (17 rows)" in shown
    assert "1 answers are shown, but not trained on" in shown
    assert "named (20); 2 image files are there (with `images: photos/`" in shown
    assert "lost 1 rows (5.0%) 1 missing_image" in shown
    assert "Is image 1 older than image 2? ### Answer: No idea." in shown
    assert "+ The dog." in shown and "+ No idea." not in shown
    assert "images in a conversation: 0 in 1, 1 in 17, 2 in 1" in shown
    config = yaml.safe_load((pets / "pets.yaml").read_text())
    assert config == {"custom": {"pets": {"folder": "pets", "images": ["photos/"]}}}
    assert settings.load(config).datasets() == ["pets"]
    page = (pets / "look.html").read_text()
    assert page.count('<img src="data:image/') >= 2 and "missing_image" in page and "folder: pets" in page


def test_a_file_of_unknown_members_gets_a_line_that_mends_it(pets):
    (pets / "table.csv").write_text("picture,ask,reply\npets/photos/cat.png,What is it?,A cat.\n")
    done = run(pets, "table.csv", "--html", "look.html")
    assert done.returncode == 1 and not (pets / "table.yaml").exists()
    assert "Recipe" not in (pets / "look.html").read_text()
    line = "columns: {question: ask, answer: reply, images: picture}"
    assert line in done.stdout
    done = run(pets, "table.csv", "--columns", line)
    assert done.returncode == 0, done.stderr
    section = yaml.safe_load((pets / "table.yaml").read_text())["custom"]["table"]
    assert section == {"folder": ".", "files": ["table.csv"]} | yaml.safe_load(line)
    assert len((pets / "table.yaml").read_text().partition("custom:")[2].strip().splitlines()) <= 4


@pytest.mark.parametrize("text", ["{question: ask", "{quetsion: ask}", "ask", '{"question": 1}'])
def test_bad_columns_are_one_clear_error(pets, text):
    done = run(pets, "pets", "--columns", text)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "settings" not in done.stderr
    assert done.stderr.startswith("error: --columns") and "{question: ask, answer: reply}" in done.stderr


def test_a_zip_with_rows_and_images_needs_no_options(pets):
    rows = (pets / "pets/rows.jsonl").read_text().replace('"cat.png"', '"photos/cat.png"')
    with zipfile.ZipFile(pets / "both.zip", "w") as archive:
        archive.writestr("both/rows/train.jsonl", rows.replace('"dog.png"', '"photos/dog.png"'))
        for name in ("cat", "dog"):
            archive.write(pets / f"pets/photos/{name}.png", f"both/photos/{name}.png")
    done = run(pets, "both.zip")
    assert done.returncode == 0, done.stderr
    assert "1 missing_image" in done.stdout
    section = yaml.safe_load((pets / "both.yaml").read_text())["custom"]["both"]
    assert section == {"folder": ".", "files": ["both.zip"], "images": ["both.zip"]}


def test_another_recipe_is_not_replaced(pets):
    (pets / "pets.yaml").write_text("name: precious\n")
    done = run(pets, "pets")
    assert done.returncode == 1 and "pets.yaml exists and is another configuration" in done.stderr
    assert (pets / "pets.yaml").read_text() == "name: precious\n"
    assert run(pets, "pets", "--force").returncode == 0
    assert "custom" in (pets / "pets.yaml").read_text()


def test_only_the_first_rows_of_every_file_are_read(pets):
    (pets / "pets/more.jsonl").write_text('{"question": "Why?", "answer": "Because."}\n' * 50)
    done = run(pets, "pets", "--rows", "10", "--conversations", "1")
    assert "10 rows read of more.jsonl, rows.jsonl; there are more" in done.stdout
    assert done.stdout.count("+ marks what is trained on") == 1


def test_tokens_are_counted_with_a_tokenizer(pets):
    make_tokenizer(pets / "words")
    done = run(pets, "pets", "--tokenizer", "words")
    assert "(counted with words)" in " ".join(done.stdout.split()), done.stderr


def test_nothing_at_the_path_is_one_clear_error(tmp_path):
    done = run(tmp_path, "nowhere.json")
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere.json does not exist")


def test_sections_of_paths(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("rows.jsonl", "more.jsonl"):
        (tmp_path / "a" / name).write_text("{}")
    found = custom_section(tmp_path / "a/rows.jsonl")
    assert (found.folder, found.files) == (str(tmp_path / "a"), ("rows.jsonl",))
    pattern = custom_section(tmp_path / "a/**/*.jsonl")
    assert (pattern.folder, pattern.files) == (str(tmp_path / "a"), ("**/*.jsonl",))
    assert (custom_section(tmp_path / "a").folder, custom_section(tmp_path / "a").files) == (str(tmp_path / "a"), ())
    with pytest.raises(UserError, match="does not exist"):
        custom_section(tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "name"), [("my pets.jsonl.gz", "my-pets"), ("ÄÖ.json", "mine"), ("-x-.csv", "x"), ("a/b_c.tar", "b_c")]
)
def test_names_of_datasets_are_valid(path, name):
    assert dataset_name(Path(path)) == name


def test_a_recipe_for_data_with_losses_runs_and_says_what_it_allows():
    text = recipe("pets", custom_section(ROOT / "examples"), "pets.yaml", lost=0.171)
    assert yaml.safe_load(text)["tolerance"] == {"rows": 0.25}
    assert "17.1% of the rows" in text
    assert "tolerance" not in yaml.safe_load(recipe("pets", custom_section(ROOT / "examples"), "pets.yaml", lost=0.05))


def test_missing_images_are_looked_for_in_other_spellings():
    files = ["pics/P 0.PNG", "pics/deep/P 1.png", "old/x.png"]
    assert better_folder(["p 0.png", "deep\\p 1.PNG", "y.png"], files).line == "images: pics/"
    assert better_folder(["y.png"], files) is None
