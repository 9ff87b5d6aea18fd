#!/usr/bin/env bash
# One task of srun as one rank:  srun launch/rank.sh python -m destruct.train ...
#
# Says in the words of torch and DeepSpeed who the task is; MASTER_ADDR and MASTER_PORT come from the batch script.
# With RANK_LOGS set, what the rank says is also added to a file of its own in that folder.
set -euo pipefail

IFS=, read -ra tasks_here <<<"$SLURM_GTIDS"
export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
export LOCAL_SIZE="${#tasks_here[@]}" LOCAL_WORLD_SIZE="${#tasks_here[@]}"

# Slurm signals all processes of the task, and the command is the one to answer; this shell only waits for it.  (An
# empty trap would make the command deaf too.)
trap : INT TERM USR1 USR2

# srun does not notice a slurmstepd that is killed: its ranks would be on their own, and the others wait for them.  They
# save and end instead, and so all do.  (It is another user's process, so that no signal can ask whether it lives.)
{
    trap '' INT USR1 USR2
    while read -r _ _ _ parent _ <"/proc/$$/stat" && [ "$parent" = "$PPID" ]; do sleep 2; done
    kill -TERM 0
} >/dev/null 2>&1 &
watcher=$! copies=()

if [ -n "${RANK_LOGS:-}" ]; then
    mkdir -p "$RANK_LOGS" || true  # tee says what is wrong, and passes all on
    job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    log="$RANK_LOGS/$SLURM_JOB_NAME-$job-$RANK.log"
    # Deaf from their beginning, so that the rank's last words are heard; -p: also where nobody listens to srun any more.
    trap '' INT TERM USR1 USR2
    exec > >(exec tee -ap "$log")
    copies+=("$!")
    exec 2> >(exec tee -ap "$log" >&2)
    copies+=("$!")
    trap : INT TERM USR1 USR2
fi

code=0
exec 3>&2
{ "$@" 2>&3 3>&-; } 2>/dev/null || code=$?  # without bash's own `Terminated`
exec 3>&-
kill "$watcher" 2>/dev/null || true

# srun gives the job the highest code of all ranks, and ends the others when one fails: a rank that was told to end
# counts as 1, and one that says what is wrong (1, 2, 3) as RAISED_BY more, which launch/requeue.sh takes off again: so its
# code stands out, also among ranks that saved (75) or failed for want of it (76, as those count that were killed).
if ((code == 143)); then
    code=1
elif ((code == 138)); then  # USR1, before the rank listened: nothing was there to be saved
    code=75
elif ((1 <= code && code <= 3)); then
    code=$((code + ${RAISED_BY:-0}))
elif ((code > 128 && code != 130)); then  # 130: Ctrl-C
    echo "rank $RANK was killed by SIG$(kill -l "$code"); SIGKILL often means that memory ran out" >&2
    code=76
fi

exec >&- 2>&-  # the copies end, unless a process that the rank left behind still has its outputs
for ((tenths = 0; tenths < 50; tenths++)); do
    kill -0 "${copies[@]}" || break
    sleep 0.1 || true  # a signal to all processes ends it
done
exit "$code"
