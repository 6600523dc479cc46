"""Settings of all tests: two cores serve several test processes, so each computes with one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
