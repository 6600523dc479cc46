"""The data check: every kind of fault is found, named and treated as its policy says; audio is read once."""

import json
import os
import re

import numpy as np
import pytest
import soundfile
from recipe_tools import RATE, ROOT, make_set, one_line_error, run_module, tone_words

from espnet_lmu.data import check
from espnet_lmu.data.check import KINDS, Transcripts, check_data_dir, default_policies, parse_policies
from espnet_lmu.data.kaldi_dir import read_data_dir, read_table, write_table
from espnet_lmu.errors import UserError


def run_check(directory, policy="", test=False, nj=1, transcripts=None):
    """(what stops the recipe, the report)."""
    nothing = directory / "none"
    transcripts = transcripts or Transcripts("bpe", nothing, nothing, 100.0)
    policies = {**default_policies(test), **parse_policies(policy)}
    stopping = check_data_dir(directory, RATE, policies, transcripts, nj=nj)
    report = json.loads((directory / "check.json").read_text(encoding="utf-8"))
    return stopping, {kind: entry for kind, entry in report["findings"].items() if entry["count"]}


def replace_line(path, key, *lines):
    kept = [line for line in path.read_text().splitlines() if line.split()[0] != key]
    path.write_text("".join(f"{line}\n" for line in [*kept, *lines]))


def rewrite_audio(directory, key, samples, rate=RATE):
    soundfile.write(read_table(directory / "wav.scp")[key], samples, rate)


def damage(directory, kind):
    """Give utterance spk0-002 a fault of `kind`."""
    key, tone = "spk0-002", tone_words(["LOW", "HIGH"])
    wav = read_table(directory / "wav.scp")[key]
    if kind == "duplicate":
        replace_line(directory / "text", key, f"{key} LOW", f"{key} HIGH")
    elif kind == "incomplete":
        replace_line(directory / "utt2spk", key)
    elif kind == "missing":
        os.unlink(wav)
    elif kind == "unreadable":
        with open(wav, "r+b") as stream:
            stream.truncate(5000)
    elif kind == "empty":
        rewrite_audio(directory, key, np.zeros(0))
    elif kind == "sample_rate":
        rewrite_audio(directory, key, tone, 8000)
    elif kind == "channels":
        rewrite_audio(directory, key, np.stack([tone, tone], axis=1))
    elif kind == "clipped":
        rewrite_audio(directory, key, np.clip(tone * 10, -1, 1))
    elif kind == "silent":
        rewrite_audio(directory, key, 0.0005 * np.sin(np.arange(RATE)) + 0.2)  # on a constant offset
    elif kind == "no_transcript":
        replace_line(directory / "text", key, key)
    elif kind == "too_long":
        replace_line(directory / "text", key, f"{key} {'LOW ' * 400}")
    elif kind in ("segment", "overshoot"):
        segments = {name: f"{name} 0 0.2" for name in read_table(directory / "wav.scp")}
        segments[key] = f"{key} 9 10" if kind == "segment" else f"{key} 0.1 10"
        write_table(directory / "segments", segments)
    return key


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"unknown_characters"}))
def test_each_fault_is_found_alone_and_stopped_or_dropped(data_set, kind):
    directory = data_set("train", 5)
    key = damage(directory, kind)
    before = (directory / "text").read_text()
    stopping, found = run_check(directory, f"{kind}=stop")
    assert list(found) == [kind] and list(found[kind]["utterances"]) == [key] and found[kind]["policy"] == "stop"
    assert list(stopping) == [kind] and (directory / "text").read_text() == before

    stopping, found = run_check(directory, f"{kind}=drop")
    assert not stopping and found[kind]["count"] == 1
    assert list(read_data_dir(directory)["text"]) == ["spk0-000", "spk0-004", "spk1-001", "spk1-003"]
    assert run_check(directory)[1] == {}


def test_what_earlier_runs_dropped_stays_in_the_report_until_it_is_back(data_set, capsys):
    directory = data_set("train", 5)
    damage(directory, "silent")
    lines = {name: (directory / name).read_text() for name in ("wav.scp", "text", "utt2spk")}
    run_check(directory)
    os.unlink(read_table(directory / "wav.scp")["spk1-003"])
    assert list(run_check(directory, "missing=drop")[1]) == ["missing"]
    capsys.readouterr()
    for _ in range(2):
        assert run_check(directory)[1] == {}
        printed = capsys.readouterr().out
        assert "3 utterances, 0.00 h, nothing new found" in printed
        assert re.search("silent +1  drop    in earlier runs: silence.*: spk0-002", printed)
        earlier = json.loads((directory / "check.json").read_text())["dropped_earlier"]
        assert {kind: list(found) for kind, found in earlier.items()} == {
            "silent": ["spk0-002"],
            "missing": ["spk1-003"],
        }
    # A data directory that is made anew has both again.
    for name, text in lines.items():
        (directory / name).write_text(text)
    rewrite_audio(directory, "spk0-002", tone_words(["LOW"]))
    assert list(run_check(directory, "missing=drop")[1]) == ["missing"]
    assert "in earlier runs" not in capsys.readouterr().out
    assert json.loads((directory / "check.json").read_text())["dropped_earlier"] == {}


@pytest.mark.parametrize(("kind", "table"), [("duplicate", "text"), ("overshoot", "segments")])
def test_fixes(data_set, kind, table):
    directory = data_set("train", 5)
    key = damage(directory, kind)
    seconds = soundfile.info(read_table(directory / "wav.scp")[key]).duration
    assert not run_check(directory, f"{kind}=fix")[0]
    fixed = {"text": "LOW", "segments": f"{key} 0.100000 {seconds:.6f}"}
    assert len(read_data_dir(directory)["text"]) == 5 and read_table(directory / table)[key] == fixed[table]
    assert run_check(directory)[1] == {}


@pytest.mark.parametrize("test", [False, True])
def test_defaults_drop_silence_from_training_sets_alone(data_set, test):
    directory = data_set("test" if test else "train", 5)
    damage(directory, "silent")
    rewrite_audio(directory, "spk0-000", tone_words(["LOW", "HIGH"]), 8000)
    stopping, found = run_check(directory, test=test)
    assert not stopping and sorted(found) == ["sample_rate", "silent"]
    assert found["sample_rate"]["policy"] == "fix" and found["silent"]["policy"] == ("keep" if test else "drop")
    assert len(read_data_dir(directory)["text"]) == (5 if test else 4)


def test_sets_are_sorted_and_get_spk2utt(data_set):
    directory = data_set("train", 5)
    lines = (directory / "text").read_text().splitlines(keepends=True)
    (directory / "text").write_text("".join(reversed(lines)))
    (directory / "spk2utt").unlink()
    run_check(directory)
    assert (directory / "spk2utt").read_text().splitlines()[1] == "spk1 spk1-001 spk1-003"
    assert list(read_table(directory / "text")) == sorted(read_table(directory / "text"))


def test_audio_is_read_once_even_after_a_kill_and_again_when_it_changes(data_set, monkeypatch):
    directory = data_set("train", 70)
    map_pieces, measure = check.map_pieces, check.measure

    def killed(*arguments, **options):
        map_pieces(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "map_pieces", killed)
    with pytest.raises(KeyboardInterrupt):
        run_check(directory, nj=2)
    assert not (directory / "check.json").exists()
    monkeypatch.setattr(check, "map_pieces", map_pieces)
    # Audio that is read from now on has errors.
    monkeypatch.setattr(check, "measure", lambda audio: {"error": "unreadable", "message": measure(audio)["rate"]})
    assert run_check(directory)[1] == {} == run_check(directory, "clipped=drop")[1]
    rewrite_audio(directory, "spk0-002", tone_words(["LOW"]))
    assert run_check(directory)[1]["unreadable"]["utterances"] == {"spk0-002": RATE}
    assert sorted(path.name for path in directory.glob(".audio*")) == [".audio.jsonl"]


def test_transcripts_are_compared_with_tokens_and_frames(data_set, tmp_path):
    directory = data_set("train", 5)
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n" + "\n".join(sorted(set("LOWMIDHGXY"))) + "\n<space>\n")
    write_table(
        directory / "text", {**read_table(directory / "text"), "spk0-002": "LÖW", "spk0-004": "XY" * 9 + "Y" * 9}
    )
    rewrite_audio(directory, "spk0-004", tone_words(["LOW"]))  # 0.3 s, 30 frames
    transcripts = Transcripts("char", tmp_path / "tokens.txt", tmp_path / "none", 100.0)
    _, found = run_check(directory, transcripts=transcripts)
    assert found["unknown_characters"]["utterances"] == {"spk0-002": "Ö"}
    assert found["too_long"]["utterances"] == {"spk0-004": "36 of 30 frames"}  # 27 characters, 9 of them repeated
    assert run_check(directory, transcripts=transcripts._replace(frame_rate=125.0))[1].keys() == {"unknown_characters"}


def test_command_prints_a_table_and_one_line_for_all_that_stops(data_set, tmp_path):
    train, test = data_set("train", 5), data_set("test", 5)
    damage(train, "missing")
    damage(test, "clipped")
    damage(test, "duplicate")
    result = run_module("espnet_lmu.data.check", "--nj", 2, train, test)
    message = one_line_error(result)
    assert f"{train}: 1 missing (no such audio file), first spk0-002" in message
    assert f"{test}: 1 duplicate" in message and '--check_policy "missing=drop duplicate=fix"' in message
    assert "clipped" in result.stdout and "spk0-002 (" in result.stdout and "keep" in result.stdout
    result = run_module("espnet_lmu.data.check", "--check_policy", "missing=drop duplicate=fix", train, test)
    assert result.returncode == 0 and f"{train}: 4 utterances" in result.stdout, result.stderr
    for policy, message in (("silence=drop", "the kind one of: duplicate"), ("missing=fix", "is one of: stop drop")):
        with pytest.raises(UserError, match=message):
            parse_policies(policy)


def test_training_data_in_a_test_set_is_named(data_set, tmp_path):
    train, test = data_set("train", 4), data_set("test", 2)
    arguments = ["--test", "--training", train, test]
    assert "warning" not in run_module("espnet_lmu.data.check", train, *arguments[1:]).stdout
    for name in ("wav.scp", "text", "utt2spk"):
        row = (train / name).read_text().splitlines()[-1].replace("spk1-003", "spk9-999", 1)
        (test / name).write_text((test / name).read_text() + row + "\n")
    result = run_module("espnet_lmu.data.check", *arguments)
    assert f"warning: {test}: 1 utterances are training data ({train}): spk9-999" in result.stdout


def test_what_stops_is_said_and_not_what_comes_after_it(data_set):
    train, valid = data_set("train", 4), data_set("valid", 2)
    (train / "utt2spk").write_text((train / "utt2spk").read_text() + "spk0-000 spk0\n")
    assert 'give --check_policy "duplicate=fix"' in one_line_error(run_module("espnet_lmu.data.check", train, valid))


def test_damaged_records_of_earlier_runs(data_set):
    directory = data_set("train", 2)
    run_check(directory)
    (directory / ".audio.jsonl").write_text("[1, 2")
    run_check(directory)
    assert len((directory / ".audio.jsonl").read_text().splitlines()) == 2
    (directory / "check.json").write_text("{")
    with pytest.raises(UserError, match="check.json: damaged; .* delete it"):
        run_check(directory)


def test_damaged_tables_and_empty_sets_are_one_line(data_set, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such data directory"):
        run_check(tmp_path / "nowhere")
    directory = make_set(tmp_path / "damaged", 2)
    for content, message in ((b"", "wav.scp: no utterances"), (b"a \xff\n", "not UTF-8"), (b"a x |\n", "commands")):
        (directory / "wav.scp").write_bytes(content)
        with pytest.raises(UserError, match=message):
            run_check(directory)
    (directory / "wav.scp").write_text("a nowhere.wav\n")
    with pytest.raises(UserError, match="no utterance is left"):
        run_check(directory, "missing=drop incomplete=drop")


def test_the_page_on_recipes_names_every_kind_with_its_default():
    page = (ROOT / "egs" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (stop|fix|drop|keep)\b[^|]* \| (.*) \|$", page, re.MULTILINE))
    named = {policy: set(re.findall(r"`(\w+)`", row)) for policy, row in rows.items()}
    assert named == {policy: {kind for kind in KINDS if KINDS[kind].policies[0] == policy} for policy in named}
    assert set().union(*named.values()) == set(KINDS)
