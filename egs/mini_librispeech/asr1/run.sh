#!/usr/bin/env bash
# Mini LibriSpeech (OpenSLR 31): 5 hours of read English. ./run.sh --help lists the options.
# The corpus: LIBRISPEECH=DIR ./run.sh, the folder that holds train-clean-5 and dev-clean-2; without it, it is downloaded.
# Other parts are sets too, with _ for -: --train_set train_clean_100 --valid_set dev_clean ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

exec ../../TEMPLATE/asr1/asr.sh \
    --lang en \
    --train_set train_clean_5 \
    --valid_set dev_clean_2 \
    --test_sets dev_clean_2 \
    --speed_perturb_factors "0.9 1.0 1.1" \
    --feats_type fbank \
    --feats_normalize utterance_mvn \
    --token_type bpe \
    --bpemode unigram \
    --nbpe 128 \
    --max_wav_duration 18 \
    --asr_config conf/train_asr.yaml \
    --inference_asr_model valid.cer_ctc.ave.pth \
    --inference_config ../../../conf/decode_asr_greedy.yaml \
    "$@"
