"""sd, sn, tvc and vst of MIMIC-IT: rows as published, in all layouts, and the damage that each of them is known for."""

import base64
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scripts.adapters.conversion import load_adapter
from scripts.adapters.image_lookup import ImageLookup
from scripts.common.records import Record
from scripts.config.registry import DATASETS
from tests.scripts.adapters.raw_folders import data_path, fetch_for, run, texts


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 50, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def text(number):
    return base64.b64encode(png(number)).decode()


def ins(images, question="What changed?", answer="The car left.", related=()):
    return {"instruction": question, "answer": answer, "image_ids": list(images), "rel_ins_ids": list(related)}


def convert(tmp_path, name, rows, images, **more):
    files = {f"MIMIC-IT/{name}_instructions.json": {"meta": {"version": "0.0.1"}, "data": rows}}
    files[f"MIMIC-IT/{name}.json"] = {id_: text(number) for number, id_ in enumerate(images)}
    files |= {f"MIMIC-IT/{key}.json": value for key, value in more.items()}
    return run(f"otter_mimicit_{name.lower()}", tmp_path, files, images=())


def reasons(items):
    return sorted((item.reason, getattr(item, "rows", 1)) for item in items)


SD = ["SD_IMG_00001_1", "SD_IMG_00001_2"]


def test_sd_asks_about_both_sides_of_a_pair(tmp_path):
    rows = {
        "SD_INS_00001": ins(SD, related=["SD_INS_00002"]),
        "SD_INS_00002": ins(SD, "Where was it?", "By the kerb."),
        "SD_INS_00003": ins(["SD_IMG_00002_1", "SD_IMG_00002_2"]),
    }
    records, dropped, notes = convert(tmp_path, "SD", rows, [*SD, "SD_IMG_00002_1"])
    assert [record.id for record in records] == ["SD_INS_00001"]
    assert list(records[0].images) == [("mimicit_sd", f"MIMIC-IT/SD/{id_}") for id_ in SD]
    assert texts(records[0]) == [("What changed?", "The car left."), ("Where was it?", "By the kerb.")]
    assert records[0].groups == (("order", "permute", 2),)
    assert reasons(dropped) == [("missing_image", 1)] and "SD_IMG_00002_2" in dropped[0].example
    assert reasons(notes) == [("one_sided_reference", 1)]


def test_images_may_lie_in_a_folder(tmp_path):
    files = {"MIMIC-IT/SD_instructions.json": {"data": {"SD_INS_00001": ins(SD)}}}
    images = (f"MIMIC-IT/SD/{SD[0]}.png", f"MIMIC-IT/SD/{SD[1]}.jpg")
    records, dropped, _ = run("otter_mimicit_sd", tmp_path, files, images)
    assert len(records) == 1 and dropped == []


def _results(tmp_path, dataset):
    raw = fetch_for(dataset, tmp_path / "data", tmp_path / "raw")
    entry = DATASETS[dataset]
    results = load_adapter(entry).records(raw, ImageLookup.from_listing(raw, entry.image_sources))
    return [item for item in results if isinstance(item, Record)]


def native(row):
    names = {
        "instruction": "instruction",
        "answer": "answer",
        "image_ids": "images",
        "rel_ins_ids": "related instructions",
    }
    return {names[key]: value for key, value in row.items()}


@pytest.mark.parametrize("images", ["SD.parquet", "SD_frames.parquet", "SD_Images/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("rows", ["SD_instructions.json", "SD_Instructions/train-00000-of-00001.parquet"])
def test_every_layout_gives_the_same_records(tmp_path, images, rows):
    raw = {
        "SD_INS_00001": ins(SD, related=["SD_INS_00002"]),
        "SD_INS_00002": ins(SD, "Where?", "There.", ["SD_INS_00001"]),
    }
    data = data_path(
        tmp_path / "data", {"MIMIC-IT/SD_instructions.json": {"data": raw}} if rows.endswith("json") else {}, ()
    )
    (data / f"MIMIC-IT/{rows}").parent.mkdir(parents=True, exist_ok=True)
    if rows.endswith("parquet"):
        table = [{"id": id_} | native(row) for id_, row in raw.items()]
        pq.write_table(pa.Table.from_pylist(table), data / f"MIMIC-IT/{rows}")
    (data / f"MIMIC-IT/{images}").parent.mkdir(parents=True, exist_ok=True)
    if "Images" in images:
        table = pa.Table.from_pylist(
            [{"id": id_, "image": {"bytes": png(n), "path": None}} for n, id_ in enumerate(SD)]
        )
    else:
        table = pa.table({"base64": [text(n) for n in range(2)], "__index_level_0__": SD})
    pq.write_table(table, data / f"MIMIC-IT/{images}")
    records = _results(tmp_path, "otter_mimicit_sd")
    assert [record.id for record in records] == ["SD_INS_00001"]
    assert texts(records[0]) == [("What changed?", "The car left."), ("Where?", "There.")]
    assert [image.key for image in records[0].images] == [f"MIMIC-IT/SD/{id_}" for id_ in SD]


def test_instructions_with_their_images_inside(tmp_path):
    pair = [{"bytes": png(n), "path": None} for n in range(2)]
    rows = [
        {"id": "SD_INS_1", "instruction": "A?", "answer": "a", "images": pair, "related instructions": ["SD_INS_2"]},
        {"id": "SD_INS_2", "instruction": "B?", "answer": "b", "images": pair, "related instructions": ["SD_INS_1"]},
        {"id": "SD_INS_3", "instruction": "C?", "answer": "c", "images": pair[::-1], "related instructions": []},
    ]
    (tmp_path / "data/MIMIC-IT/SD").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/MIMIC-IT/SD/train-00000-of-00001.parquet")
    records = _results(tmp_path, "otter_mimicit_sd")
    assert [texts(record) for record in records] == [[("A?", "a"), ("B?", "b")], [("C?", "c")]]
    assert records[0].images == records[1].images[::-1]


FRAMES = [f"SN_IMG_scene0000_00_color_{frame}" for frame in (100, 200, 300)]


def sn(round_, images, question="", dialogue=0):
    id_ = f"SN_00_INS_scene0000_00_activity{dialogue}_round{round_}"
    return {id_: ins(images, question or f"Q{round_}?", f"A{round_}.")}


def test_sn_keeps_the_order_of_a_dialogue_and_shows_a_frame_when_it_comes(tmp_path):
    rows = sn(10, FRAMES[:3]) | sn(9, FRAMES[:2]) | sn(8, FRAMES[:1])
    records, dropped, _ = convert(tmp_path, "SN", rows, FRAMES)
    assert dropped == [] and [record.id for record in records] == ["SN_00_INS_scene0000_00_activity0"]
    assert texts(records[0]) == [("Q8?", "A8."), ("Q9?", "A9."), ("Q10?", "A10.")]
    assert [round_.images for round_ in records[0].rounds] == [(0,), (1,), (2,)] and records[0].groups == ()


def test_sn_does_not_use_a_dialogue_that_lacks_a_round(tmp_path):
    rows = sn(0, FRAMES[:1]) | sn(1, ["SN_IMG_lost"]) | sn(2, FRAMES[:1])
    rows |= sn(0, FRAMES, dialogue=1) | sn(2, FRAMES, dialogue=1) | sn(4, FRAMES, "Good?", dialogue=2)
    records, dropped, _ = convert(tmp_path, "SN", rows, FRAMES)
    assert [texts(record) for record in records] == [[("Good?", "A4.")]]
    assert reasons(dropped) == [("incomplete_dialogue", 2), ("incomplete_dialogue", 2), ("missing_image", 1)]


CLIP = "s01e01_seg01_clip_00"


@pytest.mark.parametrize("doubled", [False, True])
def test_tvc_finds_images_whose_clip_is_named_twice(tmp_path, doubled):
    plain = [f"TVC_IMG_{CLIP}_{frame:05d}" for frame in (3, 9)]
    twice = [f"TVC_IMG_{CLIP}_{CLIP}_{frame:05d}" for frame in (3, 9)]
    stored, named = (twice, plain) if doubled else (plain, twice)
    records, dropped, notes = convert(tmp_path, "TVC", {"TVC_INS_000000": ins(named)}, stored)
    assert dropped == [] and [image.key for image in records[0].images] == [f"MIMIC-IT/TVC/{id_}" for id_ in stored]
    assert reasons(notes) == [("doubled_clip_name", 1)] * 2
    _, _, notes = convert(tmp_path / "same", "TVC", {"TVC_INS_000000": ins(stored)}, stored)
    assert notes == []


VST = ["VST_IMG_1", "VST_IMG_2", "VST_IMG_3"]


def test_vst_drops_a_story_with_an_expired_image_whole(tmp_path):
    rows = {
        f"VST_INS_{n}": ins(images, f"Tell {n}.", "Once.") for n, images in enumerate((VST[:2], VST, ["VST_IMG_9"]))
    }
    records, dropped, _ = convert(tmp_path, "VST", rows, VST[:2], expired_images=["3", 4])
    assert [texts(record) for record in records] == [[("Tell 0.", "Once.")]]
    assert reasons(dropped) == [("expired_image", 1), ("missing_image", 1)]


def test_vst_takes_stories_of_up_to_64_images(tmp_path):
    frames = [f"VST_IMG_{number}" for number in range(65)]
    rows = {"VST_INS_0": ins(frames[1:], "The most?"), "VST_INS_1": ins(frames, "One more?")}
    records, dropped, _ = convert(tmp_path, "VST", rows, frames)
    assert [len(record.images) for record in records] == [64] and texts(records[0])[0][0] == "The most?"
    assert reasons(dropped) == [("bad_row", 1)] and "VST_INS_1" in dropped[0].example


@pytest.mark.parametrize("listed", [{"a": 1}, [None, {}], 5])
def test_vst_survives_a_strange_list_of_expired_images(tmp_path, listed):
    records, dropped, _ = convert(tmp_path, "VST", {"VST_INS_0": ins(VST)}, VST[:2], expired_images=listed)
    assert records == [] and reasons(dropped) == [("missing_image", 1)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_ids": []}, "bad_row"),
        ({"image_ids": "SD_IMG_00001_1"}, "bad_row"),
        ({"image_ids": [SD[0], SD[0]]}, "bad_row"),
        ({"image_ids": ["../../x", SD[0]]}, "unsafe_path"),
        ({"image_ids": [5, SD[0]]}, "bad_row"),
        ({"answer": " \n"}, "empty_text"),
        ({"instruction": None}, "bad_row"),
        ({"rel_ins_ids": [7]}, "bad_row"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, changes, reason):
    rows = {"SD_INS_00001": ins(SD) | changes, "SD_INS_00002": ins(SD)}
    records, dropped, _ = convert(tmp_path, "SD", rows, SD)
    assert len(records) == 1 and [item.reason for item in dropped] == [reason]
