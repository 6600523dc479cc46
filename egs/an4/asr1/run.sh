#!/usr/bin/env bash
# AN4: spelled words, dates and commands. ./run.sh --help lists the options.
# The archive: AN4=PATH ./run.sh, or --local_data_opts "--an4 PATH"; without either it is downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --train_set train_nodev \
    --valid_set train_dev \
    --test_sets "train_dev test" \
    --speed_perturb_factors "0.8 0.85 0.9 0.95 1.0 1.05 1.1 1.15 1.2" \
    --feats_type fbank \
    --feats_normalize utterance_mvn \
    --token_type bpe \
    --bpemode bpe \
    --nbpe 250 \
    --asr_config conf/train_asr.yaml \
    --inference_asr_model valid.cer_ctc.ave.pth \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
