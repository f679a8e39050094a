#!/usr/bin/env bash
# A real SLURM on this one machine, for the tests and for trying: no systemd, no configuration.
#
#   scripts/slurm_one_node.sh install   slurm-wlm and munge from apt (Debian, Ubuntu; as root)
#   scripts/slurm_one_node.sh start     munged, slurmctld, slurmd; what runs already is left alone
#   eval "$(scripts/slurm_one_node.sh env)"   sbatch, squeue, scancel of this SLURM in this shell
#   scripts/slurm_one_node.sh status    the node and its jobs; exit code 1 if it is not up
#   scripts/slurm_one_node.sh stop      cancels its jobs and ends its daemons, and only those
#
# Everything lives in $DRIFT_SLURM_HOME (default /tmp/drift-slurm-<user>); several homes are several
# SLURMs, each on ports of its own. It claims 16 cores and two GPUs, whatever the machine has: jobs
# may ask for them, and share what is there.
# Partitions: main (the default; four jobs share a core), low (preempted, requeued), high.
# Without SLURM's accounting a job that dies leaves submitit waiting for ever, so a `sacct` that
# asks slurmctld instead stands first in the PATH that `env` prints.
set -euo pipefail
H=${DRIFT_SLURM_HOME:-/tmp/drift-slurm-$(id -un)}
HOST=$(hostname -s)
export SLURM_CONF=$H/slurm.conf
PATH=$PATH:/usr/sbin:/sbin
DAEMONS=(slurmd slurmctld munged) # in the order in which they are stopped

log() { echo "slurm_one_node: $*" >&2; }
die() { log "$*"; exit 1; }
pid_of() { cat "$H/run/$1.pid" 2> /dev/null || true; }
# A recorded process id counts while it is still that daemon, not another process with its number.
alive() { local pid; pid=$(pid_of "$1"); [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$1" ]; }
have_programs() { local p; for p in "${DAEMONS[@]}" sbatch; do command -v "$p" > /dev/null || return 1; done; }

install_packages() {
  have_programs && return
  command -v apt-get > /dev/null || die "no apt-get: install SLURM and munge with this system's own tool"
  [ "$(id -u)" = 0 ] || die "needs root: sudo $0 install"
  apt-get update -qq > /dev/null || die "apt-get update failed"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null \
    || die "apt-get install slurm-wlm munge failed"
}

free_ports() { # two of them, held until both are known
  python3 -c 'import socket
a, b = socket.socket(), socket.socket()
for s in (a, b): s.bind(("127.0.0.1", 0))
print(a.getsockname()[1], b.getsockname()[1])'
}

configure() { # once for each home: a daemon that runs keeps the file it was started with
  mkdir -p "$H"/{bin,log,run,state,spool}
  chmod 755 "$H"
  (umask 077; [ -s "$H/munge.key" ] || head -c 128 /dev/urandom > "$H/munge.key")
  write_sacct
  [ -s "$SLURM_CONF" ] && return
  local memory ctld_port d_port
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  read -r ctld_port d_port < <(free_ports)
  # No cgroups and no systemd: linuxproc, task/none. bf_interval and the others: start jobs at once.
  cat > "$SLURM_CONF.new" << CONF
ClusterName=drift
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$ctld_port
SlurmdPort=$d_port
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$H/run/munge.sock
SlurmctldPidFile=$H/run/slurmctld.pid
SlurmdPidFile=$H/run/slurmd.pid
SlurmctldLogFile=$H/log/slurmctld.log
SlurmdLogFile=$H/log/slurmd.log
StateSaveLocation=$H/state
SlurmdSpoolDir=$H/spool
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
OverTimeLimit=0
MinJobAge=3600
ReturnToService=2
InactiveLimit=0
GresTypes=gpu
PropagateResourceLimits=NONE
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=16 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 PriorityTier=10
PartitionName=low Nodes=$HOST MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=$HOST MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
CONF
  # Any character device may stand in for a GPU: with task/none nothing is done with it.
  printf 'AutoDetect=off\nNodeName=%s Name=gpu File=/dev/%s\n' "$HOST" null > "$H/gres.conf"
  echo "NodeName=$HOST Name=gpu File=/dev/zero" >> "$H/gres.conf"
  echo "CgroupPlugin=cgroup/v1" > "$H/cgroup.conf"
  mv "$SLURM_CONF.new" "$SLURM_CONF"
}

write_sacct() { # the one form that submitit uses: sacct -o JobID,State,NodeList --parsable2 -j ID...
  cat > "$H/bin/sacct" << 'SACCT'
#!/usr/bin/env bash
# Stands in for sacct where SLURM keeps no accounts; knows jobs for an hour after their end.
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ] && [ $# -gt 1 ]; then
    shift
    scontrol -o show job "$1" 2> /dev/null | awk '{
      split("", f)
      for (i = 1; i <= NF; i++) { at = index($i, "="); f[substr($i, 1, at - 1)] = substr($i, at + 1) }
      if (!("JobId" in f)) next
      id = f["JobId"]; task = f["ArrayTaskId"]
      if ("ArrayJobId" in f) id = f["ArrayJobId"] "_" (task ~ /^[0-9]+$/ ? task : "[" task "]")
      print id "|" f["JobState"] "|" f["NodeList"]
    }'
  fi
  shift
done
SACCT
  chmod 755 "$H/bin/sacct"
}

node_is_up() { [[ $(sinfo -h -p main -o %t 2> /dev/null) =~ ^(idle|mix|alloc)$ ]]; }

start() {
  have_programs || die "no SLURM here: run $0 install (as root), or install slurm-wlm and munge"
  configure
  if ! alive munged; then # --force: the way to the socket may be writable by others, as /tmp is
    rm -f "$H"/run/munge.sock*
    munged --force --key-file="$H/munge.key" --socket="$H/run/munge.sock" --num-threads=2 \
      --pid-file="$H/run/munged.pid" --log-file="$H/log/munged.log" --seed-file="$H/munge.seed"
  fi
  alive slurmctld || slurmctld > "$H/log/start.log" 2>&1 || die "slurmctld: $(tail -n 1 "$H/log/start.log")"
  alive slurmd || slurmd -N "$HOST" > "$H/log/start.log" 2>&1 || die "slurmd: $(tail -n 1 "$H/log/start.log")"
  local i
  for i in $(seq 200); do
    if node_is_up; then log "ready; in your shell: eval \"\$($0 env)\""; return; fi
    # After a machine's restart the node may come back as down.
    [ "$i" = 50 ] && scontrol update NodeName="$HOST" State=RESUME 2> /dev/null
    sleep 0.1
  done
  die "the node did not come up in 20 s; see $H/log"
}

stop() {
  if alive slurmctld; then # jobs first, so that none outlives its daemon
    local i
    scancel -u "$(id -un)" 2> /dev/null || true
    for i in $(seq 80); do [ -z "$(squeue -h 2> /dev/null)" ] && break; sleep 0.1; done
  fi
  local name pid
  for name in "${DAEMONS[@]}"; do
    alive "$name" || continue
    pid=$(pid_of "$name")
    kill "$pid"
    for i in $(seq 100); do alive "$name" || break; sleep 0.1; done
    if alive "$name"; then kill -9 "$pid"; fi
    rm -f "$H/run/$name.pid"
  done
}

status() {
  local name
  for name in "${DAEMONS[@]}"; do alive "$name" || die "$name is not running; start with: $0 start"; done
  sinfo
  squeue
}

case "${1:-}" in
  install) install_packages ;;
  start) start ;;
  stop) stop ;;
  status) status ;;
  env) echo "export SLURM_CONF=$SLURM_CONF PATH=$H/bin:\$PATH" ;;
  *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
