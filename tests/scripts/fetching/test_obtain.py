"""Files of the registry: from the first address that gives the right one, or a message that says what to do."""

import pytest

from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256
from scripts.config.registry import Download
from scripts.fetching import receipts
from scripts.fetching.connection import FetchOptions
from scripts.fetching.obtain import obtain, obtain_images
from tests.scripts.fetching import fakes
from tests.scripts.fetching.archives import tar_member, tar_of, zip_of
from tests.scripts.fetching.server import File, page, status

DATA = bytes(range(256)) * 500
SHA256 = bytes_sha256(DATA)
PAGE = "https://huggingface.co/datasets/owner/set"


def _files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# One file


def test_the_first_address_that_gives_the_right_file_counts(server, tmp_path, options):
    server.routes |= {
        "/page": page("<html>"),
        "/short": File(DATA[:-1]),
        "/wrong": File(DATA[::-1]),
        "/good": File(DATA, etag='"1"'),
        "/never": File(DATA),
    }
    addresses = [f"{server.url}/{name}" for name in ("gone", "page", "short", "wrong", "good", "never")]
    download = Download(path="a/file.json", addresses=addresses, bytes=len(DATA), sha256=SHA256)
    assert obtain(download, tmp_path, options) == [tmp_path / "a/file.json"]
    assert (tmp_path / "a/file.json").read_bytes() == DATA
    assert [request.path for request in server.requests] == ["/gone", "/page", "/short", "/wrong", "/good"]
    receipt = receipts.valid(tmp_path, "a/file.json")
    assert (receipt.address, receipt.bytes, receipt.sha256) == (f"{server.url}/good", len(DATA), SHA256)
    assert _files(tmp_path) == [".fetched/a/file.json.json", "a/file.json"]


def test_the_message_has_the_error_of_every_address(server, tmp_path, options):
    server.routes |= {"/page": page("<html>"), "/md5": File(DATA), "/busy": status(503)}
    addresses = [f"{server.url}/{name}" for name in ("gone", "page", "md5", "busy")]
    with pytest.raises(UserError) as caught:
        obtain(Download(path="a/file.json", addresses=addresses, md5="0" * 32), tmp_path, options)
    message = str(caught.value)
    for address, answer in zip(addresses, ("404", "web page", "md5", "503"), strict=True):
        assert answer in message.partition(f"{address}: ")[2].partition("; http")[0]
    assert message.startswith("a/file.json could not be downloaded")
    assert f"place the file at {tmp_path}/a/file.json" in message
    assert "\n" not in message and not (tmp_path / "a/file.json").exists()


def test_what_is_there_is_not_judged(server, tmp_path, options):
    (tmp_path / "a.json").write_bytes(b"mine")
    download = Download(path="a.json", addresses=[f"{server.url}/a"], bytes=5, sha256="0" * 64, agreement=PAGE)
    assert obtain(download, tmp_path, FetchOptions(offline=True)) == [tmp_path / "a.json"]
    assert server.requests == [] and _files(tmp_path) == ["a.json"]


def test_a_second_run_asks_for_nothing(server, tmp_path, options):
    server.routes["/a"] = File(DATA)
    for _ in range(2):
        obtain(Download(path="a.json", addresses=[f"{server.url}/a"]), tmp_path, options)
    assert len(server.requests) == 1


def test_a_refused_file_is_not_fetched_again(server, tmp_path, options):
    server.routes["/a"] = File(DATA)
    download = Download(path="x/a.json", addresses=[f"{server.url}/a"], sha256="0" * 64)
    note = tmp_path / ".fetched/x/a.json.refused"
    for reason in ("recorded", "found in an earlier run"):
        with pytest.raises(
            UserError, match=rf"sha256 {SHA256} instead of 0{{64}} \({reason}; delete {note} to try again\)"
        ):
            obtain(download, tmp_path, options)
        assert len(server.requests) == 1
    note.unlink()
    with pytest.raises(UserError, match="recorded"):
        obtain(download, tmp_path, options)
    assert len(server.requests) == 2
    obtain(download.model_copy(update={"sha256": SHA256}), tmp_path, options)
    assert len(server.requests) == 3 and not note.exists()


def test_offline_says_what_is_missing(server, tmp_path):
    download = Download(path="a/b.json", addresses=[f"{server.url}/a"])
    with pytest.raises(UserError, match=f"a/b.json.*offline.*{server.url}/a.*place the file at {tmp_path}/a/b.json"):
        obtain(download, tmp_path, FetchOptions(offline=True))
    assert server.requests == []


def test_what_only_a_person_can_get(tmp_path, options):
    with pytest.raises(UserError, match=f"must be downloaded by hand.*place the file at {tmp_path}/a.zip"):
        obtain(Download(path="a.zip"), tmp_path, options)


# Archives


def test_a_member_of_a_remote_zip_is_fetched_alone(server, tmp_path, options):
    large = zip_of({"coco/features.bin": bytes(200_000), "coco/dataset.json": DATA}, 0)
    server.routes["/coco.zip"] = File(large, etag='"1"')
    address = {"url": f"{server.url}/coco.zip", "member": "dataset.json"}
    obtain(Download(path="c/dataset.json", addresses=[address], sha256=SHA256), tmp_path, options)
    assert (tmp_path / "c/dataset.json").read_bytes() == DATA and None not in server.ranges()
    assert receipts.valid(tmp_path, "c/dataset.json").address == f"{server.url}/coco.zip (dataset.json)"


def test_a_remote_zip_that_cannot_be_read_in_parts_leads_to_the_next_address(server, tmp_path, options):
    server.routes |= {"/coco.zip": File(zip_of({"dataset.json": DATA}), ranges=False), "/dataset.json": File(DATA)}
    addresses = [{"url": f"{server.url}/coco.zip", "member": "dataset.json"}, f"{server.url}/dataset.json"]
    obtain(Download(path="c/dataset.json", addresses=addresses), tmp_path, options)
    assert (tmp_path / "c/dataset.json").read_bytes() == DATA


def test_a_tar_is_fetched_unpacked_and_removed(server, tmp_path, options):
    archive = tar_of([(tar_member("./other.json"), b"x"), (tar_member("./train.json"), DATA)])
    server.routes["/v1p0.tar.gz"] = [File(archive, etag='"1"', cut=100), File(archive, etag='"1"')]
    address = {"url": f"{server.url}/v1p0.tar.gz", "member": "train.json"}
    obtain(Download(path="aokvqa/train.json", addresses=[address], sha256=SHA256), tmp_path, options)
    assert _files(tmp_path) == [".fetched/aokvqa/train.json.json", "aokvqa/train.json"]
    assert (tmp_path / "aokvqa/train.json").read_bytes() == DATA


def test_a_tar_with_a_wrong_member_is_refused_and_remembered(server, tmp_path, options):
    server.routes["/x.tar.gz"] = File(tar_of([(tar_member("train.json"), DATA)]))
    address = {"url": f"{server.url}/x.tar.gz", "member": "train.json"}
    for _ in range(2):
        with pytest.raises(UserError, match=r"x.tar.gz \(train.json\): it gives a file that is not the published one"):
            obtain(Download(path="train.json", addresses=[address], md5="0" * 32), tmp_path, options)
    assert len(server.requests) == 1 and _files(tmp_path) == [".fetched/train.json.refused"]


def test_an_archive_of_another_kind_is_not_even_fetched(server, tmp_path, options):
    server.routes["/x.rar"] = File(DATA)
    address = {"url": f"{server.url}/x.rar", "member": "train.json"}
    with pytest.raises(UserError, match=r"x.rar is not a supported archive"):
        obtain(Download(path="train.json", addresses=[address]), tmp_path, options)
    assert server.requests == []


# The hub, and what is behind an agreement


@pytest.fixture
def endpoint(server, monkeypatch):
    """A server that the library takes for the hub."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


FOLDER = {"X_Images/a.parquet": b"PAR1" + DATA, "X_Images/b.parquet": b"PAR1", "X_Images/README.md": b"#"}
PATTERN = Download(path="M/X_Images/", addresses=["hub://datasets/owner/set/X_Images/*.parquet"], agreement=PAGE)


def test_a_file_of_the_hub(endpoint, tmp_path, options):
    fakes.hub(endpoint, "owner/set", {"x.json": DATA})
    download = Download(path="l/x.json", addresses=["hub://datasets/owner/set/x.json"], sha256=SHA256)
    assert obtain(download, tmp_path, options)[0].read_bytes() == DATA
    assert receipts.valid(tmp_path, "l/x.json").address == "hub://datasets/owner/set/x.json"


def test_a_file_of_the_hub_that_has_changed_is_not_fetched(endpoint, tmp_path, options):
    fakes.hub(endpoint, "owner/set", {"x.json": DATA})
    download = Download(path="x.json", addresses=["hub://datasets/owner/set/x.json"], sha256="0" * 64)
    with pytest.raises(UserError, match=f"another version of the file: sha256 {SHA256} instead of 0"):
        obtain(download, tmp_path, options)
    assert len(endpoint.requests) == 1


def test_a_hub_that_gives_other_bytes_than_it_lists(endpoint, tmp_path, options):
    fakes.hub(endpoint, "owner/set", {"x.json": DATA})
    endpoint.routes[f"/datasets/owner/set/resolve/{fakes.COMMIT}/x.json"] = File(DATA[::-1])
    with pytest.raises(UserError, match="not the published one"):
        obtain(Download(path="x.json", addresses=["hub://datasets/owner/set/x.json"]), tmp_path, options)
    assert not (tmp_path / "x.json").exists()


def test_an_agreement_without_a_token_stops_before_a_byte(endpoint, tmp_path, options):
    fakes.hub(endpoint, "owner/set", FOLDER, token="hf_good")
    with pytest.raises(UserError) as caught:
        obtain(PATTERN, tmp_path, options)
    message = str(caught.value)
    for step in (PAGE, "https://huggingface.co/settings/tokens", "hf auth login", "HF_TOKEN", f"{tmp_path}/M/X_Images"):
        assert step in message
    assert endpoint.requests == [] and _files(tmp_path) == []


def test_an_agreement_that_was_not_accepted(endpoint, tmp_path, options, monkeypatch):
    fakes.hub(endpoint, "owner/set", FOLDER, token="hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"the hub denies access with your token: it answers 403.*accept with your"):
        obtain(PATTERN, tmp_path, options)
    assert not (tmp_path / "M").exists() or _files(tmp_path / "M") == []


def test_an_agreement_that_was_accepted(endpoint, tmp_path, options, monkeypatch):
    fakes.hub(endpoint, "owner/set", FOLDER, token="hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    places = [tmp_path / "M/X_Images/a.parquet", tmp_path / "M/X_Images/b.parquet"]
    assert obtain(PATTERN, tmp_path, options) == places
    assert places[0].read_bytes() == b"PAR1" + DATA and _files(tmp_path / "M") == [
        "X_Images/a.parquet",
        "X_Images/b.parquet",
    ]
    assert receipts.valid(tmp_path, "M/X_Images/b.parquet").bytes == 4
    before = len(endpoint.requests)
    assert obtain(PATTERN, tmp_path, FetchOptions(offline=True)) == places and len(endpoint.requests) == before


def test_a_folder_that_was_interrupted_goes_on(endpoint, tmp_path, options, monkeypatch):
    fakes.hub(endpoint, "owner/set", FOLDER, token="hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    second = f"/datasets/owner/set/resolve/{fakes.COMMIT}/X_Images/b.parquet"
    good, endpoint.routes[second] = endpoint.routes[second], status(404)
    with pytest.raises(UserError, match=f"place all of its files in {tmp_path}/M/X_Images, delete {tmp_path}/.fetched"):
        obtain(PATTERN, tmp_path, options)
    with pytest.raises(UserError, match="offline"):
        obtain(PATTERN, tmp_path, FetchOptions(offline=True))
    endpoint.routes[second] = good
    endpoint.requests.clear()
    assert len(obtain(PATTERN, tmp_path, options)) == 2
    assert [request.path for request in endpoint.requests if "a.parquet" in request.path] == []


def test_a_folder_that_was_placed_by_hand(endpoint, tmp_path, options):
    (tmp_path / "M/X_Images").mkdir(parents=True)
    (tmp_path / "M/X_Images/README.md").write_text("")
    with pytest.raises(UserError, match="agreement"):
        obtain(PATTERN, tmp_path, options)
    (tmp_path / "M/X_Images/mine.parquet").write_text("")
    assert obtain(PATTERN, tmp_path, options) == [tmp_path / "M/X_Images/mine.parquet"]
    assert endpoint.requests == []


def test_a_folder_that_was_interrupted_is_finished_by_hand(endpoint, tmp_path, options, monkeypatch):
    fakes.hub(endpoint, "owner/set", FOLDER, token="hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    endpoint.routes[f"/datasets/owner/set/resolve/{fakes.COMMIT}/X_Images/b.parquet"] = status(404)
    with pytest.raises(UserError, match="404"):
        obtain(PATTERN, tmp_path, options)
    (tmp_path / "M/X_Images/b.parquet").write_bytes(b"mine")
    assert [place.name for place in obtain(PATTERN, tmp_path, FetchOptions(offline=True))] == ["a.parquet", "b.parquet"]


def test_one_file_is_not_what_a_pattern_gives(endpoint, tmp_path, options):
    fakes.hub(endpoint, "owner/set", FOLDER)
    download = Download(path="x.parquet", addresses=["hub://datasets/owner/set/X_Images/*.parquet"])
    with pytest.raises(UserError, match="2 files match it"):
        obtain(download, tmp_path, options)


def test_a_file_on_drive(server, tmp_path, options, monkeypatch):
    fakes.through_loopback(server, monkeypatch)
    file_id = "1nJXhoEcy3KTExr17I7BXqY5Y9Lx_-n-9"
    cut = fakes.drive_file(DATA)
    server.routes |= {
        "/uc": [fakes.drive_question(file_id, "1"), fakes.drive_question(file_id, "2")],
        "/download": [File(DATA, modified=cut.modified, headers=cut.headers, cut=1000), status(404), cut],
    }
    download = Download(path="c/c.zip", addresses=[f"drive://{file_id}"])
    with pytest.raises(UserError, match="404"):
        obtain(download, tmp_path, options)
    assert obtain(download, tmp_path, options)[0].read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=1000-" and server.requests[-1].path.endswith("uuid=2")


def test_a_member_behind_an_agreement(endpoint, tmp_path, options, monkeypatch):
    fakes.hub(endpoint, "owner/set", {"images.zip": zip_of({"images/1.jpg": b"JPEG"})}, token="hf_good")
    download = Download(path="m/images.zip", addresses=["hub://datasets/owner/set/images.zip"], agreement=PAGE)
    with pytest.raises(UserError, match="no token"):
        obtain_images(download, tmp_path, "m/images/", ["1.jpg"], options)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert obtain_images(download, tmp_path, "m/images/", ["1.jpg"], options) == []
    assert (tmp_path / "m/images/1.jpg").read_bytes() == b"JPEG"


# A subset: single images of a remote archive

IMAGES = {f"train2017/{number:012d}.jpg": b"JPEG%d" % number for number in range(30)}
NAMES = ["000000000003.jpg", "000000000014.jpg"]


@pytest.fixture
def coco(server):
    """The archive of images."""
    server.routes["/train2017.zip"] = File(zip_of(IMAGES), etag='"1"')
    return Download(path="coco/train2017.zip", addresses=[f"{server.url}/gone.zip", f"{server.url}/train2017.zip"])


def test_images_are_fetched_alone_and_the_folder_is_marked(server, coco, tmp_path, options):
    strange = ["", ".", "..", "../000000000005.jpg", "a/b.jpg", "\0", "n" * 300, "\ud800.jpg", "/etc/passwd"]
    wanted = [*NAMES, "absent.jpg", *strange]
    assert obtain_images(coco, tmp_path, "coco/train2017/", wanted, options) == sorted(["absent.jpg", *strange])
    assert _files(tmp_path / "coco") == [f"train2017/{name}" for name in NAMES]
    assert (tmp_path / "coco/train2017" / NAMES[1]).read_bytes() == b"JPEG14"
    assert receipts.is_partial(tmp_path, "coco/train2017/")
    assert len(server.requests) == 1 + 1 + len(NAMES) and None not in server.ranges()
    assert len(list((tmp_path / ".fetched/archives").glob("*.zipdir"))) == 1
    assert obtain_images(coco, tmp_path, "coco/train2017/", strange, FetchOptions(offline=True)) == sorted(strange)


def test_images_that_are_there_are_not_asked_for(server, coco, tmp_path, options):
    obtain_images(coco, tmp_path, "coco/train2017/", NAMES, options)
    server.requests.clear()
    assert obtain_images(coco, tmp_path, "coco/train2017/", NAMES, FetchOptions(offline=True)) == []
    assert server.requests == []
    assert obtain_images(coco, tmp_path, "coco/train2017/", [*NAMES, "000000000001.jpg"], options) == []
    assert len(server.requests) == 3 and receipts.is_partial(tmp_path, "coco/train2017/")


def test_a_folder_of_the_users_own_is_not_marked(coco, tmp_path, options):
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/000000000000.jpg").write_bytes(b"mine")
    assert obtain_images(coco, tmp_path, "coco/train2017/", NAMES, options) == []
    assert not receipts.is_partial(tmp_path, "coco/train2017/")


def test_of_two_members_of_one_name_that_of_our_folder_counts(server, coco, tmp_path, options):
    images = {"train2017/1.jpg": b"train", "val2017/1.jpg": b"val", "thumbs/1.jpg": b"thumb", "thumbs/2.jpg": b"only"}
    server.routes["/train2017.zip"] = File(zip_of(images))
    for folder in ("train2017", "val2017"):
        assert obtain_images(coco, tmp_path, f"coco/{folder}/", ["1.jpg", "2.jpg"], options) == []
    assert (tmp_path / "coco/train2017/1.jpg").read_bytes() == b"train"
    assert (tmp_path / "coco/val2017/1.jpg").read_bytes() == b"val"
    assert (tmp_path / "coco/val2017/2.jpg").read_bytes() == b"only"


def test_images_that_cannot_be_had(server, coco, tmp_path, options):
    with pytest.raises(UserError, match="2 images of coco/train2017/: missing, and this run is offline"):
        obtain_images(coco, tmp_path, "coco/train2017/", NAMES, FetchOptions(offline=True))
    server.routes["/train2017.zip"] = status(403)
    with pytest.raises(UserError, match=r"coco/train2017.zip could not be downloaded.*404.*403"):
        obtain_images(coco, tmp_path, "coco/train2017/", NAMES, options)
    with pytest.raises(UserError, match="downloaded by hand"):
        obtain_images(Download(path="a.zip"), tmp_path, "a/", NAMES, options)


def test_a_damaged_image_leaves_the_good_ones(server, coco, tmp_path, options):
    archive = bytearray(zip_of(IMAGES, 0))
    archive[archive.index(b"JPEG14")] ^= 1
    server.routes["/train2017.zip"] = File(bytes(archive))
    with pytest.raises(UserError, match=r"000000000014.jpg is damaged in the archive"):
        obtain_images(coco, tmp_path, "coco/train2017/", NAMES, options)
    assert _files(tmp_path / "coco") in ([f"train2017/{NAMES[0]}"], [])
    assert receipts.is_partial(tmp_path, "coco/train2017/")
