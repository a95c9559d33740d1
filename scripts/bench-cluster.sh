#!/usr/bin/env bash
# Several nodes over a real Kafka and a real Redis: what arrives, what a crossing costs, what survives a kill -9.
#
#   scripts/bench-cluster.sh [--rows LIST] [--seconds 60] [--rate 10000] [--fault-rate 5000] [--keep FILE]
#
# LIST names rows, with commas between: p2p,churn,latency,kill-node,kill-kafka,stop-kafka,kill-redis,stop-redis,claims,live,overhead
# (all of them by default). --seconds is the length of each run, and a short one will do to see that it works.
# --keep adds the runs to a file of earlier ones, and the table shows all that it has: rows can be run one by one.
#
# Everything shares one machine: nodes, Kafka, Redis and the load generator, which goes before the others (nice) so that
# what it measures is theirs. Kafka and Redis are started for this run alone, as some rows kill them.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/processes.sh

ROWS=p2p,churn,latency,kill-node,kill-kafka,stop-kafka,kill-redis,stop-redis,claims,live,overhead
PAYLOAD=200
CONNECTIONS=200
# Crossing against local delivery.
LATENCY_RATE=2000
LATENCY_ROUNDS=3
# Before each fault the load runs undisturbed.
FAULT_AT=10
STOPPED_SECONDS=10
RESTART_AFTER_SECONDS=5
# What the search for a rate takes for each step.
PROBE_SECONDS=10
# From opening to the moment at which nobody logs in any more.
SETTLE_SECONDS=5
CLAIMS=200000
# What a node does though nobody sends: with so many sessions, its metrics read so often.
IDLE_SESSIONS=10000
SCRAPE_SECONDS=5
# A node's default, and longer than a run.
PING=25s
NO_PING=600s
GENERATOR_NICE=-10
EXIT_VOID=3

rows=$ROWS
seconds=60
rate=10000
fault_rate=5000
keep=
while (($#)); do
    case $1 in
    --rows) rows=${2:?} ;;
    --seconds) seconds=${2:?} ;;
    --rate) rate=${2:?} ;;
    --fault-rate) fault_rate=${2:?} ;;
    --keep) keep=${2:?} ;;
    *) echo "unknown argument $1" >&2 && exit 2 ;;
    esac
    shift 2
done

TARGET_DIR=${CARGO_TARGET_DIR:-target}
RESULTS=$SCRATCH/results.jsonl
REPORT=$SCRATCH/report.json
export RTC_SERVICES_RUN=$SCRATCH/services

trap 'status=$?; scripts/services.sh down; end_all "$status"' EXIT

# --- The cluster ----------------------------------------------------------------------------------------------------

# By name.
declare -A NODE_PIDS=() NODE_URLS=()
# What a row asks of its nodes beside the usual.
NODE_OPTIONS=()

# start_node NAME ADDRESS  Waits until the node has joined, which takes Kafka and Redis.
start_node() {
    local admin deadline=$((SECONDS + READY_WAIT_SECONDS))
    start "$1" "$TARGET_DIR/release/rtc-server" --node-id "$1" --kafka "$RTC_KAFKA" --redis "$RTC_REDIS" --shards 1 \
        --listen "$2" --admin-listen 127.0.0.1:0 --log info "${NODE_OPTIONS[@]}"
    NODE_PIDS[$1]=$READY_PID
    NODE_URLS[$1]=ws://$(ready_field listen)
    admin=$(ready_field admin)
    until curl --silent --fail --output /dev/null "http://$admin/readyz"; do
        ((SECONDS <= deadline)) || { echo "$1: $(curl --silent "http://$admin/readyz")" >&2 && return 1; }
        sleep 0.05
    done
}

start_services() {
    local services
    unset RTC_KAFKA RTC_REDIS
    services=$(scripts/services.sh up)
    export "${services%%$'\n'*}" "${services##*$'\n'}"
}

# start_nodes NAME…  Each row has nodes, a ring, and a Kafka and a Redis of its own: nothing is left of the row before.
start_nodes() {
    local name
    start_services
    python3 scripts/bench/redis.py ring "${RTC_REDIS#redis://}" "$@"
    for name in "$@"; do
        start_node "$name" 127.0.0.1:0
    done
    URLS=$(IFS=, && echo "${NODE_URLS[*]}")
    KAFKA_PID=$(scripts/services.sh pid kafka)
    REDIS_PID=$(scripts/services.sh pid redis)
}

stop_nodes() {
    local pid name
    # At once: a drain would wait for nobody.
    for pid in "${NODE_PIDS[@]}"; do
        kill -CONT "$pid" 2>/dev/null || true
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        unset "STARTED_PIDS[$pid]"
    done
    for name in "${!NODE_PIDS[@]}"; do
        grep -E ' (WARN|ERROR) ' "$SCRATCH/$name.err" | cut -c1-200 | sed "s/^/    $name: /" | head -20 >&2 || true
    done
    NODE_PIDS=() NODE_URLS=()
    scripts/services.sh down
}

# free_address  An address of the loopback where nobody listens, below the ports of outgoing connections.
free_address() {
    local port=18000
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "127.0.0.1:$port"
}

# --- Measuring ------------------------------------------------------------------------------------------------------

# cpu_us PID…  Prints the user and system time of these processes together, in microseconds.
cpu_us() {
    local pid ticks=0 fields
    for pid; do
        # The second field, the name, may hold anything.
        read -ra fields <<<"$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null)"
        ticks=$((ticks + ${fields[11]:-0} + ${fields[12]:-0}))
    done
    echo $((ticks * 1000000 / $(getconf CLK_TCK)))
}

# measure ROW ARGUMENT…  One run of the load generator; its report goes to $REPORT, and with what the processes used to
# $RESULTS. Runs that failed or are void are kept as well: the table says so. Sets VERDICT to the exit status.
measure() {
    local row=$1 nodes kafka redis
    shift
    echo "$row: rtc-loadtest $*" >&2
    nodes=$(cpu_us "${NODE_PIDS[@]}") kafka=$(cpu_us "$KAFKA_PID") redis=$(cpu_us "$REDIS_PID")
    VERDICT=0
    rm -f "$REPORT"
    nice -n "$GENERATOR_NICE" "$TARGET_DIR/release/rtc-loadtest" "$@" --payload "$PAYLOAD" --quiet --json "$REPORT" \
        2>"$SCRATCH/loadtest.err" || VERDICT=$?
    cat "$SCRATCH/loadtest.err" >&2
    [[ -f $REPORT ]] || return 1
    nodes=$(($(cpu_us "${NODE_PIDS[@]}") - nodes)) kafka=$(($(cpu_us "$KAFKA_PID") - kafka))
    redis=$(($(cpu_us "$REDIS_PID") - redis))
    printf '{"row": "%s", "cpu_us": {"nodes": %d, "kafka": %d, "redis": %d}, "report": %s}\n' \
        "$row" "$nodes" "$kafka" "$redis" "$(tr -d '\n' <"$REPORT")" >>"$RESULTS"
    python3 scripts/bench/cluster.py line "$RESULTS" >&2
}

# note ROW JSON  Keeps something else that a row needs.
note() {
    echo "{\"row\": \"$1\", \"note\": $2}" >>"$RESULTS"
}

# find_rate ROW ARGUMENT…  Sets RATE to the highest rate whose short run is not void; each step is two thirds of the last.
find_rate() {
    RATE=$rate
    until measure "$1 probe" "${@:2}" --rate "$RATE" --duration "${PROBE_SECONDS}s"; ((VERDICT != EXIT_VOID)); do
        RATE=$((RATE * 2 / 3 / 100 * 100))
        ((RATE >= 100)) || { echo "void even at the lowest rate" >&2 && return 1; }
    done
}

# --- Rows -----------------------------------------------------------------------------------------------------------

row_p2p() {
    start_nodes a b
    find_rate p2p p2p --url "$URLS" --connections "$CONNECTIONS"
    measure p2p p2p --url "$URLS" --connections "$CONNECTIONS" --rate "$RATE" --duration "${seconds}s"
    stop_nodes
}

row_churn() {
    local arguments
    start_nodes a b
    arguments=(churn --url "$URLS" --connections "$CONNECTIONS" --hop-interval 5s --silent-share 1%)
    find_rate churn "${arguments[@]}"
    measure churn "${arguments[@]}" --rate "$RATE" --duration "${seconds}s" \
        --fault "at=${FAULT_AT}s stop=${NODE_PIDS[b]}" --fault "at=$((FAULT_AT + STOPPED_SECONDS))s cont=${NODE_PIDS[b]}"
    stop_nodes
}

row_latency() {
    local round where
    start_nodes a b
    for ((round = 1; round <= LATENCY_ROUNDS; round++)); do
        for where in $(shuf -e local cross); do
            measure "latency $where" p2p --url "$URLS" --pairs "$where" --connections "$CONNECTIONS" \
                --rate "$LATENCY_RATE" --duration "$((seconds / LATENCY_ROUNDS))s"
        done
    done
    stop_nodes
}

# under_faults ROW FAULT…  The load of the rows with faults.
under_faults() {
    local row=$1 faults=() fault
    shift
    for fault; do faults+=(--fault "$fault"); done
    measure "$row" p2p --url "$URLS" --connections "$CONNECTIONS" --sender-acks --receiver-acks --rate "$fault_rate" \
        --duration "${seconds}s" "${faults[@]}"
}

# The node comes back under its name, at another port, which the clients know from the start.
row_kill-node() {
    local address killed watcher
    address=$(free_address)
    start_nodes a b c
    URLS+=,ws://$address
    killed=${NODE_PIDS[c]}
    {
        while kill -0 "$killed" 2>/dev/null; do sleep 0.02; done
        sleep "$RESTART_AFTER_SECONDS"
        exec "$TARGET_DIR/release/rtc-server" --node-id c --kafka "$RTC_KAFKA" --redis "$RTC_REDIS" --shards 1 \
            --listen "$address" --admin-listen 127.0.0.1:0 >"$SCRATCH/c-again.out" 2>"$SCRATCH/c-again.err"
    } &
    watcher=$!
    STARTED_PIDS[$watcher]=c-again
    under_faults kill-node "at=${FAULT_AT}s kill=$killed"
    NODE_PIDS[c-again]=$watcher
    grep -q '^ready ' "$SCRATCH/c-again.out" || echo "the killed node did not come back" >&2
    stop_nodes
}

# kill_service NAME  Killed by the load generator, started again at once; notes after how long it served.
kill_service() {
    local watcher pid
    start_nodes a b
    pid=$(scripts/services.sh pid "$1")
    {
        # The working directory of a zombie cannot be read.
        while readlink "/proc/$pid/cwd" >/dev/null; do sleep 0.02; done
        local killed_at
        killed_at=$(date +%s%N)
        scripts/services.sh start "$1"
        note "kill-$1" "{\"ready_s\": $((($(date +%s%N) - killed_at) / 1000000))e-3}"
    } &
    watcher=$!
    under_faults "kill-$1" "at=${FAULT_AT}s kill=$pid"
    wait "$watcher"
    stop_nodes
}

stop_service() {
    local pid
    start_nodes a b
    pid=$(scripts/services.sh pid "$1")
    under_faults "stop-$1" "at=${FAULT_AT}s stop=$pid" "at=$((FAULT_AT + STOPPED_SECONDS))s cont=$pid"
    note "stop-$1" "{\"ready_s\": $STOPPED_SECONDS}"
    stop_nodes
}

row_kill-kafka() { kill_service kafka; }
row_stop-kafka() { stop_service kafka; }
row_kill-redis() { kill_service redis; }
row_stop-redis() { stop_service redis; }

row_claims() {
    start_services
    echo "claims: store-bench" >&2
    "$TARGET_DIR/release/examples/store-bench" "$RTC_REDIS" "$CLAIMS" | tee "$SCRATCH/claims" >&2
    note claims "{\"per_s\": $(sed -n 's|^claims: \([0-9]*\)/s.*|\1|p' "$SCRATCH/claims")}"
    scripts/services.sh down
}

# live_calls NAME RATE  Counts the commands of a Redis while messages flow and nobody logs in.
live_calls() {
    local generator before after redis
    redis=${RTC_REDIS#redis://}
    measure "live $1" p2p --url "$URLS" --connections "$CONNECTIONS" --rate "$2" --warm-up "$((SETTLE_SECONDS * 2))s" \
        --duration "$((seconds + SETTLE_SECONDS))s" &
    generator=$!
    sleep "$SETTLE_SECONDS"
    sleep "$SETTLE_SECONDS"
    before=$(python3 scripts/bench/redis.py calls "$redis")
    sleep "$seconds"
    after=$(python3 scripts/bench/redis.py calls "$redis")
    wait "$generator"
    note "live $1" "{\"seconds\": $seconds, \"before\": $before, \"after\": $after}"
}

# What the nodes say to Redis at the pace of time (heartbeats, leases, renewed claims) is counted with next to no messages.
row_live() {
    start_nodes a b
    live_calls quiet 1
    live_calls busy "$LATENCY_RATE"
    stop_nodes
}

# sessions ADMIN  Prints how many clients are logged in, by the metrics of a node.
sessions() {
    curl --silent --fail "http://$1/metrics" | awk '$1 == "rtc_socket_sessions" { print $2 }'
}

# Heartbeats, leases, claims that are renewed and the metrics that are read are all that the node does then; and pings.
row_overhead() {
    overhead "$NO_PING"
    overhead "$PING"
}

# overhead PING_INTERVAL  Measures a node all of whose clients are silent.
overhead() {
    local generator admin before after scrapes=0
    NODE_OPTIONS=(--ping-interval "$1")
    start_nodes a
    admin=$(ready_field admin)
    echo "overhead: $IDLE_SESSIONS silent sessions, pinged after $1" >&2
    "$TARGET_DIR/release/rtc-loadtest" idle --url "$URLS" --connections "$IDLE_SESSIONS" --quiet --json "$REPORT" \
        --duration "$((seconds + 6 * SETTLE_SECONDS))s" >&2 &
    generator=$!
    until (($(sessions "$admin") >= IDLE_SESSIONS)); do
        kill -0 "$generator" 2>/dev/null || { echo "not all sessions were opened" >&2 && return 1; }
        sleep 0.2
    done
    sleep "$SETTLE_SECONDS"
    before=$(cpu_us "${NODE_PIDS[@]}")
    while ((scrapes * SCRAPE_SECONDS < seconds)); do
        sessions "$admin" >"$SCRATCH/sessions"
        sleep "$SCRAPE_SECONDS"
        scrapes=$((scrapes + 1))
    done
    after=$(cpu_us "${NODE_PIDS[@]}")
    note overhead "{\"ping_interval\": \"$1\", \"sessions\": $(<"$SCRATCH/sessions"), \"seconds\": $((scrapes * SCRAPE_SECONDS)), \"cpu_us\": $((after - before))}"
    wait "$generator"
    stop_nodes
    NODE_OPTIONS=()
}

# --------------------------------------------------------------------------------------------------------------------

cargo build --quiet --release --package rtc-server --package rtc-loadtest --bins --example store-bench
ulimit -Sn "$(ulimit -Hn)"
for row in ${rows//,/ }; do
    [[ ,$ROWS, == *,$row,* ]] || { echo "no row is called $row: $ROWS" >&2 && exit 2; }
done
for row in ${rows//,/ }; do
    "row_$row"
    [[ -z $keep ]] || { cat "$RESULTS" >>"$keep" && : >"$RESULTS"; }
done
python3 scripts/bench/cluster.py table "${keep:-$RESULTS}"
machine
