#!/usr/bin/env bash
# Trains encoders under one protocol and writes exp/comparison/RESULTS.md: ./compare.sh [OPTION ...] [ENCODER.yaml ...]
# Without encoders: all of conf/encoders and conf/peers. ./compare.sh --help lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$(cd ../../.. && pwd)
export PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"

encoders=()
[[ " $* " == *.yaml* ]] || encoders=("${root}"/conf/{encoders,peers}/*.yaml)
exec "${python:-python3}" -m espnet_lmu.comparison.compare --training conf/comparison.yaml \
    --valid_set train_dev --test_set test "$@" "${encoders[@]}"
