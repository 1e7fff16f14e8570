#!/bin/bash
# Runs a command on all hosts of a TPU slice. A workdir must be in a bucket that all hosts can write.
#   launch/tpu_pod.sh create NAME ZONE TYPE [FLAG...]   TYPE is, for example, v5p-128 or v6e-64
#   launch/tpu_pod.sh install NAME ZONE                 copies the last commit and installs it
#   launch/tpu_pod.sh start NAME ZONE python launch/main.py --workdir=gs://BUCKET/FOLDER ...
#   launch/tpu_pod.sh stop NAME ZONE                    lets the command save and stop
#   launch/tpu_pod.sh logs NAME ZONE                    copies the logs of all hosts to tpu_logs/NAME
#   launch/tpu_pod.sh delete NAME ZONE
set -euo pipefail
fail() { echo "error: $1" >&2; exit 2; }
case ${1:-} in '' | create | install | start | stop | logs | delete) ;;
  *) fail "unknown action $1: choose create, install, start, stop, logs or delete" ;; esac
[ $# -ge 3 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
action=$1 name=$2 zone=$3; shift 3
case $action in create | start) ;; *) [ $# = 0 ] || fail "$action has no further arguments: remove $*" ;; esac
tpu() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$zone"; }
on_all() { tpu ssh "$name" --worker=all --command="$1"; }
case $action in
  create) [ $# -gt 0 ] || fail "TYPE is missing: add it, such as v5p-128"
    case $1 in
      v5p-*) version=v2-alpha-tpuv5 ;; v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v6e-*) version=v2-alpha-tpuv6e ;; *) version=tpu-ubuntu2204-base ;;
    esac
    tpu create "$name" --accelerator-type="$1" --version="${VERSION:-$version}" "${@:2}" ;;
  install) folder=$(mktemp -d) && trap 'rm -r "$folder"' EXIT
    git archive --format=tar.gz --prefix=invnext/ --output="$folder/invnext.tar.gz" HEAD
    tpu scp "$folder/invnext.tar.gz" "$name:" --worker=all
    on_all "tar -xzf invnext.tar.gz && cd invnext && python3 -m pip install --user uv && \
python3 -m uv venv --seed --python=3.12 .venv && . .venv/bin/activate && \
pip install --require-hashes -r requirements.txt && pip install --no-deps -e . && pip install -e '.[tpu]'" ;;
  start) [ $# -gt 0 ] || fail "the command is missing, such as python launch/main.py --workdir=gs://BUCKET/FOLDER"
    on_all 'if pgrep -F ~/run.pid > /dev/null 2>&1; then echo "error: a command runs here: stop it first" >&2; exit 1; fi'
    on_all "cd invnext && . .venv/bin/activate && \
{ nohup $(printf '%q ' "$@") >> ~/run.log 2>&1 < /dev/null & echo \$! > ~/run.pid; }" ;;
  stop) on_all 'pkill -TERM -F ~/run.pid' ;;
  logs) mkdir -p "tpu_logs/$name"
    hosts=$(tpu describe "$name" --format='value(networkEndpoints.len())')
    for ((host = 0; host < hosts; host++)); do tpu scp "$name:run.log" "tpu_logs/$name/$host.log" --worker="$host"; done ;;
  delete) tpu delete "$name" --quiet ;;
esac
