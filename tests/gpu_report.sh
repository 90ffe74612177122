#!/usr/bin/env bash
# Builds, checks and times one preset on a machine with a GPU, and prints what docs/benchmarks.md records.
#   tests/gpu_report.sh FOLDER PRESET [LAYERS]
set -euo pipefail
folder=$1 preset=$2 layers=${3:-}
cli="python3 -m gptoss_export"
checkpoint=$folder/$preset$layers-checkpoint artifact=$folder/$preset$layers
mkdir -p "$folder"
export TORCHINDUCTOR_CACHE_DIR=$folder/inductor

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
$cli make-checkpoint "$checkpoint" --preset "$preset" ${layers:+--layers "$layers"} --device cuda
$cli build "$checkpoint" -o "$artifact" --target aoti --device cuda --max-context 8192 --prefill-chunk 512
du -sh --apparent-size "$artifact"
$cli run "$artifact" --tokens 1,2,3,4 --max-new-tokens 16 --no-stop --json
$cli bench "$artifact" --context 1024,8192
$cli verify "$artifact" --checkpoint "$checkpoint"
