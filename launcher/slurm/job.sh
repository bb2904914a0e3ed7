#!/bin/bash
# A training job for SLURM, written by `triax submit` (template: launcher/slurm/job.sh).
#
# SLURM starts one task a process: it knows every rank, signals it, and ends it; no second
# launcher stands between. A rank finds its place in SLURM's own variables.
#
#   exit code of the ranks       what this script does
#   0, 2, 3                      ends: done, a mistake to mend, stopped by the guard
#   75 (saved, run again)        has SLURM requeue the job, or leaves it to the chain's next job
#   a node is gone               goes on with the nodes left, or requeues if they are too few
#   anything else                starts again
#
# After a few starts without a new checkpoint, requeues included, it ends.
#
{{directives}}

# What was filled in.
python={{python}}
rank_command=({{rank_command}})
config={{config}}
overrides=({{overrides}})
run_dir={{run_dir}}
num_nodes={{num_nodes}}
per_node={{per_node}}
srun_options=({{srun_options}})
max_restarts={{max_restarts}}
link={{link}}
num_links={{num_links}}

# --setup
{{setup}}

# The rest is the same for every job.
say() { printf '== %s job %s: %s\n' "$(date '+%F %T')" "$SLURM_JOB_ID" "$*"; }

# Before the time limit, and before preemption, SLURM sends USR1 to this shell alone. It is passed
# on to the ranks: they agree on a step, save, and end with 75. They ignore it until they can do
# so, so it is repeated.
stopping=''
step=''
stop() {
    [ -z "$stopping" ] || return 0
    stopping=yes
    say "asked to stop; the ranks save after their step"
    [ -z "$step" ] || repeat_to "$step"
}
trap stop USR1 TERM
repeat_to() { (while kill -USR1 "$1" 2>/dev/null; do sleep 5; done) & }

# Give the job back to the queue, where it keeps its number. SLURM doesn't do that by itself after
# code 75; and where it is ending the job already (scancel), it shall not come back.
hand_over() {
    local state what='saved; requeued: the run goes on from its newest checkpoint'
    [ "$(newest_checkpoint)" != "$checkpoint" ] || what='requeued, with nothing new saved'
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    if [ "$state" != RUNNING ]; then
        say "not requeued: SLURM is ending this job (${state:-no state})"
    elif [ "$link" -lt "$num_links" ]; then
        say "the next job of the chain goes on (this was $link of $num_links)"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "$what"
        sleep 600 & wait
    else
        say "can't be requeued here; submit it again to go on"
    fi
    exit 75
}

# Wait for a background process to its end: a signal interrupts `wait`.
finish() {
    local code
    while wait "$1"; code=$?; kill -0 "$1" 2>/dev/null; do :; done
    return "$code"
}

job_nodes() {
    scontrol show hostnames "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%N)" |
        sort --version-sort
}

# Those nodes of the job that answer. SLURM itself notices a dead one only after SlurmdTimeout.
living_nodes() {
    local node
    for node in $(job_nodes); do
        timeout 30 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" true >/dev/null 2>&1 &&
            echo "$node" &
    done | sort --version-sort
}

newest_checkpoint() { ls "$run_dir/checkpoints" 2>/dev/null | grep '^step-[0-9]*$' | sort | tail -n 1; }

# Count the starts that have ended without a new checkpoint since the last that brought one, and end
# when they are too many. SLURM runs this script anew after a requeue: a file keeps the number.
judge_progress() { # CODE
    [ "$(newest_checkpoint)" = "$checkpoint" ] && fruitless=$((fruitless + 1)) || fruitless=0
    echo "$fruitless" >"$run_dir/logs/fruitless-$SLURM_JOB_ID"
    [ "$fruitless" -gt "$max_restarts" ] || return 0
    say "ended with code $1; $max_restarts restarts without a new checkpoint are enough"
    exit "$1"
}

# With --no-kill a job outlives its nodes, also this one, and then nobody would run this script.
# So a task on another node looks whether SLURM has given this node up, and requeues the job. It
# would wait for all of its nodes then; a small job of its own allows it to start on fewer.
watch_this_node() {
    [ -z "$watch" ] || kill "$watch" 2>/dev/null
    watch=''
    [ -n "$1" ] || return
    srun --overlap --no-kill --nodes=1 --ntasks=1 --nodelist="$1" bash -c '
        trap "" TERM
        while sleep 5; do
            read -r state nodes < <(squeue --noheader --jobs="$SLURM_JOB_ID" --format="%T %N")
            [ "$state" = RUNNING ] || continue
            scontrol show hostnames "$nodes" | grep -qx "$1" && continue
            echo "== job $SLURM_JOB_ID lost $1, its first node, and is requeued"
            scontrol requeue "$SLURM_JOB_ID"
            sbatch --job-name="resize-$SLURM_JOB_ID" --partition="$SLURM_JOB_PARTITION" --nodes=1 \
                --ntasks=1 --time=10 --output=/dev/null --export=NONE \
                --wrap="until scontrol update JobId=$SLURM_JOB_ID NumNodes=1-$2; do sleep 5; done"
            exit
        done' watch "$SLURMD_NODENAME" "$num_nodes" >>"$run_dir/logs/watch.log" 2>&1 &
    watch=$!
}
watch=''

# A later job of a chain has nothing to do if the run has ended, unless that was before the chain.
after_another=()
if [ "$link" -gt 1 ]; then
    after_another=(--unless-ended)
elif [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
    rm -f "$run_dir/exit.json"
fi
nodes=$(job_nodes)
read -r fruitless 2>/dev/null <"$run_dir/logs/fruitless-$SLURM_JOB_ID" || fruitless=0
say "job $link of $num_links, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $(echo $nodes)"
while :; do
    checkpoint=$(newest_checkpoint)
    placed=$("$python" -m triax.launcher.slurm.placement "$config" "${overrides[@]}" "${after_another[@]}" \
        --nodes $nodes --per-node "$per_node" --wanted $((num_nodes * per_node)))
    code=$?
    if [ "$code" = 0 ] && [ -n "$placed" ]; then
        read -r num_processes hosts <<<"$placed"
        watch_this_node "$(echo "$nodes" | grep -vx "$SLURMD_NODENAME" | head -n 1)"
        # A rank that fails doesn't have the others killed at once: they end with their own code.
        # --overlap: SLURM goes on counting what a step on a dead node held.
        # USR1 ends nothing while srun and Python get ready: neither may die of it.
        (trap '' USR1; exec srun --overlap --nodelist="$hosts" \
            --nodes="$(echo "$hosts" | tr ',' '\n' | wc -l)" \
            --ntasks="$num_processes" --ntasks-per-node="$per_node" --distribution=block \
            --kill-on-bad-exit=0 --wait=30 "${srun_options[@]}" \
            sh -c 'trap "" USR1; exec "$@"' rank \
            "${rank_command[@]}" "$config" "${overrides[@]}") &
        step=$!
        [ -z "$stopping" ] || repeat_to "$step"
        finish "$step"
        code=$?
        step=''
    elif [ "$code" = 75 ]; then # the nodes are too few
        hand_over
    fi
    case $code in
        0 | 2 | 3) say "ended with code $code"; exit "$code" ;;
    esac
    if [ "$code" = 75 ] || [ -n "$stopping" ]; then
        judge_progress "$code"
        hand_over
    fi

    left=$(living_nodes)
    if [ "$left" != "$nodes" ] && [ -n "$left" ]; then
        say "ended with code $code; nodes left: $(echo $left)"
        nodes=$left
        continue
    fi
    judge_progress "$code"
    say "ended with code $code; restart $fruitless of $max_restarts"
    sleep $(((fruitless + 1) * 5))
done
