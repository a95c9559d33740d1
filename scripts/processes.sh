# Sourced by the other scripts: starts programs, waits for their ready line, ends them by process id.
#
# Whatever was started here is ended when the script exits, however it exits. Nothing is ever ended by name.
# shellcheck shell=bash

# Generous, for busy machines: who waits goes on as soon as it can.
READY_WAIT_SECONDS=120
STOP_WAIT_SECONDS=60

SCRATCH=$(mktemp -d)
# By process id; what was stopped is taken out, as its id may be another's by then.
declare -A STARTED_PIDS=()

trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND…  Runs COMMAND in the background until its ready line. Sets READY_PID and READY_LINE.
# Standard output and error are kept in $SCRATCH/NAME.out and NAME.err.
start() {
    local name=$1
    shift
    # The new process opens its files in its own time: an old ready line must not be there to be found.
    rm -f "$SCRATCH/$name.out" "$SCRATCH/$name.err"
    "$@" >"$SCRATCH/$name.out" 2>"$SCRATCH/$name.err" &
    READY_PID=$!
    STARTED_PIDS[$READY_PID]=$name
    local deadline=$((SECONDS + READY_WAIT_SECONDS))
    until READY_LINE=$(grep -s -m1 '^ready ' "$SCRATCH/$name.out"); do
        if ! kill -0 "$READY_PID" 2>/dev/null || ((SECONDS > deadline)); then
            echo "$name did not become ready: $*" >&2
            cat "$SCRATCH/$name.out" "$SCRATCH/$name.err" >&2 || true
            return 1
        fi
        sleep 0.02
    done
}

# ready_field NAME  Prints one field of the last ready line, such as `listen` or `admin`.
ready_field() {
    local field
    for field in $READY_LINE; do
        [[ $field == "$1="* ]] && echo "${field#*=}" && return
    done
    echo "the ready line has no $1: $READY_LINE" >&2
    return 1
}

# stop PID  Asks the process to end, waits, and insists when it does not.
stop() {
    kill -TERM "$1" 2>/dev/null || true
    local deadline=$((SECONDS + STOP_WAIT_SECONDS))
    while kill -0 "$1" 2>/dev/null; do
        ((SECONDS > deadline)) && kill -KILL "$1" 2>/dev/null
        sleep 0.02
    done
    wait "$1" 2>/dev/null || true
    unset "STARTED_PIDS[$1]"
}

# end_all [STATUS]  For scripts with a trap of their own, which has a status to hand on.
end_all() {
    local status=${1:-$?} pid
    for pid in "${!STARTED_PIDS[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    rm -rf "$SCRATCH"
    exit "$status"
}

# machine  Prints the line that says where and when figures were taken.
machine() {
    local model memory
    model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
    memory=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
    echo
    echo "Machine: $model, $(nproc) CPUs, $memory GiB, Linux $(uname -r), $(rustc --version | cut -d' ' -f1-2)," \
        "$(date -u +%Y-%m-%d), commit $(git describe --always --dirty)."
}
