#!/usr/bin/env bash
# Runs the criterion benches in rounds and prints the README's rows: medians, and ratios of what ran in the same round.
#
#   scripts/bench-micro.sh [--rounds N]      default 3, about two minutes each
#
# Time is the thread's CPU time, so that other load on the machine disturbs little.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/processes.sh

rounds=3
while (($#)); do
    case $1 in
    --rounds) rounds=${2:?--rounds needs a value} && shift ;;
    *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done

TARGET_DIR=${CARGO_TARGET_DIR:-target}

cargo build --quiet --release --package rtc-benches --example ring-memory
cargo bench --quiet --package rtc-benches --no-run
ring_memory=$("$TARGET_DIR/release/examples/ring-memory")

for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    rm -rf "$TARGET_DIR/criterion"
    cargo bench --quiet --package rtc-benches --benches >"$SCRATCH/bench.log" 2>&1 ||
        { tail -20 "$SCRATCH/bench.log" >&2 && exit 1; }
    cp -r "$TARGET_DIR/criterion" "$SCRATCH/round-$round"
done

python3 scripts/bench/micro.py "$SCRATCH" "$rounds" "$ring_memory"
machine
