"""Splicing: utterances are cut in their pauses alone, parts are used equally often, and bad input is one line."""

import numpy as np
import pytest
import soundfile
from recipe_tools import RATE, make_set, one_line_error, run_module, tone_words

from espnet_lmu.data.kaldi_dir import read_data_dir, read_table, write_table
from espnet_lmu.data.splice import Part, cut, find_pauses, plan, splice
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.transcript import Transcript, Word

WORD, TONE = 0.35, 0.25  # seconds of a word with its silence, and without


class Reader:
    """A recognizer that knows the words of `tone_words` by their pitch, and reads MID as LOW where it is alone."""

    rate, frame_shift = RATE, 0.04

    def transcribe_all(self, recordings, nj):
        for samples, rate in recordings:
            assert rate == RATE
            words = []
            for number in range(round(len(samples) / (WORD * rate))):
                start = number * WORD
                tone = samples[round(start * rate) : round((start + TONE) * rate)]
                pitch = np.abs(np.fft.rfft(tone)).argmax() / TONE
                text = "LOW" if pitch < 600 else "MID" if pitch < 1500 else "HIGH"
                words.append(Word(text, start + 0.1, start + 0.18, 1.0))
            if [word.text for word in words] == ["MID"]:
                words = [Word("LOW", 0.1, 0.18, 1.0)]
            yield Transcript(" ".join(word.text for word in words), words, len(samples) / rate)


def test_a_pause_is_the_middle_of_the_longest_silence_that_is_long_enough():
    samples = tone_words(["LOW", "MID", "HIGH"])
    gaps = [(0.1, 0.45), (0.45, 0.8)]
    middles = find_pauses(samples, RATE, gaps)
    assert np.allclose(middles, [0.3, 0.65], atol=0.011)
    closed = samples.copy()
    closed[round(0.27 * RATE) : round(0.35 * RATE)] = closed[: round(0.08 * RATE)]
    assert find_pauses(closed, RATE, gaps)[0] is None and find_pauses(closed, RATE, gaps)[1] == middles[1]
    assert find_pauses(samples, RATE, []) == []


def test_parts_cover_the_utterance_and_keep_its_words():
    samples = tone_words(["LOW", "MID", "HIGH", "LOW"])
    samples[round(0.6 * RATE) : round(0.7 * RATE)] = samples[: round(0.1 * RATE)]  # no pause between MID and HIGH
    words = next(Reader().transcribe_all([(samples, RATE)], 1)).words
    parts = cut("a", samples, RATE, words, 0.04)
    assert [part.words for part in parts] == [["LOW"], ["MID", "HIGH"], ["LOW"]]
    assert parts[0].start == 0 and parts[-1].stop == len(samples) / RATE
    assert all(part.stop == following.start for part, following in zip(parts, parts[1:], strict=False))


def test_every_part_is_used_equally_often_by_its_own_speaker():
    parts = [Part(f"{speaker}-{i}", 0.0, 1.0, ["X"] * (1 + i % 3)) for speaker in "ab" for i in range(7)]
    speakers = {part.utterance: part.utterance[0] for part in parts}
    plans = plan(parts, speakers, [2, 5], 3, seed=1)
    uses = [part.utterance for chosen in plans for part in chosen]
    assert all(uses.count(part.utterance) == 3 for part in parts)
    assert all(len({speakers[part.utterance] for part in chosen}) == 1 for chosen in plans)
    assert plans == plan(parts, speakers, [2, 5], 3, seed=1) != plan(parts, speakers, [2, 5], 3, seed=2)


def test_spliced_audio_says_what_its_transcript_says(tmp_path):
    source, target = make_set(tmp_path / "source", 8), tmp_path / "spliced"
    splice(Reader(), source, target, copies=2, seed=1, nj=1)
    tables, before = read_data_dir(target), read_data_dir(source)
    new = sorted(tables["text"].keys() - before["text"].keys())
    assert new and all(tables["text"][key] == before["text"][key] for key in before["text"])
    assert all(tables["utt2spk"][key] == key.split("-")[0] for key in new)
    recordings = [soundfile.read(tables["wav.scp"][key], dtype="float32") for key in new]
    # Two cuts may each be a hundredth of a second off.
    for key, transcript in zip(new, Reader().transcribe_all(recordings, 1), strict=True):
        assert transcript.text == tables["text"][key] or tables["text"][key] == "MID"
    first = {path.name: path.read_bytes() for path in (target / "spliced").iterdir()}
    splice(Reader(), source, target, copies=2, seed=1, nj=1)
    assert first == {path.name: path.read_bytes() for path in (target / "spliced").iterdir()}
    assert sorted(path.name for path in target.iterdir()) == ["spk2utt", "spliced", "text", "utt2spk", "wav.scp"]


def test_segments_get_a_line_for_each_spliced_utterance(tmp_path):
    samples = np.concatenate([tone_words(["LOW", "HIGH"]), tone_words(["HIGH", "HIGH", "LOW"])])
    soundfile.write(tmp_path / "talk.wav", samples, RATE)
    source = tmp_path / "talks"
    for name, table in {
        "wav.scp": {"talk": str(tmp_path / "talk.wav")},
        "segments": {"a-1": "talk 0 0.7", "a-2": "talk 0.7 1.75"},
        "text": {"a-1": "LOW HIGH", "a-2": "HIGH HIGH LOW"},
        "utt2spk": {"a-1": "a", "a-2": "a"},
    }.items():
        write_table(source / name, table)
    splice(Reader(), source, tmp_path / "spliced", copies=1, seed=1, nj=1)
    tables = read_data_dir(tmp_path / "spliced")
    new = tables["segments"].keys() - {"a-1", "a-2"}
    assert new and all(tables["segments"][key].split()[:2] == [key, "0"] for key in new)


def test_what_the_model_reads_otherwise_is_left_out(tmp_path):
    source = make_set(tmp_path / "source", 4)
    texts = read_table(source / "text")
    write_table(source / "text", dict.fromkeys(texts, "OTHER WORDS"))
    with pytest.raises(UserError, match="source: the model reads none of these utterances as transcribed"):
        splice(Reader(), source, tmp_path / "spliced", copies=1, seed=1, nj=1)
    assert not (tmp_path / "spliced").exists()
    write_table(source / "text", {**dict.fromkeys(texts, "OTHER WORDS"), "spk0-000": texts["spk0-000"]})
    splice(Reader(), source, tmp_path / "spliced", copies=3, seed=1, nj=1)
    new = [key for key in read_table(tmp_path / "spliced" / "text") if "-spliced" in key]
    assert new and all(key.startswith("spk0-") for key in new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--copies", "0", "--model", "exp"], "--splice_copies 0: give 1 or more"),
        (["--model", "exp/nowhere"], "exp/nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    source = make_set(tmp_path / "source", 2)
    result = run_module("espnet_lmu.data.splice", *arguments, source, tmp_path / "spliced", cwd=tmp_path)
    assert message in one_line_error(result)
