#!/usr/bin/env bash
# Train with plain Docker: no account, no configuration file, and a checkpoint folder that lets a stopped run go on.
#
#   examples/docker.sh IMAGE PAIRS OUT [any option of `train` …]
#   examples/docker.sh lorry pairs runs/docker --pretrained_model bundled --epochs 1
#
# leaves OUT/model, OUT/output (report, metrics) and OUT/checkpoints, owned by whoever calls this.
set -euo pipefail
if (($# < 3)); then
    sed -n 's/^# \{0,1\}//p' "$0" >&2
    exit 1
fi
image=$1 pairs=$(realpath "$2") out=$3
shift 3
mkdir -p "$out"/{model,output,checkpoints}
out=$(realpath "$out")

gpus=()
if command -v nvidia-smi >/dev/null; then gpus=(--gpus all); fi

docker run --rm "${gpus[@]}" \
    --user "$(id -u):$(id -g)" \
    --volume "$pairs:/opt/ml/input/data/train:ro" \
    --volume "$out/model:/opt/ml/model" \
    --volume "$out/output:/opt/ml/output" \
    --volume "$out/checkpoints:/opt/ml/checkpoints" \
    "$image" train "$@"
