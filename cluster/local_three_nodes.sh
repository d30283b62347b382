#!/usr/bin/env bash
# A Ray cluster of three nodes on this machine, with a token, to try what a real one does.
#
#   cluster/local_three_nodes.sh up [NODES]     then:  eval "$(cluster/local_three_nodes.sh env)"
#   cluster/local_three_nodes.sh down
#
# Everything it makes is in a folder `up` of its own in VILLA_NODES_DIR (default: a folder below TMPDIR), its ports are free
# ones or those given, and `down` ends and removes only what `up` made. Addresses are of the loopback, but Ray's own ports
# listen on all interfaces: the token is what keeps neighbours out (SECURITY.md).
set -euo pipefail

DIR=${VILLA_NODES_DIR:-${TMPDIR:-/tmp}/villa-nodes-$(id -u)}
case $DIR in /*) ;; *) DIR=$PWD/$DIR ;; esac
PLACE=$DIR/up
MARK=$PLACE/made-by-local-three-nodes # says whether DIR was made as well
CPUS=${VILLA_NODE_CPUS:-2}
PYTHON=${PYTHON:-$(command -v python || command -v python3)}
START_SECONDS=${VILLA_START_SECONDS:-180}

free_port() {
    "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Whether the process of a pid file is ours: only while its command line names our folder.
ours() {
    [ -e "$1" ] && tr '\0' ' ' <"/proc/$(cat "$1")/cmdline" 2>/dev/null | grep -qF -- "--temp-dir=$PLACE/"
}

environment() {
    if ! ours "$PLACE/head.pid"; then
        echo "error: no nodes are up in $DIR; start them with: $0 up (or name the folder of those that are in VILLA_NODES_DIR)" >&2
        exit 1
    fi
    echo "export RAY_AUTH_MODE=token"
    echo "export RAY_AUTH_TOKEN_PATH=$PLACE/token"
    echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$(cat "$PLACE/dashboard.port")"
}

start_node() { # NAME, then arguments of `ray start`
    local name=$1
    shift
    mkdir "$PLACE/$name"
    : >"$PLACE/$name.log"
    "$PYTHON" -m ray.scripts.scripts start "$@" --block --disable-usage-stats --log-color=false \
        --node-ip-address=127.0.0.1 --num-cpus="$CPUS" --object-store-memory=$((256 << 20)) \
        --temp-dir="$PLACE/$name" --dashboard-agent-listen-port="$(free_port)" \
        </dev/null >"$PLACE/$name.log" 2>&1 &
    echo $! >"$PLACE/$name.pid"
    local ends=$((SECONDS + START_SECONDS))
    until grep -q "Ray runtime started" "$PLACE/$name.log"; do
        if ! kill -0 "$(cat "$PLACE/$name.pid")" 2>/dev/null || ((SECONDS > ends)); then
            tail -n 20 "$PLACE/$name.log" >&2
            echo "error: node $name did not start; its log is above" >&2
            down
            exit 1
        fi
        sleep 0.2
    done
}

up() {
    local nodes=${1:-3}
    if [ -e "$PLACE" ]; then
        echo "error: $PLACE is there already; where it is of nodes that are up, end them with: $0 down" >&2
        exit 1
    fi
    local made=found
    [ -d "$DIR" ] || made=made
    mkdir -p "$DIR"
    if ! [ -O "$DIR" ]; then
        echo "error: $DIR belongs to another user, who could exchange what is in it; name a folder of yours in VILLA_NODES_DIR" >&2
        exit 1
    fi
    mkdir -m 700 "$PLACE"
    echo "$made" >"$MARK"
    (umask 077 && "$PYTHON" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$PLACE/token")
    local port dashboard
    port=${VILLA_HEAD_PORT:-$(free_port)}
    dashboard=${VILLA_DASHBOARD_PORT:-$(free_port)}
    echo "$dashboard" >"$PLACE/dashboard.port"
    unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PLACE/token RAY_USAGE_STATS_ENABLED=0
    export RAY_grpc_client_keepalive_time_ms=10000 RAY_grpc_client_keepalive_timeout_ms=10000
    PATH=$(dirname "$PYTHON"):$PATH # a job's `python` is the head's
    export PATH
    start_node head --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard"
    for ((i = 1; i < nodes; i++)); do
        start_node "node$i" --address="127.0.0.1:$port"
    done
    echo "$nodes nodes are up; use them with: eval \"\$($0 env)\"" >&2
    environment
}

down() {
    [ -e "$PLACE" ] || return 0
    if ! [ -e "$MARK" ]; then
        echo "error: $PLACE was not made by $0 up; it is left as it is" >&2
        exit 1
    fi
    for file in "$PLACE"/node*.pid "$PLACE"/head.pid; do
        if ours "$file"; then
            local pid
            pid=$(cat "$file")
            kill -TERM "$pid" 2>/dev/null || true
            for _ in $(seq 100); do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.1
            done
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
    local made
    made=$(cat "$MARK")
    rm -rf "$PLACE"
    if [ "$made" = made ]; then
        rmdir "$DIR" 2>/dev/null || true # others may have put something there
    fi
}

case ${1:-} in
    up) up "${2:-3}" ;;
    down) down ;;
    env) environment ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
