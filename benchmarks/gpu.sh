#!/usr/bin/env bash
# Everything that a GPU is wanted for, in at most ten minutes: parity, attention, a step of each stage, every file under
# experiments/, generation, the loss beside float32, a run with validation, kill and resume. Each part has a time limit of its own; one that fails leaves the others alone.
#
#   bash benchmarks/gpu.sh                          # figures as JSON and a table as text under benchmarks/results/
#   PYTHON=python3 RESULTS=/tmp/gpu bash benchmarks/gpu.sh
#   bash benchmarks/gpu.sh --device cpu --tiny      # does the script run? the figures mean nothing
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
results=${RESULTS:-benchmarks/results}
mkdir -p "$results"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

# part and seconds: 600 together
limits="parity:45 attention:60 training:110 experiments:110 generation:75 loss:60 fit_real:70 resume:70"
code=0
for entry in ${PARTS:-$limits}; do
    part=${entry%%:*} seconds=${entry##*:}
    echo "== $part (at most $seconds s)"
    timeout --kill-after=5 "$seconds" "$python" benchmarks/gpu.py "$part" --seconds "$((seconds - 30))" \
        --json "$results/gpu_$part.json" "$@" >"$results/gpu_$part.log" 2>&1
    ended=$?
    case $ended in
        0) ;;
        3) echo "not run: no CUDA device here" ;;
        124 | 137) echo "stopped after $seconds s; what it found until then is kept" ;;
        *) echo "failed with exit code $ended:"; tail -n 30 "$results/gpu_$part.log"; code=1 ;;
    esac
done
"$python" benchmarks/gpu.py table --json "$results" | tee "$results/gpu.txt"
exit $code
