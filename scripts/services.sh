#!/usr/bin/env bash
# Real Redis and Apache Kafka for development and tests, without Docker: one of each, on free ports of the loopback.
#
#   scripts/services.sh up                         starts what is not running; prints RTC_KAFKA=… and RTC_REDIS=…
#   scripts/services.sh down                       ends both and removes their data
#   scripts/services.sh status                     what serves; exit 0 when both do
#   scripts/services.sh check                      one record through Kafka, one key through Redis
#   scripts/services.sh prometheus                 gets Prometheus, starts none; prints RTC_PROMETHEUS=…
#   scripts/services.sh pid redis|kafka            prints the process id
#   scripts/services.sh kill redis|kafka           ends it at once, as a crash would
#   scripts/services.sh start redis|kafka          starts it again: same port, same data
#   scripts/services.sh restart redis|kafka        ends it in good order, starts it again
#
# For the shell: export $(scripts/services.sh up)
#
# RTC_KAFKA (HOST:PORT) and RTC_REDIS (URL) name servers to use instead, KAFKA_HOME a Kafka to run instead of fetching one.
# RTC_SERVICES_RUN names another directory for a second pair beside the first, such as one that a test may kill;
# RTC_SERVICES_KAFKA has settings for its Kafka (KEY=VALUE …), which win.
#
# Redis and Prometheus are the distribution's packages, Kafka needs Java 17 and, to be fetched once, Maven. Where one cannot be had,
# `up` says `SKIPPED: NAME: REASON`, goes on with the other, and exits 3.
set -euo pipefail
cd "$(dirname "$0")/.."

# Kafka takes some four seconds on an idle machine and replays its log after a crash.
READY_WAIT_SECONDS=120
# Longer than a Kafka in good order needs; then it is ended the hard way.
STOP_WAIT_SECONDS=30
ANSWER_WAIT_SECONDS=5
KAFKA_HEAP=512m
JAVA_VERSION_MIN=17
# Below the ports that the kernel gives to outgoing connections: none of those may sit on the port of a server that is down.
PORT_MIN=20000
PORT_MAX=32000
# Kafka wants a UUID in base64; this one reads rtc-services-001.
CLUSTER_ID=cnRjLXNlcnZpY2VzLTAwMQ
EXIT_UNAVAILABLE=3

CACHE=$(realpath -m "${CARGO_TARGET_DIR:-target}/services")
RUN=$(realpath -m "${RTC_SERVICES_RUN:-$CACHE/run}")
SETTINGS=$PWD/scripts/services

# What the caller found wrong with the machine, for SKIPPED.
reason=

say() { echo "$*" >&2; }

# --- Redis and Prometheus: where they come from ---------------------------------------------------------------------

find_redis() { find_program redis redis-server && REDIS_SERVER=$PROGRAM; }

# find_program NAME PACKAGE  Sets PROGRAM to /usr/bin/PACKAGE: the system's, else installed by apt where we may, else
# unpacked under the cache as NAME.
find_program() {
    if PROGRAM=$(command -v "$2"); then return; fi
    PROGRAM=$CACHE/$1/usr/bin/$2
    if [[ -x $PROGRAM ]]; then return; fi
    command -v apt-get >/dev/null || { reason="no $2 on the PATH, and no apt-get to get it" && return 1; }
    if ((EUID == 0)); then
        say "installing $2"
        { apt_get "$2" install --yes || { apt-get update && apt_get "$2" install --yes; }; } >"$CACHE/apt.log" 2>&1 &&
            PROGRAM=$(command -v "$2") && return
        PROGRAM=$CACHE/$1/usr/bin/$2
    fi
    say "unpacking $2 in $CACHE/$1"
    unpack "$1" "$2" >"$CACHE/apt.log" 2>&1 || { reason="apt-get cannot get $2, see $CACHE/apt.log" && return 1; }
}

# apt_get PACKAGE VERB…
apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get "${@:2}" --no-install-recommends "$1"
}

# unpack NAME PACKAGE  Needs no rights: the simulated installation names what this system lacks.
unpack() {
    local packages scratch=$CACHE/$1.new package
    packages=$(apt_get "$2" install --simulate | awk '$1 == "Inst" { print $2 }')
    rm -rf "$scratch" "${CACHE:?}/$1" && mkdir -p "$scratch/packages"
    # One package a word.
    # shellcheck disable=SC2086
    (cd "$scratch/packages" && apt-get download $packages) || return 1
    for package in "$scratch"/packages/*.deb; do
        dpkg -x "$package" "$scratch" || return 1
    done
    # Only a whole one gets the name.
    [[ -x $scratch/usr/bin/$2 ]] && mv "$scratch" "$CACHE/$1"
}

# --- Kafka: where it comes from -------------------------------------------------------------------------------------

# find_kafka  Sets JAVA and KAFKA_LIBS: those of KAFKA_HOME, else fetched by Maven into the cache.
find_kafka() {
    local version pins
    JAVA=${JAVA_HOME:+$JAVA_HOME/bin/}java
    version=$("$JAVA" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || true
    ((${version:-0} >= JAVA_VERSION_MIN)) ||
        { reason="no Java $JAVA_VERSION_MIN or later (found: ${version:-none})" && return 1; }
    KAFKA_LIBS=${KAFKA_HOME:+$KAFKA_HOME/libs}
    if [[ -n $KAFKA_LIBS ]]; then
        compgen -G "$KAFKA_LIBS/kafka_*.jar" >/dev/null || { say "KAFKA_HOME=$KAFKA_HOME has no libs/kafka_*.jar" && exit 1; }
        return
    fi
    KAFKA_LIBS=$CACHE/kafka
    # Fetched anew when the pins change.
    pins=$(sha256sum "$SETTINGS/pom.xml" | cut -d' ' -f1)
    [[ $(cat "$KAFKA_LIBS/pins" 2>/dev/null) == "$pins" ]] && return
    command -v mvn >/dev/null || { reason="no mvn to fetch Kafka with (or set KAFKA_HOME)" && return 1; }
    say "fetching Kafka into $KAFKA_LIBS (54 MB, once)"
    rm -rf "$KAFKA_LIBS"
    mvn --batch-mode --file "$SETTINGS/pom.xml" dependency:copy-dependencies -DoutputDirectory="$KAFKA_LIBS" \
        >"$CACHE/mvn.log" 2>&1 || { reason="Maven cannot fetch Kafka, see $CACHE/mvn.log" && return 1; }
    echo "$pins" >"$KAFKA_LIBS/pins"
}

# kafka_tool CLASS ARGUMENT…  A short-lived program: it only compiles what it must, and says what is wrong.
kafka_tool() {
    "$JAVA" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$KAFKA_LIBS/*" "$@"
}

# --- Readiness: real requests, without a client library --------------------------------------------------------------

# redis_says ADDRESS COMMAND…  Sends one inline command; prints the first line of the answer, or the value if it is one.
# For `$( )`: the connection ends with the subshell.
redis_says() {
    local line
    exec 3<>"/dev/tcp/${1%:*}/${1##*:}" || return 1
    printf '%s\r\n' "${*:2}" >&3
    read -r -t "$ANSWER_WAIT_SECONDS" line <&3 || return 1
    [[ $line != \$[0-9]* ]] || read -r -t "$ANSWER_WAIT_SECONDS" line <&3 || return 1
    echo "${line%$'\r'}"
}

redis_serves() {
    [[ $(redis_says "$1" PING 2>/dev/null) == +PONG ]]
}

kafka_serves() {
    # Length, correlation id, number of brokers: a broker answers once it serves, and must name one at least.
    [[ $(metadata "$1" 2>/dev/null) =~ ^[0-9a-f]{8}00000007([0-9a-f]{8})$ && ${BASH_REMATCH[1]} != 00000000 ]]
}

# metadata ADDRESS  Asks for no topic's metadata; prints the answer's first twelve bytes in hexadecimal.
metadata() {
    exec 3<>"/dev/tcp/${1%:*}/${1##*:}" || return 1
    # Length, key 3, version 1, correlation id 7, no client id, an empty list of topics.
    printf '\0\0\0\x0e\0\x03\0\x01\0\0\0\x07\xff\xff\0\0\0\0' >&3
    timeout "$ANSWER_WAIT_SECONDS" head -c 12 <&3 | od -An -v -tx1 | tr -d ' \n'
}

# --- Processes ------------------------------------------------------------------------------------------------------

# pid_of NAME  Prints the id of a running server. The id in the file may be another's by now: the working directory tells.
pid_of() {
    local pid
    pid=$(cat "$RUN/$1/pid" 2>/dev/null) && [[ $(readlink "/proc/$pid/cwd") == "$RUN/$1/data" ]] && echo "$pid"
}

address_of() { echo "127.0.0.1:$(cat "$RUN/$1/port")"; }

# is_free PORT  Whether nobody listens there.
is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# choose_ports  Ports for this directory's servers: where its name falls, so that checkouts start apart and one keeps its
# addresses, then upwards past what is taken.
choose_ports() {
    local name port
    port=$((PORT_MIN + 16#$(sha256sum <<<"$RUN" | head -c 7) % (PORT_MAX - PORT_MIN)))
    for name in redis kafka controller; do
        mkdir -p "$RUN/$name"
        until is_free "$port"; do port=$((port + 1)); done
        echo "$port" >"$RUN/$name/port"
        port=$((port + 1))
    done
}

# launch NAME COMMAND…  Runs COMMAND in the server's directory, apart from this terminal and its signals and files.
launch() {
    local name=$1
    shift
    (cd "$RUN/$name/data" && exec setsid "$@" </dev/null >>"$RUN/$name/log" 2>&1 9>&-) &
    echo $! >"$RUN/$name/pid"
}

launch_redis() {
    local libraries
    # Those that were unpacked with it; the system's own need no help.
    libraries=$(find "$CACHE/redis" -name '*.so*' -printf '%h\n' 2>/dev/null | sort -u | paste -sd:) || true
    launch redis env ${libraries:+LD_LIBRARY_PATH="$libraries"} "$REDIS_SERVER" "$SETTINGS/redis.conf" \
        --bind 127.0.0.1 --port "$(cat "$RUN/redis/port")" --dir "$RUN/redis/data" --daemonize no
}

launch_kafka() {
    local properties=$RUN/kafka/server.properties controller
    controller=$(address_of controller)
    {
        cat "$SETTINGS/kafka.properties"
        echo "listeners=PLAINTEXT://$(address_of kafka),CONTROLLER://$controller"
        echo "advertised.listeners=PLAINTEXT://$(address_of kafka)"
        echo "controller.quorum.voters=1@$controller"
        echo "log.dirs=$RUN/kafka/data"
        # One setting a word.
        # shellcheck disable=SC2086
        printf '%s\n' ${RTC_SERVICES_KAFKA:-}
    } >"$properties"
    if [[ ! -f $RUN/kafka/data/meta.properties ]]; then
        kafka_tool kafka.tools.StorageTool format --cluster-id "$CLUSTER_ID" --config "$properties" >>"$RUN/kafka/log" 2>&1 ||
            { say "kafka: its directory cannot be formatted, see $RUN/kafka/log" && return 1; }
    fi
    launch kafka "$JAVA" "-Xmx$KAFKA_HEAP" -XX:+UseG1GC -Dorg.slf4j.simpleLogger.showDateTime=true \
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS" -cp "$KAFKA_LIBS/*" kafka.Kafka "$properties"
}

# start NAME  Starts a server with the data it has and waits until it serves.
start() {
    local name=$1 pid deadline=$((SECONDS + READY_WAIT_SECONDS))
    pid_of "$name" >/dev/null && return
    # New data, new log.
    [[ -d $RUN/$name/data ]] || { mkdir -p "$RUN/$name/data" && : >"$RUN/$name/log"; }
    "launch_$name" || return 1
    pid=$(cat "$RUN/$name/pid")
    until "${name}_serves" "$(address_of "$name")"; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS > deadline)); then
            say "$name did not become ready; the end of $RUN/$name/log:"
            tail -20 "$RUN/$name/log" >&2
            return 1
        fi
        sleep 0.05
    done
    # Another's server on our port would answer as well.
    pid_of "$name" >/dev/null || { say "$name ended at once, see $RUN/$name/log" && return 1; }
}

# end NAME SIGNAL  Ends a server, if it runs, and waits until it is gone; insists when a polite signal does not do.
end() {
    local pid deadline=$((SECONDS + STOP_WAIT_SECONDS))
    pid=$(pid_of "$1") || return 0
    kill "-$2" "$pid" 2>/dev/null || true
    # A zombie, where nobody collects it, has no working directory any more.
    while pid_of "$1" >/dev/null; do
        ((SECONDS > deadline)) && kill -KILL "$pid" 2>/dev/null
        sleep 0.02
    done
    rm -f "$RUN/$1/pid"
}

# --- Servers that the caller brings ---------------------------------------------------------------------------------

# given NAME  Prints the address that the environment names for a server, unless it is our own from an earlier `up`.
given() {
    local value own
    case $1 in
    redis) value=${RTC_REDIS:-} ;;
    kafka) value=${RTC_KAFKA:-} ;;
    esac
    own=$(address_of "$1" 2>/dev/null) || own=
    [[ -n $value && $value != "$own" && $value != "redis://$own" ]] && echo "$value"
}

# given_serves NAME VALUE  Several brokers: the first. A URL that is more than host and port (a password, TLS, Sentinel) is
# taken as it is: it needs a real client.
given_serves() {
    case $1 in
    kafka) kafka_serves "${2%%,*}" ;;
    redis)
        [[ $2 =~ ^redis://([^@:/,]+)(:[0-9]+)?(/[0-9]*)?$ ]] || return 0
        redis_serves "${BASH_REMATCH[1]}${BASH_REMATCH[2]:-:6379}"
        ;;
    esac
}

variable_of() {
    case $1 in
    redis) echo "RTC_REDIS=${2:-redis://$(address_of redis)}" ;;
    kafka) echo "RTC_KAFKA=${2:-$(address_of kafka)}" ;;
    esac
}

# --- Verbs ----------------------------------------------------------------------------------------------------------

lock() {
    mkdir -p "$CACHE" "$RUN"
    exec 9>"$CACHE/lock"
    flock 9
}

up_one() {
    local name=$1 value
    if value=$(given "$name"); then
        given_serves "$name" "$value" || { say "nothing serves at $(variable_of "$name" "$value")" && exit 1; }
        variable_of "$name" "$value"
        return
    fi
    if ! pid_of "$name" >/dev/null; then
        "find_$name" || { say "SKIPPED: $name: $reason" && return $EXIT_UNAVAILABLE; }
    fi
    start "$name" || exit 1
    variable_of "$name"
}

up() {
    local name status=0
    lock
    # While one of the two runs, the addresses stand.
    pid_of redis >/dev/null || pid_of kafka >/dev/null || choose_ports
    for name in redis kafka; do
        up_one "$name" || status=$?
    done
    return $status
}

down() {
    local name
    lock
    for name in redis kafka; do
        end "$name" TERM
        # The log stays to be read; the port stays so that the address is the same next time.
        rm -rf "$RUN/$name/data"
    done
}

status() {
    local name value pid status=0
    for name in redis kafka; do
        if value=$(given "$name"); then
            given_serves "$name" "$value" && echo "$name: serves, given as $(variable_of "$name" "$value")" && continue
            echo "$name: nothing serves at $(variable_of "$name" "$value")"
        elif ! pid=$(pid_of "$name"); then
            echo "$name: not running"
        elif "${name}_serves" "$(address_of "$name")"; then
            echo "$name: serves, pid $pid, $(variable_of "$name")"
            continue
        else
            echo "$name: runs as pid $pid but does not answer, see $RUN/$name/log"
        fi
        status=1
    done
    return $status
}

check() {
    local topic=rtc-services-check-$$ brokers address value said
    find_kafka || { say "kafka: $reason" && return 1; }
    value=$(given redis) || value=redis://$(address_of redis)
    address=${value#redis://} && address=${address%%/*}
    said="$(redis_says "$address" SET "$topic" kept EX 60) $(redis_says "$address" GET "$topic")"
    [[ $said == "+OK kept" ]] || { say "redis at $address answered SET and GET with: $said" && return 1; }
    echo "redis: a key was set and read"

    brokers=$(given kafka) || brokers=$(address_of kafka)
    kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --create --topic "$topic" \
        --partitions 1 --replication-factor 1 >/dev/null || return 1
    echo "carried" | kafka_tool org.apache.kafka.tools.ConsoleProducer --bootstrap-server "$brokers" --topic "$topic" || return 1
    said=$(kafka_tool org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$brokers" --topic "$topic" \
        --from-beginning --max-messages 1 --timeout-ms 30000 2>/dev/null) || true
    kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --delete --topic "$topic" || return 1
    [[ $said == carried ]] || { say "kafka at $brokers gave back: $said" && return 1; }
    echo "kafka: a record was produced and consumed"
}

# The program alone: who needs one starts it.
provide_prometheus() {
    local program=${RTC_PROMETHEUS:-}
    if [[ -z $program ]]; then
        lock
        find_program prometheus prometheus || { say "SKIPPED: prometheus: $reason" && return $EXIT_UNAVAILABLE; }
        program=$PROGRAM
    fi
    echo "RTC_PROMETHEUS=$program"
}

# ours NAME  Ends the script unless NAME is a server that we run.
ours() {
    local value
    [[ ${1:-} == redis || ${1:-} == kafka ]] || { say "which one: redis or kafka?" && exit 2; }
    if value=$(given "$1"); then say "$1 is not ours: $(variable_of "$1" "$value")" && exit 1; fi
    [[ -f $RUN/$1/port ]] || { say "$1 was never started: scripts/services.sh up" && exit 1; }
}

start_again() {
    "find_$1" || { say "$1: $reason" && exit 1; }
    start "$1"
}

verb=${1:-}
case $verb in
up | down | status | check) "$verb" ;;
prometheus) provide_prometheus ;;
pid) ours "${2:-}" && pid_of "$2" ;;
kill) ours "${2:-}" && lock && end "$2" KILL ;;
start) ours "${2:-}" && lock && start_again "$2" ;;
restart) ours "${2:-}" && lock && end "$2" TERM && start_again "$2" ;;
*) sed -n 's/^#   scripts/scripts/p' "$0" >&2 && exit 2 ;;
esac
