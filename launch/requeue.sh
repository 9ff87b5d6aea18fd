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
# Go on from the last checkpoint of this job, whatever run.resume says; in a later job of a chain it is the first one's.
if ((LIFE > 1)); then
    export DESTRUCT_AGAIN="${DESTRUCT_AGAIN:-$SLURM_JOB_ID}"
fi
echo "destruct: job $JOB, life $LIFE, on $SLURM_JOB_NODELIST, $(date '+%F %T')"

# What is signalled is for the ranks to answer; so they save at a time limit too, which kills only KillWait after it.
trap : TERM USR1

say() {  # problem, remedy
    printf 'destruct: %s\n  remedy: %s\n' "$1" "$2" >&2
}

[[ "$REQUEUES" =~ ^(0|[1-9][0-9]{0,5})$ ]] || { say "REQUEUES=$REQUEUES is no number" "write REQUEUES=20" && exit 2; }
[[ "$CHAIN" =~ ^(true|false)$ ]] || { say "CHAIN=$CHAIN is neither true nor false" "write one of them" && exit 2; }

export RAISED_BY=100  # launch/rank.sh says what for

# Not ours where it is cancelled, which `scontrol requeue` would undo, or where Slurm requeues it by itself.
# For some milliseconds in which a signal goes out, a running job is SIGNALING.
OURS="JobState=(RUNNING|SIGNALING|COMPLETING Reason=TimeLimit) "

end_life() {  # exit code of srun
    local code="$1" shown
    case "$code" in
        101 | 102 | 103) code=$((code - RAISED_BY)) ;;
        1) code=76 ;;    # all ranks were told to end before they listened, or srun could not start them
        130) ;;          # Ctrl-C
        129 | 1[3-9]? | 2??) code=76 ;;  # a task was killed, so that no rank.sh could say so
    esac
    if ((code != 75 && code != 76)); then
        [ "$CHAIN" != true ] || scancel --me --state=PENDING --name="$SLURM_JOB_NAME" || true
    elif [ "$CHAIN" != true ]; then
        if ! shown="$(show_job)"; then
            say "job $JOB ended with $code, and Slurm does not tell its state" "submit it again with run.resume=auto"
        elif [[ "$shown" =~ $OURS ]]; then
            requeue "$code"
        fi
    fi
    exit "$code"
}

show_job() {  # its controller may be away for a while
    local tries
    for ((tries = 0; tries < 24; tries++)); do
        scontrol --oneliner show job "$JOB" | grep JobState= && return
        sleep 5
    done
    return 1
}

requeue() {  # exit code
    if ((LIFE > REQUEUES)); then
        say "job $JOB ended with $1 in life $LIFE, and REQUEUES=$REQUEUES" \
            "see above why; then submit it again with run.resume=auto, or with a larger REQUEUES"
    elif scontrol requeue "$JOB"; then
        echo "destruct: job $JOB ended with $1 and is requeued: $LIFE of at most $REQUEUES times"
    else
        say "job $JOB ended with $1, and Slurm does not requeue it" \
            "submit it again with run.resume=auto, or as a chain: destruct launch slurm --chain"
    fi
}
