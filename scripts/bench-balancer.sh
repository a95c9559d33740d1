#!/usr/bin/env bash
# What the balancer decides, whether its weights are sound, and what a decision of a thousand nodes costs.
#
#   scripts/bench-balancer.sh [--inputs N]      random inputs for the weights, default a million
#
# The figures of docs/balancing.md. The simulated ones are the same on every machine.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/processes.sh

inputs=1000000
while (($#)); do
    case $1 in
    --inputs) inputs=${2:?--inputs needs a value} && shift ;;
    *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done

TARGET_DIR=${CARGO_TARGET_DIR:-target}
PROPERTY=weights_are_sound_whatever_comes_in

# shown NAME COMMAND…  Runs COMMAND and keeps what it prints in $SCRATCH/NAME.log, which is shown only if it fails.
shown() {
    local log=$SCRATCH/$1.log
    shift
    "$@" >"$log" 2>&1 || { tail -20 "$log" >&2 && exit 1; }
}

cargo build --quiet --release --package rtc-balancer
cargo test --quiet --release --package rtc-balancer --no-run

echo "a thousand nodes" >&2
shown thousand cargo test --quiet --release --package rtc-balancer --test thousand -- --nocapture
python3 scripts/bench/balancer.py "$TARGET_DIR/release/rtc-balancer" "$SCRATCH/thousand.log"

echo "the mixed fleet under harder models" >&2
echo
python3 scripts/bench/balancer_models.py "$TARGET_DIR/release/rtc-balancer"

echo "$inputs random inputs" >&2
begun=$SECONDS
RTC_BALANCER_INPUTS=$inputs shown weights cargo test --release --package rtc-balancer --lib "$PROPERTY"
# A name that no longer matches runs nothing, and passes.
grep -q "^test .*$PROPERTY \.\.\. ok" "$SCRATCH/weights.log" || { echo "no test is called $PROPERTY" >&2 && exit 1; }
echo
echo "Weights add up to 100 per node and none is below 10: $inputs random inputs, no exception ($((SECONDS - begun)) s)."
machine
