#!/usr/bin/env bash
# The stages of every ASR recipe, with ESPnet's stage numbers and option names. A recipe's run.sh calls this file
# from its own directory, which holds local/data.sh (stage 1) and conf/; the work is done by Python modules.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
export PYTHONPATH="${root}${PYTHONPATH:+:${PYTHONPATH}}"
export LC_ALL=C.UTF-8
# Training on the CPU frees and takes large arrays all the time. By default each of them goes back to the system and
# comes back as fresh pages of 4 KiB, each of which must be mapped and cleared first. glibc is told to keep what it
# has (mallopt) and to ask for pages of 2 MiB.
export MALLOC_MMAP_THRESHOLD_=34359738368 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=268435456
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:${GLIBC_TUNABLES}}
# Work on the CPU runs in processes of one thread each: threads meet at every operation, and wait for whichever of
# them another process holds up.
export OMP_NUM_THREADS=1

log() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*"; }
die() {
    echo "error: $*" >&2
    exit 1
}
trap 'echo "interrupted; the same command goes on from here" >&2; exit 130' INT

# Every option and its default; the comment is its help. --help prints this list.
# BEGIN OPTIONS
stage=1                   # First stage to run.
stop_stage=15             # Last stage to run.
ngpu=0                    # Number of GPUs to train on, of each machine; decoding then uses one (0: CPU).
num_nodes=1               # Number of machines to train on; egs/TRAINING.md shows how to start them.
nj=$(env -u OMP_NUM_THREADS nproc) # Number of processes (with --cmd slurm: jobs) that prepare data.
train_nj=2                # Number of processes that train together on each machine's CPU (with --ngpu 0); also --nproc.
cmd=local                 # Where stages run: local (this machine) or slurm.
slurm_config=             # Settings of Slurm jobs: partition, time, memory, ... (YAML; default: conf/slurm.yaml).
python=python3            # Python interpreter with ESPnet installed.
dumpdir=dump              # Directory of formatted audio and features.
expdir=exp                # Directory of experiments.
local_data_opts=          # Options for local/data.sh (stage 1).
check_policy=             # What is done about faulty data, e.g. "silent=stop clipped=drop" (egs/README.md has all).
speed_perturb_factors=    # Speeds of the training audio, e.g. "0.9 1.0 1.1" (stage 2).
feats_type=raw            # raw (FLAC, features on the fly) or fbank (stored log-mel filterbanks).
fs=16k                    # Sampling rate.
min_wav_duration=0.1      # Shortest training utterance, in seconds.
max_wav_duration=20       # Longest training utterance, in seconds.
token_type=bpe            # Token type: bpe or char.
nbpe=30                   # Number of BPE units.
bpemode=unigram           # BPE kind: unigram or bpe.
lang=noinfo               # Language, a part of directory names.
train_set=                # Name of the training set, a directory in data/ (required).
valid_set=                # Name of the validation set (required).
test_sets=                # Names of the test sets (required).
asr_config=               # Training configuration (YAML).
asr_args=                 # Further arguments of asr_train, e.g. "--max_epoch 10"; they overrule the configuration.
asr_tag=                  # Name of the experiment, in place of one made from the options.
asr_exp=                  # Directory of the experiment; asr_tag is then ignored.
asr_stats_dir=            # Directory of the statistics.
num_splits_asr=1          # Parts of the training data that are read one after the other (its index then needs less memory).
pretrained_model=         # Model to start from: PATH[:ITS PART:OUR PART[:PARTS TO LEAVE OUT]], as ESPnet's init_param.
ignore_init_mismatch=false # Leave out what has another shape in the pretrained model.
feats_normalize=global_mvn # Normalization of the features.
asr_speech_fold_length=800 # Fold length of speech, in frames (batch_type: folded).
asr_text_fold_length=150  # Fold length of text, in tokens (batch_type: folded).
use_lm=false              # Whether to train a neural LM (stages 6 to 8), and decode with it in ESPnet's search.
lm_config=                # Training configuration of the neural LM (YAML; default: conf/train_lm_lstm.yaml).
lm_args=                  # Further arguments of lm_train; they overrule the configuration.
lm_tag=                   # Name of the neural LM, in place of one made from the options.
lm_exp=                   # Directory of the neural LM; lm_tag is then ignored.
lm_stats_dir=             # Directory of the neural LM's statistics.
lm_train_text=            # Transcripts that LMs learn from, lines of ID WORDS (default: those of the training set).
lm_further_text=          # Further text that LMs learn from, a sentence a line, plain or .gz.
lm_dev_text=              # Text that LMs are validated on, lines of ID WORDS (default: that of the validation set).
lm_test_text=             # Text whose perplexity stage 8 computes (default: that of the first test set).
lm_fold_length=150        # Fold length of text, in tokens (batch_type: folded).
use_ngram=false           # Whether to make an n-gram (stage 9), for "decoding: ctc_beam".
ngram_num=3               # Order of the n-gram.
ngram_unit=token          # What the n-gram is of: token, or word (with a lexicon of its words).
ngram_lm=                 # ARPA file of your own (or .gz), in place of an n-gram trained on the transcripts.
ngram_exp=                # Directory of the n-grams.
inference_lm=valid.loss.ave.pth # File of the neural LM to decode with, in its directory.
inference_config=         # Decoding settings (YAML): greedy (the default), prefix beam search or ESPnet's.
inference_args=           # Further arguments of asr_inference; they overrule the configuration.
inference_tag=            # Name of the decoding directory, in place of one made from the options.
inference_nj=2            # Number of decoding processes.
inference_asr_model=valid.loss.ave.pth # Model file to decode with, in the experiment directory.
hf_repo=                  # Name of the model on the Hugging Face hub, USER/NAME; without it, stage 15 does nothing.
# END OPTIONS

options=$(sed -n '/^# BEGIN OPTIONS/,/^# END OPTIONS/s/^\([a-z_]*\)=.*/\1/p' "${BASH_SOURCE[0]}")

usage() {
    echo "usage: ./run.sh [--OPTION VALUE ...]"
    echo "Stages: 1 data, 2 speed perturbation, 3 format or features, 4 filter by length, 5 token list,"
    echo "        10 statistics, 11 training, 12 decoding, 13 scoring, 14 packing, 15 upload to the Hugging Face hub"
    echo "        6-8 statistics, training and perplexity of a neural LM (--use_lm true), 9 n-gram (--use_ngram true)"
    echo "Options (with this recipe's defaults):"
    local name text
    for name in ${options}; do
        text=$(sed -n "/^# BEGIN OPTIONS/,/^# END OPTIONS/s/^${name}=[^#]*# //p" "${BASH_SOURCE[0]}")
        printf '  --%-24s %s%s\n' "${name}" "${text}" "${!name:+ (default: ${!name})}"
    done
}

unknown_option() {
    local near
    case "$1" in
        skip_*) die "unknown option --$1; --stage and --stop_stage choose what runs" ;;
        gpu_inference) die "unknown option --$1; with --ngpu above 0 decoding uses a GPU" ;;
    esac
    # shellcheck disable=SC2086
    near=$("${python}" -c 'import difflib, sys
print(" or ".join("--" + name for name in difflib.get_close_matches(sys.argv[1], sys.argv[2:], 3)))' "$1" ${options})
    die "unknown option --$1${near:+; did you mean ${near}?} (./run.sh --help lists all)"
}

arguments=("$@")
help=false
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) help=true && shift && continue ;;
        --*) name=${1#--} ;;
        *) die "unexpected argument: $1 (options are --NAME VALUE; quote a VALUE that has spaces)" ;;
    esac
    name=${name//-/_}
    [ "${name}" != nproc ] || name=train_nj # as torchrun calls it
    grep -qx -- "${name}" <<<"${options}" || unknown_option "${name}"
    [ $# -ge 2 ] || die "--${name}: a value is missing"
    printf -v "${name}" '%s' "$2"
    shift 2
done
if "${help}"; then
    usage
    exit 0
fi

need_number() { [[ "${!1}" =~ ^[0-9]+$ ]] || die "--$1 ${!1}: give a whole number"; }
need_positive() { need_number "$1" && [ "${!1}" -ge 1 ] || die "--$1 ${!1}: give at least 1"; }
need_decimal() { [[ "${!1}" =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)$ ]] || die "--$1 ${!1}: give a number of seconds"; }
need_one_of() {
    local name=$1
    shift
    [[ " $* " == *" ${!name} "* ]] || die "--${name} ${!name}: give one of: $*"
}
for name in stage ngpu; do need_number "${name}"; done
for name in stop_stage num_nodes nj train_nj num_splits_asr nbpe ngram_num inference_nj; do need_positive "${name}"; done
[ "${stage}" -le 15 ] || die "--stage ${stage}: the last stage is 15"
[ "${stage}" -le "${stop_stage}" ] || die "--stage ${stage} --stop_stage ${stop_stage}: no stage to run"
for name in min_wav_duration max_wav_duration; do need_decimal "${name}"; done
for name in train_set valid_set test_sets; do [ -n "${!name}" ] || die "--${name} is required"; done
need_one_of feats_type raw fbank
need_one_of cmd local slurm
[ "${WORLD_SIZE:-1}" -le 1 ] || [ "${stage},${stop_stage}" = 11,11 ] ||
    die "WORLD_SIZE is set, so this starts several times: give --stage 11 --stop_stage 11, and run the other stages once"
slurm_config=${slurm_config:-${root}/conf/slurm.yaml}
need_one_of token_type bpe char
need_one_of bpemode unigram bpe
need_one_of feats_normalize global_mvn utterance_mvn none
need_one_of ignore_init_mismatch true false
need_one_of use_lm true false
need_one_of use_ngram true false
need_one_of ngram_unit token word
[[ "${dumpdir}${expdir}" != *,* ]] || die "--dumpdir ${dumpdir} --expdir ${expdir}: ESPnet takes no commas in paths"
lm_config=${lm_config:-${root}/conf/train_lm_lstm.yaml}
for name in asr_config pretrained_model lm_config ngram_lm inference_config; do
    file=${!name}
    [ "${name}" != pretrained_model ] || file=${file%%:*}
    [ -z "${file}" ] || [ -f "${file}" ] || die "--${name} ${file}: no such file (relative paths start at ${PWD})"
done
command -v "${python}" >/dev/null || die "--python ${python}: no such program"
"${python}" -c 'import sys
from importlib.util import find_spec
sys.exit(any(find_spec(name) is None for name in ("torch", "torchaudio", "espnet2", "kaldiio", "jiwer")))' ||
    die "${python} has not all packages (torch, espnet, ...): activate the environment they are in, or give --python"
"${python}" -c 'import sys
from espnet_lmu.data.check import parse_policies
from espnet_lmu.data.files import command_line, parse_rate
from espnet_lmu.data.speed import parse_factors
def check():
    parse_rate(sys.argv[1])
    parse_policies(sys.argv[2])
    if sys.argv[3]:
        parse_factors(sys.argv[3])
command_line(check)' "${fs}" "${check_policy}" "${speed_perturb_factors}"

# Names as ESPnet makes them, so that results of both can be compared side by side.
tag=${feats_type}
[ "${lang}" = noinfo ] || tag+=_${lang}
tag+=_${token_type}
token_listdir=data/$([ "${lang}" = noinfo ] || echo "${lang}_")token_list/${token_type}
if [ "${token_type}" = bpe ]; then
    tag+="${nbpe}"
    token_listdir+=_${bpemode}${nbpe}
fi
token_list=${token_listdir}/tokens.txt
sp=${speed_perturb_factors:+_sp}
as_tag() { sed -e 's/--/_/g' -e 's/[ |=/]//g' <<<"$1"; }
if [ -z "${asr_tag}" ]; then
    asr_tag=$(basename "${asr_config:-train}" .yaml)_${tag}$(as_tag "${asr_args}")${sp}
fi
asr_exp=${asr_exp:-${expdir}/asr_${asr_tag}}
asr_exp=${asr_exp%/} # its last part names the packed model
asr_stats_dir=${asr_stats_dir:-${expdir}/asr_stats_${tag}${sp}}
# A language model is of the tokens, or of words that it spells in them.
lm_token_tag=${lang}_${token_type}
[ "${token_type}" = char ] || lm_token_tag+="${nbpe}"
lm_stats_dir=${lm_stats_dir:-${expdir}/lm_stats_${lm_token_tag}}
lm_exp=${lm_exp:-${expdir}/lm_${lm_tag:-$(basename "${lm_config}" .yaml)_${lm_token_tag}$(as_tag "${lm_args}")}}
ngram_exp=${ngram_exp:-${expdir}/ngram}
ngram_name=${ngram_num}gram
[ -z "${ngram_lm}" ] || ngram_name=$(basename "${ngram_lm}" .gz) ngram_name=${ngram_name%.arpa}
ngram_file() { echo "${ngram_exp}/$1_${lm_token_tag}/${ngram_name}"; }
if [ -z "${inference_tag}" ]; then
    inference_tag=$(basename "${inference_config:-inference}" .yaml)
    inference_tag+=$(as_tag "${inference_args}")
    ! "${use_lm}" || inference_tag+=_lm_$(basename "${lm_exp}")_$(sed -e 's|/|_|g' -e 's/\.[^.]*$//' <<<"${inference_lm}")
    inference_tag+=_asr_model_$(sed -e 's|/|_|g' -e 's/\.[^.]*$//' <<<"${inference_asr_model}")
fi
data_feats=${dumpdir}/${feats_type}
original_train_set=${train_set}
train_set+=${sp}
# The test sets without those that stages 3 and 4 treat as training data already.
pure_test_sets=()
for dset in ${test_sets}; do
    [ "${dset}" = "${train_set}" ] || [ "${dset}" = "${valid_set}" ] || pure_test_sets+=("${dset}")
done
if [ "${feats_type}" = raw ]; then
    speech_scp=wav.scp speech_type=sound fold_length=$((asr_speech_fold_length * 100))
else
    speech_scp=feats.scp speech_type=kaldi_ark fold_length=${asr_speech_fold_length}
fi

# Where and how stages that split their work run it.
parallel_args=(--cmd "${cmd}" --slurm_config "${slurm_config}")

# Stages 1 and 5: what is wrong with the data. Nothing is dropped from test sets unless check_policy says so.
check_data() {
    "${python}" -m espnet_lmu.data.check "${parallel_args[@]}" --nj "${nj}" --check_policy "${check_policy}" \
        --fs "${fs}" --feats_type "${feats_type}" --token_type "${token_type}" --token_listdir "${token_listdir}" \
        ${asr_config:+--asr_config "${asr_config}"} "$@"
}

runs() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# Two runs that make the same at once would clear away each other's files: the second waits, and then finds it made.
# Where there are no locks (some network file systems) they do not wait.
hold() {
    command -v flock >/dev/null || return 0
    mkdir -p "$(dirname "$1")"
    { exec {held}>>"$1"; } 2>/dev/null || return 0 # a folder that cannot be written
    local result=0
    flock --nonblock --conflict-exit-code 75 "${held}" || result=$?
    if [ "${result}" -eq 75 ]; then
        log "Waiting for another run that is at the same stages ($1)"
        flock "${held}"
    fi
}
beside() { echo "$(dirname "$1")/.$(basename "$1").lock"; } # the lock of a directory
release() {
    [ -z "${held-}" ] || exec {held}>&-
    held=
}

# What training lacks is said before the hours that its data takes.
if [ "${ngpu}" -gt 0 ] && [ "${cmd}" = local ] && runs 11; then
    "${python}" -c 'import sys, torch; sys.exit(torch.cuda.device_count() < int(sys.argv[1]))' "${ngpu}" ||
        die "--ngpu ${ngpu}: this machine has fewer GPUs that torch can use; give --ngpu 0 to train on the CPU, or" \
            "--stop_stage 10 to prepare the data alone"
fi

if [ "${stage}" -le 10 ] && [ "${stop_stage}" -ge 10 ]; then
    settings_args=()
    [ "${feats_type}" = raw ] || settings_args+=(--input_size 80)
    if runs 11 && runs 12; then
        settings_args+=(--inference_asr_model "${inference_asr_model}" --inference_args="${inference_args}")
        [ -z "${inference_config}" ] || settings_args+=(--inference_config "${inference_config}")
    fi
    # shellcheck disable=SC2086
    "${python}" -m espnet_lmu.training.settings ${settings_args[@]+"${settings_args[@]}"} \
        ${asr_config:+--config "${asr_config}"} ${asr_args}
fi

if [ "${stage}" -le 5 ]; then hold data/.lock; fi

if runs 1; then
    log "Stage 1: data/${original_train_set}, data/${valid_set}, data for ${test_sets}"
    [ -x local/data.sh ] || die "local/data.sh: not found; start the recipe's run.sh, not asr.sh"
    # shellcheck disable=SC2086
    python=${python} train_set=${original_train_set} valid_set=${valid_set} test_sets=${test_sets} \
        local/data.sh ${local_data_opts}
    check_data "data/${original_train_set}" "data/${valid_set}"
    [ ${#pure_test_sets[@]} -eq 0 ] ||
        check_data --test --training "data/${original_train_set}" "${pure_test_sets[@]/#/data/}"
fi

if runs 2 && [ -n "${speed_perturb_factors}" ]; then
    log "Stage 2: speed perturbation: data/${original_train_set} -> data/${train_set}"
    "${python}" -m espnet_lmu.data.speed --factors "${speed_perturb_factors}" \
        "data/${original_train_set}" "data/${train_set}"
fi

if runs 3; then
    log "Stage 3: ${feats_type} at ${fs}: data -> ${data_feats}"
    format() {
        "${python}" -m espnet_lmu.data.format "${parallel_args[@]}" --nj "${nj}" --feats_type "${feats_type}" \
            --fs "${fs}" "data/$1" "$2/$1"
    }
    for dset in "${train_set}" "${valid_set}"; do format "${dset}" "${data_feats}/org"; done
    for dset in ${pure_test_sets[@]+"${pure_test_sets[@]}"}; do format "${dset}" "${data_feats}"; done
fi

if runs 4; then
    log "Stage 4: filter by length: ${data_feats}/org -> ${data_feats}"
    for dset in "${train_set}" "${valid_set}"; do
        "${python}" -m espnet_lmu.data.filter --fs "${fs}" --min_wav_duration "${min_wav_duration}" \
            --max_wav_duration "${max_wav_duration}" "${data_feats}/org/${dset}" "${data_feats}/${dset}"
    done
    for dset in ${pure_test_sets[@]+"${pure_test_sets[@]}"}; do
        "${python}" -m espnet_lmu.data.filter --report --fs "${fs}" --min_wav_duration "${min_wav_duration}" \
            "${data_feats}/${dset}"
    done
fi

if runs 5; then
    log "Stage 5: token list: ${token_list}"
    "${python}" -m espnet_lmu.tokens --token_type "${token_type}" --nbpe "${nbpe}" --bpemode "${bpemode}" \
        "${data_feats}/${train_set}/text" "${token_listdir}"
    check_data --formatted "${data_feats}/${train_set}" "${data_feats}/${valid_set}"
    [ ${#pure_test_sets[@]} -eq 0 ] || check_data --formatted --test "${pure_test_sets[@]/#/${data_feats}/}"
fi

if [ "${stage}" -le 5 ]; then release; fi

# What asr_train needs to know of the data, in stages 10 and 11.
data_args=(--use_preprocessor true)
[ "${token_type}" = char ] || data_args+=(--bpemodel "${token_listdir}/bpe.model")
if [ "${feats_type}" = raw ]; then
    data_args+=(--frontend_conf "fs=${fs}")
else
    data_args+=(--input_size 80)
fi
data_in() {
    data_paths=(--"$1"_data_path_and_name_and_type "$2/${speech_scp},speech,${speech_type}")
    data_paths+=(--"$1"_data_path_and_name_and_type "$2/text,text,text")
}
data_in valid "${data_feats}/${valid_set}"
data_args+=("${data_paths[@]}")

need_file() { [ -f "$1" ] || die "$1: no such file; run stage $2 first"; }

# The results of an experiment say how it was started, and on what.
record_start() {
    "${python}" -m espnet_lmu.report.record --ngpu "${ngpu}" --cmd "${cmd}" "$1" "$0" ${arguments[@]+"${arguments[@]}"}
}

# The last exception, or complaint about an option, of this run; the log may have earlier runs too.
what_failed() {
    tail -n "+$((logged + 1))" "$1" | sed -n 's/^error: //p' | head -n 1 | grep . ||
        tail -n "+$((logged + 1))" "$1" | grep -E '^[A-Za-z0-9_.]*(Error|Exception)\b|: error: ' |
        grep -v 'with exit code' | tail -n 1 | grep . || tail -n 1 "$1"
}

# Run a training of ESPnet: run_training STAGE LOG ARGUMENT_OF_PYTHON ... The console shows each epoch's results and the
# time left; the log has everything, of resumed runs too.
run_training() {
    local stage_name=$1 train_log=$2
    shift 2
    local epoch_started='s/.*INFO: ([0-9]+\/[0-9]+epoch started\. Estimated .*)/\1/p;t'
    local epoch_results='s/.*INFO: ([0-9]+epoch) results: \[train\] (.*, )?loss=([^,]+),.* time=([^,]+),.*\[valid\]'
    epoch_results+=' (.*cer_ctc=([^,]+),)?.*\bloss=([^,]+),.*/\1: train loss \3 in \4, valid loss \7, CER \6/;T;s/, CER $//;p'
    touch "${train_log}"
    logged=$(wc -l <"${train_log}")
    "${python}" "$@" 2>&1 | tee -a "${train_log}" | sed -unE -e "${epoch_started}" -e "${epoch_results}" || {
        [ "${PIPESTATUS[1]}" -ne 1 ] || die "stage ${stage_name}: ${train_log} cannot be written (disk full?);" \
            "run this again once that is mended"
        die "stage ${stage_name}: training failed: $(what_failed "${train_log}") (log: ${train_log})"
    }
    # ESPnet ends such a training as if it were complete.
    if tail -n "+$((logged + 1))" "${train_log}" | grep 'gradients at all steps are invalid' >/dev/null; then
        die "stage ${stage_name}: training diverged: no step of its last epoch had finite gradients; delete" \
            "$(dirname "${train_log}") and train with a lower learning rate (log: ${train_log})"
    fi
}

lm_text=${data_feats}/lm_train.txt
write_lm_text() {
    # Copies at other speeds would say the same sentences again.
    # shellcheck disable=SC2086
    "${python}" -m espnet_lmu.lm.text --output "${lm_text}" ${lm_further_text:+--further_text ${lm_further_text}} \
        -- ${lm_train_text:-data/${original_train_set}/text}
}
lm_dev_text=${lm_dev_text:-${data_feats}/${valid_set}/text}
lm_test_text=${lm_test_text:-${data_feats}/${test_sets%% *}/text}
bpemodel_args=()
[ "${token_type}" = char ] || bpemodel_args=(--bpemodel "${token_listdir}/bpe.model")
lm_data_args=(--use_preprocessor true --token_type "${token_type}" --token_list "${token_list}")
lm_data_args+=(${bpemodel_args[@]+"${bpemodel_args[@]}"} --config "${lm_config}")
lm_data_args+=(--train_data_path_and_name_and_type "${lm_text},text,text")
lm_data_args+=(--valid_data_path_and_name_and_type "${lm_dev_text},text,text")

if runs 6 && "${use_lm}"; then
    log "Stage 6: statistics of the neural LM: ${lm_stats_dir}"
    need_file "${token_list}" 5
    need_file "${lm_dev_text}" 4
    hold "$(beside "${lm_stats_dir}")"
    write_lm_text
    stamp=$({
        printf '%s\n' "${lm_data_args[@]}" "${lm_args}"
        cat "${lm_text}" "${lm_dev_text}" "${token_list}" "${lm_config}"
    } | sha256sum)
    if [ -f "${lm_stats_dir}/.stamp" ] && [ "$(<"${lm_stats_dir}/.stamp")" = "${stamp}" ]; then
        log "${lm_stats_dir}: kept"
    else
        # It moves into place when complete.
        unfinished=${lm_stats_dir}.unfinished
        rm -rf "${unfinished}"
        mkdir -p "${unfinished}"
        logged=0
        # shellcheck disable=SC2086
        "${python}" -m espnet_lmu.run -m espnet2.bin.lm_train --collect_stats true --ngpu 0 "${lm_data_args[@]}" \
            --train_shape_file "${lm_text}" --valid_shape_file "${lm_dev_text}" \
            --output_dir "${unfinished}" ${lm_args} >"${unfinished}/stats.log" 2>&1 ||
            die "stage 6: statistics failed: $(what_failed "${unfinished}/stats.log") (log: ${unfinished}/stats.log)"
        # ESPnet reads the size of the vocabulary behind each length.
        for part in train valid; do
            sed "s/\$/,$(wc -l <"${token_list}")/" "${unfinished}/${part}/text_shape" \
                >"${unfinished}/${part}/text_shape.${token_type}"
        done
        echo "${stamp}" >"${unfinished}/.stamp"
        rm -rf "${lm_stats_dir}"
        mv "${unfinished}" "${lm_stats_dir}"
    fi
    release
fi

if runs 7 && "${use_lm}"; then
    log "Stage 7: training of the neural LM: ${lm_exp} (log: ${lm_exp}/train.log)"
    need_file "${lm_stats_dir}/.stamp" 6
    hold "$(beside "${lm_exp}")"
    mkdir -p "${lm_exp}"
    "${python}" -m espnet_lmu.training.resume "${lm_exp}"
    # shellcheck disable=SC2086
    run_training 7 "${lm_exp}/train.log" -m espnet_lmu.run -m espnet2.bin.lm_train \
        --ngpu "${ngpu}" --multiprocessing_distributed "$([ "${ngpu}" -gt 1 ] && echo true || echo false)" \
        "${lm_data_args[@]}" --resume true --output_dir "${lm_exp}" --fold_length "${lm_fold_length}" \
        --train_shape_file "${lm_stats_dir}/train/text_shape.${token_type}" \
        --valid_shape_file "${lm_stats_dir}/valid/text_shape.${token_type}" ${lm_args}
    release
fi

if runs 8 && "${use_lm}"; then
    log "Stage 8: perplexity of the neural LM on ${lm_test_text}: ${lm_exp}/perplexity_test"
    need_file "${lm_exp}/${inference_lm}" 7
    need_file "${lm_test_text}" 4
    mkdir -p "${lm_exp}/perplexity_test"
    logged=0
    "${python}" -m espnet_lmu.run -m espnet2.bin.lm_calc_perplexity --ngpu "$((ngpu > 0 ? 1 : 0))" \
        --data_path_and_name_and_type "${lm_test_text},text,text" --train_config "${lm_exp}/config.yaml" \
        --model_file "${lm_exp}/${inference_lm}" --output_dir "${lm_exp}/perplexity_test" \
        >"${lm_exp}/perplexity_test/perplexity.log" 2>&1 ||
        die "stage 8: failed: $(what_failed "${lm_exp}/perplexity_test/perplexity.log")" \
            "(log: ${lm_exp}/perplexity_test/perplexity.log)"
    log "perplexity of a ${token_type} token: $(<"${lm_exp}/perplexity_test/ppl")"
fi

if runs 9 && "${use_ngram}"; then
    log "Stage 9: n-gram: $(ngram_file "${ngram_unit}").bin"
    need_file "${token_list}" 5
    need_file "${lm_dev_text}" 4
    [ -n "${ngram_lm}" ] || write_lm_text
    "${python}" -m espnet_lmu.lm.ngram --unit "${ngram_unit}" --order "${ngram_num}" --text "${lm_text}" \
        ${ngram_lm:+--arpa "${ngram_lm}"} --dev_text "${lm_dev_text}" --token_list "${token_list}" \
        ${bpemodel_args[@]+"${bpemodel_args[@]}"} --tools "${root}/egs/TEMPLATE/tools/kenlm" "$(ngram_file "${ngram_unit}")"
fi

statistics_args=(--output_dir "${asr_stats_dir}" --token_type "${token_type}" --token_list "${token_list}")
statistics_args+=(--train_scp "${data_feats}/${train_set}/${speech_scp}")
statistics_args+=(--valid_scp "${data_feats}/${valid_set}/${speech_scp}")

if runs 10; then
    log "Stage 10: statistics: ${asr_stats_dir}"
    need_file "${data_feats}/${train_set}/${speech_scp}" 4
    need_file "${token_list}" 5
    data_in train "${data_feats}/${train_set}"
    hold "$(beside "${asr_stats_dir}")"
    # shellcheck disable=SC2086
    "${python}" -m espnet_lmu.training.statistics "${statistics_args[@]}" "${parallel_args[@]}" --nj "${nj}" \
        ${asr_config:+--asr_config "${asr_config}"} "${data_args[@]}" "${data_paths[@]}" ${asr_args}
    release
fi

if runs 11; then
    # Launches on other machines write their own logs.
    train_log=${asr_exp}/train.log first_launch=true
    if [ "${WORLD_SIZE:-1}" -gt 1 ] && [ "${RANK:-0}" -gt 0 ]; then
        train_log=${asr_exp}/train.${RANK}.log first_launch=false
    fi
    log "Stage 11: training: ${asr_exp} (log: ${train_log})"
    need_file "${asr_stats_dir}/.stamp" 10
    need_file "${token_list}" 5
    ! "${first_launch}" || "${python}" -m espnet_lmu.training.statistics --check "${statistics_args[@]}"
    mkdir -p "${asr_exp}"
    data_args+=(--token_type "${token_type}" --token_list "${token_list}" ${asr_config:+--config "${asr_config}"})
    if [ "${feats_normalize}" = global_mvn ]; then
        data_args+=(--normalize_conf "stats_file=${asr_stats_dir}/train/feats_stats.npz")
    fi
    if [ -n "${pretrained_model}" ]; then
        data_args+=(--init_param "${pretrained_model}" --ignore_init_mismatch "${ignore_init_mismatch}")
    fi
    train_shapes=("${asr_stats_dir}/train/speech_shape" "${asr_stats_dir}/train/text_shape.${token_type}")
    if [ "${num_splits_asr}" -gt 1 ]; then
        splits=${asr_stats_dir}/splits${num_splits_asr}
        if "${first_launch}" && [ ! -d "${splits}" ]; then
            rm -rf "${splits}.unfinished"
            mkdir -p "${splits}.unfinished"
            logged=0
            "${python}" -m espnet2.bin.split_scps --num_splits "${num_splits_asr}" --output_dir "${splits}.unfinished" \
                --scps "${data_feats}/${train_set}"/{"${speech_scp}",text} "${train_shapes[@]}" \
                >"${splits}.unfinished/split.log" 2>&1 ||
                die "stage 11: --num_splits_asr ${num_splits_asr}: splitting ${data_feats}/${train_set} failed:" \
                    "$(what_failed "${splits}.unfinished/split.log") (log: ${splits}.unfinished/split.log)"
            mv "${splits}.unfinished" "${splits}"
        fi
        data_in train "${splits}"
        data_args+=(--multiple_iterator true)
        train_shapes=("${splits}/speech_shape" "${splits}/text_shape.${token_type}")
    else
        data_in train "${data_feats}/${train_set}"
    fi
    launch=(-m espnet_lmu.training.launch "$((ngpu > 0 ? ngpu : train_nj))" --ngpu "${ngpu}" --num_nodes "${num_nodes}")
    [ "${cmd}" = local ] || launch+=(--slurm_config "${slurm_config}")
    data_args+=("${data_paths[@]}" --normalize "${feats_normalize}" --resume true --output_dir "${asr_exp}"
        --train_shape_file "${train_shapes[0]}" --train_shape_file "${train_shapes[1]}"
        --valid_shape_file "${asr_stats_dir}/valid/speech_shape"
        --valid_shape_file "${asr_stats_dir}/valid/text_shape.${token_type}"
        --fold_length "${fold_length}" --fold_length "${asr_text_fold_length}")
    if "${first_launch}"; then
        # shellcheck disable=SC2086
        "${python}" -m espnet_lmu.training.resume "${asr_exp}" "${data_args[@]}" ${asr_args}
        record_start "${asr_exp}/train_starts.json"
    fi
    # shellcheck disable=SC2086
    run_training 11 "${train_log}" "${launch[@]}" "${data_args[@]}" ${asr_args}
fi

decode_dir=${asr_exp}/${inference_tag}

if runs 12; then
    log "Stage 12: decoding: ${decode_dir}"
    need_file "${asr_exp}/config.yaml" 11
    record_start "${decode_dir}/decode_starts.json"
    lm_files=(--token_ngram "$(ngram_file token).bin" --word_ngram "$(ngram_file word).bin")
    ! "${use_lm}" || lm_files+=(--lm_train_config "${lm_exp}/config.yaml" --lm_file "${lm_exp}/${inference_lm}")
    # shellcheck disable=SC2086
    "${python}" -m espnet_lmu.decoding.decode ${inference_config:+--inference_config "${inference_config}"} \
        --inference_args="${inference_args}" --nj "${inference_nj}" --ngpu "${ngpu}" "${parallel_args[@]}" \
        "${lm_files[@]}" --valid_set "${valid_set}" \
        --asr_train_config "${asr_exp}/config.yaml" --asr_model_file "${asr_exp}/${inference_asr_model}" \
        --data_feats "${data_feats}" --decode_dir "${decode_dir}" ${test_sets}
fi

if runs 13; then
    log "Stage 13: scoring: ${decode_dir}"
    score_args=()
    [ "${token_type}" = char ] || score_args+=(--bpemodel "${token_listdir}/bpe.model")
    # shellcheck disable=SC2086
    "${python}" -m espnet_lmu.scoring.summary "${score_args[@]}" --data_feats "${data_feats}" --decode_dir "${decode_dir}" \
        ${test_sets}
fi

packed_model=${asr_exp}/${asr_exp##*/}_${inference_asr_model%.*}.zip

if runs 14; then
    log "Stage 14: packing: ${packed_model}"
    need_file "${asr_exp}/config.yaml" 11
    pack_args=()
    for results in "${asr_exp}/RESULTS.md" "${decode_dir}/RESULTS.md"; do
        [ -f "${results}" ] && pack_args=(--results "${results}") && break
    done
    "${python}" -m espnet_lmu.recognition.pack --asr_model_file "${inference_asr_model}" --fs "${fs}" \
        ${pack_args[@]+"${pack_args[@]}"} "${asr_exp}" "${packed_model}"
fi

if runs 15; then
    if [ -n "${hf_repo}" ]; then
        log "Stage 15: uploading: ${packed_model} -> ${hf_repo}"
        upload_args=()
        [ "${lang}" = noinfo ] || upload_args=(--language "${lang}")
        "${python}" -m espnet_lmu.recognition.upload ${upload_args[@]+"${upload_args[@]}"} "${packed_model}" "${hf_repo}"
    elif [ "${stage}" -eq 15 ]; then
        die "--hf_repo is required for stage 15: give USER/NAME"
    fi
fi
