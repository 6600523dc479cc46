"""Corpora and Kaldi-style data directories: preparation, formatting, filtering."""
