#!/usr/bin/env bash
# Echo beside other servers: rate, server CPU per message, memory per idle connection, as Markdown.
#
#   scripts/bench-echo.sh [--rounds 5] [--seconds 3] [--peer NAME=COMMAND]… [--server-cpu 0] [--client-cpu 1]
#                         [--sessions 18000] [--only echo|idle]
#
#   --peer   one more echo server to measure: COMMAND is run with `--listen 127.0.0.1:0` behind it, echoes on any path
#            and prints `ready listen=ADDRESS` once it serves
#
# Each server has one core, the load generator another. Figures drift between runs on shared machines, so the servers
# take turns in rounds, in shuffled order, and a ratio is taken within each round.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/bench/measure.sh

PEERS_MANIFEST=benches/peers/Cargo.toml
PEERS_TARGET=$TARGET_DIR/peers

declare -A peers=(
    [fastwebsockets]=$PEERS_TARGET/release/peer-fastwebsockets
    [tokio-tungstenite]=$PEERS_TARGET/release/peer-tokio-tungstenite
)
only=
while (($#)); do
    case $1 in
    --peer) peers[${2%%=*}]=${2#*=} ;;
    --only) only=${2:?} ;;
    *) common_option "$1" "${2:-}" ;;
    esac
    shift 2
done

start_contender() {
    if [[ $1 == ours ]]; then
        start_ours
    else
        # A command of several words is meant to be split.
        # shellcheck disable=SC2086
        start_pinned "$1" ${peers[$1]}
    fi
}

echo_round() {
    local contender
    for contender in $(shuf -e ours "${!peers[@]}"); do
        start_contender "$contender"
        measure "$1" "$contender" "depth 1, 500 connections" \
            echo --url "$URL" --depth 1 --connections 500 --payload 16 --duration "${seconds}s" --warm-up 500ms
        measure "$1" "$contender" "depth 16, 100 connections" \
            echo --url "$URL" --depth 16 --connections 100 --payload 16 --duration "${seconds}s" --warm-up 500ms
        stop "$READY_PID"
    done
}

build_ours
cargo build --quiet --release --manifest-path "$PEERS_MANIFEST" --target-dir "$PEERS_TARGET"

if [[ $only != idle ]]; then
    for ((round = 1; round <= rounds; round++)); do
        echo_round "$round"
    done
fi
if [[ $only != echo ]]; then
    for contender in ours "${!peers[@]}"; do
        start_contender "$contender"
        # The path tells the generator that these are bare connections, not sessions.
        measure 1 "$contender" "idle" idle --url "$URL/ws/echo" --connections "$sessions" \
            --duration "${IDLE_SECONDS}s"
        stop "$READY_PID"
    done
fi

python3 scripts/bench/echo.py "$RESULTS"
machine
