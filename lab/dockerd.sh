#!/bin/sh
# See to it that a Docker Engine answers; start one where nothing runs it.
set -eu
LOG=/var/log/streamferry-dockerd.log

answers() { docker info >/dev/null 2>&1; }

# One that was killed with its machine leaves its pid files, and a stranger may have that pid by
# now: dockerd then refuses to start, or waits for a containerd that nobody runs.
forget() {  # forget PIDFILE PROGRAM
    [ -f "$1" ] || return 0
    [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ] || rm -f "$1"
}

fail() {
    tail -5 "$LOG" >&2 2>/dev/null || true
    echo "make lab: $1; the whole log: $2" >&2
    exit 1
}

answers && exit 0
if [ -d /run/systemd/system ]; then
    systemctl start docker || fail "systemd could not start Docker" "journalctl -u docker"
    daemon=$$
else
    forget /var/run/docker.pid dockerd
    forget /var/run/docker/containerd/containerd.pid containerd
    echo "Starting dockerd (log: $LOG)"
    # Its own session and its own output: whoever reads ours must not wait for it.
    setsid dockerd >"$LOG" 2>&1 </dev/null &
    daemon=$!
fi
for _ in $(seq 300); do
    answers && exit 0
    # Ours may have given way to another that is just starting; that one has a pid file.
    kill -0 "$daemon" 2>/dev/null || [ -f /var/run/docker.pid ] || break
    sleep 0.2
done
fail "Docker Engine does not answer" "$LOG"
