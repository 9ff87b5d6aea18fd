#!/usr/bin/env bash
# A real Slurm cluster on this machine, to try the sbatch scripts on:
#
#     eval "$(launch/local_slurm.sh up --nodes 2)"     # prints `export SLURM_CONF=...`
#     sbatch --gpus-per-node=0 --ntasks-per-node=1 --cpus-per-task=1 launch/slurm_multi_node.sbatch configs/local.yaml
#     launch/local_slurm.sh status
#     launch/local_slurm.sh down                       # ends its jobs and daemons, removes its folder
#
# All of it lies in LOCAL_SLURM_DIR; the daemons listen on LOCAL_SLURM_PORT and the ports after it.  Two clusters live
# side by side when both differ.  Exit codes: 0 done, 2 wrong arguments, 3 something is missing, 1 anything else.
set -euo pipefail

DIR="$(realpath -m "${LOCAL_SLURM_DIR:-${TMPDIR:-/tmp}/destruct-slurm}")"
PORT="${LOCAL_SLURM_PORT:-26817}"
NODES=2
export SLURM_CONF="$DIR/slurm.conf"

refuse() {  # code, problem, remedy
    printf 'local_slurm: %s\n  remedy: %s\n' "$2" "$3" >&2
    exit "$1"
}

check_machine() {
    local program
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null ||
            refuse 3 "$program is not installed" "apt-get update && apt-get install --yes slurm-wlm munge"
    done
    [ "$(id -u)" = 0 ] || refuse 3 "slurmd starts tasks as other users, so it needs root" "run this as root, or with sudo -E"
}

# The first rank is looked for under its node's name, so the names are addresses: a loopback interface has all of these.
node_names() { for ((i = 1; i <= NODES; i++)); do echo "127.0.0.$i"; done; }

write_configuration() {
    local port="$PORT" name
    cat <<CONF
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
StateSaveLocation=$DIR/state
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdPidFile=$DIR/slurmd-%n.pid
SlurmdLogFile=$DIR/slurmd-%n.log
SlurmdSpoolDir=$DIR/spool-%n
AuthType=auth/munge
# A requeued job starts only when the credential of its first life has expired, by default after two minutes.
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
# No cgroups: they may be missing, or belong to a container.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# A node has the CPUs that it claims below, however few are here.
SlurmdParameters=config_overrides
ReturnToService=2
# A batch job may otherwise wait for three seconds although its nodes are free, and a requeued one for half a minute.
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2
# Jobs of the partition urgent take the nodes from others, which are requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
MailProg=/bin/true
# As Slurm has it by default: so long the ranks have from SIGTERM on, to end their update and to save.
KillWait=30
# So that the master port of the scripts, which follows the job's number, differs between two clusters.
FirstJobId=$PORT
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
CONF
    for name in $(node_names); do
        port=$((port + 1))
        echo "NodeName=$name NodeAddr=$name Port=$port CPUs=16 State=UNKNOWN"
    done
}

up() {
    local name
    check_machine
    [ ! -e "$DIR" ] || refuse 1 "$DIR is there already" "$0 down, or name another LOCAL_SLURM_DIR and LOCAL_SLURM_PORT"
    trap 'tail -n 3 "$DIR"/*.log >&2 || true; down' ERR
    mkdir "$DIR" "$DIR/state"
    write_configuration >"$SLURM_CONF"
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")
    # --force: a folder below /tmp is one that others may write to.
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/munged.log" --seed-file="$DIR/munged.seed" 2>>"$DIR/start.log"
    slurmctld -f "$SLURM_CONF" >>"$DIR/start.log" 2>&1
    for name in $(node_names); do
        mkdir "$DIR/spool-$name"
        slurmd -N "$name" -f "$SLURM_CONF" >>"$DIR/start.log" 2>&1
    done
    within 30 all_nodes_idle
    trap - ERR
    echo "export SLURM_CONF=$SLURM_CONF"
}

idle_nodes() { sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u; }  # without -u by partition
all_nodes_idle() { [ "$(idle_nodes | wc -l)" = "$NODES" ]; }
no_jobs() { [ -z "$(squeue --noheader 2>/dev/null)" ]; }
# By its command line, not its number alone: after a crash another process may have that.
runs() { grep -qsF "$DIR/" "/proc/$1/cmdline"; }
ended() { ! runs "$1"; }

within() {  # seconds, command...: false where it does not become true in that time
    local until=$((SECONDS + $1))
    while ! "${@:2}"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.2
    done
}

down() {
    local file pid
    [ -f "$SLURM_CONF" ] || { echo "local_slurm: no cluster in $DIR" >&2; return 0; }
    if runs "$(cat "$DIR/slurmctld.pid" 2>/dev/null)" && scancel --user="$(id -un)"; then
        within 20 no_jobs || echo "local_slurm: jobs did not end in 20 s: $(squeue --noheader --format=%i | xargs)" >&2
    fi
    for file in "$DIR"/slurmd-*.pid "$DIR/slurmctld.pid" "$DIR/munged.pid"; do
        pid="$(cat "$file" 2>/dev/null || true)"
        runs "$pid" || continue
        kill "$pid"
        within 10 ended "$pid" || kill -KILL "$pid"
    done
    rm -rf "$DIR"
}

status() {
    [ -f "$SLURM_CONF" ] || { echo "local_slurm: no cluster in $DIR"; return 1; }
    echo "export SLURM_CONF=$SLURM_CONF"
    sinfo --Node --long
    squeue
}

usage='write: launch/local_slurm.sh up|down|status [--nodes N]'
[ $# -gt 0 ] || refuse 2 "no command" "$usage"
[[ "$DIR" != *[[:space:]]* ]] || refuse 2 "LOCAL_SLURM_DIR=$DIR holds a blank" "name another folder"
[[ "$PORT" =~ ^[1-9][0-9]{3,4}$ ]] || refuse 2 "LOCAL_SLURM_PORT=$PORT is no port" "take one from 1024 to 32767"
command="$1"
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --nodes) NODES="${2:-}" && shift ;;
        --nodes=*) NODES="${1#*=}" ;;
        *) refuse 2 "unknown argument $1" "$usage" ;;
    esac
    shift || true
done
[[ "$NODES" =~ ^[1-9][0-9]?$ ]] || refuse 2 "--nodes '$NODES' is not a number from 1 to 99" "$usage"
case "$command" in
    up | down | status) "$command" ;;
    *) refuse 2 "unknown command $command" "$usage" ;;
esac
