# Stages with a name, a time and a row of the time budget; shared by tests/run and .ci/run (source it).
#
#   stage ROW TITLE COMMAND...   runs COMMAND, remembers its seconds; a failure ends the script with its name
#   room ROW TITLE COMMAND...    a failure is remembered, and what comes after still runs
#
# ROW is a row of the budget below. Times and test counts go through two files, so that a script called by
# another adds to the same table.

# Minutes that each part may take on two cores, from nothing.
budget_minutes() {
  case "$1" in
    tools) echo 7 ;; host) echo 13 ;; arm) echo 14 ;; foundation) echo 8 ;; mapping) echo 4 ;;
    store) echo 6 ;; fhir) echo 4 ;; event-hubs) echo 2 ;; devices) echo 6 ;;
  esac
}
BUDGET_ROWS="tools host arm foundation mapping store fhir event-hubs devices"

if [ -z "${STAGE_FOLDER:-}" ]; then
  STAGE_FOLDER=$(mktemp -d)
  export STAGE_FOLDER
  stage_owner=yes
fi
touch "$STAGE_FOLDER/times" "$STAGE_FOLDER/counts"
stage_current=""
rooms_failed=""

stage() {
  local row=$1 title=$2 begin=$SECONDS
  shift 2
  stage_current="$title"
  printf '\n=== %s (%s)\n' "$title" "$row"
  "$@"
  printf '%s\t%s\t%d\n' "$row" "$title" $((SECONDS - begin)) >>"$STAGE_FOLDER/times"
  printf -- '--- %s: %d s\n' "$title" $((SECONDS - begin))
  stage_current=""
}

room() {
  local row=$1 title=$2 begin=$SECONDS outcome=ok
  shift 2
  printf '\n=== %s (%s)\n' "$title" "$row"
  "$@" || { outcome=FAILED; rooms_failed="$rooms_failed [$title]"; }
  printf '%s\t%s\t%d\n' "$row" "$title" $((SECONDS - begin)) >>"$STAGE_FOLDER/times"
  printf -- '--- %s: %s, %d s\n' "$title" "$outcome" $((SECONDS - begin))
}

# Runs a test runner and adds its closing counts (nextest's summary or cargo test's results) to the total.
counted() {
  local output="$STAGE_FOLDER/output" status=0
  "$@" 2>&1 | tee "$output" || status=$?
  sed 's/\x1b\[[0-9;]*m//g' "$output" | awk '
    /^ *Summary \[/ || /^test result:/ {
      gsub(/[,.;]/, "")
      for (i = 2; i <= NF; i++) {
        if ($i == "passed") passed += $(i - 1)
        if ($i == "failed") failed += $(i - 1)
        if ($i == "timed" && $(i + 1) == "out") failed += $(i - 1)
      }
    }
    END { print passed + 0, failed + 0 }' >>"$STAGE_FOLDER/counts"
  return "$status"
}

# The table of stages, each row against its budget.
stage_table() {
  local row seconds limit total=0 over=""
  printf '\n%-58s %8s\n' "stage" "seconds"
  awk -F'\t' '{ printf "  %-56s %8d\n", $2, $3 }' "$STAGE_FOLDER/times"
  printf '\n%-58s %8s %8s\n' "budget row" "minutes" "budget"
  for row in $BUDGET_ROWS; do
    seconds=$(awk -F'\t' -v row="$row" '$1 == row { sum += $3 } END { print sum + 0 }' "$STAGE_FOLDER/times")
    limit=$(budget_minutes "$row")
    total=$((total + seconds))
    printf '  %-56s %8s %8s' "$row" "$((seconds / 60)):$(printf %02d $((seconds % 60)))" "$limit"
    if [ "$seconds" -gt $((limit * 60)) ]; then
      printf '  OVER BUDGET'
      over="$over $row"
    fi
    printf '\n'
  done
  printf '  %-56s %8s\n' "together" "$((total / 60)):$(printf %02d $((total % 60)))"
  [ -z "$over" ] || printf 'over budget:%s\n' "$over"
}

# The last word: how many tests ran in all stages together.
closing_line() {
  awk '{ passed += $1; failed += $2 } END { printf "%d passed, %d failed\n", passed, failed }' "$STAGE_FOLDER/counts"
}

tests_ran() { [ "$(awk '{ sum += $1 + $2 } END { print sum + 0 }' "$STAGE_FOLDER/counts")" -gt 0 ]; }

stages_end() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ] && [ -n "$stage_current" ]; then
    printf '\nFAILED in stage: %s (exit code %d)\n' "$stage_current" "$status" >&2
  fi
  [ -z "${stage_owner:-}" ] || rm -rf "$STAGE_FOLDER"
  exit "$status"
}
trap stages_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
