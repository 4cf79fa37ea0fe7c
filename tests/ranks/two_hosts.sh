#!/usr/bin/env bash
# Runs a command of this program across two hosts that are network namespaces of this machine, with
# nothing between them but a cable: as two machines would, under one mpirun with a host file.
# It wants root, iproute2 and Open MPI.
#     tests/ranks/two_hosts.sh [RANKS ON EACH] [COMMAND...]
set -euo pipefail
cd "$(dirname "$0")/../.."
each=${1:-1}
shift || true
[ $# -gt 0 ] || set -- build/train_grpo --model data/world/base --train data/world/countdown_train.jsonl \
    --eval data/world/countdown_test.jsonl --steps 20 --threads 1 --out runs/two_hosts --overwrite
work=$(mktemp -d)
trap 'ip netns del r1_here; ip netns del r1_there; rm -r "$work"' EXIT
ip netns add r1_here
ip netns add r1_there
ip link add r1_cable_0 netns r1_here type veth peer name r1_cable_1 netns r1_there
ip -n r1_here addr add 10.213.0.1/24 dev r1_cable_0
ip -n r1_there addr add 10.213.0.2/24 dev r1_cable_1
for device in lo r1_cable_0; do ip -n r1_here link set "$device" up; done
for device in lo r1_cable_1; do ip -n r1_there link set "$device" up; done

# What stands in for ssh: `agent HOST COMMAND...`.
cat >"$work/agent" <<'SCRIPT'
#!/bin/sh
shift
exec ip netns exec r1_there unshare --uts sh -c "hostname r1-there; $*"
SCRIPT
chmod +x "$work/agent"
printf '10.213.0.1 slots=%d\n10.213.0.2 slots=%d\n' "$each" "$each" >"$work/hosts"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ip netns exec r1_here unshare --uts sh -c 'hostname r1-here; exec "$@"' - \
    mpirun --hostfile "$work/hosts" -n $((2 * each)) --mca plm_rsh_agent "$work/agent" --mca btl tcp,self \
    --mca oob_tcp_if_include 10.213.0.0/24 --mca btl_tcp_if_include 10.213.0.0/24 \
    --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 3 "$@"
