# shellcheck shell=bash
# Sourced by the batch scripts: what follows a life of a job, decided by its exit code (destruct/exits.py).
#
#     75, 76      stopped and saved, or a rank failed: requeued, at most REQUEUES times, Slurm's own requeues included
#     any other   done, or wrong in a way that another life would repeat: the job ends with it
#
# Where CHAIN is true nothing is requeued; an end for good cancels the pending jobs of this name, whose work is done.

# A task of an array by its own name: the number alone, where it is the array's, would mean all of them.
JOB="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
LIFE="$((${SLURM_RESTART_COUNT:-0} + 1))"
# Go on from the last checkpoint of this job, whatever run.resume says; a later job of a chain is submitted with 1, and
# goes on from that of any.
if ((LIFE > 1)); then
    export DESTRUCT_AGAIN="${DESTRUCT_AGAIN:-$SLURM_JOB_ID}"
fi
echo "destruct: job $JOB, life $LIFE, on $SLURM_JOB_NODELIST, $(date '+%F %T')"

# What is signalled is for the ranks to answer; so they save at a time limit too, which kills only KillWait after it.
trap : TERM USR1

say() {  # problem, remedy
    printf 'destruct: %s\n  remedy: %s\n' "$1" "$2" >&2
}

# Not so where it is cancelled, which `scontrol requeue` would undo, or where Slurm requeues it by itself.
is_ours_to_requeue() {
    [[ "$(scontrol --oneliner show job "$JOB")" =~ JobState=(RUNNING|COMPLETING Reason=TimeLimit)" " ]]
}

end_life() {  # exit code of srun
    local code="$1"
    if ((code > 128 && code != 130)); then
        code=76  # a task was killed, so that no rank.sh could say so
    fi
    if ((code != 75 && code != 76)); then
        [ "$CHAIN" != true ] || scancel --me --state=PENDING --name="$SLURM_JOB_NAME" || true
    elif [ "$CHAIN" != true ] && is_ours_to_requeue; then
        requeue "$code"
    fi
    exit "$code"
}

requeue() {  # exit code
    if ((LIFE > REQUEUES)); then
        say "job $JOB ended with $1 in life $LIFE, and REQUEUES=$REQUEUES" \
            "see above why; then submit it again with run.resume=auto, or with a larger REQUEUES"
    elif scontrol requeue "$JOB"; then
        echo "destruct: job $JOB ended with $1 and is requeued: $LIFE of at most $REQUEUES times"
    else
        say "job $JOB ended with $1, and Slurm does not requeue it" \
            "submit it again with run.resume=auto, or a chain: CHAIN=true, and for all but the first DESTRUCT_AGAIN=1"
    fi
}
