#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One command per call of a lent GPU machine: bash benchmarks/on_device.sh STAGE
# Results go to $OUT (default out/gpu). Each stage stays under ten minutes; `train`, of the recipe
# $RECIPE, is interrupted before and goes on when it is called again while the machine is warm. Its
# data are $STORE (default scratch/store.tar.xz), which is unpacked where the recipe expects them.
# `tokenizer` trains config/train/mini_gpu_vqgan.yaml on the frames of scratch/frames.mp4.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-out/gpu}" PYTHONUNBUFFERED=1 PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
bench() { python3 benchmarks/bench_gpu.py --json "$OUT/$1.json" "${@:2}"; }
status=0
{
    nvidia-smi || true
    case "${1:-}" in
        tests) python3 -m pytest -q -p no:cacheprovider -n 5 test/gpu || status=1
               bench try --parts chunk exactness profile --sizes 256 --horizons 10 --chunks 20 || status=1 ;;
        chunks) bench chunks --parts chunk || status=1 ;;
        reference) bench reference --parts exactness reference --sizes 256 512 || status=1
                   bench frames --parts frame || status=1 ;;
        rest) bench rest --parts encode policy fp8 profile --horizons 10 || status=1 ;;
        tokenizer) recipe=config/train/mini_gpu_vqgan.yaml
               result=$(sed -n 's/^output: *//p' "$recipe") frames=$(sed -n 's/^demonstrations: *//p' "$recipe")
               [ -d "$frames" ] || python3 benchmarks/travelling_frames.py unpack scratch/frames.mp4 "$frames"
               python3 -m worldvla_ros.training.vqgan --config "$recipe" || status=1
               tar -C "$(dirname "$result")" -cf "$OUT/tokenizer.tar" \
                   "$(basename "$result")" "$(basename "$result").run/"{metrics.csv,curves.png} || status=1 ;;
        profile) python3 benchmarks/bench_training.py --made-up --json "$OUT/training.json" \
                     --config "${RECIPE:-config/train/mini_gpu.yaml}" || status=1 ;;
        train) recipe="${RECIPE:-config/train/mini_gpu.yaml}"
               run=$(sed -n 's/^  output: *//p' "$recipe") store=$(sed -n 's/^  store: *//p' "$recipe")
               if [ ! -d "$store" ]; then  # Python unpacks xz, which the machine may lack
                   rm -rf "$store.draft"
                   python3 -m tarfile -e "${STORE:-scratch/store.tar.xz}" "$store.draft" &&
                       mv "$store.draft" "$store" || exit 1
               fi
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
        *) echo 'expected a stage: tests, chunks, reference, rest, tokenizer, profile or train'; status=2 ;;
    esac
    exit "$status"
} 2>&1 | tee "$OUT/${1:-usage}.log"
exit "${PIPESTATUS[0]}"
