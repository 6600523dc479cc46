"""The page in a browser: headless Chromium with an audio file as the microphone."""

import re
import shutil

import numpy as np
import pytest
import soundfile
from streaming_tools import RATE, make_audio

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")

SAMPLES = np.round(make_audio(6) * 32767).astype("<i2")


@pytest.fixture(scope="module")
def audio_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, SAMPLES, RATE)
    return path


@pytest.fixture(scope="module")
def browser(audio_file):
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--use-fake-device-for-media-stream"]
        options.append(f"--use-file-for-fake-audio-capture={audio_file}")  # over and over
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a server's page, with permission to use the microphone or without; fails on errors in its script."""
    contexts, errors = [], []

    def open_server(server, *permissions: str):
        contexts.append(browser.new_context(permissions=permissions))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"http://{server.host}/")
        page.wait_for_selector("#microphone:enabled")
        return page

    yield open_server
    for context in contexts:
        context.close()
    assert not [error for error in errors if "net::ERR" not in error]


def wait_for_message(page, text: str) -> str:
    playwright.expect(page.locator("#message")).to_contain_text(text, timeout=60_000)
    return page.inner_text("#message")


def test_captions_of_the_microphone(start, open_page):
    page = open_page(start(), "microphone")
    page.click("#microphone")
    playwright.expect(page.locator("#stable")).to_have_text(re.compile(r"\w"), timeout=120_000)
    assert re.fullmatch(r"\d+ ms\s+at most \d+ ms so far", page.inner_text("#measured"))
    assert re.fullmatch(r"\d+ ms\s+at most; chunks of 80 ms", page.inner_text("#algorithmic"))
    assert page.inner_text("#message") == "Listening …"
    page.click("#stop")
    wait_for_message(page, "Finished: ")
    assert float(page.inner_text("#recognized").split()[0]) > 0.5
    assert page.inner_text("#tail") == "" and page.inner_text("#stable")
    playwright.expect(page.locator("#microphone")).to_be_enabled()


@pytest.mark.parametrize("fast", [True, False])
def test_captions_of_a_file_are_those_of_the_recognizer(fast, start, open_page, recognizer, audio_file):
    recognizer = recognizer.another()
    recognizer.accept(SAMPLES.astype(np.float32) / 32768)
    page = open_page(start())
    if fast:
        page.check("#fast")
    page.set_input_files("#file", audio_file)
    message = wait_for_message(page, "Finished: 6.0 s of audio")
    assert (" in " in message) == fast
    assert page.text_content("#captions") == recognizer.finish().text
    assert (page.inner_text("#measured") == "–") == fast


def test_messages(start, open_page, audio_file, tmp_path):
    server = start(clients=1, audio=30)
    page = open_page(server)
    page.click("#microphone")
    wait_for_message(page, "The browser refused the microphone")

    soundfile.write(tmp_path / "long.wav", np.zeros(31 * RATE), RATE)
    page.set_input_files("#file", tmp_path / "long.wav")
    wait_for_message(page, "long.wav has 31.0 s; the server takes 30.0 s at most.")
    (tmp_path / "no.wav").write_text("no audio")
    page.set_input_files("#file", tmp_path / "no.wav")
    wait_for_message(page, "no.wav: not audio that this browser can read.")

    # long enough for all that follows, on a busy machine too
    soundfile.write(tmp_path / "talk.wav", make_audio(29), RATE)
    page.set_input_files("#file", tmp_path / "talk.wav")
    playwright.expect(page.locator("#message")).to_have_text("Listening …", timeout=60_000)
    other = open_page(server)
    other.set_input_files("#file", audio_file)
    wait_for_message(other, "The server is full: it serves 1 at once.")
    server.stop()
    wait_for_message(page, "The connection to the server was lost.")
    other.set_input_files("#file", audio_file)
    wait_for_message(other, "No connection to the server.")
