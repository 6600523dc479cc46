"""Stage 10's statistics: of the data as it is, or not used."""

from pathlib import Path

import kaldiio
import numpy as np
import pytest

from espnet_lmu.data.kaldi_dir import write_table
from espnet_lmu.errors import UserError
from espnet_lmu.training import statistics
from espnet_lmu.training.statistics import _data_digest, check_statistics


@pytest.fixture
def data(tmp_path) -> tuple[dict[str, Path], Path, Path]:
    """The tables of two sets, a token list, and statistics that are of them."""
    scps = {part: tmp_path / part / "wav.scp" for part in ("train", "valid")}
    for scp in scps.values():
        write_table(scp, {"a": "a.flac", "b": "b.flac"})
        write_table(scp.with_name("text"), {"a": "LOW", "b": "HIGH"})
        write_table(scp.with_name("utt2num_samples"), {"a": "1000", "b": "2000"})
    tokens, output = tmp_path / "tokens.txt", tmp_path / "stats"
    tokens.write_text("<blank>\nLOW\nHIGH\n")
    output.mkdir()
    (output / ".data").write_text(_data_digest(scps, tokens))
    return scps, tokens, output


def test_statistics_of_the_same_data_are_used(data):
    check_statistics(*data)


@pytest.mark.parametrize("changed", ["wav.scp", "text", "utt2num_samples"])
@pytest.mark.parametrize("part", ["train", "valid"])
def test_those_of_other_data_are_refused(data, changed, part):
    scps, _, output = data
    write_table(scps[part].with_name(changed), {"a": "1", "b": "3"})
    with pytest.raises(UserError, match=f"{output}: statistics of other data than .*; run stage 10 again"):
        check_statistics(*data)


def test_and_those_of_other_tokens_or_of_an_earlier_version(data):
    _, tokens, output = data
    tokens.write_text("<blank>\nLOW\n")
    with pytest.raises(UserError, match="run stage 10 again"):
        check_statistics(*data)
    (output / ".data").unlink()
    with pytest.raises(UserError, match="of an earlier version, which does not say of what data; run stage 10 again"):
        check_statistics(*data)


def test_features_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    features = {key: np.ones((50, 80), np.float32) for key in ("a", "b", "c")}
    kaldiio.save_ark(str(tmp_path / "f.ark"), features, scp=str(tmp_path / "feats.scp"))
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "feats.scp").write_text((tmp_path / "feats.scp").read_text())
        (tmp_path / name / "text").write_text("a LOW\nb LOW\nc LOW\n")
    scps = {part: tmp_path / part / "feats.scp" for part in ("train", "valid")}

    def fail(function, pieces, directory, **_):
        (directory / f"{next(iter(pieces))}.failed").touch()  # that of the first utterance
        raise UserError("a piece failed")

    monkeypatch.setattr(statistics, "map_pieces", fail)
    (tmp_path / "tokens.txt").touch()
    arguments = scps, tmp_path / "tokens.txt", "char", None, [], tmp_path / "stats"
    for cut in (50000, 20000):  # the second utterance, the third
        (tmp_path / "f.ark").write_bytes((tmp_path / "f.ark").read_bytes()[:cut])
        with pytest.raises(UserError, match="a piece failed"):
            statistics.collect_statistics(*arguments, nj=3)
    for cut in (16010, 20, 12):
        (tmp_path / "f.ark").write_bytes((tmp_path / "f.ark").read_bytes()[:cut])
        with pytest.raises(UserError, match=r"f\.ark:\d+: features cannot be read .*; run stage 3 again"):
            statistics.collect_statistics(*arguments, nj=3)
