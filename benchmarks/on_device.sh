#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One command per call of a lent GPU machine: bash benchmarks/on_device.sh STAGE [OPTIONS]
# README.md says what travels and which stages make a lease. Results go to $OUT (default out/gpu).
# `once` is what one lease can hold of the 7B model. Every stage ends within ten minutes. Options go
# to the benchmark: `reference --sizes 512`, `chunks --small`. `train`, of the recipe $RECIPE, is interrupted before
# ten minutes and goes on when it is called again while the machine is warm. Its data are $STORE
# (default scratch/store.tar.xz), which is unpacked where the recipe expects them. `tokenizer`
# trains config/train/mini_gpu_vqgan.yaml on the frames of scratch/frames.mp4. `store` only unpacks,
# for a store that is too large to travel with all that `train` needs.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-out/gpu}" PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
stage="${1:-}" recipe="${RECIPE:-config/train/mini_gpu.yaml}"
options=("${@:2}")
status=0

# limited SECONDS COMMAND...: a failure, or no end in time, is told and does not end the stage
limited() {
    timeout --signal=INT --kill-after=20 "$1" "${@:2}" && return
    local code=$?
    echo "on_device: ${*:2}: ended with $code after at most $1 s (124: cut off)"
    status=1
}
# bench NAME SECONDS OPTIONS...: the 7B model, into NAME.json, which is written after each job
bench() { limited "$2" python3 benchmarks/bench_gpu.py --json "$OUT/$1.json" "${@:3}" "${options[@]}"; }
# training SECONDS OPTIONS...: a step of training
training() {
    limited "$1" python3 benchmarks/bench_training.py --made-up --json "$OUT/${stage}_training.json" \
        --config "$recipe" "${@:2}"
}
# unpack: $STORE to where the recipe expects it; Python unpacks xz, which the machine may lack
unpack() {
    local store
    store=$(sed -n 's/^  store: *//p' "$1")
    [ ! -d "$store" ] || return 0
    rm -rf "$store.draft"
    python3 -m tarfile -e "${STORE:-scratch/store.tar.xz}" "$store.draft" || return 1
    local header  # it may lie in the folders that it was packed with
    header=$(find "$store.draft" -name store.json | head -n 1)
    [ -n "$header" ] || { echo "on_device: no store.json in ${STORE:-scratch/store.tar.xz}"; return 1; }
    mv "$(dirname "$header")" "$store" && rm -rf "$store.draft"
}

{
    nvidia-smi || true
    case "$stage" in
        once) bench once 560 --slow-seconds 20 --chunks 200 --parts chunk:256:10 profile:256:10 \
                  policy:256:10 reference:256:10 frame:256 chunk:256:5 reference:256:5 \
                  chunk:512:10 encode:256 exactness:256:10 policy:512:10 reference:512:10 \
                  fp8:256:10 ;;
        first) bench first 425 --slow-seconds 30 --horizons 10 5 \
                   --parts chunk:256 reference:256 chunk:512 fp8:256:10
               training 105 ;;
        second) bench second 530 --slow-seconds 30 --horizons 10 5 \
                    --parts frame:256 policy encode profile exactness ;;
        tests) limited 300 python3 -m pytest -q -p no:cacheprovider -n 5 test/gpu
               bench tests 240 --parts chunk exactness profile --sizes 256 --horizons 10 --chunks 20 ;;
        chunks) bench chunks 590 --parts chunk ;;
        reference) bench reference 590 --slow-seconds 30 --parts reference ;;
        frames) bench frames 590 --slow-seconds 30 --parts frame ;;
        rest) bench rest 590 --parts encode policy exactness drafts fp8 profile ;;
        profile) training 590 "${options[@]}" ;;
        tokenizer) recipe=config/train/mini_gpu_vqgan.yaml
               result=$(sed -n 's/^output: *//p' "$recipe") frames=$(sed -n 's/^demonstrations: *//p' "$recipe")
               [ -d "$frames" ] || python3 benchmarks/travelling_frames.py unpack scratch/frames.mp4 "$frames"
               python3 -m worldvla_ros.training.vqgan --config "$recipe" || status=1
               tar -C "$(dirname "$result")" -cf "$OUT/tokenizer.tar" \
                   "$(basename "$result")" "$(basename "$result").run/"{metrics.csv,curves.png} || status=1 ;;
        store) unpack "$recipe" || status=1 ;;
        train) run=$(sed -n 's/^  output: *//p' "$recipe")
               unpack "$recipe" || exit 1
               train=(python3 -m worldvla_ros.training.train --config "$recipe")
               timeout --signal=INT --kill-after=30 "${SECONDS_OF_TRAINING:-510}" "${train[@]}"
               status=$?
               rm -f "$OUT"/trained.tar.*
               if [ "$status" -ne 0 ]; then  # the result so far; good enough after an interruption
                   "${train[@]}" --export && case "$status" in 124 | 130 | 137) status=0 ;; esac
               fi
               made=()
               for name in metrics.csv curves.png final; do
                   [ ! -e "$run/$name" ] || made+=("$name")
               done
               if [ "${#made[@]}" -gt 0 ]; then  # few files of less than 16 MB may come back
                   tar -C "$run" -cf - "${made[@]}" | split -b 15000000 - "$OUT/trained.tar." || status=1
               fi ;;
        *) echo "expected a stage: once, first, second, tests, chunks, reference, frames, rest, profile," \
                'tokenizer, store or train'
           status=2 ;;
    esac
    exit "$status"
} 2>&1 | tee "$OUT/${stage:-usage}.log"
exit "${PIPESTATUS[0]}"
