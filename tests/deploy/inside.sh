# Runs inside the image, as its user. $1: the image's command line. HEALTH: the command of its HEALTHCHECK.
key=$(thriftree keys create --tenant acme)
if touch /venv/x /models/x /home/thriftree/x /x 2>/dev/null; then echo "the root file system can be written"; exit 3; fi
test "$(id -u)" = 10001
eval "exec $1" &
server=$!
trap 'kill -KILL $server 2>/dev/null || true' EXIT

ask() { python -ISc "
import sys, urllib.request as u
body = sys.argv[3].encode() if len(sys.argv) > 3 else None
request = u.Request('http://127.0.0.1:8000' + sys.argv[2], body, {'content-type': 'application/json', 'authorization': f'Bearer {sys.argv[1]}'})
sys.stdout.write(u.urlopen(request, timeout=60).read().decode())" "$key" "$@"; }

seconds=0
until eval "$HEALTH" 2>/dev/null; do
    kill -0 $server; sleep 1; seconds=$((seconds + 1)); test $seconds -lt 120
done
echo "healthy after $seconds s"
until ask /ready 2>/dev/null; do
    eval "$HEALTH"  # alive while it loads
    kill -0 $server; sleep 1; seconds=$((seconds + 1)); test $seconds -lt 280
done
echo "ready after $seconds s"
ask /v1/completions '{"model": "smollm2-135m-instruct", "prompt": "One, two,", "max_tokens": 8, "temperature": 0}'
echo
du -sm /venv /models
cat /proc/[0-9]*/smaps_rollup 2>/dev/null | awk '/^Pss:/ {kib += $2} END {print "memory, MiB:", int(kib / 1024)}'
find /home/thriftree/.cache /data /tmp -mindepth 1 -maxdepth 2
find /home/thriftree/.cache -name tree_attention.so | grep . || { echo 'no kernel was built'; exit 4; }
kill -TERM $server
trap - EXIT
wait $server
echo "stopped with $?"
