#!/bin/sh
# See to it that a Docker Engine answers; start one where nothing runs it.
set -eu
LOG=/var/log/streamferry-dockerd.log
PIDFILE=/var/run/docker.pid

answers() { docker info >/dev/null 2>&1; }

answers && exit 0
if [ -d /run/systemd/system ]; then
    systemctl start docker
else
    # One that was killed with its machine leaves its pid file, and a stranger may have that pid.
    if [ -f "$PIDFILE" ] && [ "$(cat "/proc/$(cat "$PIDFILE")/comm" 2>/dev/null)" != dockerd ]; then
        rm -f "$PIDFILE"
    fi
    echo "Starting dockerd (log: $LOG)"
    # Its own session and its own output: whoever reads ours must not wait for it.
    setsid dockerd >"$LOG" 2>&1 </dev/null &
fi
for _ in $(seq 300); do
    answers && exit 0
    sleep 0.2
done
echo "make lab: Docker Engine does not answer; see $LOG" >&2
tail -5 "$LOG" >&2 || true
exit 1
