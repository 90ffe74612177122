#!/usr/bin/env bash
# Builds, checks and times one preset on a machine with a GPU, and prints what docs/benchmarks.md records.
#   tests/gpu_report.sh FOLDER PRESET [LAYERS]
# TARGET=tensorrt: build for that target. The default is aoti.
# COMPARE_WITH=ARTIFACT: verify compares with that artifact too.
# LONG=1: a context of 131,072. The default is 8,192. Nothing is compared with transformers then, which would need too much memory.
set -euo pipefail
folder=$1 preset=$2 layers=${3:-}
cli="python3 -m gptoss_export"
checkpoint=$folder/$preset$layers-checkpoint artifact=$folder/$preset$layers${LONG:+-long}${TARGET:+-$TARGET}
mkdir -p "$folder"
export TORCHINDUCTOR_CACHE_DIR=$folder/inductor

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
[ -d "$checkpoint" ] || $cli make-checkpoint "$checkpoint" --preset "$preset" ${layers:+--layers "$layers"} --device cuda
$cli build "$checkpoint" -o "$artifact" --target "${TARGET:-aoti}" --device cuda --prefill-chunk 2048 \
  --max-context "$([ -n "${LONG:-}" ] && echo 131072 || echo 8192)"
du -sh --apparent-size "$artifact"
$cli run "$artifact" --tokens 1,2,3,4 --max-new-tokens 16 --no-stop --json
if [ -n "${LONG:-}" ]; then
  $cli bench "$artifact" --context 32768,131072
else
  $cli bench "$artifact" --context 1024,8192 --profile
  $cli verify "$artifact" --checkpoint "$checkpoint" ${COMPARE_WITH:+--compare-with "$COMPARE_WITH"}
fi
