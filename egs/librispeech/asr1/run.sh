#!/usr/bin/env bash
# LibriSpeech (OpenSLR 12): 960 hours of read English. ./run.sh --help lists the options.
# The corpus: LIBRISPEECH=DIR ./run.sh, the folder that holds train-clean-100, ...; without it, it is downloaded.
# Parts are sets too, with _ for -, such as the 100 hours: ./run.sh --train_set train_clean_100
# Other sizes: --asr_config ../../../conf/train_asr_lmu_demo.yaml, or ..._large.yaml; the kind that is best on Mini
# LibriSpeech: ..._bidirectional.yaml; one that streams: ..._streaming.yaml. All untrained.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --train_set train_960 \
    --valid_set dev \
    --test_sets "dev_clean dev_other test_clean test_other" \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type raw \
    --token_type bpe \
    --bpemode unigram \
    --nbpe 500 \
    --max_wav_duration 30 \
    --ngpu 1 \
    --asr_config ../../../conf/train_asr_lmu_base.yaml \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
