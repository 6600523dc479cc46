"""Transcripts as text, JSON, subtitles and CTM, and which file each recording goes to."""

import json
import os
from pathlib import Path

import pytest

from espnet_lmu.errors import UserError
from espnet_lmu.recognition.formats import SUFFIXES, render
from espnet_lmu.recognition.recordings import find_recordings, output_files
from espnet_lmu.recognition.transcript import Transcript, Word

TRANSCRIPT = Transcript(
    "A <B> C", [Word("A", 0.04, 0.08, 0.5), Word("<B>", 0.6, 0.68, 1.0), Word("C", 3661.2, 3661.28, 1)], 3700
)


def test_formats():
    assert render("x", TRANSCRIPT, "text") == "A <B> C\n"
    srt = "1\n00:00:00,040 --> 00:00:01,040\nA <B>\n\n2\n01:01:01,200 --> 01:01:02,200\nC\n\n"
    assert render("x", TRANSCRIPT, "srt") == srt
    vtt = "WEBVTT\n\n00:00:00.040 --> 00:00:01.040\nA &lt;B&gt;\n\n01:01:01.200 --> 01:01:02.200\nC\n\n"
    assert render("x", TRANSCRIPT, "vtt") == vtt
    ctm = "a_b 1 0.040 0.040 A 0.500\na_b 1 0.600 0.080 <B> 1.000\na_b 1 3661.200 0.080 C 1.000\n"
    assert render("a b", TRANSCRIPT, "ctm") == ctm
    content = json.loads(render("x", TRANSCRIPT, "json"))
    assert content["id"] == "x" and content["duration"] == 3700 and content["text"] == "A <B> C"
    assert content["words"][0] == {"text": "A", "start": 0.04, "end": 0.08, "confidence": 0.5}


def test_words_are_joined_as_in_the_text():
    """Chinese has no spaces; a word may hold one, where a piece is unknown."""
    text = "今天天气很好 OK 吗"
    words = [Word(word, 0.2 * i, 0.2 * i + 0.1, 1.0) for i, word in enumerate([*"今天天气很好", "OK", "吗"])]
    assert render("x", Transcript(text, words, 3), "srt").split("\n")[2] == text
    long = [Word(word, 0.01 * i, 0.01 * i + 0.01, 1.0) for i, word in enumerate("天气" * 30)]
    lines = render("x", Transcript("天气" * 30, long, 3), "srt").split("\n")[2:4]
    assert "".join(lines) == "天气" * 30 and max(map(len, lines)) <= 42
    odd = Transcript("THE ⁇ I", [Word("THE ⁇ I", 0.0, 0.3, 0.9)], 1)
    assert render("a", odd, "ctm") == "a 1 0.000 0.300 THE_⁇_I 0.900\n"


def test_recording_without_words():
    nothing = Transcript("", [], 3.0)
    rendered = {format: render("x", nothing, format) for format in SUFFIXES if format != "json"}
    assert rendered == {"text": "\n", "srt": "", "vtt": "WEBVTT\n\n", "ctm": ""}
    assert json.loads(render("x", nothing, "json"))["words"] == []


def test_subtitles_are_short_and_do_not_overlap():
    words = [Word("WORD" * (1 + i % 4), 0.3 * i, 0.3 * i + 0.2, 1.0) for i in range(200)]
    cues = render("x", Transcript(" ".join(w.text for w in words), words, 60), "vtt").split("\n\n")[1:-1]
    spoken, last_end = [], "00:00:00.000"
    for cue in cues:
        times, *lines = cue.split("\n")
        start, end = times.split(" --> ")
        assert last_end <= start < end
        last_end = end
        assert len(lines) <= 2 and max(map(len, lines)) <= 60
        spoken += " ".join(lines).split()
    assert spoken == [word.text for word in words]
    short = Transcript("NO", [Word("NO", 0.3, 0.4, 1.0)], 0.5)  # shown for a second, but for the end of the recording
    assert render("x", short, "vtt").splitlines()[2] == "00:00:00.300 --> 00:00:00.500"


def test_files_folders_and_tables_are_found(tmp_path, capsys):
    for name in ("d/a.wav", "d/sub/b.FLAC", "d/sub/c.m4a", "d/notes.txt", "c.weird"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "wav.scp").write_text("u2 x.wav\nu1 y.wav\n")
    found = find_recordings([f"{tmp_path}/d", f"{tmp_path}/c.weird", f"{tmp_path}/wav.scp"])
    assert found == {
        "a.wav": f"{tmp_path}/d/a.wav",
        "sub/b.FLAC": f"{tmp_path}/d/sub/b.FLAC",
        f"{tmp_path}/c.weird": f"{tmp_path}/c.weird",
        "u2": "x.wav",
        "u1": "y.wav",
    }
    assert capsys.readouterr().err == f"{tmp_path}/d: not read: sub/c.m4a; convert to WAV or FLAC\n"
    (tmp_path / "segments").touch()
    find_recordings([f"{tmp_path}/wav.scp"])
    message = f"{tmp_path}/wav.scp: recordings are transcribed whole; {tmp_path}/segments is not used\n"
    assert capsys.readouterr().err == message
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no audio files"):
        find_recordings([f"{tmp_path}/empty"])
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.wav").touch()
    with pytest.raises(UserError, match="d/a.wav and .*e/a.wav would both be called a.wav; give a folder above both"):
        find_recordings([f"{tmp_path}/d", f"{tmp_path}/e"])
    with pytest.raises(UserError, match="a.wav: given twice"):
        find_recordings([f"{tmp_path}/d", f"{tmp_path}/d"])
    Path(os.fsdecode(bytes(tmp_path / "d") + b"/caf\xe9.wav")).touch()
    with pytest.raises(UserError, match=r"'caf\\udce9.wav': this name is not UTF-8; rename the file"):
        find_recordings([f"{tmp_path}/d"])


def test_outputs_stay_in_their_directory_and_apart():
    files = output_files(["sub/b.flac", "/x/y/a.wav", "../c.mp3", "id.1"], Path("out"), ".srt")
    assert list(map(str, files.values())) == ["out/sub/b.srt", "out/a.srt", "out/c.srt", "out/id.1.srt"]
    with pytest.raises(UserError, match="/x/a.wav and /y/a.wav would both be written to out/a.txt"):
        output_files(["/x/a.wav", "/y/a.wav"], Path("out"), ".txt")
    for name in (".", "q/.."):
        with pytest.raises(UserError, match=f"{name}: a recording of this name has no file"):
            output_files([name], Path("out"), ".txt")
