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
# A machine may be slow, and busy: nothing here is to depend on how much is done in which time.
PATIENCE = 600_000  # ms
UNLIMITED = {"audio": 1e6, "time": 1e6, "behind": 1e6, "silent": 1e6}  # seconds
playwright.expect.set_options(timeout=PATIENCE)


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
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=options, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a server's page, with permission to use the microphone or without; fails on errors in its script."""
    contexts, errors = [], []

    def open_server(server, *permissions: str):
        contexts.append(browser.new_context(permissions=permissions))
        contexts[-1].set_default_timeout(PATIENCE)
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
    playwright.expect(page.locator("#message")).to_contain_text(text)
    return page.inner_text("#message")


def test_captions_of_the_microphone(start, open_page):
    page = open_page(start(**UNLIMITED), "microphone")
    page.click("#microphone")
    # sound, not silence; and captions of it
    playwright.expect(page.locator("#level i")).to_have_attribute("style", re.compile(r"width: ([3-9]\d|100)[.%]"))
    playwright.expect(page.locator("#stable")).to_have_text(re.compile(r"\w"))
    assert re.fullmatch(r"\d+ ms\s+at most \d+ ms so far", page.inner_text("#measured"))
    assert re.fullmatch(r"\d+ ms\s+at most; chunks of 80 ms", page.inner_text("#algorithmic"))
    assert re.fullmatch(r"Listening …|The server is busy: captions are .* s late\.", page.inner_text("#message"))
    recognized = float(page.inner_text("#recognized").split()[0])
    page.click("#stop")
    message = wait_for_message(page, "Finished: ")
    assert message == f"Finished: {page.inner_text('#recognized')} of audio."
    assert float(page.inner_text("#recognized").split()[0]) >= recognized > 0
    assert page.inner_text("#tail") == "" and page.inner_text("#stable")
    playwright.expect(page.locator("#microphone")).to_be_enabled()


@pytest.mark.parametrize("fast", [True, False])
def test_captions_of_a_file_are_those_of_the_recognizer(fast, start, open_page, recognizer, audio_file):
    recognizer = recognizer.another()
    recognizer.accept(SAMPLES.astype(np.float32) / 32768)
    page = open_page(start(silent=UNLIMITED["silent"]))
    if fast:
        page.check("#fast")
    page.set_input_files("#file", audio_file)
    message = wait_for_message(page, "Finished: 6.0 s of audio")
    assert (" in " in message) == fast
    assert page.text_content("#captions") == recognizer.finish().text
    assert (page.inner_text("#measured") == "–") == fast


def test_messages(start, open_page, audio_file, tmp_path):
    page = open_page(start(audio=3))
    page.click("#microphone")
    wait_for_message(page, "The browser refused the microphone")
    page.set_input_files("#file", audio_file)
    wait_for_message(page, "speech.wav has 6.0 s; the server takes 3.0 s at most.")
    (tmp_path / "no.wav").write_text("no audio")
    page.set_input_files("#file", tmp_path / "no.wav")
    wait_for_message(page, "no.wav: not audio that this browser can read.")


def test_messages_of_a_full_server_and_of_one_that_goes(start, open_page, audio_file):
    server = start(clients=1, **UNLIMITED)
    page, other = open_page(server, "microphone"), open_page(server)
    page.click("#microphone")  # a recording without an end
    playwright.expect(page.locator("#recognized")).to_have_text(re.compile(r"\d s"))
    other.set_input_files("#file", audio_file)
    wait_for_message(other, "The server is full: it serves 1 at once.")
    server.stop()
    wait_for_message(page, "The connection to the server was lost.")
    other.set_input_files("#file", audio_file)
    wait_for_message(other, "No connection to the server.")
