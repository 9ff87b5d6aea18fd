#!/usr/bin/env bash
# One task of srun as one rank:  srun launch/rank.sh python -m destruct.train ...
#
# Says in the words of torch and DeepSpeed who the task is; MASTER_ADDR and MASTER_PORT come from the batch script.
set -euo pipefail

IFS=, read -ra tasks_here <<<"$SLURM_GTIDS"
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_SIZE="${#tasks_here[@]}" LOCAL_WORLD_SIZE="${#tasks_here[@]}"

# Slurm signals the command itself; this shell only waits for it.  (An empty trap would make the command deaf too.)
trap : INT TERM USR1 USR2
code=0
exec 3>&2
{ "$@" 2>&3 3>&-; } 2>/dev/null || code=$?  # without bash's own `Terminated`

# srun gives the job the highest code of all ranks, and ends the others when one fails: a rank that was told to end
# counts as 1, so that the code of the one that failed stands out; one that was killed counts as 76, as everywhere.
if ((code == 143)); then
    code=1
elif ((code > 128 && code != 130)); then  # 130: Ctrl-C
    echo "rank $RANK was killed by SIG$(kill -l "$code"); SIGKILL often means that memory ran out" >&2
    code=76
fi
exit "$code"
