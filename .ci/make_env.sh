#!/usr/bin/env bash
# Makes the environment .venv on first use, and anew when setup.py or what it compiles has changed, the clone has moved
# or an installation was cut short; otherwise returns at once.
# Needs Linux, bash and uv; where uv is missing, a python3 with its venv module to install uv with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

exec 9>.venv.lock
flock 9 # of two commands started together, the second waits for the first one's environment
# Installed scripts carry the path of the clone, so it counts as well as the requirements.
wanted=$(pwd && cat setup.py espnet_lmu/lmu/frames.cpp | cksum)
if [ "$(cat .venv/complete 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

echo "Making the Python environment .venv: some minutes, once" >&2
if ! uv=$(command -v uv); then
    uv=.venv.uv/bin/uv
    if ! { [ -x "$uv" ] || { python3 -m venv --clear .venv.uv && .venv.uv/bin/python -m pip install --quiet uv; }; }; then
        echo "error: uv is not installed, and installing it failed: it needs python3 with its venv module" \
            "(Debian: python3-venv), or install uv yourself" >&2
        exit 1
    fi
fi
rm -rf .venv
# --seed: with pip, for whoever adds optional packages
if ! { "$uv" venv --quiet --seed --python ">=3.10,<3.13" .venv &&
    "$uv" pip install --python .venv/bin/python --editable ".[demo,dev]"; } >&2; then
    echo "error: .venv could not be made (Python 3.10 to 3.12 is needed); see the lines above" >&2
    exit 1
fi
echo "$wanted" >.venv/complete # last: without it the next call starts over
