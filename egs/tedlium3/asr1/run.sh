#!/usr/bin/env bash
# TED-LIUM 3 (OpenSLR 51): 452 hours of English talks, as segments of long SPHERE recordings (the "legacy" division).
# The corpus: TEDLIUM=DIR ./run.sh, the folder TEDLIUM_release-3; without it, it is downloaded.
# ./run.sh --help lists the options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --train_set train \
    --valid_set dev \
    --test_sets "dev test" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type raw \
    --token_type bpe \
    --bpemode unigram \
    --nbpe 500 \
    --ngpu 1 \
    --asr_config ../../../conf/train_asr_lmu_base.yaml \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
