"""eSpeak NG through ctypes: repeatable speech, and no silent fallback for a wrong name."""

import subprocess
import sys

import numpy as np
import pytest

from espnet_lmu.data import espeak
from espnet_lmu.errors import UserError

# Breath makes this variant random from one call to the next unless each starts from the same seed.
BREATHY = {"voice": "en-us", "variant": "whisper", "rate": 150, "pitch": 40}


def test_gives_audible_speech_and_its_rate():
    samples, rate = espeak.synthesize("seven three")
    assert rate == 22050
    assert samples.dtype == np.int16 and samples.ndim == 1
    assert 0.5 < len(samples) / rate < 3
    assert np.abs(samples.astype(int)).max() > 3000


def test_same_arguments_give_the_same_bytes_whatever_was_said_between():
    first, _ = espeak.synthesize("turn left", **BREATHY)
    espeak.synthesize("something else", voice="de", variant="f2", rate=300, pitch=90)
    again, _ = espeak.synthesize("turn left", **BREATHY)
    assert first.tobytes() == again.tobytes()


def test_same_bytes_in_another_process():
    here, _ = espeak.synthesize("turn left", **BREATHY)
    script = (
        "import sys; from espnet_lmu.data import espeak; espeak.synthesize('first');"
        f"sys.stdout.buffer.write(espeak.synthesize('turn left', **{BREATHY!r})[0].tobytes())"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert here.tobytes() == there


@pytest.mark.parametrize(
    "change",
    [{"voice": "en-us-nyc"}, {"variant": "f3"}, {"rate": 250}, {"pitch": 80}],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_is_heard(change):
    plain, _ = espeak.synthesize("turn the light off")
    changed, _ = espeak.synthesize("turn the light off", **change)
    assert plain.tobytes() != changed.tobytes()


def test_rate_and_length_go_together():
    slow, _ = espeak.synthesize("one two three", rate=100)
    fast, _ = espeak.synthesize("one two three", rate=200)
    assert len(slow) > 1.5 * len(fast)


def test_lists_the_voices_and_variants():
    assert {"en", "en-us", "en-gb-scotland", "de"} <= set(espeak.voices())
    assert {"m1", "f5", "klatt", "Andrea"} <= set(espeak.variants())
    assert len(set(espeak.variants())) == len(espeak.variants()) > 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "F3"}, "no variant 'F3'; the nearest: .*f3"),  # eSpeak NG itself takes it for none
        ({"variant": "nobody"}, "no variant 'nobody'"),
        ({"voice": "en-gb"}, "no voice 'en-gb'; the nearest: .*en-gb-x-rp"),
        ({"voice": "en+f3"}, "no voice"),
        ({"rate": 79}, "rate .* 80 to 450, not 79"),
        ({"pitch": 100}, "pitch .* 0 to 99, not 100"),
        ({"text": " "}, "text is empty"),
        ({"voice": "fo"}, "said nothing"),  # listed, but its dictionary is not in the package
    ],
)
def test_refuses_what_cannot_be_spoken(arguments, message):
    with pytest.raises(UserError, match=message):
        espeak.synthesize(**{"text": "hello", **arguments})


def test_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak._library.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install 'espnet_lmu\[demo\]'"):
            espeak.synthesize("hello")
    finally:
        espeak._library.cache_clear()
