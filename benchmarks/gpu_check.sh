#!/usr/bin/env bash
# All that a GPU has to say about this checkout, in under nine minutes and without a network. See --help.
set -uo pipefail

usage() {
  cat <<'TEXT'
usage: benchmarks/gpu_check.sh [OPTIONS]

Builds in place, then on the GPU: the tests of tests/gpu, compute-sanitizer over every layout of kernel, and the benchmark. A step that
fails stops no later one. Last comes a summary; all of it goes into one file, FOLDER/gpu-check.json, logs beside it.
Needs a GPU, nvcc, torch >= 2.11 with CUDA, pytest, hypothesis; nothing is fetched.

  --python PYTHON    the one that has torch (default: python3)
  --library FILE     a CPU library (ensdistill/_cpu*.so) built against another torch, to be loaded under this one
  --wheels FOLDER    wheels of Liger-Kernel and what else the benchmark may compare with; installed into FOLDER of --out
  --commit HASH      what is checked, where there is no .git
  --out FOLDER       default: build/gpu-check
  --full             all shapes of the benchmark, as far as the time goes, instead of sixteen
  --seconds N        for everything (default: 530)
  --dry-run          say what would run, run nothing, write the file nevertheless
TEXT
}

python=python3 library='' wheels='' commit='' out=build/gpu-check shapes=--quick total=530 dry=''
while (($#)); do
  case $1 in
    --python | --library | --wheels | --commit | --out | --seconds)
      (($# > 1)) || { echo "$1: expected a value" >&2; exit 2; }
      case $1 in
        --python) python=$2 ;; --library) library=$(realpath -m -- "$2") ;; --wheels) wheels=$(realpath -m -- "$2") ;;
        --commit) commit=$2 ;; --out) out=$2 ;; --seconds) total=$2 ;;
      esac
      shift 2 ;;
    --full) shapes=''; shift ;;
    --dry-run) dry=yes; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "$1: no such option" >&2; usage >&2; exit 2 ;;
  esac
done
[[ $total =~ ^[0-9]+$ ]] || { echo "--seconds: expected a number; got $total" >&2; exit 2; }
[[ -z $library || -f $library ]] || { echo "--library: no such file: $library" >&2; exit 2; }
[[ -z $wheels || -d $wheels ]] || { echo "--wheels: no such folder: $wheels" >&2; exit 2; }
out=$(realpath -m -- "$out")
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
mkdir -p -- "$out" && rm -f -- "$out"/*.log "$out"/steps.tsv "$out"/benchmark.json "$out"/gpu-check.json || exit 2
: >"$out/steps.tsv"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
MAX_JOBS=${MAX_JOBS:-$(nproc)} && export MAX_JOBS
SECONDS=0

# note NAME OUTCOME SECONDS REASON
note() {
  printf '%s\t%s\t%s\t%s\n' "$@" >>"$out/steps.tsv"
  printf '%-16s %-8s %5s s  %s\n' "$@"
}

# step NAME LIMIT REASON COMMAND...: REASON is why it can't run; empty if it can. Nothing outlives the time for everything.
step() {
  local name=$1 limit=$2 reason=$3 left begin=$SECONDS status
  shift 3
  left=$((total - SECONDS))
  ((limit < left)) || limit=$left
  if [[ -n $reason ]]; then
    note "$name" skipped 0 "$reason"
  elif [[ -n $dry ]]; then
    note "$name" planned 0 "at most $limit s: $*"
  elif ((limit < 5)); then
    note "$name" skipped 0 "the time for everything is spent"
  else
    # INT first: the benchmark then ends in order.
    timeout --signal=INT --kill-after=15 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    case $status in
      0) note "$name" ok $((SECONDS - begin)) '' ;;
      124 | 137) note "$name" timeout $((SECONDS - begin)) "longer than $limit s; see $name.log" ;;
      *) note "$name" failed $((SECONDS - begin)) "exit status $status; see $name.log" ;;
    esac
    return $status
  fi
}

no_gpu='' no_nvcc='' no_sanitizer='' no_kernels=''
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || no_gpu="no GPU, or a torch without CUDA ($python)"
command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] || no_nvcc='no nvcc'
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
[[ -x $sanitizer ]] || no_sanitizer='no compute-sanitizer'

step build 180 "${no_gpu:-$no_nvcc}" "$python" setup.py -q build_ext --inplace
# Nothing has changed: seconds, or the build doesn't know what it has built.
step rebuild 30 "${no_gpu:-$no_nvcc}" "$python" setup.py -q build_ext --inplace
load='from ensdistill.loss.ops import build_info as b; from ensdistill.loss.explain import kernel_plan as p; print(b(), p(8192, 1000)); assert b()["cuda"]["built"]'
step load 30 "$no_gpu" "$python" -c "$load" || no_kernels='the CUDA kernels were not built, or do not load'
blocked=${no_gpu:-$no_kernels}
# Few processes share the GPU, or one where pytest-xdist isn't there: the project's own options are for machines of many cores.
spread=()
"$python" -c 'import xdist' 2>/dev/null && spread=(-n 4 --dist loadfile)
step tests 150 "$blocked" "$python" -m pytest -o addopts= ${spread[@]+"${spread[@]}"} tests/gpu tests/cuda/test_no_gpu.py -q --maxfail=200 \
  -p no:cacheprovider
for tool in memcheck racecheck synccheck; do
  # Each tensor in an allocation of its own, or what lies beside it in torch's pool hides an access out of bounds.
  step "$tool" 60 "${blocked:-$no_sanitizer}" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
    "$python" -m benchmarks.sanitize
done
no_library='no --library given' no_wheels='no --wheels given'
[[ -z $library ]] || no_library=''
[[ -z $wheels ]] || no_wheels=''
step library 30 "$no_library" "$python" benchmarks/foreign_library.py "$library"
step wheels 60 "$no_wheels" "$python" -m pip install -q --no-index --no-deps --upgrade --target "$out/site" "$wheels"/*.whl
[[ -n $no_wheels ]] || export PYTHONPATH="$PWD:$out/site:$PYTHONPATH"
# What is left, less what writing the summary takes. An interrupted benchmark keeps the shapes that it has measured.
step benchmark $((total - SECONDS - 20)) "$blocked" "$python" -m benchmarks kernels $shapes --device cuda --out "$out/benchmark.json"

"$python" benchmarks/gpu_result.py "$out" "$SECONDS" "$commit"
