"""The code fingerprint sees what a program does, not how it is commented."""

import pytest

from scripts.common import definitions, fingerprint


@pytest.fixture(autouse=True)
def _no_cache():
    yield
    fingerprint.imports.cache_clear()
    definitions.read_module.cache_clear()


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _fingerprint(root, monkeypatch, files, *modules):
    _write(root, files)
    monkeypatch.setattr(definitions, "ROOT", root)
    fingerprint.imports.cache_clear()
    definitions.read_module.cache_clear()
    return fingerprint.code_fingerprint(*modules)


BASE = {
    "scripts/step.py": (
        '"""Purpose."""\nfrom scripts.helper import work\nimport numpy\n\n\ndef main():\n    return work(1)\n'
    ),
    "scripts/helper.py": "from scripts.deep import thing\n\n\ndef work(x):\n    return thing(x)  # why\n",
    "scripts/deep.py": "LIMIT = 3\n\n\ndef thing(x):\n    return x\n\n\ndef unused(x):\n    return LIMIT\n",
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


@pytest.mark.parametrize("other", ["a\n\nb", "a \nb", "a\n b"])
@pytest.mark.parametrize("prefix", ["", "f"])
def test_spaces_and_empty_lines_inside_of_a_string_are_code(tmp_path, monkeypatch, prefix, other):
    text = '\n\ndef main():\n    return {}"""{}"""\n'
    first = _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": text.format(prefix, "a\nb")}, "scripts.a")
    assert _fingerprint(tmp_path, monkeypatch, {"scripts/a.py": text.format(prefix, other)}, "scripts.a") != first


@pytest.mark.parametrize(
    ("hook", "declared"),
    [("cls, name", 'Base, name="first"'), ("cls", "Base")],
    ids=["with arguments", "without"],
)
def test_a_class_that_its_base_registers_counts_where_its_module_is_loaded(tmp_path, monkeypatch, hook, declared):
    registry = f"ALL = []\n\n\nclass Base:\n    def __init_subclass__({hook}):\n        ALL.append(cls)\n\n\n"
    registry += f"class First({declared}):\n    def work(self):\n        return helper()\n\n\n"
    registry += "def helper():\n    return 1\n"
    step = "from scripts.registry import ALL\n\n\ndef main():\n    return ALL[0]().work()\n"
    files = {"scripts/other.py": "", "scripts/registry.py": registry, "scripts/step.py": step}
    before = _fingerprint(tmp_path, monkeypatch, files, "scripts.step")
    changed = {"scripts/registry.py": registry.replace("return 1", "return 2")}
    assert _fingerprint(tmp_path, monkeypatch, changed, "scripts.step") != before


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


HELPER = BASE["scripts/helper.py"]


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("deep", "LIMIT = 4\n\n\ndef thing(x):\n    return x\n\n\ndef unused(x):\n    return -LIMIT\n", False),
        ("deep", BASE["scripts/deep.py"] + "MORE = 1\n", False),
        ("deep", "LIMIT = 4\n\n\ndef thing(x):\n    return x + LIMIT\n", True),
        # The program itself counts whole, and so does what acts when it is imported.
        ("step", BASE["scripts/step.py"] + "MORE = 1\n", True),
        ("deep", BASE["scripts/deep.py"] + "print(LIMIT)\n", True),
        ("deep", BASE["scripts/deep.py"] + "unused.limit = 1\n", True),
        ("deep", BASE["scripts/deep.py"] + "\n\ndef mark(f):\n    return f\n\n\n@mark\ndef g():\n    pass\n", True),
        ("deep", BASE["scripts/deep.py"] + "\n\n@cache\ndef g():\n    pass\n", False),
        # By another name, as a module, in a function, for a type checker.
        ("helper", HELPER.replace("import thing", "import unused as thing"), True),
        ("helper", "from scripts import deep\n\n\ndef work(x):\n    return deep.thing(x)\n", True),
        ("helper", HELPER + "\n\ndef other():\n    from scripts.other import A\n    return A\n", False),
        ("helper", "import typing\nif typing.TYPE_CHECKING:\n    from scripts.other import A\n" + HELPER, False),
    ],
)
def test_what_is_reached_counts_and_nothing_else(tmp_path, monkeypatch, file, text, counts):
    before = _fingerprint(tmp_path, monkeypatch, BASE, "scripts.step")
    assert (_fingerprint(tmp_path, monkeypatch, {f"scripts/{file}.py": text}, "scripts.step") != before) == counts


def test_everything_counts_of_a_module_that_is_used_as_a_module(tmp_path, monkeypatch):
    files = BASE | {"scripts/helper.py": "from scripts import deep\n\n\ndef work(x):\n    return deep.thing(x)\n"}
    before = _fingerprint(tmp_path, monkeypatch, files, "scripts.step")
    changed = {"scripts/deep.py": BASE["scripts/deep.py"].replace("LIMIT = 3", "LIMIT = 4")}
    assert _fingerprint(tmp_path, monkeypatch, changed, "scripts.step") != before


def test_what_cannot_change_a_result_does_not_count(tmp_path, monkeypatch):
    text = "from scripts.common.files import atomic, write_json\n\n\ndef main():\n    atomic()\n    write_json()\n"
    files = "def atomic():\n    return {0}\n\n\ndef write_json():\n    return {1}\n"
    world = {"scripts/step.py": text, "scripts/common/files.py": files.format(1, 1)}
    before = _fingerprint(tmp_path, monkeypatch, world, "scripts.step")
    neutral = {"scripts/common/files.py": files.format(2, 1)}
    assert _fingerprint(tmp_path, monkeypatch, neutral, "scripts.step") == before
    counts = {"scripts/common/files.py": files.format(1, 2)}
    assert _fingerprint(tmp_path, monkeypatch, counts, "scripts.step") != before


def test_neutral_definitions_exist():
    for name, names in fingerprint.NEUTRAL.items():
        defined = {each for piece in definitions.read_module(name).pieces for each in piece.names}
        assert defined and (names or set()) <= defined
