"""Images of own data from a user's folder to the records: by name, in archives, inside of rows; never another one."""

import base64
import csv
import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scripts.common.errors import UserError
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source
from scripts.convert import convert
from scripts.fetch import fetch
from scripts.media.store import MediaStore
from scripts.media_index import write_index
from scripts.shard import write_shard

SHARDS = 2


def encoded(colour="red", kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(buffer, kind)
    return buffer.getvalue()


RED, YELLOW = encoded((200, 10, 10)), encoded((10, 200, 10))
BLUE, GREEN = encoded("blue"), encoded("green", "JPEG")


def row(*images, **more):
    messages = [{"role": "user", "content": "<image>" * len(images) + "What?"}, {"role": "assistant", "content": "It."}]
    return {"messages": messages, "images": list(images)} | more


class Own:
    """A dataset of a user, and what becomes of it."""

    def __init__(self, tmp_path):
        self.root, self.folder = tmp_path, tmp_path / "mine"
        self.folder.mkdir()

    def write(self, name, data):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def rows(self, *rows, name="rows.jsonl"):
        self.write(name, "\n".join(map(json.dumps, rows)).encode())

    def build(self, **settings):
        """The bytes of the images of every record, and the reasons of the rows that are lost, with an example."""
        own = CustomDatasetConfig(folder=str(self.folder), **settings)
        raw, media = self.root / "raw/own", self.root / "media/own"
        self.manifest = fetch(custom_source("own", own), self.folder, raw, dataset=custom_dataset("own", own))
        for number in range(SHARDS):
            write_shard("own", raw, SHARDS, number, media)
        self.media = write_index("own", SHARDS, raw, media)
        self.report = convert("own", {"own": raw}, {"own": media}, self.root / "records")
        store = MediaStore({"own": media})
        records = pq.read_table(self.root / "records/own.parquet").to_pylist()
        shown = [[store.read(image["source"], image["key"]) for image in record["images"]] for record in records]
        return shown, {reason: entry["examples"][0] for reason, entry in self.report["dropped"].items()}

    @property
    def notes(self):
        return {reason: entry["count"] for reason, entry in self.report["notes"].items()}


@pytest.fixture
def own(tmp_path):
    return Own(tmp_path)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(mode="w", **members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def text(data):
    return base64.b64encode(data).decode()


def test_without_a_setting_images_lie_anywhere_below_the_folder(own):
    own.write("photos/red.png", RED)
    own.write("blue.jfif", BLUE)
    own.write("noextension", GREEN)
    own.rows(
        row("photos/red.png"),
        row("./blue.jfif"),
        row("noextension"),
        row(f"{own.folder}/photos/red.png"),
        row("red.png"),
    )
    shown, lost = own.build()
    assert shown == [[RED], [BLUE], [GREEN], [RED]]
    assert lost == {"missing_image": "rows.jsonl row 4: red.png; there is photos/red.png: meant?"}


def test_other_spellings_are_counted(own):
    own.write("photos/Red.PNG", RED)
    own.rows(row("photos/red.png"), row("photos\\Red.PNG"), row("photos/Red.PNG"))
    shown, lost = own.build()
    assert shown == [[RED]] * 3 and not lost and own.notes == {"name_matched_loosely": 2}


def test_an_image_is_packed_once_whichever_way_rows_give_it(own):
    own.write("red.png", RED)
    own.rows(row(text(BLUE)), row({"url": f"data:image/png;base64,{text(BLUE)}"}), row("red.png"))
    table = [{"messages": row("x")["messages"], "images": [{"bytes": BLUE, "path": "red.png"}]}]
    pq.write_table(pa.Table.from_pylist(table), own.folder / "rows.parquet")
    shown, lost = own.build(files=("rows.jsonl", "rows.parquet"))
    assert shown == [[BLUE], [BLUE], [RED], [BLUE]] and not lost and own.media["images"] == 2


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "tar", "tar.gz"])
def test_images_inside_of_rows_of_every_kind_of_file(own, kind):
    rows = [{"question": "What?", "answer": "It.", "image": text(data)} for data in (RED, BLUE, RED)]
    name = f"rows.{kind}"
    if kind == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        own.write(name, buffer.getvalue().encode())
    elif kind == "parquet":
        table = [
            each | {"image": {"bytes": data, "path": None}} for each, data in zip(rows, (RED, BLUE, RED), strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(table), own.folder / name)
    elif kind.startswith("tar"):
        samples = {
            f"{number}.{end}": data
            for number, image in enumerate((RED, BLUE, RED))
            for end, data in (("png", image), ("json", json.dumps({"question": "What?", "answer": "It."}).encode()))
        }
        own.write(name, tarred("w:gz" if kind.endswith("gz") else "w", **samples))
    else:
        data = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        own.write(name, gzip.compress(data.encode()) if kind.endswith("gz") else data.encode())
    shown, lost = own.build(files=(name,))
    assert shown == [[RED], [BLUE], [RED]] and not lost and own.media["images"] == 2


def test_damaged_bytes_cost_their_row(own):
    own.rows(row({"bytes": text(RED[:-30])}), row(text(BLUE)))
    shown, lost = own.build()
    assert shown == [[BLUE]]
    assert lost["unreadable_image"].startswith("rows.jsonl row 0: embedded/") and "(" in lost["unreadable_image"]


def test_rows_that_have_changed_since_they_were_listed_are_an_error(own):
    own.rows(row(text(RED)), row(text(BLUE)))
    own.build()
    assert len(RED) == len(YELLOW)
    own.rows(row(text(YELLOW)), row(text(BLUE)))
    with pytest.raises(UserError, match=r"rows\.jsonl has changed since it was fetched"):
        write_shard("own", own.root / "raw/own", 1, 0, own.root / "media/again")


ARCHIVES = {
    "photos.zip": zipped,
    "photos.tar": tarred,
    "photos.tar.gz": lambda **members: tarred("w:gz", **members),
    "photos.tgz": lambda **members: tarred("w:gz", **members),
    "photos.tar.xz": lambda **members: tarred("w:xz", **members),
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_images_in_an_archive_are_named_by_their_path_in_it(own, archive):
    members = {
        "data/augmented/solo.png": BLUE,
        "data/train/a.png": RED,
        "data/test/a.png": GREEN,
        "data/notes.txt": b"x",
    }
    own.write(archive, ARCHIVES[archive](**members))
    names = ("data/train/a.png", "test/a.png", "data/augmented/solo.png", "solo.png", "a.png")
    own.rows(*map(row, names))
    shown, lost = own.build(images=archive)
    assert shown == [[RED], [GREEN], [BLUE]]
    assert lost == {
        "missing_image": "rows.jsonl row 3: solo.png; there is photos/augmented/solo.png: meant?",
        "ambiguous_image": "rows.jsonl row 4: a.png may be any of photos/test/a.png, photos/train/a.png",
    }


def test_an_archive_counts_where_a_folder_of_its_name_lies_beside_it(own):
    own.write("photos.zip", zipped(**{"a.png": RED}))
    own.write("photos/a.png", BLUE)
    own.rows(row("a.png"))
    assert own.build(images="photos.zip") == ([[RED]], {})


def test_several_folders_and_archives(own):
    own.write("one/a.png", RED)
    own.write("one/b.png", RED)
    own.write("two.zip", zipped(**{"b.png": BLUE, "c.png": BLUE}))
    own.write("three.tar", tarred(**{"d.png": GREEN}))
    own.rows(*(row(name) for name in ("a.png", "one/b.png", "two/b.png", "c.png", "d.png", "b.png")))
    shown, lost = own.build(files=("rows.jsonl",), images=["one", "two.zip", "three.tar"])
    assert shown == [[RED], [RED], [BLUE], [BLUE], [GREEN]]
    assert lost == {"ambiguous_image": "rows.jsonl row 5: b.png may be any of one/b.png, two/b.png"}


def test_an_archive_is_not_opened_unless_it_is_named(own):
    own.write("photos.zip", zipped(**{"a.png": RED}))
    own.write("b.png", BLUE)
    own.rows(row("a.png"), row("b.png"))
    shown, lost = own.build()
    assert shown == [[BLUE]] and "photos.zip may hold it: name the archive as `images`" in lost["missing_image"]


def test_a_linked_folder_of_images_and_results_below_the_folder(own, tmp_path):
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(RED)
    (own.folder / "photos").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(own.folder)
    own.write("results/configuration.json", b"{}")
    own.write("results/media/x.png", BLUE)
    own.write(".hidden/y.png", BLUE)
    own.rows(row("photos/a.png"), row(f"{elsewhere}/a.png"))
    shown, lost = own.build()
    assert shown == [[RED], [RED]] and not lost
    assert own.media["images"] == 1


def test_rows_without_images_need_none(own):
    own.rows({"messages": row()["messages"]}, row("lost.png"))
    shown, lost = own.build()
    assert shown == [[]] and lost == {"missing_image": "rows.jsonl row 1: lost.png"} and own.media["images"] == 0


def test_an_address_names_the_program_that_downloads(own):
    own.rows(row("https://example.org/a.png"), row("s3://bucket/b.png"), {"messages": row()["messages"]})
    _, lost = own.build()
    assert (
        "`python -m scripts.download_images`" in lost["remote_image"]
        and own.report["dropped"]["remote_image"]["count"] == 2
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a.zip", "a.tar"], "two entries that stand for the folder"),
        ("../x", "below `folder`"),
        ("/x.zip", "below `folder`"),
    ],
)
def test_images_of_the_configuration_that_cannot_be(images, message):
    with pytest.raises(ValueError, match=message):
        CustomDatasetConfig(folder="x", images=images)


def test_missing_images_of_the_configuration_are_named(own):
    own.rows(row("a.png"))
    with pytest.raises(UserError, match=r"photos/ is not there .*custom\.own"):
        own.build(images="photos")
