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
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type fbank \
    --token_type char \
    --asr_config conf/train_asr.yaml \
    --inference_asr_model valid.cer_ctc.ave.pth \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
