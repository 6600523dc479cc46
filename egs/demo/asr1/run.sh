#!/usr/bin/env bash
# The demo: digit strings and commands spoken by eSpeak NG, recognised in voices that training never heard.
# From nothing to a word error rate in a few minutes on two cores. Options are those of asr.sh; --help lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# BPE merges go on until every word of the small vocabulary is one unit; the recordings' levels differ, so each
# utterance is normalised by itself.
exec ../../TEMPLATE/asr1/asr.sh \
    --train_set train \
    --valid_set valid \
    --test_sets test \
    --feats_type fbank \
    --feats_normalize utterance_mvn \
    --token_type bpe \
    --bpemode bpe \
    --nbpe 250 \
    --asr_config conf/train_asr.yaml \
    "$@"
