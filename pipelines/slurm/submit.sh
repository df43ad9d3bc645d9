#!/bin/bash
# Submits a run to Slurm: one job per stage and iteration, each waiting for the jobs whose outputs it reads. Every job
# calls make, so what exists is not redone, and the same call resumes after a failure. Run it in the Makefile's folder, or
# as make slurm.
#
#   pipelines/slurm/submit.sh RUN=ddm CONFIG=pipelines/reference-7b.yaml ITERS=20 LAG=1 CLUSTER=mine.env
#
# With DRY_RUN=1 in front it prints the jobs, and what each of them runs, without Slurm.
set -euo pipefail
scripts=$(dirname "$0")
[ -r Makefile ] || { echo "$0: no Makefile in $PWD. Run it in the folder of the project's Makefile, or of one made by dapo-stages new." >&2; exit 2; }

RUN=first CONFIG='' SET='' ITERS='' EVAL_EVERY=1 LAG='' CLUSTER=$scripts/cluster.env
for setting in "$@"; do
  case $setting in
    RUN=*|CONFIG=*|SET=*|ITERS=*|EVAL_EVERY=*|LAG=*|CLUSTER=*) declare "$setting" ;;
    *) echo "$0: $setting is not a setting. Use RUN, CONFIG, SET, ITERS, EVAL_EVERY, LAG or CLUSTER=value." >&2; exit 2 ;;
  esac
done
[ -r "$CLUSTER" ] || { echo "$CLUSTER: no such file. Copy $scripts/cluster.env and edit it." >&2; exit 3; }
# shellcheck source=pipelines/slurm/cluster.env
. "$CLUSTER"
# Everything else is taken from the run's configuration, which make reads.
run=("RUN=$RUN" ${CONFIG:+"CONFIG=$CONFIG"} ${SET:+"SET=$SET"} ${ITERS:+"ITERS=$ITERS"} ${LAG:+"LAG=$LAG"})
goal=training_logs/$RUN/configured
asked=$(env -u CONFIG -u SET -u ITERS -u LAG make -n --silent "${run[@]}" "$goal" \
  --eval="$goal: ; \$(info \$(ITERS) \$(LAG) \$(engine) \$(evaluate_engine) \$(PY) \$(CONFIG))")
read -r ITERS LAG ROLLOUT_ENGINE EVALUATE_ENGINE PY config <<< "$asked"
# The shell splits SET, as in make.
jobs=$(eval "$PY -m dapo_stages config --config '$config' $SET --set lag=$LAG --jobs $ITERS $EVAL_EVERY")
export CLUSTER PY RUN SET LAG ROLLOUT_ENGINE EVALUATE_ENGINE EVAL_EVERY CONFIG_FILE="$CONFIG" DRY_RUN="${DRY_RUN:-}" SCRIPTS="$scripts"
# vLLM and servers are used from one process.
nodes_for() { case $1 in vllm|server) echo 1 ;; *) echo "$ROLLOUT_NODES" ;; esac; }
ROLLOUTS=$(nodes_for "$ROLLOUT_ENGINE") EVALUATIONS=$(nodes_for "$EVALUATE_ENGINE")
logs=training_logs/$RUN/slurm
submitted=0

# submit STAGE ITERATION GOALS NODES [JOB…]: submits a job that starts when these have succeeded; sets $job to its number.
submit() {
  local stage=$1 iteration=$2 goals=$3 nodes=$4 after options
  shift 4
  after=$(IFS=:; echo "$*")
  options=(--parsable --job-name="$RUN-$stage-$iteration" --output="$logs/%x-%j.log" --nodes="$nodes" --time="$TIME"
    --ntasks-per-node=1 --cpus-per-task="$CPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" --exclusive)
  [ -z "$ACCOUNT" ] || options+=(--account="$ACCOUNT")
  [ -z "$PARTITION" ] || options+=(--partition="$PARTITION")
  [ -z "$after" ] || options+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
  # shellcheck disable=SC2206  # several options in one variable
  options+=($SBATCH_OPTIONS)
  submitted=$((submitted + 1))
  if [ -n "$DRY_RUN" ]; then
    job=$submitted
    echo "$job: sbatch ${options[*]} $scripts/stage.sh $stage $iteration $goals"
    SLURM_JOB_NUM_NODES=$nodes "$scripts/stage.sh" "$stage" "$iteration" "$goals"
  else
    mkdir -p "$logs"
    job=$(sbatch "${options[@]}" "$scripts/stage.sh" "$stage" "$iteration" "$goals")
    job=${job%%;*}  # the cluster's name may follow
    echo "$job: $stage of iteration $iteration${after:+, after ${after//:/, }}"
  fi
}

# Each job waits for the jobs whose outputs it reads.
declare -A number
while read -r stage iteration goals after; do
  case $stage in
    rollout) nodes=$ROLLOUTS ;; score) nodes=$ROLLOUT_NODES ;; train) nodes=$TRAIN_NODES ;; finish) nodes=$EVALUATIONS ;;
    *) nodes=1 ;;
  esac
  waits=()
  for name in $after; do waits+=("${number[$name]}"); done
  submit "$stage" "$iteration" "$goals" "$nodes" ${waits[@]+"${waits[@]}"} < /dev/null
  number[$stage/$iteration]=$job
done <<< "$jobs"
