"""The benchmark of own rows measures conversions that keep every row."""

import json

import pytest

from benchmarks import own_data


@pytest.mark.parametrize("case", sorted(own_data.CASES))
def test_every_row_becomes_a_record_with_its_image(tmp_path, case):
    own_data.prepare(tmp_path, case, 50)
    measured = own_data.convert(tmp_path)
    assert measured.cpu_seconds > 0 and measured.peak > 0
    report = json.loads((tmp_path / "records/own.report.json").read_text())
    assert (report["rows"], report["kept"], report["images"], report["dropped"]) == (50, 50, 50, {})


def test_its_images_are_all_different():
    assert len({own_data.png(number) for number in range(1000)}) == 1000
