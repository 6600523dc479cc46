#!/usr/bin/env bash
# Encoders compared on AN4: ./compare.sh [OPTION ...] [ENCODER.yaml ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/compare.sh --valid_set train_dev --test_set test "$@"
