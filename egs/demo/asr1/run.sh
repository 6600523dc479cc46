#!/usr/bin/env bash
# The demo: digit strings and commands spoken by eSpeak NG, recognised in voices that training never heard.
# From nothing to a word error rate in a few minutes on two cores. Options are those of asr.sh; --help lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --train_set train \
    --valid_set valid \
    --test_sets test \
    --feats_type fbank \
    --token_type char \
    --asr_config conf/train_asr.yaml \
    "$@"
