# Sourced by bench-echo.sh and bench-node.sh: builds, starts a pinned server, runs the load generator, keeps its reports.
# shellcheck shell=bash disable=SC2034 # The scripts that source this read its variables.
source scripts/processes.sh

TARGET_DIR=${CARGO_TARGET_DIR:-target}
LOADTEST=$TARGET_DIR/release/rtc-loadtest
RESULTS=$SCRATCH/results.jsonl

# The server on one core and the generator on another; both scripts take these as options.
rounds=5
seconds=3
server_cpu=0
client_cpu=1
sessions=18000
# How long connections stay silent before their memory is read: the sweep has then taken every buffer from them.
IDLE_SECONDS=15

# common_option NAME VALUE  Takes an option that both scripts know.
common_option() {
    case $1 in
    --rounds) rounds=${2:?} ;;
    --seconds) seconds=${2:?} ;;
    --server-cpu) server_cpu=${2:?} ;;
    --client-cpu) client_cpu=${2:?} ;;
    --sessions) sessions=${2:?} ;;
    *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
}

build_ours() {
    cargo build --quiet --release --package rtc-server --package rtc-loadtest
    # Both ends of the held connections need descriptors.
    ulimit -Sn "$(ulimit -Hn)"
}

start_pinned() {
    start "$1" taskset --cpu-list "$server_cpu" "${@:2}" --listen 127.0.0.1:0
    URL=ws://$(ready_field listen)
}

start_ours() {
    start_pinned ours "$TARGET_DIR/release/rtc-server" --echo --shards 1 --admin-listen 127.0.0.1:0
}

# measure ROUND CONTENDER CASE ARGUMENT…  One run of the load generator against the server started last; its report goes
# to $RESULTS. A run that failed is no figure: the script ends.
measure() {
    local round=$1 contender=$2 name=$3 status=0
    shift 3
    echo "round $round: $contender, $name" >&2
    taskset --cpu-list "$client_cpu" "$LOADTEST" "$@" --cpus "$client_cpu" --server-pid "$READY_PID" --quiet \
        --json "$SCRATCH/report.json" 2>"$SCRATCH/loadtest.err" || status=$?
    if ((status != 0)); then
        echo "$contender, $name: rtc-loadtest ended with $status" >&2
        cat "$SCRATCH/loadtest.err" >&2
        grep -A4 -E '"(failures|void_reasons|errors)"' "$SCRATCH/report.json" >&2 || true
        return 1
    fi
    printf '{"round": %d, "contender": "%s", "case": "%s", "report": %s}\n' \
        "$round" "$contender" "$name" "$(tr -d '\n' <"$SCRATCH/report.json")" >>"$RESULTS"
}
