"""The chat page in a real browser: headless Chromium."""

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
    models = load(trained.model, "tiny"), load(make_model(folder / "other", large_weights=True), "other")
    with serving(
        *models, examples=examples, limits=Limits(timeout=600, max_images=4, max_image_bytes=50_000)
    ) as server:
        yield server


class Page:
    """The page of a server, with the actions of a user."""

    def __init__(self, browser, url: str, width: int = 1000, height: int = 800):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda entry: self.errors.append(entry.text) if "Security Policy" in entry.text else None
        )
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
        return self.page.locator(".answer .text").all_inner_texts()


@pytest.fixture
def user(browser, server):
    user = Page(browser, server.url)
    yield user
    assert not user.errors
    user.context.close()


def question_text(message: dict) -> str:
    return next(part["text"] for part in message["content"] if part["type"] == "text")


def test_an_example_starts_a_conversation(user):
    user.see("#intro", "tiny")
    user.see("#intro", "MMCA")
    user.see("#badge", "attention: mmca")
    user.click(".card", COLOUR)
    user.see(".answer.done", "It is green.")
    user.see(".mine figcaption", "image 1")
    user.click("#suggestions button", COUNT)
    user.see("li:nth-child(2) .answer.done")
    assert user.page.locator("#suggestions button").count() == 0
    user.click("#new")
    user.see("#intro", "Chat with")


def test_images_in_several_rounds_named_within_the_text(user):
    user.ask(COLOUR, "red", "blue")
    assert user.answers() == ["It is red."]
    user.attach("green")
    user.see("#tray figcaption", "image 3")
    user.write("Where is ")
    user.click("#tray img")
    user.write("?")
    user.see("#text .chip", "image 3")
    user.send()
    user.see("li:nth-child(2) .mine .text", "Where is image 3?")
    user.see("li:nth-child(2) .answer.done")
    first, answer, second = user.sent[-1]["messages"]
    assert [part["type"] for part in first["content"]] == ["file", "file", "text"] and answer["content"] == "It is red."
    assert [part["type"] for part in second["content"]] == ["file", "text"] and question_text(
        second
    ) == "Where is image 3?"
    user.click("li:nth-child(1) figure img")
    user.see("dialog.viewer", "image 1: red.png")
    user.click("dialog.viewer button", "Name it")
    user.see("#text .chip", "image 1")


def test_images_dropped_and_pasted(user):
    give = """([kind, selector, data]) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        const event = kind === "drop" ? new DragEvent(kind, { ...options, dataTransfer: transfer })
            : new ClipboardEvent(kind, { ...options, clipboardData: transfer });
        document.querySelector(selector).dispatchEvent(event);
    }"""
    user.see("#intro", "tiny")
    user.page.evaluate(give, ["drop", "main", base64.b64encode(png("blue")).decode()])
    user.see("#tray figcaption", "image 1")
    user.write("Not ")
    user.page.evaluate(give, ["paste", "#text", base64.b64encode(png("red")).decode()])
    user.see("#text .chip", "image 2")
    user.click("#tray .remove")
    user.see("#text .chip", "image 1")
    assert user.page.locator("#tray figure").count() == 1
    user.write("but white.")
    user.send()
    user.see(".answer.done")
    assert question_text(user.sent[-1]["messages"][0]) == "Not image 1 but white."


def test_images_that_cannot_be_added_are_reported(user):
    user.see("#intro", "tiny")
    user.page.locator("#files").set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"words"})
    user.see("#notice", "notes.png could not be added: notes.png is not an image")
    user.page.locator("#files").set_input_files({"name": "huge.png", "mimeType": "image/png", "buffer": b"x" * 60_000})
    user.see("#notice", "huge.png has 0.1 MB")
    user.attach("red", "red", "red", "red", "blue")
    user.see("#notice", "at most 4 images")
    assert user.page.locator("#tray figure").count() == 4


def test_edit_removes_later_rounds_and_regenerate_samples(user):
    user.ask(COLOUR, "red")
    user.ask(COUNT)
    user.click("li:nth-child(1) .tools button", "Edit")
    user.see("#editing", "question 1")
    user.see("#tray figcaption", "image 1")
    user.click("#tray .remove")
    user.attach("blue")
    user.see("#tray figcaption", "image 1")
    user.send()
    user.see(".answer.done", "It is blue.")
    assert user.page.locator("#log > li").count() == 1
    user.click(".tools button", "Regenerate")
    user.see(".answer.done")
    user.page.locator("#send").wait_for()
    assert user.sent[-1]["temperature"] == 0.8 and user.sent[-1]["messages"] == user.sent[-2]["messages"]
    user.click("li:nth-child(1) .tools button", "Edit")
    user.click("#edit-cancel")
    assert user.page.locator("#tray figure").count() == 0


def test_an_answer_is_streamed_and_can_be_stopped(user, server):
    engine = server.service.models["other"].engine
    hook = engine.model.get_decoder().register_forward_pre_hook(lambda *args: time.sleep(0.05))
    user.see("#intro", "tiny")
    user.page.locator("#model-a").select_option("other")
    user.write("Tell me.")
    user.send()
    text = user.page.locator(".answer.busy .text")
    seen: set[str] = set()
    until = time.monotonic() + PATIENCE / 1000
    while len(seen) < 3:
        assert time.monotonic() < until
        seen.add(text.inner_text())
    user.click("#stop")
    user.see(".answer.stopped")
    while engine.state()["running"]:
        assert time.monotonic() < until, "the server continues a stopped answer"
        time.sleep(0.02)
    hook.remove()
    assert user.answers()[0]


def test_two_models_side_by_side(user):
    user.see("#intro", "tiny")
    user.page.locator("#model-b").select_option("other")
    user.page.evaluate("document.getElementById('tokens').value = 12")
    user.ask(COLOUR, "red")
    user.see(".answer[data-model=tiny].done", "It is red.")
    user.see(".answer[data-model=other].done")
    left, right = (user.page.locator(f".answer[data-model={name}]").bounding_box() for name in ("tiny", "other"))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    user.ask(COUNT)
    user.see("li:nth-child(2) .answer[data-model=other].done")
    histories = {body["model"]: body["messages"][1]["content"] for body in user.sent[-2:]}
    assert histories["tiny"] == "It is red." and histories["other"] != "It is red.", (
        "each continues from its own answers"
    )


def test_uploads_that_the_server_dropped_are_sent_again(user, server):
    user.ask(COLOUR, "red")
    server.service.image_store.uploads.clear()
    user.ask(COUNT)
    assert user.page.locator(".answer.failed").count() == 0 and len(user.sent) == 3


def test_on_a_phone(browser, server):
    user = Page(browser, server.url, 360, 640)
    user.see(".card", COLOUR)
    user.click(".card", COLOUR)
    user.see(".answer.done", "It is green.")
    user.page.locator("#model-b").select_option("other")
    for selector in ("html", "main", "header"):
        wide = user.page.locator(selector).evaluate("(one) => one.scrollWidth - one.clientWidth")
        assert wide <= 0, f"{selector} can be scrolled sideways"
    box = user.page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
    assert not user.errors
    user.context.close()


def test_a_server_with_a_key_requires_it(browser, trained):
    with serving(load(trained.model), key="secret") as server:
        user = Page(browser, server.url)
        user.page.locator("#key").fill("wrong")
        user.click("#settings button")
        user.see("#notice", "API key is required")
        user.page.locator("#key").fill("secret")
        user.click("#settings button")
        user.see("#intro", "tiny")
        user.context.close()
