"""AN4: the sets, ids and texts of ESPnet's recipe, from the archive, its folder or a download."""

import errno
import io
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recipe_tools import one_line_error, run_module

from espnet_lmu.data import an4
from espnet_lmu.data.kaldi_dir import read_data_dir, read_table
from espnet_lmu.errors import UserError


@pytest.fixture
def corpus(tmp_path) -> Path:
    """103 training and 2 test recordings laid out as in the official archive; returns the folder an4."""
    root = tmp_path / "unpacked" / "an4"
    train = [f"an{number}-{speaker}-b" for speaker in ("mblb", "fash") for number in range(300, 352)][:103]
    test = ["an406-fcaw-b", "cen8-fcaw-b"]
    for files, folder in ((train, "an4_clstk"), (test, "an4test_clstk")):
        for file in files:
            path = root / "wav" / folder / file.split("-")[1] / f"{file}.sph"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(1600), 16000, format="NIST", subtype="PCM_16")
    (root / "etc").mkdir()
    lines = "".join(f"<s> ENTER  {number} </s> ({file})\n" for number, file in enumerate(train))
    (root / "etc" / "an4_train.transcription").write_text(lines)
    (root / "etc" / "an4_test.transcription").write_text("RUBOUT G M (an406-fcaw-b)\nYES (cen8-fcaw-b)\n\n")
    return root


def make_archive(corpus: Path) -> Path:
    archive = corpus.parent / "an4_sphere.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(corpus, "an4")
    return archive


def test_first_hundred_sorted_training_utterances_are_dev(corpus, tmp_path):
    an4.prepare(corpus, tmp_path / "data")
    tables = {name: read_data_dir(tmp_path / "data" / name) for name in ("train_nodev", "train_dev", "test")}
    assert [len(table["text"]) for table in tables.values()] == [3, 100, 2]
    together = list(tables["train_dev"]["text"]) + list(tables["train_nodev"]["text"])
    assert together == sorted(together) and together[0] == "fash-an300-b"
    assert tables["test"]["text"] == {"fcaw-an406-b": "RUBOUT G M", "fcaw-cen8-b": "YES"}
    assert tables["train_dev"]["text"]["fash-an300-b"] == "ENTER 52"
    assert tables["test"]["utt2spk"]["fcaw-cen8-b"] == "fcaw"


def test_archive_gives_what_its_folder_gives(corpus, tmp_path):
    archive = make_archive(corpus)
    for source, name in ((archive, "one"), (corpus, "two")):
        result = run_module("espnet_lmu.data.an4", "--an4", source, "--output", name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    for part in ("train_nodev", "train_dev", "test"):
        assert (tmp_path / "one" / part / "text").read_text() == (tmp_path / "two" / part / "text").read_text()
    assert read_table(tmp_path / "one/test/wav.scp")["fcaw-cen8-b"].startswith("downloads/an4/wav/an4test_clstk/")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["an4"]


def test_wrong_paths_and_archives_are_one_line(corpus, tmp_path):
    archive = make_archive(corpus)
    (tmp_path / "half.tar.gz").write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    (tmp_path / "other").mkdir()
    for path, message in (
        ("missing.tar.gz", "missing.tar.gz: no such file or folder"),
        ("half.tar.gz", "half.tar.gz: not a complete AN4 archive"),
        ("other", "other: not the AN4 corpus"),
    ):
        assert message in one_line_error(run_module("espnet_lmu.data.an4", "--an4", path, cwd=tmp_path))
    assert not (tmp_path / "data").exists() and not list((tmp_path / "downloads").glob("*"))


@pytest.mark.parametrize("old_python", [False, True])
def test_archives_unpack_with_and_without_pythons_own_filter(corpus, tmp_path, monkeypatch, old_python):
    if old_python:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    assert an4.unpack(make_archive(corpus), tmp_path) == tmp_path / "an4"
    assert (tmp_path / "an4" / "etc" / "an4_test.transcription").exists()
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.add(corpus / "etc", "../escaped")
    with pytest.raises(UserError, match="bad.tar.gz: not a complete AN4 archive"):
        an4.unpack(tmp_path / "bad.tar.gz", tmp_path / "folder")
    assert not (tmp_path / "escaped").exists()


def test_a_full_disk_is_not_taken_for_a_damaged_archive(corpus, tmp_path, monkeypatch):
    def no_space(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = make_archive(corpus)
    for name in ("extractall", "extract"):  # of a new Python and of an old one
        monkeypatch.setattr(tarfile.TarFile, name, no_space)
    with pytest.raises(OSError, match="No space left on device: '.*tmp'"):
        an4.unpack(archive, tmp_path / "folder")


class Response(io.BytesIO):
    headers = {"Content-Length": "5"}


def test_download_is_complete_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "downloads" / "an4_sphere.tar.gz"
    replies = {"refused": OSError("connection refused"), "cut": Response(b"abc"), "complete": Response(b"abcde")}

    def reply_with(name: str) -> None:
        def urlopen(url, timeout):
            assert url == an4.URL
            if isinstance(replies[name], Exception):
                raise replies[name]
            return replies[name]

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)

    for name, message in (("refused", "connection refused"), ("cut", "3 of 5 bytes")):
        reply_with(name)
        with pytest.raises(UserError, match=f"download failed .*{message}.*AN4=PATH"):
            an4.download(target)
        assert not list(target.parent.iterdir())
    reply_with("complete")
    an4.download(target)
    assert target.read_bytes() == b"abcde" and len(list(target.parent.iterdir())) == 1
