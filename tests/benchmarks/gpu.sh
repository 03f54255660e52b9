#!/usr/bin/env bash
# Everything that is to be measured on a machine with a graphics card, unattended, in parts of at most ten minutes.
#
#   tests/benchmarks/gpu.sh            all parts that are not done yet, one after the other, and the report
#   tests/benchmarks/gpu.sh next       the next such part alone; status 75: there is more to do
#
# Parts: the tests marked cuda; the benchmarks of the full-size networks; the plan of a run; the run, as many parts as it
# takes, each of which goes on where the last one was stopped. What is done is kept in OUT, from where another call, or
# another machine that OUT was copied to, goes on.
#
# Variables: DEVICE (cuda), PRESET (gpu), FULL (paper), GAME (Pong), ENVS ("1 16 256 4096"), BATCH (1024),
# OUT (build/gpu), LIMIT (600 seconds a part), PYTHON (.venv/bin/python, or python3 where there is none).
# Rehearsed without a card:
#   DEVICE=cpu PRESET=smoke FULL=smoke ENVS="1 16" BATCH=4 OUT=build/rehearsal tests/benchmarks/gpu.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

DEVICE=${DEVICE:-cuda} PRESET=${PRESET:-gpu} FULL=${FULL:-paper} GAME=${GAME:-Pong}
ENVS=${ENVS:-1 16 256 4096} BATCH=${BATCH:-1024} OUT=${OUT:-build/gpu} LIMIT=${LIMIT:-600}
if [ -z "${PYTHON:-}" ]; then
	PYTHON=python3
	[ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
MORE=75
RUN=$OUT/run
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$OUT"

# A run that is asked to stop says how to go on, and ends within seconds.
limited() { timeout --signal=TERM --kill-after=60 "$((LIMIT - 60 > 0 ? LIMIT - 60 : LIMIT))" "$@"; }

tests() {
	# shellcheck disable=SC2046
	limited "$PYTHON" -m pytest -q -m cuda $(grep -l mark.cuda tests/test_*.py)
}

bench() {
	# shellcheck disable=SC2086
	limited "$PYTHON" tests/benchmarks/bench.py --parts full --preset "$PRESET" --full "$FULL" --device "$DEVICE" \
		--envs $ENVS --batch "$BATCH" --out "$OUT/bench.json"
}

plan() {
	limited "$PYTHON" -m dreamgym plan --preset "$PRESET" --game "$GAME" --device "$DEVICE" --json >"$OUT/plan.tmp" &&
		mv "$OUT/plan.tmp" "$OUT/plan.json"
}

train() {
	local before after status resume=()
	[ -f "$RUN/config.json" ] && resume=(--resume)
	before=$(cat "$RUN/progress.json" 2>/dev/null)
	limited "$PYTHON" -m dreamgym train --preset "$PRESET" --game "$GAME" --seed 0 --device "$DEVICE" --out "$RUN" "${resume[@]}"
	status=$?
	[ $status = 0 ] && return 0
	after=$(cat "$RUN/progress.json" 2>/dev/null)
	if [ $status != 124 ] && [ $status != 143 ]; then
		return $status
	elif [ "$before" = "$after" ]; then
		echo "gpu.sh: no phase of the run was finished within LIMIT=$LIMIT seconds; raise it." >&2
		return 1
	fi
	return $MORE
}

report() {
	"$PYTHON" tests/benchmarks/gpu_report.py "$OUT" | tee "$OUT/report.txt"
}

# The next part that is not done; status 0 when it is now, MORE when it has to be gone on with.
next() {
	local part status
	for part in tests bench plan train; do
		[ -e "$OUT/$part.done" ] && continue
		echo "== $part: $(date -u +%FT%TZ)" >&2
		"$part" 2>&1 | tee -a "$OUT/$part.log"
		status=${PIPESTATUS[0]}
		[ "$status" = 0 ] && touch "$OUT/$part.done"
		return "$status"
	done
}

finished() { [ -e "$OUT/train.done" ]; }

case ${1:-all} in
all)
	until finished; do
		next
		status=$?
		[ $status = 0 ] || [ $status = $MORE ] || exit $status
	done
	report
	;;
next)
	next || exit $?
	finished || exit $MORE
	report
	;;
*)
	echo "gpu.sh: expected no argument or next, got $1." >&2
	exit 2
	;;
esac
