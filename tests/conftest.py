"""Settings of all tests: two cores serve several test processes, so each computes with one thread; and the corpora that
recipes find by the user's environment are not there."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("AISHELL", "AN4", "LIBRISPEECH", "TEDLIUM"):
    os.environ.pop(name, None)
