"""Data directories: order, spk2utt, and one clear line for everything that can be wrong with them."""

import pytest

from espnet_lmu.data.kaldi_dir import read_data_dir, read_table, write_data_dir, write_table
from espnet_lmu.errors import UserError


def test_tables_are_sorted_as_by_sort_in_the_c_locale(tmp_path):
    write_table(tmp_path / "text", {"b": "x", "a_1": "", "a-1": "y  z", "A": "é", "é": "w", "a": "v"})
    lines = (tmp_path / "text").read_text(encoding="utf-8").splitlines()
    assert lines == ["A é", "a v", "a-1 y  z", "a_1", "b x", "é w"]
    assert read_table(tmp_path / "text")["a_1"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_spk2utt_lists_the_utterances_of_each_speaker(tmp_path):
    speakers = {"u2": "bob", "u1": "bob", "u3": "ann"}
    write_data_dir(tmp_path, {"text": dict.fromkeys(speakers, "x"), "utt2spk": speakers})
    assert (tmp_path / "spk2utt").read_text() == "ann u3\nbob u1 u2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a x\nb y\na z\n", "line 3: the id a appears twice"),
        (b"a x\n\nb y\n", "line 2 is empty"),
        (b"a \xff\n", "not UTF-8"),
    ],
)
def test_damaged_table_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match=f"text: {message}"):
        read_table(tmp_path / "text")


def rewrite(path, function):
    path.write_text("".join(function(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("text", lambda lines: lines[1:], "text: 1 ids of .*wav.scp are missing: spk0-000"),
        ("utt2spk", lambda lines: [*lines, "zzz spk\n"], "utt2spk: 1 ids are not in .*wav.scp: zzz"),
        ("utt2spk", lambda lines: ["spk0-000\n", *lines[1:]], "utt2spk: no speaker for spk0-000"),
        ("wav.scp", lambda lines: ["spk0-000 /nowhere.wav\n", *lines[1:]], "spk0-000: no such file: /nowhere.wav"),
        (
            "wav.scp",
            lambda lines: ["spk0-000 sox x.mp3 |\n", *lines[1:]],
            "spk0-000: commands .* not supported",
        ),
        ("wav.scp", lambda lines: [], "wav.scp: no utterances"),
    ],
)
def test_inconsistent_directory_is_refused(data_set, file, change, message):
    directory = data_set("train", 3)
    rewrite(directory / file, change)
    with pytest.raises(UserError, match=message):
        read_data_dir(directory)


def test_missing_directory_and_file_are_refused(data_set, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such data directory"):
        read_data_dir(tmp_path / "nowhere")
    directory = data_set("train", 2)
    (directory / "text").unlink()
    with pytest.raises(UserError, match="text: no such file"):
        read_data_dir(directory)


def test_tables_of_an_earlier_run_do_not_stay(data_set):
    directory = data_set("train", 2)
    tables = read_data_dir(directory)
    write_table(directory / "segments", {"spk0-000": "spk0-000 0 1"})
    write_table(directory / "utt2speed", {"spk0-000": "1"})
    write_data_dir(directory, tables)
    assert read_data_dir(directory) == tables


def test_ids_that_could_not_be_read_again_are_refused(tmp_path):
    for key in ("John Smith", "", "a\u00a0b"):
        with pytest.raises(UserError, match="text: the id .* is empty or has a space"):
            write_table(tmp_path / "text", {key: "x"})
    assert not list(tmp_path.iterdir())


def test_mark_at_the_start_of_a_table_is_not_part_of_the_id(tmp_path):
    (tmp_path / "text").write_text("a X\nb Y\n", encoding="utf-8-sig")
    assert read_table(tmp_path / "text") == {"a": "X", "b": "Y"}
