"""The code fingerprint sees what a program does, not how it is commented."""

from scripts.common import fingerprint


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _fingerprint(root, monkeypatch, files, *modules):
    _write(root, files)
    monkeypatch.setattr(fingerprint, "ROOT", root)
    fingerprint.imports.cache_clear()
    fingerprint._statements.cache_clear()
    fingerprint._normalised.cache_clear()
    return fingerprint.code_fingerprint(*modules)


BASE = {
    "scripts/step.py": (
        '"""Purpose."""\nfrom scripts.helper import work\nimport numpy\n\n\ndef main():\n    return work(1)\n'
    ),
    "scripts/helper.py": "from scripts.deep import thing\n\n\ndef work(x):\n    return thing(x)  # why\n",
    "scripts/deep.py": "def thing(x):\n    return x\n",
    "scripts/other.py": "A = 1\n",
}


def test_changes_that_mean_nothing_do_not_count(tmp_path, monkeypatch):
    before = _fingerprint(tmp_path, monkeypatch, BASE, "scripts.step")
    rewritten = {
        "scripts/step.py": BASE["scripts/step.py"].replace("Purpose.", "Another purpose,\nin two lines."),
        "scripts/helper.py": BASE["scripts/helper.py"]
        .replace("# why", "# because")
        .replace("\n\n\n", "\n\n\n\n# note\n"),
        "scripts/other.py": "A = 2\n",
    }
    assert _fingerprint(tmp_path, monkeypatch, rewritten, "scripts.step") == before


def test_a_change_behind_two_imports_counts(tmp_path, monkeypatch):
    before = _fingerprint(tmp_path, monkeypatch, BASE, "scripts.step")
    changed = {"scripts/deep.py": "def thing(x):\n    return x + 1\n"}
    assert _fingerprint(tmp_path, monkeypatch, changed, "scripts.step") != before


def test_a_comment_sign_inside_a_string_is_code(tmp_path, monkeypatch):
    first = _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": 'X = "# one"\n'}, "scripts.a")
    assert _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": 'X = "# two"\n'}, "scripts.a") != first


def test_strings_under_fields_are_documentation(tmp_path, monkeypatch):
    text = 'class S:\n    x: int = 1\n    """How to choose."""\n'
    first = _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": text}, "scripts.a")
    assert _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": text.replace("How", "Why")}, "scripts.a") == first
    assert _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": text.replace("= 1", "= 2")}, "scripts.a") != first


def test_relative_imports_inside_model_are_followed(tmp_path, monkeypatch):
    files = {"model/a.py": "from .b import f\n", "model/b.py": "def f():\n    return 1\n"}
    before = _fingerprint(tmp_path, monkeypatch, files, "model.a")
    changed = {"model/b.py": "def f():\n    return 2\n"}
    assert _fingerprint(tmp_path, monkeypatch, changed, "model.a") != before


def test_named_modules_that_are_loaded_by_name_count(tmp_path, monkeypatch):
    before = _fingerprint(tmp_path, monkeypatch, BASE, "scripts.step", "scripts.other")
    assert (
        _fingerprint(tmp_path, monkeypatch, {"scripts/other.py": "A = 3\n"}, "scripts.step", "scripts.other") != before
    )


def test_templates_and_styles_count_by_their_bytes(tmp_path, monkeypatch):
    _write(tmp_path, {"scripts/page.css": "a {}", "scripts/page.html.jinja": "<p>"})
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    before = fingerprint.asset_fingerprint("scripts/*.css", "scripts/*.jinja")
    _write(tmp_path, {"scripts/page.css": "a { }"})
    assert fingerprint.asset_fingerprint("scripts/*.css", "scripts/*.jinja") != before
