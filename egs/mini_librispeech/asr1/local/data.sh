#!/usr/bin/env bash
# Stage 1: data/SET of the sets that asr.sh names in the environment. Options: --corpus DIR (see --help).
set -euo pipefail
# shellcheck disable=SC2086,SC2154
exec "${python:-python3}" -m espnet_lmu.data.corpora "$@" librispeech ${train_set-} ${valid_set-} ${test_sets-}
