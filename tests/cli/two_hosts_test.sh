#!/usr/bin/env bash
# Ranks on two machines: two network namespaces that nothing but a pair of virtual interfaces connects.
source "$(dirname "$0")/common.sh"

skip() {
  echo "SKIPPED: $*"
  exit 77
}

hosts=("contrastive-a-$$" "contrastive-b-$$")
remove_hosts() {
  local host
  for host in "${hosts[@]}"; do
    ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$host" 2>/dev/null || true
  done
}
trap 'jobs -p | xargs -r kill -9 2>/dev/null || true; remove_hosts; rm -rf "$WORK"' EXIT

[[ $(id -u) == 0 ]] || skip "network namespaces need root"
command -v ip >/dev/null || skip "there is no ip program (package iproute2)"
for host in "${hosts[@]}"; do
  ip netns add "$host" 2>ip.txt || skip "a network namespace can't be made: $(cat ip.txt)"
done
ip -n "${hosts[0]}" link add wire type veth peer name wire netns "${hosts[1]}" 2>ip.txt ||
  skip "a pair of virtual interfaces can't be made: $(cat ip.txt)"
ip netns exec "${hosts[0]}" true 2>ip.txt || skip "nothing can be run in a network namespace: $(cat ip.txt)"
for i in 0 1; do
  ip -n "${hosts[i]}" address add "10.77.0.$((i + 1))/24" dev wire
  ip -n "${hosts[i]}" link set lo up
  ip -n "${hosts[i]}" link set wire up
done

train=("$BIN/clip_train" --config "$TINY" distributed.timeout_seconds=4 --resume auto)
pids=()

start() {
  local i
  for i in 0 1; do
    ip netns exec "${hosts[i]}" env RANK="$i" WORLD_SIZE=2 MASTER_ADDR=10.77.0.1 MASTER_PORT=29500 "${train[@]}" "$@" \
      >"rank$i.log" 2>&1 &
    pids[i]=$!
  done
}

num_steps() { (losses "runs/$1" 2>/dev/null || true) | wc -l; }

start_and_wait() {
  local steps=$(($(num_steps "$1") + 3))
  start name="$1" train.steps=100000 eval.every_steps=null
  for _ in $(seq 600); do
    [[ $(num_steps "$1") -lt $steps ]] || return 0
    sleep 0.1
  done
  fail "no steps within a minute: $(cat rank?.log)"
}

# expect_end RANK TEXT: it ends within seconds with exit code 1 and that text.
expect_end() {
  local status=0 begin=$SECONDS
  wait "${pids[$1]}" || status=$?
  [[ $status == 1 ]] || fail "rank $1 exited with $status: $(cat "rank$1.log")"
  grep -qE -- "$2" "rank$1.log" || fail "rank $1 said: $(cat "rank$1.log"); expected: $2"
  [[ $((SECONDS - begin)) -le 20 ]] || fail "rank $1 took $((SECONDS - begin)) s to end"
  echo "ok: $(grep -E -- "$2" "rank$1.log" | head -n 1)"
  checks=$((checks + 1))
}

# Both hosts together compute what one does.
expect_success "$BIN/clip_train" --config "$TINY" name=one_host
start name=two_hosts
for i in 0 1; do
  wait "${pids[i]}" || fail "rank $i: $(cat "rank$i.log")"
done
# To rounding, until that moves some activation across ReLU's bend.
paste <(losses runs/one_host) <(losses runs/two_hosts) | awk '
  { difference = ($2 > $4 ? $2 - $4 : $4 - $2) / $2; if (difference > largest) largest = difference }
  $1 != $3 || difference > (NR <= 5 ? 1e-5 : 1e-2) { wrong = 1 }
  END { printf "losses: %d steps, largest relative difference %.1e\n", NR, largest; exit wrong || NR != 60 }' ||
  fail "the losses of one and two hosts differ"
checks=$((checks + 1))

start_and_wait failing
kill -9 "${pids[1]}"
wait "${pids[1]}" 2>/dev/null || true
expect_end 0 'rank 1 '

start_and_wait failing
kill -9 "${pids[0]}"
wait "${pids[0]}" 2>/dev/null || true
expect_end 1 'rank 0'

# The connection breaks without a word, as when a machine loses its power.
start_and_wait failing
ip -n "${hosts[0]}" link set wire down
expect_end 0 'rank 1 '
expect_end 1 'error: rank 1: |rank 0'
echo "$checks checks passed"
