#!/usr/bin/env bash
# Ranks on one machine: what they compute, how they are started, stopped and killed.
source "$(dirname "$0")/common.sh"
export CONTRASTIVE_GRACE_SECONDS=2
# No launcher of the test's own surroundings may interfere.
for name in $(compgen -e | grep -E '^(SLURM_|OMPI_|PMI_|PMIX_|TORCHELASTIC_)|^(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR)$'); do
  unset "$name"
done

train=("$BIN/clip_train" --config "$TINY" train.global_batch=12)
endless=("${train[@]}" --nproc 3 train.steps=100000 eval.every_steps=null checkpoint.every_steps=null checkpoint.keep=100)

is_running() {
  local state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c 1) && [[ -n $state && $state != Z ]]
}

# wait_until SECONDS WHAT COMMAND...
wait_until() {
  local seconds=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@"; do
    [[ $SECONDS -lt $deadline ]] || fail "$what took more than $seconds s: $(tail -n 20 ./*.log)"
    sleep 0.05
  done
}

none_runs() {
  local pid
  for pid in "$@"; do ! is_running "$pid" || return 1; done
}

num_steps() { (losses "runs/$1" 2>/dev/null || true) | wc -l; }
has_steps() { [[ $(num_steps "$1") -ge $2 ]]; }
num_checkpoints() { (find "runs/$1/checkpoints" -maxdepth 1 -name "step_????????" 2>/dev/null || true) | wc -l; }

# Starts a run, waits for some more steps; sets parent, and ranks to the processes in their order.
start() {
  local name=$1 steps=$2 pid
  shift 2
  steps=$(($(num_steps "$name") + steps))
  "$@" name="$name" --resume auto >"$name.out.log" 2>"$name.err.log" &
  parent=$!
  wait_until 60 "starting $name" has_steps "$name" "$steps"
  ranks=()
  for pid in $(pgrep -P "$parent"); do
    ranks[$(tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^RANK=//p')]=$pid
  done
  [[ ${#ranks[@]} == 3 ]] || fail "$name has ${#ranks[@]} ranks"
}

# expect_end SECONDS CODE: all processes end in that time, the parent with that code.
expect_end() {
  local status=0
  wait_until "$1" "the end of the run" none_runs "$parent" "${ranks[@]}"
  wait "$parent" 2>/dev/null || status=$?
  [[ $status == "$2" ]] || fail "exited with $status, expected $2: $(cat ./*.err.log)"
}

passed() {
  echo "ok: $*"
  checks=$((checks + 1))
}

# Mistakes are reported once, and before anything starts.
expect_failure 2 'optim.lrr: unknown key' "${train[@]}" --nproc 3 name=bad optim.lrr=1
[[ $(wc -l <err.txt) == 1 && ! -e runs/bad ]] || fail "not one message: $(cat err.txt)"
expect_failure 2 'RANK is 1, but no variable has the number of ranks' env RANK=1 "${train[@]}" name=bad
expect_failure 2 'RANK is 3, but must be below WORLD_SIZE, which is 3' env RANK=3 WORLD_SIZE=3 "${train[@]}" name=bad
expect_failure 2 'MASTER_ADDR is not set' env RANK=1 WORLD_SIZE=2 "${train[@]}" name=bad
[[ ! -e runs/bad ]] || fail "a run that can't start left a folder"

# What the ranks compute: the losses of one process to rounding, until that moves some activation across ReLU's bend.
same_losses() {
  paste <(losses "runs/$1") <(losses "runs/$2") | awk -v what="$1 and $2" '
    { difference = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (difference > largest) largest = difference }
    $1 != $3 || difference > (NR <= 5 ? 1e-5 : 1e-2) { wrong = 1 }
    END { printf "losses of %s: %d steps, largest relative difference %.1e\n", what, NR, largest; exit wrong || NR != 60 }' ||
    fail "the losses of $1 and $2 differ"
}
expect_success "${train[@]}" name=alone
expect_success "${train[@]}" --nproc 3 name=three
same_losses alone three
[[ $(grep -c 'left 0:00' out.txt) == 1 ]] || fail "not one rank shows progress: $(cat out.txt)"

# A rank that is killed ends the others, and the run goes on from its last checkpoint.
for rank in 0 1 2; do
  start killed $((8 + rank)) "${train[@]}" --nproc 3
  kill -9 "${ranks[rank]}"
  expect_end 15 1
  line="clip_train: error: rank $rank (process ${ranks[rank]}) was killed by signal 9 (Killed)"
  [[ $(head -n 1 killed.err.log) == "$line" ]] || fail "first line: $(head -n 1 killed.err.log); expected: $line"
  [[ -f runs/killed/checkpoints/latest/state.json ]] || fail "no checkpoint after killing rank $rank"
  passed "$line"
done
expect_success "${train[@]}" --nproc 3 name=killed --resume auto
final=checkpoints/step_00000060/model.safetensors
cmp "runs/three/$final" "runs/killed/$final" || fail "the weights after killing and resuming differ"

# A rank that hangs ends the others after the time-out, and is killed after the grace time.
start hanging 3 "${endless[@]}" distributed.timeout_seconds=3
kill -STOP "${ranks[1]}"
expect_end 20 1
grep -q 'rank 1 ' <(head -n 1 hanging.err.log) || fail "the first line doesn't name rank 1: $(cat hanging.err.log)"
passed "$(head -n 1 hanging.err.log)"

# Nothing outlives the parent.
start orphans 3 "${endless[@]}"
kill -9 "$parent"
expect_end 5 137
passed "killing the parent leaves no rank"

# Stop signals, wherever they arrive, save once and end all with 0.
stop() {
  local what=$1 signal=$2 before
  before=$(num_checkpoints stopped)
  kill "-$signal" "$3"
  expect_end 30 0
  [[ $(num_checkpoints stopped) == $((before + 1)) ]] || fail "SIG$signal to $what: $(ls runs/stopped/checkpoints)"
  [[ $(grep -c 'stopped on request' stopped.out.log) == 1 ]] || fail "SIG$signal to $what: $(cat stopped.out.log)"
  passed "SIG$signal to $what"
}
start stopped 3 "${endless[@]}" && stop "the parent" TERM "$parent"
start stopped 3 "${endless[@]}" && stop "the parent" USR1 "$parent"
start stopped 3 "${endless[@]}" && stop "the parent" INT "$parent"
start stopped 3 "${endless[@]}" && stop "rank 0" TERM "${ranks[0]}"
start stopped 3 "${endless[@]}" && stop "rank 2" TERM "${ranks[2]}"

# Other launchers, by their variables.
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# expect_ranks NAME RANKS: variables_of RANK gives a rank's environment.
expect_ranks() {
  local name=$1 size=$2 rank pids=()
  for ((rank = 0; rank < size; ++rank)); do
    env $(variables_of "$rank") "${train[@]}" name="$name" >"$name.$rank.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || fail "$name: $(cat "$name".*.log)"
  done
  same_losses alone "$name"
  passed "$name"
}

port=$(free_port)
variables_of() { echo "RANK=$1 WORLD_SIZE=3 LOCAL_RANK=$1 LOCAL_WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port"; }
expect_ranks torch_variables 3

port=$(free_port)
variables_of() {
  echo "SLURM_JOB_ID=$port SLURM_STEP_ID=0 SLURM_PROCID=$1 SLURM_LOCALID=0 SLURM_NODEID=$1 SLURM_NTASKS=2" \
    "SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_STEP_NODELIST=localhost,other"
}
expect_ranks slurm_variables 2

variables_of() {
  echo "OMPI_COMM_WORLD_RANK=$1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=$1 OMPI_COMM_WORLD_LOCAL_SIZE=2" \
    "PMIX_NAMESPACE=$port"
}
expect_ranks mpirun_variables 2

# The shell of a batch script is not one of several ranks.
expect_success env ENVIRONMENT=BATCH SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=3 "${train[@]}" \
  name=batch_script train.steps=6
! grep -q ' ranks' out.txt || fail "a batch script takes itself for one of several ranks: $(cat out.txt)"
passed "batch script"
echo "$checks checks passed"
