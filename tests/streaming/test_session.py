"""`espnet-lmu stream`: sources of audio, what is printed, mistakes."""

import contextlib
import io
import itertools
import os
import pty
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from streaming_tools import RATE, make_audio

from espnet_lmu.bin import main
from espnet_lmu.data.audio import resample
from espnet_lmu.data.kaldi_dir import write_data_dir
from espnet_lmu.errors import UserError
from espnet_lmu.streaming import Partial, StreamingRecognizer, evaluate
from espnet_lmu.streaming.audio import file_blocks, import_sounddevice, microphone_blocks, pcm_blocks
from espnet_lmu.streaming.session import PlainText, TerminalText, Timing, recognize, summary


def test_a_file_comes_at_the_pace_of_its_recording(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    path = str(tmp_path / "a.wav")
    soundfile.write(path, np.stack([make_audio(1.01)] * 2, axis=1), RATE, subtype="FLOAT")
    taken = 0
    for block in file_blocks(path, RATE, fast=False):
        taken += len(block)
        assert clock[0] == pytest.approx(100 + taken / RATE)
    assert taken == round(1.01 * RATE)
    assert np.array_equal(np.concatenate(list(file_blocks(path, RATE, fast=True))), make_audio(1.01))
    assert clock[0] == pytest.approx(101.01)


@pytest.mark.parametrize("seconds", [0.7, 10, 20.5, 33.123])
def test_a_file_of_another_rate_is_resampled_as_a_whole(seconds, tmp_path):
    path, samples = str(tmp_path / "a.wav"), make_audio(seconds)
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    wanted = resample(samples, 44100, RATE)
    found = np.concatenate(list(file_blocks(path, RATE, fast=True)))
    assert len(found) == len(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_samples_of_a_pipe_whatever_its_pieces():
    samples = (make_audio(0.5) * 32767).astype("<i2")
    data = samples.tobytes()

    class Pipe(io.BytesIO):
        def read1(self, size: int) -> bytes:
            return super().read1(min(size, 333))

    blocks = list(pcm_blocks(Pipe(data + b"x"), RATE))
    assert len(blocks) > 40
    np.testing.assert_array_equal(np.concatenate(blocks), samples.astype(np.float32) / 32768)
    assert len(np.concatenate(list(pcm_blocks(io.BytesIO(data[:2]), RATE)))) == 1


def test_a_pipe_with_something_else(tmp_path):
    for format, name in {"WAV": "WAV", "FLAC": "FLAC", "OGG": "Ogg", "NIST": "SPHERE"}.items():
        soundfile.write(tmp_path / "a", make_audio(0.5), RATE, format=format)
        with pytest.raises(UserError, match=f"-: an? {name} file; give its name"):
            list(pcm_blocks(io.BytesIO((tmp_path / "a").read_bytes()), RATE))
    for beginning in (b"ID3\x04", b"FORM", b"RF64"):
        with pytest.raises(UserError, match="file; give its name"):
            list(pcm_blocks(io.BytesIO(beginning + bytes(100)), RATE))
    for nothing in (b"", b"x"):
        with pytest.raises(UserError, match="ended without a sample"):
            list(pcm_blocks(io.BytesIO(nothing), RATE))


PARTIALS = [
    Partial("TO", "", 0.5),
    Partial("TO B", "TO", 1.0),
    Partial("TO BE", "TO", 1.5),
    Partial("TO BE OR NOT", "TO BE OR", 2.0),
    Partial("TO BE OR NOT", "TO BE OR NOT", 2.5),
]


def test_lines_for_a_file():
    stream = io.StringIO()
    show = PlainText(stream)
    for partial in PARTIALS:
        show(partial)
    show.close()
    assert stream.getvalue() == "1.00 TO\n2.00 BE OR\n2.50 NOT\n"


def screen(output: str, columns: int) -> list[str]:
    """What a terminal shows after this output."""
    lines, column = [""], 0
    output = output.replace("\x1b[2m", "").replace("\x1b[0m", "").replace("\x1b[K", "\x00")
    for character in output:
        if character == "\n":
            lines.append("")
            column = 0
        elif character == "\r":
            column = 0
        elif character == "\x00":
            lines[-1] = lines[-1][:column]
        else:
            assert column < columns, "the terminal would wrap"
            lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
            column += 1
    return lines


@pytest.mark.parametrize(("columns", "wanted"), [(80, ["TO BE OR NOT", ""]), (9, ["TO BE OR", "NOT", ""])])
def test_a_terminal_shows_the_text_once(columns, wanted, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    stream = io.StringIO()
    stream.fileno = lambda: 1
    show = TerminalText(stream)
    for partial in PARTIALS[:3]:
        show(partial)
    assert screen(stream.getvalue(), columns) == ["TO BE"]
    assert stream.getvalue().endswith("TO\x1b[2m BE\x1b[0m")
    for partial in PARTIALS[3:]:
        show(partial)
    show.close()
    assert screen(stream.getvalue(), columns) == wanted


def test_a_terminal_puts_no_spaces_between_characters(monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((9, 24)))
    stream = io.StringIO()
    stream.fileno = lambda: 1
    show = TerminalText(stream)
    for text in ("今", "今天", "今天天气很好 OK"):
        show(Partial(text, text, 1.0))
    show.close()
    lines = re.sub(r"\x1b\[\d*[Km]", "", stream.getvalue()).split("\n")
    assert [line.rpartition("\r")[2] for line in lines] == ["今天天气", "很好 OK", ""]


def test_ctrl_c_ends_the_recording(fbank_model):
    def blocks():
        yield make_audio(3)
        raise KeyboardInterrupt

    recognizer = StreamingRecognizer(*fbank_model)
    recognizer.accept(make_audio(3))
    wanted = recognizer.finish()
    timing, shown = Timing(), []
    assert recognize(recognizer.another(), blocks(), timing, shown.append, interruptible=True) == wanted == shown[-1]
    assert timing.audio == 3 and len(timing.chunks) == len(shown) - 1
    assert f"latency: {recognizer.latency:.3f} s at most (chunks of 0.08 s)" in summary(recognizer, timing)


def run(*arguments: object) -> int:
    return main.main(["stream", *map(str, arguments)])


def test_file_and_pipe_give_the_same_text(fbank_model, tmp_path, capsys, monkeypatch):
    samples = (make_audio(5) * 32767).astype("<i2")
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    model = fbank_model[0].parent
    assert run(model, tmp_path / "a.flac", "--fast", "--chunk", 0.64) == 0
    output = capsys.readouterr()
    assert "(chunks of 0.64 s)" in output.err and "real-time factor: 0." in output.err
    words = [line.split(maxsplit=1)[1] for line in output.out.splitlines()]
    assert len(words) > 2
    pipe = SimpleNamespace(isatty=lambda: False, buffer=io.BufferedReader(io.BytesIO(samples.tobytes())))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert run(model, "-", "--chunk", 0.64) == 0
    assert [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()] == words


def test_mistakes_are_one_line(fbank_model, tmp_path, capsys, monkeypatch):
    model = fbank_model[0].parent
    soundfile.write(tmp_path / "a.wav", make_audio(1), RATE)
    (tmp_path / "b.wav").write_text("no audio")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    terminal, _ = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal))
    for arguments, message in (
        ((model, tmp_path / "b.wav"), "b.wav: not readable audio"),
        ((model, tmp_path / "none.wav"), "none.wav: not readable audio (no such file)"),
        ((model, "microphone"), "espnet_lmu[microphone]"),
        ((model, "-"), "standard input is closed, or a terminal"),
        ((tmp_path / "nowhere", tmp_path / "a.wav"), "nowhere: no such file"),
        ((model, tmp_path / "a.wav", "--chunk", "-1"), "a chunk of -1 s"),
        ((model, tmp_path / "a.wav", "--device", "nowhere"), "device nowhere: not to be had here"),
        ((model, tmp_path / "a.wav", "--device", "meta"), "device meta: not to be had here (give cpu, cuda or cuda:N)"),
    ):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


class FakeSoundDevice:
    """A microphone that hears three blocks, and one that is not there."""

    class PortAudioError(Exception):
        pass

    def __init__(self, present: bool):
        self.present = present

    @contextlib.contextmanager
    def InputStream(self, samplerate, blocksize, *, channels, dtype, callback):
        if not self.present:
            raise self.PortAudioError("Error querying device -1")
        assert (samplerate, channels, dtype) == (RATE, 1, "float32")
        for number in range(3):
            buffer = np.full((blocksize, 1), number, dtype=np.float32)
            callback(buffer, blocksize, None, None)
            buffer[:] = -1  # PortAudio uses it again
        yield


def test_a_microphone(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSoundDevice(present=True))
    blocks = microphone_blocks(RATE)
    assert [(len(block), block.mean()) for block in itertools.islice(blocks, 3)] == [(320, 0), (320, 1), (320, 2)]
    blocks.close()
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSoundDevice(present=False))
    with pytest.raises(UserError, match="microphone: Error querying device"):
        next(microphone_blocks(RATE))


def test_a_missing_portaudio_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="PortAudio"):
        import_sounddevice()


def test_error_rate_against_latency(fbank_model, tmp_path, capsys):
    """The table's errors are those of the texts of `espnet-lmu stream`; the references are what one chunk size says."""
    texts, paths = {}, {}
    recognizer = StreamingRecognizer(*fbank_model)
    for seed in range(3):
        key = f"utterance{seed}"
        paths[key] = str(tmp_path / f"{key}.wav")
        soundfile.write(paths[key], make_audio(3, seed), RATE, subtype="FLOAT")
        alone = recognizer.another(0.16)
        alone.accept(make_audio(3, seed))
        texts[key] = alone.finish().text
    write_data_dir(tmp_path / "set", {"wav.scp": paths, "text": texts, "utt2spk": {key: key for key in texts}})
    lines = list(evaluate.evaluate(str(fbank_model[0].parent), [str(tmp_path / "set")], [0.16, 0.04, float("inf")]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]
    assert [row[:3] for row in rows] == [["set", "160", "168"], ["set", "40", "48"], ["set", "whole", "the recording"]]
    assert rows[0][3] == "0.00" and float(rows[1][3]) > 0 < float(rows[2][3])
    assert all(float(row[5]) > 0 for row in rows)


@pytest.mark.parametrize("chunk", ["0", "-1", "nan", "all"])
def test_a_chunk_size_that_cannot_be_is_refused(chunk, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "model", "data", "--chunk", chunk])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "give seconds, or the word whole" in capsys.readouterr().err
