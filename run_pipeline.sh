#!/usr/bin/env bash
# The whole pipeline in pseudo mode: from the dataset to optimised configurations and pictures.
#
#     bash run_pipeline.sh                                   # all ten domains, built-in example
#     bash run_pipeline.sh --domains 0,3,7 --jobs 1
#     bash run_pipeline.sh --set BANDWIDTH_MBPS=20 EPSILON=0.01
#     bash run_pipeline.sh --set PICK=knee                   # after a run: picks again, searches nothing (docs/frontier.md)
#     PROFILE=imagenet DATA_PATH=/data/imagenet/val bash run_pipeline.sh
#
#   --domains 0,3,7      only these domains; 0-4 for a range
#   --jobs N             domains searched at the same time (default: what the cores allow)
#   --engine E           where: processes (default), serial, or ray (the cluster at RAY_ADDRESS, or this machine)
#   --with_sequential    also run the sequential baseline: prune by importance first, then choose γ and λ
#   --force              run every step, also those whose output is up to date
#   --set NAME=VALUE...  override settings of config.py in every step
#
# The steps, in this order (docs/commands.md says more):
#   partition             create_noniid_partition.py          which images belong to which domain
#   task 1                code1_train_and_record_weights.py   α of every domain
#   task 2                code2_calculate_flops_importance.py FLOPs and importance of every branch
#   roofline              roofline_measure.py                 peak rate and memory bandwidth of each tier
#   step 1                step1_measure_lut.py                the table: times of every block on both tiers
#   step 2                step2_initial_throughput_opt.py     γ and λ without pruning
#   baseline, first half  step3_accuracy_opt.py               prunes by importance alone (--with_sequential)
#   baseline, second half step4_final_throughput_opt.py       γ and λ for that network (--with_sequential)
#   step 3                step_3_joint.py                     α, γ and λ of each domain together
#   step 5                step5_visualize_results.py          pictures and a summary
#
# Relative paths (DATA_PATH, RESULTS_DIR, ...) are those of the folder where the command is typed; what is not given lies
# beside this script. A step runs only when what it is made from has changed since its output was written.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"

absolute() {  # setting, value: paths are those of the folder where the command was typed, if that is not this one
    case $1 in
        DATA_PATH|PARTITION_FILE|RESULTS_DIR|WEIGHT_PATH_SERVER|WEIGHT_PATH_CLIENT) ;;
        DEVICE_PROFILE) [ -f "$caller/$2" ] || { printf '%s' "$2"; return; } ;;  # else the name of one
        *) printf '%s' "$2"; return ;;
    esac
    case $2 in ''|/*) printf '%s' "$2" ;; *) printf '%s' "$caller/$2" ;; esac
}
if ! [ "$caller" -ef . ]; then
    for name in DATA_PATH PARTITION_FILE RESULTS_DIR WEIGHT_PATH_SERVER WEIGHT_PATH_CLIENT DEVICE_PROFILE; do
        [ -z "${!name:-}" ] || export "$name=$(absolute "$name" "${!name}")"
    done
fi

fail() { echo "run_pipeline.sh: error: $1" >&2; exit 2; }

domains=() overrides=() if_changed=(--if_changed) at_once=() sequential=0
while [ $# -gt 0 ]; do
    case $1 in
        --domains) [ $# -ge 2 ] || fail "--domains needs a list such as 0,3,7"; domains=(--domains "$2"); shift 2 ;;
        --domains=*) domains=(--domains "${1#*=}"); shift ;;
        --jobs) [ $# -ge 2 ] || fail "--jobs needs a number"
            case $2 in *[!0-9]*|0|'') fail "--jobs '$2': must be a whole number above 0" ;; esac
            at_once+=(--jobs "$2"); shift 2 ;;
        --engine) [ $# -ge 2 ] || fail "--engine needs a name"
            case $2 in serial|processes|ray) ;; *) fail "--engine '$2': must be serial, processes or ray" ;; esac
            at_once+=(--engine "$2"); shift 2 ;;
        --with_sequential) sequential=1; shift ;;
        --force) if_changed=(); shift ;;
        --set) shift; while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do
                case $1 in *=*) [ "$caller" -ef . ] || set -- "${1%%=*}=$(absolute "${1%%=*}" "${1#*=}")" "${@:2}" ;; esac
                overrides+=(--set "$1"); shift
            done ;;
        -h|--help) sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$(basename "$0")"; exit 0 ;;
        *) fail "unknown argument '$1'; see --help" ;;
    esac
done
. ./setup_environment.sh
setup_environment requirements.txt

# Settings and flags are checked once, before any work; `chosen` is the list of domains: 0,3,7.
chosen=$(python -m engines.many_domains "${overrides[@]+"${overrides[@]}"}" "${domains[@]+"${domains[@]}"}" \
    "${at_once[@]+"${at_once[@]}"}") || exit $?

# A signal goes on to the step that runs, which ends its own workers. Bash alone would wait for the step first (SIGINT) or
# leave it behind (SIGTERM, SIGHUP). With `set -m` the step is not one that ignores SIGINT.
child=
end() {  # signal, its number
    trap - INT TERM HUP
    [ -z "$child" ] || { kill -s "$1" "$child" 2>/dev/null && wait "$child" || true; }
    exit $((128 + $2))
}
trap 'end INT 2' INT
trap 'end TERM 15' TERM
trap 'end HUP 1' HUP
run() {  # arguments of python
    local status=0
    set -m; python "$@" & child=$!; set +m
    wait "$child" || status=$?
    child=
    return $status
}

seconds() {  # since the machine started: the clock may be set meanwhile
    local up
    if read -r up _ 2>/dev/null < /proc/uptime; then echo "${up%.*}"; else echo "$SECONDS"; fi
}

started=$(seconds)
step() {  # title, script, arguments
    local title=$1 start; start=$(seconds); shift
    echo "== $title" >&2
    run "$@" "${if_changed[@]+"${if_changed[@]}"}" "${overrides[@]+"${overrides[@]}"}"
    echo "   took $(($(seconds) - start)) s" >&2
}

step 'partition: which images belong to which domain' create_noniid_partition.py
step 'task 1: α of every domain' code1_train_and_record_weights.py "${domains[@]+"${domains[@]}"}"
step 'task 2: FLOPs and importance of every branch' code2_calculate_flops_importance.py
step 'roofline: server' roofline_measure.py --tier server
step 'roofline: client' roofline_measure.py --tier client --keep_measured
step 'step 1: table of the server' step1_measure_lut.py --mode server
step 'step 1: table of the client' step1_measure_lut.py --mode client --keep_measured
step 'step 1: complete table' step1_measure_lut.py --mode merge
step 'step 2: γ and λ without pruning' step2_initial_throughput_opt.py --pruning_follows

failed=0
each_domain() {  # title, script, arguments: all chosen domains; one that fails does not stop others
    local title=$1 status=0 start; start=$(seconds); shift
    echo "== $title, domains $chosen" >&2
    run "$@" --domains "$chosen" "${at_once[@]+"${at_once[@]}"}" "${if_changed[@]+"${if_changed[@]}"}" \
        "${overrides[@]+"${overrides[@]}"}" || status=$?
    [ "$status" -lt 128 ] || exit "$status"  # it was ended by a signal
    [ "$status" -eq 0 ] || failed=$status
    echo "   took $(($(seconds) - start)) s" >&2
}

if [ "$sequential" -eq 1 ]; then
    each_domain 'baseline, first half: pruning by importance alone' step3_accuracy_opt.py
    each_domain 'baseline, second half: γ and λ for that network' step4_final_throughput_opt.py
fi
each_domain 'step 3: α, γ and λ together' step_3_joint.py --mode pseudo
step 'step 5: pictures and a summary' step5_visualize_results.py
echo "== done in $(($(seconds) - started)) s" >&2
if [ "$failed" -ne 0 ]; then
    echo "run_pipeline.sh: error: a domain failed, see above; the same command goes on with what is missing" >&2
    exit "$failed"
fi
