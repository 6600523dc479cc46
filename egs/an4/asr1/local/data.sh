#!/usr/bin/env bash
# Stage 1: data/{train_nodev,train_dev,test}. Options: --an4 PATH (see --help).
set -euo pipefail
exec "${python:-python3}" -m espnet_lmu.data.an4 "$@"
