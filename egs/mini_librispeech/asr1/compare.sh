#!/usr/bin/env bash
# Encoders compared on Mini LibriSpeech: ./compare.sh [OPTION ...] [ENCODER.yaml ...]
# Mini LibriSpeech has no test set: test_clean is LibriSpeech's, downloaded too unless LIBRISPEECH=DIR has it.
# Other sets: --valid_set SET --test_set SET --recipe_args "--train_set SET"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/compare.sh --valid_set dev_clean_2 --test_set test_clean "$@"
