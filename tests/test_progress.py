"""The bar of long work, in a log file."""

from espnet_lmu import progress


def test_a_log_file_gets_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 3600.0)
    assert list(progress.progress(range(50), desc="count", unit="utt")) == list(range(50))
    with progress.progress(desc="pieces", total=2) as bar:
        bar.update(2)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert "\r" not in text and len(lines) == 4
    assert lines[0].startswith("count:   0%") and "50/50" in lines[1]
    assert lines[2].startswith("pieces:   0%") and "2/2" in lines[3]
