"""Walking a user's folder: links to folders are followed once, hidden files and results are left out."""

from scripts.media.image_folder import images_below

JPEG = b"\xff\xd8\xff" + bytes(40)


def paths(root, *skip):
    return sorted(path for path, fault in images_below(root, root, skip, follow=True) if not fault)


def test_links_to_folders_are_followed_but_none_that_leads_back(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "root"
    for folder in (disk / "inner", root / "own/deep"):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(JPEG)
    (root / "linked").symlink_to(disk)
    (root / "own/deep/up").symlink_to(root / "own")
    (disk / "back").symlink_to(root)
    (disk / "self").symlink_to(disk)
    assert paths(root) == ["linked/inner/a.jpg", "own/deep/a.jpg"]
    assert list(images_below(root, root)) == [("own/deep/a.jpg", "")]


def test_results_hidden_and_skipped_folders_are_left_out(tmp_path):
    for name in ("a.jpg", ".hidden/b.jpg", "results/media/c.jpg", "skipped/d.jpg", "skipped-not/e.jpg", "media/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "results/configuration.json").write_text("{}")
    assert paths(tmp_path, "skipped") == ["a.jpg", "media/f.jpg", "skipped-not/e.jpg"]
