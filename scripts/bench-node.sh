#!/usr/bin/env bash
# The node by itself, on one core: what a message costs along the whole path, system calls, accepts, memory per session.
#
#   scripts/bench-node.sh [--rounds 5] [--seconds 3] [--server-cpu 0] [--client-cpu 1] [--sessions 18000]
#
# The load generator has another core. p2p and echo take turns in each round; their ratio is taken within it.
# System calls are counted by perf where it may, else by strace, which slows the server: then only the count holds.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/bench/measure.sh

while (($#)); do
    common_option "$1" "${2:-}"
    shift 2
done

SYSCALLS_EVENT=raw_syscalls:sys_enter

share_round() {
    local depth scenario
    for depth in 1 16; do
        for scenario in $(shuf -e echo p2p); do
            start_ours
            local arguments=("$scenario" --url "$URL" --connections 100 --depth "$depth" --payload 200)
            [[ $scenario == p2p ]] && arguments+=(--receiver-acks)
            measure "$1" ours "$scenario at depth $depth" "${arguments[@]}" --duration "${seconds}s" --warm-up 500ms
            stop "$READY_PID"
        done
    done
}

# count_syscalls DEPTH  Counts the server's system calls over a whole run, opening included, against all of its messages:
# the fixed part is some ten calls a connection, lost among the messages of seconds.
count_syscalls() {
    local name="syscalls at depth $1" counter count_pid
    start_ours
    if perf stat -e "$SYSCALLS_EVENT" true 2>/dev/null; then
        counter=perf
        perf stat -x, -e "$SYSCALLS_EVENT" -p "$READY_PID" -o "$SCRATCH/syscalls" &
    else
        counter=strace
        strace -c -f -p "$READY_PID" -o "$SCRATCH/syscalls" &
    fi
    count_pid=$!
    measure 1 ours "$name" \
        echo --url "$URL" --depth "$1" --connections 100 --payload 16 --duration "${seconds}s" --warm-up 0s
    kill -INT "$count_pid"
    wait "$count_pid" || true
    stop "$READY_PID"
    if [[ $counter == perf ]]; then
        awk -F, -v event="$SYSCALLS_EVENT" '$3 == event { print $1 }' "$SCRATCH/syscalls"
    else
        awk '$NF == "total" { print $4 }' "$SCRATCH/syscalls"
    fi >"$SCRATCH/count"
    echo "{\"case\": \"$name\", \"counter\": \"$counter\", \"calls\": $(<"$SCRATCH/count")}" >>"$SCRATCH/syscalls.jsonl"
}

build_ours

for ((round = 1; round <= rounds; round++)); do
    share_round "$round"
    start_ours
    measure "$round" ours storm storm --url "$URL" --duration "${seconds}s"
    stop "$READY_PID"
done

count_syscalls 1
count_syscalls 16

start_ours
measure 1 ours idle idle --url "$URL" --connections "$sessions" --duration "${IDLE_SECONDS}s"
stop "$READY_PID"

python3 scripts/bench/node.py "$RESULTS" "$SCRATCH/syscalls.jsonl"
machine
