#!/usr/bin/env bash
# ./bootstrap.sh [--cuda] <recipe> [arguments]: finds or fetches what the build needs, then runs a recipe of the justfile.
# Needs a Rust toolchain, a C++ compiler and Python 3 with pip (or LIBTORCH). Everything is pinned, checked and fetched once.
set -euo pipefail

TORCH=2.13.0
CUDART=13.0.96
CUPTI=13.0.85
JUST=1.59.0
FFMPEG=0.8.1
# sha256 of the files that pip fetches for Linux on x86-64.
declare -A SHA256=(
  [torch]=60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7
  [nvidia_cuda_runtime]=7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
  [nvidia_cuda_cupti]=4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
  [rust_just]=3ee47f26e3aff917107602d57a08ede20df447f78dc4f9ceb08e57a883c56eb9
  [imageio_ffmpeg]=050d6850601c3b3890bd2b28306f3b842b3daea390a561101174375a1c460bda
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VIREO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vireo}
cuda=${VIREO_CUDA:-0}

say() { printf 'bootstrap: %s\n' "$*" >&2; }
die() { printf 'bootstrap: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

while [ $# -gt 0 ]; do
  case $1 in
    --cuda) cuda=1; shift ;;
    --help|-h) sed -n '2,3p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --*) die "unknown option $1: expected --cuda, then a recipe (see the justfile)" ;;
    *) break ;;
  esac
done

have cargo || die "cargo is missing: install Rust from https://rustup.rs"
have c++ || have g++ || have clang++ || die "a C++ compiler is missing: install g++ or clang (Debian: apt-get install g++)"
mkdir -p "$cache/bin" || die "cannot write $cache: set VIREO_CACHE to a folder that can be written"

# One bootstrap at a time per cache.
if have flock; then
  exec 9>"$cache/lock"
  flock 9
fi

need_pip() {
  have python3 && python3 -m pip --version >/dev/null 2>&1 ||
    die "Python 3 with pip is missing, and with it the way to fetch $1 (Debian: apt-get install python3-pip)"
}

# fetch_wheel NAME PACKAGE==VERSION FOLDER: one wheel for Linux x86-64, checked against its pinned sum.
fetch_wheel() {
  local name=$1 package=$2 folder=$3 platforms=() p wheel sum
  for p in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_25_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64; do
    platforms+=(--platform "$p")
  done
  say "fetching $package"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
    --implementation cp --abi cp311 --abi abi3 --abi none "${platforms[@]}" --dest "$folder" "$package" >&2 ||
    die "could not fetch $package: check the network, or set LIBTORCH to a libtorch $TORCH folder"
  wheel=$(echo "$folder/${name}"-*.whl)
  [ -f "$wheel" ] || die "pip fetched no wheel of $package"
  sum=$(python3 -c 'import hashlib,sys; print(hashlib.file_digest(open(sys.argv[1],"rb"),"sha256").hexdigest() if hasattr(hashlib,"file_digest") else hashlib.sha256(open(sys.argv[1],"rb").read()).hexdigest())' "$wheel")
  [ "$sum" = "${SHA256[$name]}" ] || die "$(basename "$wheel") has sha256 $sum, expected ${SHA256[$name]}: the download is damaged or was replaced"
  printf '%s' "$wheel"
}

# unpack WHEEL FOLDER PREFIX...: the members under the prefixes.
unpack() {
  python3 - "$@" <<'PY' || die "cannot unpack $(basename "$1"): is the disk full?"
import sys, zipfile
wheel, folder, *prefixes = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if not prefixes or any(name.startswith(prefix) for prefix in prefixes):
            archive.extract(name, folder)
PY
}

# The PyPI wheel is the CUDA build; its CPU half works alone once libtorch.so links to that half only.
cpu_from_wheel() {
  local target=$1 work wheel
  work=$(mktemp -d "$cache/unpack.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  wheel=$(fetch_wheel torch "torch==$TORCH" "$work")
  unpack "$wheel" "$work" torch/include/ torch/lib/libc10.so torch/lib/libtorch_cpu.so torch/lib/libgomp
  rm -f "$wheel"
  wheel=$(fetch_wheel nvidia_cuda_runtime "nvidia-cuda-runtime==$CUDART" "$work")
  unpack "$wheel" "$work"
  wheel=$(fetch_wheel nvidia_cuda_cupti "nvidia-cuda-cupti==$CUPTI" "$work")
  unpack "$wheel" "$work"
  mkdir "$work/out" "$work/out/lib"
  mv "$work/torch/include" "$work/out/include"
  mv "$work"/torch/lib/* "$work/out/lib/"
  find "$work/nvidia" \( -name 'libcudart.so.*' -o -name 'libcupti.so.*' \) -exec mv {} "$work/out/lib/" \;
  (cd "$work/out/lib" && "$(command -v c++ || command -v g++ || command -v clang++)" -shared -o libtorch.so \
    -Wl,--no-as-needed -L. -ltorch_cpu -lc10 "-Wl,-rpath,\$ORIGIN") || die "the C++ compiler cannot link libtorch.so"
  echo "$TORCH+cpu" >"$work/out/build-version"
  rm -rf "$target"
  mv "$work/out" "$target"
  rm -rf "$work"
  trap - EXIT
}

# The whole wheel with its nvidia packages, in one lib folder.
cuda_from_wheel() {
  local target=$1 work
  work=$(mktemp -d "$cache/unpack.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  say "fetching the CUDA build of torch $TORCH (several GB)"
  python3 -m pip install --quiet --disable-pip-version-check --target "$work/site" "torch==$TORCH" >&2 ||
    die "could not fetch the CUDA build: check the network and the disk, or set LIBTORCH"
  mkdir "$work/out"
  mv "$work/site/torch/include" "$work/site/torch/lib" "$work/out/"
  find "$work/site/nvidia" -name '*.so*' -exec mv -n {} "$work/out/lib/" \;
  echo "$TORCH+cuda" >"$work/out/build-version"
  rm -rf "$target"
  mv "$work/out" "$target"
  rm -rf "$work"
  trap - EXIT
}

official_zip() {
  local target=$1 work url="https://download.pytorch.org/libtorch/cpu/libtorch-shared-with-deps-$TORCH%2Bcpu.zip"
  have curl && have unzip || return 1
  curl --silent --fail --head --connect-timeout 5 --max-time 15 "$url" >/dev/null 2>&1 || return 1
  say "fetching $url"
  work=$(mktemp -d "$cache/unpack.XXXXXX")
  if curl --fail --location --progress-bar --connect-timeout 10 --output "$work/libtorch.zip" "$url" &&
    unzip -q "$work/libtorch.zip" -d "$work"; then
    rm -rf "$target"
    mv "$work/libtorch" "$target"
    rm -rf "$work"
    return 0
  fi
  rm -rf "$work"
  return 1
}

is_libtorch() { [ -f "$1/lib/libtorch_cpu.so" ] || [ -f "$1/lib/libtorch_cpu.dylib" ]; }

find_libtorch() {
  local flavour=cpu system
  [ "$cuda" = 1 ] && flavour=cuda
  if [ -n "${LIBTORCH:-}" ]; then
    is_libtorch "$LIBTORCH" || die "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu: expected the folder of a libtorch $TORCH"
    libtorch=$LIBTORCH
    return
  fi
  for system in /usr/local/libtorch /opt/libtorch /usr/local /usr; do
    if is_libtorch "$system" && [ "$(cut -d+ -f1 "$system/build-version" 2>/dev/null)" = "$TORCH" ]; then
      libtorch=$system
      return
    fi
  done
  libtorch=$cache/libtorch-$TORCH-$flavour
  if is_libtorch "$libtorch"; then return; fi
  if [ "$cuda" = 1 ]; then
    need_pip "libtorch"
    cuda_from_wheel "$libtorch"
  elif ! official_zip "$libtorch"; then
    say "the official libtorch zip cannot be reached: making the same of the PyPI wheel"
    [ "$(uname -sm)" = "Linux x86_64" ] || die "no prebuilt libtorch is known for $(uname -sm): set LIBTORCH to one of version $TORCH"
    need_pip "libtorch"
    cpu_from_wheel "$libtorch"
  fi
}

find_tool() { # find_tool just|ffmpeg: its path, fetched if missing.
  local name=$1 work wheel
  if have "$name"; then command -v "$name"; return; fi
  if [ ! -x "$cache/bin/$name" ]; then
    need_pip "$name"
    work=$(mktemp -d "$cache/unpack.XXXXXX")
    if [ "$name" = just ]; then
      wheel=$(fetch_wheel rust_just "rust-just==$JUST" "$work")
    else
      wheel=$(fetch_wheel imageio_ffmpeg "imageio-ffmpeg==$FFMPEG" "$work")
    fi
    unpack "$wheel" "$work"
    find "$work" -type f \( -name just -o -name 'ffmpeg-*' \) -exec mv {} "$cache/bin/$name.new" \;
    chmod +x "$cache/bin/$name.new"
    mv "$cache/bin/$name.new" "$cache/bin/$name"
    rm -rf "$work"
  fi
  echo "$cache/bin/$name"
}

find_libtorch
just=$(find_tool just)
ffmpeg=$(find_tool ffmpeg)

# Written only when it changes: cargo rebuilds everything when its flags do.
mkdir -p "$root/.cargo"
config=$(cat <<TOML
# Written by bootstrap.sh, not tracked. Delete it and run bootstrap.sh again to choose another libtorch.
[env]
LIBTORCH = "$libtorch"
VIREO_FFMPEG = { value = "$ffmpeg", force = false }

[build]
rustflags = ["-C", "link-arg=-Wl,-rpath,$libtorch/lib"]
rustdocflags = ["-C", "link-arg=-Wl,-rpath,$libtorch/lib"]
TOML
)
if [ "$(cat "$root/.cargo/config.toml" 2>/dev/null)" != "$config" ]; then
  printf '%s\n' "$config" >"$root/.cargo/config.toml"
fi
have flock && exec 9>&-

have just || say "just was put at $just; add $(dirname "$just") to PATH to call it by name"
cd "$root"
exec "$just" "$@"
