#!/usr/bin/env bash
# Everything that wants a GPU: tests, benchmarks, compute-sanitizer.  Where evidens is not installed
# it is built with g++ beside the source tree, so that no network is needed.
#
#   scripts/gpu.sh build|test|bench|sanitize [arguments of pytest or of the benchmarks]
#
# PYTHON   the interpreter with torch, triton, pybind11 and pytest (default python3)
# OUT      folder of the reports (default build/gpu/out)
# LIMIT    seconds for all of it, after which it is stopped and reports so far stay (default none)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-0}
ROOT=$PWD/build/gpu
OUT=${OUT:-$ROOT/out}
what=${1:?build, test, bench or sanitize}
shift
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)

build() { # links to the tree, one extension, and a name for importlib.metadata
    local site=$ROOT/site version includes suffix stamp file name source level march
    if [ "$(uname -m)" != x86_64 ]; then
        echo 'scripts/gpu.sh builds for x86-64; elsewhere install evidens for PYTHON first' >&2
        exit 1
    fi
    mkdir -p "$ROOT/obj" "$site/evidens"
    for file in python/evidens/* kernels bench; do
        name=${file##*/}
        [ "$name" = __pycache__ ] || ln -sfn "$PWD/$file" "$site/evidens/$name"
    done
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    mkdir -p "$site/evidens-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: evidens\nVersion: %s\n' "$version" \
        >"$site/evidens-$version.dist-info/METADATA"
    includes=$("$PYTHON" -c 'import pybind11, sysconfig
print("-I" + pybind11.get_include(), "-I" + sysconfig.get_paths()["include"])')
    suffix=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
    stamp=$(cat csrc/*.cpp csrc/*.h "$0" | sha256sum | cut -c1-16)
    if [ "$(cat "$ROOT/obj/stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -f "$ROOT"/obj/*
    fi
    # As in CMakeLists.txt.  Objects that are there are of these sources.
    local common='-std=gnu++20 -fPIC -fvisibility=hidden -O3'
    local strict='-fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-exceptions -fno-rtti'
    for source in csrc/*.cpp; do
        name=$(basename "$source" .cpp)
        for level in v2 v3 v4; do
            [ "$name" = module ] && continue
            march="-march=x86-64-$level"
            [ "$level" = v4 ] && march+=' -mprefer-vector-width=512'
            file=$ROOT/obj/$name.$level.o
            [ -e "$file" ] ||
                echo "${CXX:-g++} $common $strict $march -DEVIDENS_LEVEL=$level -c $source -o $file"
        done
    done | xargs -P "${JOBS:-$(nproc)}" -I{} sh -c '{}'
    echo "$stamp" >"$ROOT/obj/stamp"
    file=$ROOT/obj/module$suffix.object
    # shellcheck disable=SC2086
    [ -e "$file" ] || "${CXX:-g++}" $common $includes -c csrc/module.cpp -o "$file"
    "${CXX:-g++}" -shared -o "$site/evidens/_C$suffix" "$ROOT"/obj/*.o "$file"
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

"$PYTHON" -c 'import evidens' 2>/dev/null || build
export PYTHONUNBUFFERED=1
"$PYTHON" -m evidens info

part() { # name, command...: its log, and its status
    local name=$1 status=0 left=$LIMIT
    shift
    if [ "$LIMIT" -gt 0 ]; then
        left=$((LIMIT > SECONDS ? LIMIT - SECONDS : 1))
    fi
    echo "== $name, from second $SECONDS"
    timeout -k 10 "$left" "$@" 2>&1 | tee "$OUT/$name.log" || status=$?
    if [ "$status" = 124 ]; then
        echo "== $name was stopped: $LIMIT seconds are over" | tee -a "$OUT/$name.log"
    fi
    return "$status"
}

pytest=("$PYTHON" -m pytest -q -p no:cacheprovider)
case $what in
build) ;;
test)
    export FAIL_WITHOUT_CUDA=1
    # Compiling the kernels takes longer than running them.
    if "$PYTHON" -c 'import xdist' 2>/dev/null; then pytest+=(-n "${JOBS:-8}"); fi
    failed=0
    for folder in ${FOLDERS:-gpu kernels models}; do
        # Kernels choose the GPU by themselves; what only compiles is part of `make test`.
        only=(-m needs_cuda)
        [ "$folder" = kernels ] && only=(--ignore=tests/kernels/test_compile_sm90.py)
        part "test-$folder" "${pytest[@]}" --junitxml="$OUT/test-$folder.xml" \
            "${only[@]}" "$@" "tests/$folder" || failed=1
    done
    exit $failed
    ;;
bench)
    # With --device cpu --size smoke the code is tried without a GPU.
    [ $# -gt 0 ] || set -- --device cuda --json "$OUT"
    part bench "$PYTHON" -m evidens bench "$@"
    ;;
sanitize)
    if ! command -v compute-sanitizer >/dev/null; then
        echo 'compute-sanitizer is not on the PATH: it comes with the CUDA toolkit' >&2
        exit 1
    fi
    # torch's own cache of memory would hide what is out of bounds.
    export FAIL_WITHOUT_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1
    part "sanitize-${TOOL:-memcheck}" compute-sanitizer --tool "${TOOL:-memcheck}" \
        --error-exitcode 9 --target-processes all \
        "${pytest[@]}" -k "${SELECT:-equals_the_reference and 37}" "$@" tests/gpu/test_ops.py
    ;;
*)
    echo "scripts/gpu.sh: expected build, test, bench or sanitize, got $what" >&2
    exit 1
    ;;
esac
