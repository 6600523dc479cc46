#!/usr/bin/env bash
# AISHELL-1 (OpenSLR 33): 178 hours of read Mandarin, whose figure is the character error rate (stage 13's CER table).
# The corpus: AISHELL=DIR ./run.sh, the folder that holds data_aishell, with wav/train, wav/dev and wav/test unpacked;
# without it, it is downloaded. ./run.sh --help lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang zh \
    --train_set train \
    --valid_set dev \
    --test_sets "dev test" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type raw \
    --token_type char \
    --ngpu 1 \
    --asr_config ../../../conf/train_asr_lmu_base.yaml \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
