#!/usr/bin/env bash
# Everything that wants a GPU, on a machine that has one and no network: builds _C with g++ and the
# python3 that holds torch, then runs tests and benchmarks of the source tree.
#
#   scripts/gpu.sh test|bench|sanitize [arguments of pytest or of the benchmarks]
#
# PYTHON   the interpreter with torch, triton, pybind11 and pytest (default python3)
# OUT      folder of the reports (default build/gpu/out)
# LIMIT    seconds after which a part is stopped (default 540); what was written by then stays
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-540}
ROOT=$PWD/build/gpu
OUT=${OUT:-$ROOT/out}
export OUT
mkdir -p "$OUT" "$ROOT/obj" "$ROOT/site/evidens"
OUT=$(cd "$OUT" && pwd)
what=${1:?test, bench or sanitize}
shift

# --- the build: links to the tree, one extension, and a name for importlib.metadata ---------------

site=$ROOT/site
for file in python/evidens/*; do
    name=${file##*/}
    [ "$name" = __pycache__ ] || ln -sfn "$PWD/$file" "$site/evidens/$name"
done
ln -sfn "$PWD/kernels" "$site/evidens/kernels"
ln -sfn "$PWD/bench" "$site/evidens/bench"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
mkdir -p "$site/evidens-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: evidens\nVersion: %s\n' "$version" \
    >"$site/evidens-$version.dist-info/METADATA"

if [ "$(uname -m)" != x86_64 ]; then
    echo "scripts/gpu.sh builds for x86-64; elsewhere install the wheel and use VENV (make help)" >&2
    exit 1
fi
includes=$("$PYTHON" -c 'import pybind11, sysconfig
print("-I" + pybind11.get_include(), "-I" + sysconfig.get_paths()["include"])')
suffix=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
common='-std=gnu++20 -fPIC -fvisibility=hidden -O3'
# As in CMakeLists.txt.
strict='-fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-exceptions -fno-rtti'
stamp=$(cat csrc/*.cpp csrc/*.h "$0" | sha256sum | cut -c1-16)$suffix
if [ "$(cat "$ROOT/stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "== building _C with ${CXX:-g++}"
    rm -f "$ROOT"/obj/*.o
    for source in csrc/*.cpp; do
        name=$(basename "$source" .cpp)
        if [ "$name" = module ]; then
            echo "${CXX:-g++} $common $includes -c $source -o $ROOT/obj/module.o"
            continue
        fi
        for level in v2 v3 v4; do
            march="-march=x86-64-$level"
            [ "$level" = v4 ] && march+=" -mprefer-vector-width=512"
            echo "${CXX:-g++} $common $strict $march -DEVIDENS_LEVEL=$level -c $source" \
                "-o $ROOT/obj/$name.$level.o"
        done
    done | xargs -P "${JOBS:-$(nproc)}" -I{} sh -c '{}'
    "${CXX:-g++}" -shared -o "$site/evidens/_C$suffix" "$ROOT"/obj/*.o
    echo "$stamp" >"$ROOT/stamp"
fi
# Where python3 sees no installed evidens, this is the one; where it does, this one comes first.
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$PYTHON" -m evidens info

# --- the parts ------------------------------------------------------------------------------------

part() { # name, command...: its log and its status, and on to the next
    local name=$1 status=0
    shift
    echo "== $name"
    timeout -k 15 "$LIMIT" "$@" 2>&1 | tee "$OUT/$name.log" || status=$?
    [ "$status" = 124 ] && echo "== $name: stopped after $LIMIT s" | tee -a "$OUT/$name.log"
    return "$status"
}

case $what in
test)
    export FAIL_WITHOUT_CUDA=1
    failed=0
    for folder in ${FOLDERS:-kernels gpu}; do
        part "test-$folder" "$PYTHON" -P -m pytest -q -p no:cacheprovider \
            --junitxml="$OUT/test-$folder.xml" "$@" "tests/$folder" || failed=1
    done
    exit $failed
    ;;
bench)
    part bench "$PYTHON" -m evidens bench --device "${DEVICE:-cuda}" --size "${SIZE:-full}" \
        $([ "${DEVICE:-cuda}" = cuda ] && [ "${SIZE:-full}" = full ] && echo --json "$OUT") "$@"
    ;;
sanitize)
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit" >&2
        exit 1
    fi
    # torch's own cache of memory would hide what is out of bounds.
    export FAIL_WITHOUT_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1
    part sanitize compute-sanitizer --tool "${TOOL:-memcheck}" --error-exitcode 9 \
        --target-processes all "$PYTHON" -P -m pytest -q -p no:cacheprovider -x \
        -k "${SELECT:-equals_the_reference and 37}" "$@" tests/gpu/test_ops.py
    ;;
*)
    echo "scripts/gpu.sh: expected test, bench or sanitize, got $what" >&2
    exit 1
    ;;
esac
