#!/usr/bin/env bash
# Trains encoders under one protocol and writes exp/comparison/RESULTS.md; a recipe's compare.sh calls this file from its
# own directory. ENCODER.yaml ... or, without them, all of conf/encoders and conf/peers; --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
export PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"

exec "${python:-python3}" -m espnet_lmu.comparison.compare --training conf/comparison.yaml "$@"
