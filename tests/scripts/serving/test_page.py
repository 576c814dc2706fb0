"""The chat page, clicked through in a real browser: Chromium without a screen."""

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from scripts.serving.app import Limits
from scripts.serving.examples import read_examples
from tests.scripts.evaluation.trained_model import trained, write_suite
from tests.scripts.serving.running_server import COLOUR, COUNT, load, png, serving
from tests.tiny_models import make_model

__all__ = ["trained"]

sync_api = pytest.importorskip("playwright.sync_api", reason="the chat page is tested with playwright")
PATIENCE = 300_000  # milliseconds


def find_browser() -> str | None:
    """The path of a Chromium: the system's, or the one that `make browser` fetched."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if (found := next(filter(None, map(shutil.which, names)), None)) is not None:
        return found
    fetched = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    return next(
        (
            str(path)
            for path in sorted(fetched.glob("chromium*/*/*"))
            if path.stem in ("chrome-headless-shell", "headless_shell")
        ),
        None,
    )


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium here, so the chat page is not tested: run `make browser`, or install your system's")
    with sync_api.sync_playwright() as playwright:
        # Without a sandbox, because containers have none; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    examples = read_examples(write_suite(folder / "suite"))
    models = load(trained.model, "tiny"), load(make_model(folder / "other", lively=True), "other")
    with serving(*models, examples=examples, limits=Limits(timeout=600, images=4, image=50_000)) as server:
        yield server


class Page:
    """The page as a person uses it, at a server."""

    def __init__(self, browser, url: str, width: int = 1000, height: int = 800):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if "Security Policy" in said.text else None)
        self.sent: list[dict] = []
        self.page.on(
            "request",
            lambda request: request.url.endswith("completions") and self.sent.append(json.loads(request.post_data)),
        )
        self.page.goto(url)

    def see(self, selector: str, text: str = "") -> None:
        self.page.locator(selector).filter(has_text=text).first.wait_for()

    def click(self, selector: str, text: str = "") -> None:
        self.page.locator(selector).filter(has_text=text).first.click()

    def attach(self, *colours: str) -> None:
        files = [{"name": f"{colour}.png", "mimeType": "image/png", "buffer": png(colour)} for colour in colours]
        self.page.locator("#files").set_input_files(files)

    def write(self, text: str) -> None:
        self.page.locator("#text").press_sequentially(text)

    def send(self) -> None:
        while self.page.locator("#tray figure").count() and not self.uploaded():
            time.sleep(0.02)
        self.page.locator("#text").press("Enter")

    def uploaded(self) -> bool:
        return self.page.evaluate("import('/page/composer.js').then(composer => composer.ready())")

    def ask(self, text: str, *colours: str) -> None:
        """Ask, and wait until the answers are there."""
        before = self.answers()
        if colours:
            self.attach(*colours)
            self.see("#tray figcaption", f"image {len(colours)}" if not before else "image")
        self.write(text)
        self.send()
        self.see(f"#log > li:nth-child({len(self.page.locator('#log > li').all()) or 1}) .answer.done")
        self.page.locator("#send").wait_for()

    def answers(self) -> list[str]:
        return self.page.locator(".answer .said").all_inner_texts()


@pytest.fixture
def person(browser, server):
    person = Page(browser, server.url)
    yield person
    assert not person.wrong
    person.context.close()


def words(message: dict) -> str:
    return next(part["text"] for part in message["content"] if part["type"] == "text")


def test_a_newcomer_begins_with_an_example(person):
    person.see("#intro", "tiny")
    person.see("#intro", "MMCA")
    person.see("#badge", "attention: mmca")
    person.click(".card", COLOUR)
    person.see(".answer.done", "It is green.")
    person.see(".mine figcaption", "image 1")
    person.click("#suggestions button", COUNT)
    person.see("li:nth-child(2) .answer.done")
    assert person.page.locator("#suggestions button").count() == 0
    person.click("#new")
    person.see("#intro", "Talk with")


def test_images_in_several_rounds_named_within_the_text(person):
    person.ask(COLOUR, "red", "blue")
    assert person.answers() == ["It is red."]
    person.attach("green")
    person.see("#tray figcaption", "image 3")
    person.write("Where is ")
    person.click("#tray img")
    person.write("?")
    person.see("#text .chip", "image 3")
    person.send()
    person.see("li:nth-child(2) .mine .said", "Where is image 3?")
    person.see("li:nth-child(2) .answer.done")
    first, answer, second = person.sent[-1]["messages"]
    assert [part["type"] for part in first["content"]] == ["file", "file", "text"] and answer["content"] == "It is red."
    assert [part["type"] for part in second["content"]] == ["file", "text"] and words(second) == "Where is image 3?"
    person.click("li:nth-child(1) figure img")
    person.see("dialog.viewer", "image 1: red.png")
    person.click("dialog.viewer button", "Name it")
    person.see("#text .chip", "image 1")


def test_images_dropped_and_pasted(person):
    give = """([kind, selector, data]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = kind === "drop" ? new DragEvent(kind, { ...options, dataTransfer: transfer })
            : new ClipboardEvent(kind, { ...options, clipboardData: transfer });
        document.querySelector(selector).dispatchEvent(event);
    }"""
    person.see("#intro", "tiny")
    person.page.evaluate(give, ["drop", "main", base64.b64encode(png("blue")).decode()])
    person.see("#tray figcaption", "image 1")
    person.write("Not ")
    person.page.evaluate(give, ["paste", "#text", base64.b64encode(png("red")).decode()])
    person.see("#text .chip", "image 2")
    person.click("#tray .remove")
    person.see("#text .chip", "image 1")
    assert person.page.locator("#tray figure").count() == 1
    person.write("but white.")
    person.send()
    person.see(".answer.done")
    assert words(person.sent[-1]["messages"][0]) == "Not image 1 but white."


def test_what_cannot_be_shown_is_said(person):
    person.see("#intro", "tiny")
    person.page.locator("#files").set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"words"})
    person.see("#notice", "notes.png could not be added: notes.png is not an image")
    person.page.locator("#files").set_input_files(
        {"name": "huge.png", "mimeType": "image/png", "buffer": b"x" * 60_000}
    )
    person.see("#notice", "huge.png has 0.1 MB")
    person.attach("red", "red", "red", "red", "blue")
    person.see("#notice", "at most 4 images")
    assert person.page.locator("#tray figure").count() == 4


def test_edit_takes_back_what_followed_and_regenerate_draws_anew(person):
    person.ask(COLOUR, "red")
    person.ask(COUNT)
    person.click("li:nth-child(1) .tools button", "Edit")
    person.see("#editing", "question 1")
    person.see("#tray figcaption", "image 1")
    person.click("#tray .remove")
    person.attach("blue")
    person.see("#tray figcaption", "image 1")
    person.send()
    person.see(".answer.done", "It is blue.")
    assert person.page.locator("#log > li").count() == 1
    person.click(".tools button", "Regenerate")
    person.see(".answer.done")
    person.page.locator("#send").wait_for()
    assert person.sent[-1]["temperature"] == 0.8 and person.sent[-1]["messages"] == person.sent[-2]["messages"]
    person.click("li:nth-child(1) .tools button", "Edit")
    person.click("#edit-cancel")
    assert person.page.locator("#tray figure").count() == 0


def test_an_answer_is_shown_as_it_is_made_and_can_be_stopped(person, server):
    engine = server.service.models["other"].engine
    hook = engine.model.get_decoder().register_forward_pre_hook(lambda *args: time.sleep(0.05))
    person.see("#intro", "tiny")
    person.page.locator("#model-a").select_option("other")
    person.write("Tell me.")
    person.send()
    said = person.page.locator(".answer.busy .said")
    seen: set[str] = set()
    until = time.monotonic() + PATIENCE / 1000
    while len(seen) < 3:
        assert time.monotonic() < until
        seen.add(said.inner_text())
    person.click("#stop")
    person.see(".answer.stopped")
    while engine.state()["running"]:
        assert time.monotonic() < until, "the server goes on with an answer that nobody reads"
        time.sleep(0.02)
    hook.remove()
    assert person.answers()[0]


def test_two_models_side_by_side(person):
    person.see("#intro", "tiny")
    person.page.locator("#model-b").select_option("other")
    person.page.evaluate("document.getElementById('tokens').value = 12")
    person.ask(COLOUR, "red")
    person.see(".answer[data-model=tiny].done", "It is red.")
    person.see(".answer[data-model=other].done")
    left, right = (person.page.locator(f".answer[data-model={name}]").bounding_box() for name in ("tiny", "other"))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    person.ask(COUNT)
    person.see("li:nth-child(2) .answer[data-model=other].done")
    histories = {body["model"]: body["messages"][1]["content"] for body in person.sent[-2:]}
    assert histories["tiny"] == "It is red." and histories["other"] != "It is red.", "each goes on from its own answers"


def test_uploads_that_the_server_forgot_are_sent_again(person, server):
    person.ask(COLOUR, "red")
    server.service.pictures.uploads.clear()
    person.ask(COUNT)
    assert person.page.locator(".answer.failed").count() == 0 and len(person.sent) == 3


def test_on_a_phone(browser, server):
    person = Page(browser, server.url, 360, 640)
    person.see(".card", COLOUR)
    person.click(".card", COLOUR)
    person.see(".answer.done", "It is green.")
    person.page.locator("#model-b").select_option("other")
    for selector in ("html", "main", "header"):
        wide = person.page.locator(selector).evaluate("(one) => one.scrollWidth - one.clientWidth")
        assert wide <= 0, f"{selector} can be scrolled sideways"
    box = person.page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
    assert not person.wrong
    person.context.close()


def test_a_server_with_a_key_asks_for_it(browser, trained):
    with serving(load(trained.model), key="secret") as server:
        person = Page(browser, server.url)
        person.page.locator("#key").fill("wrong")
        person.click("#settings button")
        person.see("#notice", "needs its key")
        person.page.locator("#key").fill("secret")
        person.click("#settings button")
        person.see("#intro", "tiny")
        person.context.close()
