#!/usr/bin/env bash
# Brings a Debian 12 machine to the state where libcontrastive builds: Debian packages, LibTorch, data files.
set -euo pipefail

# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

readonly lock_file=$repository/scripts/deps.lock
readonly packages_file=$repository/scripts/packages.txt

readonly resources_file=$repository/scripts/resources.sha256

# The merges file has two digests in circulation: the packed one is in resources.sha256, this is the text's.
readonly merges_text_sha256=67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8

# The wheels that the data files come from.
readonly resource_wheels=(open-clip-torch timm)

# Part of every stamp: count it up when what is unpacked from the wheels changes.
readonly layout=1

# What libtorch_cuda needs from the CUDA toolkit, beyond the three wheels that come with it.
readonly toolkit_libraries=(libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcudnn.so.9 libcufft.so.12
  libcurand.so.10 libcusparse.so.12 libcupti.so.13 libnccl.so.2)

offline=0 cuda=auto use_apt=1
cache='' variant='' obstacle='' libtorch='' partial='' complaints=''

usage() {
  cat <<'TEXT'
usage: scripts/setup.sh [--offline] [--cuda auto|on|off] [--no-apt] [--help]

Brings a Debian 12 machine (x86_64) to the state where libcontrastive builds. What is there already is kept; a second
run does nothing. Run it as the user who builds: it asks sudo only for apt-get.

  A  Debian packages of scripts/packages.txt, where missing
  B  LibTorch from the wheels pinned in scripts/deps.lock    -> <cache>/libtorch-<version>-{cuda,cpu}/{torch,nvidia}
  C  CLIP's merges file, ImageNet's names, prompts and ids   -> <cache>/resources/{clip,imagenet}

options:
  --offline            never touch the network; if something is missing, name it and fail
  --cuda auto|on|off   the LibTorch to set up: with CUDA if there is a CUDA 13 toolkit (auto, the default), with CUDA
                       or an error (on), for the CPU alone (off)
  --no-apt             leave Debian packages alone; missing ones are only named

environment:
  CONTRASTIVE_CACHE          the cache folder (default: contrastive in $XDG_CACHE_HOME or ~/.cache)
  CONTRASTIVE_KEEP_WHEELS=1  keep the wheels in <cache>/wheels once they are unpacked; wheels put there are used
  LIBTORCH_ROOT              a LibTorch 2.11 (a torch package folder or an unpacked libtorch) to use in place of B
TEXT
}

usage_error() {
  warn "$1 (see --help)"
  exit 2
}

parse_arguments() {
  while (($#)); do
    case $1 in
      --offline) offline=1 ;;
      --no-apt) use_apt=0 ;;
      --cuda)
        (($# >= 2)) || usage_error "--cuda needs a value: auto, on or off"
        cuda=$2
        shift
        ;;
      --cuda=*) cuda=${1#--cuda=} ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) usage_error "unknown argument: $1" ;;
    esac
    shift
  done
  [[ $cuda =~ ^(auto|on|off)$ ]] || usage_error "--cuda must be auto, on or off, but is '$cuda'"
}

# ---- what is wanted --------------------------------------------------------------------------------------------------

choose_cache() {
  if [[ -n ${CONTRASTIVE_CACHE:-} ]]; then
    cache=$CONTRASTIVE_CACHE
  elif [[ -n ${XDG_CACHE_HOME:-} ]]; then
    cache=$XDG_CACHE_HOME/contrastive
  elif [[ -n ${HOME:-} ]]; then
    cache=$HOME/.cache/contrastive
  else
    die "no place for the cache: set CONTRASTIVE_CACHE or HOME"
  fi
  [[ $cache == /* ]] || die "the cache folder must be an absolute path, but is '$cache'"
}

# Sets version, file, size and digest from the lock file's line for wheel $1.
read_lock_entry() {
  local name
  while read -r name version file size digest; do
    [[ $name != "$1" ]] || return 0
  done <"$lock_file"
  die "no wheel named $1 in $lock_file"
}

find_nvcc() {
  local candidate
  for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    if command -v "$candidate"; then return 0; fi
  done
  return 1
}

# Prints what keeps this machine from a CUDA build; nothing if it is fit for one.
cuda_obstacle() {
  local nvcc known library folder folders=${LD_LIBRARY_PATH:-} missing=()
  nvcc=$(find_nvcc) || { echo "no nvcc found" && return; }
  [[ $("$nvcc" --version) == *"release 13."* ]] || { echo "$nvcc is not of CUDA 13" && return; }
  known=$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p)
  for library in "${toolkit_libraries[@]}"; do
    [[ $known != *"$library "* ]] || continue
    for folder in ${folders//:/ }; do
      [[ ! -e $folder/$library ]] || continue 2
    done
    missing+=("$library")
  done
  ((${#missing[@]} == 0)) || echo "the loader does not find ${missing[*]}"
}

choose_variant() {
  if [[ -n ${LIBTORCH_ROOT:-} ]]; then
    variant=own libtorch=$LIBTORCH_ROOT
    check_own_libtorch
    return
  fi
  [[ $(uname -m) == x86_64 ]] || die "LibTorch is pinned for x86_64, this is $(uname -m): set LIBTORCH_ROOT"
  [[ $cuda == off ]] || obstacle=$(cuda_obstacle)
  [[ $cuda != on || -z $obstacle ]] || die "--cuda on: $obstacle"
  variant=cuda
  [[ $cuda != off && -z $obstacle ]] || variant=cpu
  read_lock_entry torch
  libtorch=$cache/libtorch-$version-$variant
}

# Prints the version of the LibTorch in folder $1 as its headers, or the files beside them, tell it.
libtorch_version() {
  local header
  for header in "$1"/include/torch/headeronly/version.h "$1"/include/torch/csrc/api/include/torch/version.h; do
    [[ -r $header ]] || continue
    awk '$2 ~ /^TORCH_VERSION_(MAJOR|MINOR|PATCH)$/ { printf "%s%s", dot, $3; dot = "." }' "$header"
    return
  done
  if [[ -r $1/build-version ]]; then
    head -n 1 "$1/build-version"
  elif [[ -r $1/version.py ]]; then
    sed -n "s/^__version__ *= *['\"]\([^'\"]*\)['\"].*/\1/p" "$1/version.py"
  fi
}

check_own_libtorch() {
  local found file
  [[ $libtorch == /* ]] || die "LIBTORCH_ROOT must be an absolute path, but is '$libtorch'"
  for file in include/ATen/ATen.h lib/libtorch_cpu.so lib/libc10.so; do
    [[ -e $libtorch/$file ]] || die "LIBTORCH_ROOT=$libtorch is no LibTorch: it has no $file"
  done
  found=$(libtorch_version "$libtorch")
  [[ $found == 2.11.* ]] || die "LIBTORCH_ROOT=$libtorch must be LibTorch 2.11, but is ${found:-of unknown version}"
}

libtorch_wheels() {
  case $variant in
    cuda) echo torch nvidia-cusparselt-cu13 nvidia-nvshmem-cu13 nvidia-cufile ;;
    # libtorch_cpu itself needs these two; the toolkit has them where there is one.
    cpu) echo torch nvidia-cuda-runtime nvidia-cuda-cupti ;;
  esac
}

# ---- what is there ---------------------------------------------------------------------------------------------------

has_pip() { "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("pip") is None)' 2>/dev/null; }

# The first Python in the path need not be Debian's, nor have pip.
find_python_with_pip() {
  local candidate
  for candidate in python3 /usr/bin/python3; do
    if has_pip "$candidate"; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

missing_packages() {
  local wanted package installed
  wanted=$(grep -v '^#' "$packages_file")
  # shellcheck disable=SC2086  # one word per package
  installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' $wanted 2>/dev/null) || true
  for package in $wanted; do
    [[ $'\n'$installed$'\n' != *$'\n'"installed $package"$'\n'* ]] || continue
    [[ $package != python3-pip ]] || ! find_python_with_pip >/dev/null || continue
    echo "$package"
  done
}

# The stamp of a complete LibTorch folder: changes with the lock file's lines that it is made from.
expected_stamp() {
  local name names
  echo "layout $layout"
  names=$(libtorch_wheels)
  for name in $names; do
    read_lock_entry "$name"
    echo "$name $version $digest"
  done
}

has_libtorch() {
  [[ $variant != own ]] || return 0
  [[ -e $libtorch/torch/lib/libtorch_cpu.so && -e $libtorch/.complete ]] &&
    [[ $(<"$libtorch/.complete") == "$(expected_stamp)" ]]
}

has_digest() { [[ -f $1 && $(sha256sum <"$1") == "$2  -" ]]; }

# The lines of resources.sha256 whose files are made from wheel $1.
resource_digests() {
  case $1 in
    timm) grep ' imagenet/synsets\.txt$' "$resources_file" ;;
    open-clip-torch) grep -v ' imagenet/synsets\.txt$' "$resources_file" ;;
  esac
}

# Whether folder $2 holds every file that is made from wheel $1.
has_resources() {
  [[ -d $2 ]] && resource_digests "$1" | (cd "$2" && sha256sum --check --strict --status) 2>/dev/null
}

# The wheels whose data files are missing.
missing_resources() {
  local name
  for name in "${resource_wheels[@]}"; do
    has_resources "$name" "$cache/resources" || echo "$name"
  done
}

# Whether file $1 is the wheel that read_lock_entry read last.
is_that_wheel() { [[ -f $1 && $(stat -c %s "$1") == "$size" ]] && has_digest "$1" "$digest"; }

needed_wheels() {
  has_libtorch || libtorch_wheels
  missing_resources
}

everything_in_place() {
  { ((use_apt == 0)) || [[ -z $(missing_packages) ]]; } && has_libtorch && [[ -z $(missing_resources) ]]
}

# Names whatever cannot be had without the network, one thing a line.
missing_offline() {
  local package name names
  if ((use_apt)); then
    for package in $(missing_packages); do echo "Debian package $package"; done
  fi
  names=$(needed_wheels)
  for name in $names; do
    read_lock_entry "$name"
    if [[ ! -e $cache/wheels/$file ]]; then
      echo "wheel $cache/wheels/$file ($((size / 1000000)) MB)"
    elif ! is_that_wheel "$cache/wheels/$file"; then
      echo "wheel $cache/wheels/$file (there, but corrupt)"
    fi
  done
}

check_offline() {
  local missing line
  missing=$(missing_offline)
  [[ -n $missing ]] || return 0
  while read -r line; do warn "missing: $line"; done <<<"$missing"
  die "--offline: $(wc -l <<<"$missing") missing, see above"
}

# ---- A: Debian packages ----------------------------------------------------------------------------------------------

check_apt() {
  local packages
  if ((use_apt)); then
    command -v dpkg-query >/dev/null ||
      die "this is no Debian: install what scripts/packages.txt lists by other means, then use --no-apt"
  elif command -v dpkg-query >/dev/null; then
    packages=$(missing_packages | tr '\n' ' ')
    [[ -z $packages ]] || warn "these Debian packages are missing (--no-apt): ${packages% }"
  fi
}

install_packages() {
  local packages log
  ((use_apt)) || return 0
  packages=$(missing_packages | tr '\n' ' ')
  [[ -n $packages ]] || return 0
  say "installing Debian packages: ${packages% }"
  log=$(mktemp)
  if ! apt_install "$packages" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "apt-get failed, see above"
  fi
  rm -f "$log"
}

# Dies with the command to run where this user may not install packages.
check_may_install() {
  local packages
  ((use_apt)) && ((EUID != 0)) || return 0
  packages=$(missing_packages | tr '\n' ' ')
  [[ -n $packages ]] || return 0
  if command -v sudo >/dev/null; then
    if [[ -t 0 ]]; then sudo -v && return 0; else sudo -n true 2>/dev/null && return 0; fi
  fi
  die "Debian packages are missing; run as root:" \
    "apt-get update && apt-get install -y --no-install-recommends ${packages% }"
}

# Descriptor 9 holds the cache's lock: a daemon started by a package must not inherit it.
apt_install() {
  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  ((EUID == 0)) || as_root=(sudo "${as_root[@]}")
  "${as_root[@]}" apt-get update -q 9>&- || true # the lists at hand may do
  # shellcheck disable=SC2086  # one word per package
  "${as_root[@]}" apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 $1 9>&-
}

# ---- B: LibTorch -----------------------------------------------------------------------------------------------------

lock_cache() {
  mkdir -p "$cache/wheels" 2>/dev/null || die "cannot make the cache folder $cache"
  { exec 9>>"$cache/.lock"; } 2>/dev/null || die "cannot write to the cache folder $cache"
  if ! flock -n 9; then
    say "another set-up is at work in $cache: waiting for it"
    flock 9
  fi
  # Whatever is partial belongs to a run that was killed: this one has made nothing yet.
  rm -rf "$cache"/*.partial-* "$cache"/wheels/*.partial-*
}

check_space() {
  local needed_mb=20 free_mb
  case $(has_libtorch || echo "$variant") in
    cuda) needed_mb=2300 ;;
    cpu) needed_mb=1300 ;;
  esac
  needed_mb=$((needed_mb - $(du -sm "$cache/wheels" | cut -f 1)))
  free_mb=$(($(stat -f -c '%a * %S / 1048576' "$cache")))
  ((free_mb >= needed_mb)) || die "$cache needs $needed_mb MB of free space, but has $free_mb MB"
}

# Fetches the wheel that read_lock_entry read last, named $1, into folder $partial; pip's complaints go to $complaints.
download() {
  local python tag platforms=() quiet=(--quiet)
  python=$(find_python_with_pip) || die "cannot fetch wheels: no Python with pip (Debian: python3-pip)"
  tag=${file%.whl}
  tag=${tag##*-}
  [[ $tag == any ]] || read -r -a platforms <<<"--platform ${tag//./ --platform }"
  [[ ! -t 1 ]] || quiet=()
  rm -rf "$partial"
  mkdir -p "$partial/tmp"
  echo "$1==$version --hash=sha256:$digest" >"$partial/requirements"
  {
    complaints=$(TMPDIR=$partial/tmp "$python" -m pip download "${quiet[@]}" --disable-pip-version-check --no-input \
      --no-cache-dir --no-deps --only-binary=:all: --python-version 3.11 "${platforms[@]}" --require-hashes \
      --requirement "$partial/requirements" --dest "$partial" 2>&1 >&3)
  } 3>&1
}

# Why the last download failed.
download_error() {
  grep -o -m 1 -E 'connection broken by .*|^OSError: .*|^ERROR: [^E].*' <<<"$complaints" ||
    echo "what came is not the pinned file"
}

fetch_wheel() {
  local attempt wheel
  read_lock_entry "$1"
  wheel=$cache/wheels/$file
  if is_that_wheel "$wheel"; then return 0; fi
  if [[ -e $wheel ]]; then
    warn "$wheel is corrupt: fetching it anew"
    rm -f "$wheel"
  fi
  partial=$cache/wheels/download.partial-$$
  for attempt in 1 2; do
    say "fetching $1 $version ($((size / 1000000)) MB)"
    if download "$1" && is_that_wheel "$partial/$file"; then
      mv "$partial/$file" "$wheel"
      rm -rf "$partial"
      return 0
    fi
    warn "attempt $attempt failed: $(download_error)"
  done
  die "cannot fetch $file; it may be put into $cache/wheels by other means"
}

# Unpacks wheel $1 into folder $2: headers, libraries and licences, not the Python part.
unpack_wheel() {
  local members=() excluded=('*.dist-info/RECORD')
  read_lock_entry "$1"
  case $1 in
    torch)
      members=('torch/include/*' 'torch/lib/*' 'torch/share/*' torch/version.py 'torch-*.dist-info/*')
      excluded+=('*/libtorch_python.so')
      # Without CUDA's own libraries these could not be loaded.
      [[ $variant != cpu ]] || excluded+=('*/libtorch.so' '*/libtorch_cuda*.so' '*/libtorch_nvshmem.so'
        '*/libc10_cuda.so' '*/libcaffe2_nvrtc.so')
      ;;
    nvidia-*) members=('nvidia/*/lib/*.so*' '*.dist-info/*') ;;
  esac
  unzip -qq -o "$cache/wheels/$file" "${members[@]}" -x "${excluded[@]}" -d "$2" </dev/null ||
    die "cannot unpack $cache/wheels/$file"
}

# Dies unless every library that library $1 needs is found.
check_loads() {
  local missing
  missing=$(ldd "$1" 2>&1 | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
  [[ -z $missing ]] || die "${1##*/} does not load on this machine: ${missing}not found"
}

install_libtorch() {
  local name names
  if has_libtorch; then return 0; fi
  names=$(libtorch_wheels)
  for name in $names; do fetch_wheel "$name"; done
  say "unpacking LibTorch into $libtorch"
  partial=$libtorch.partial-$$
  mkdir -p "$partial"
  for name in $names; do unpack_wheel "$name" "$partial"; done
  check_loads "$partial/torch/lib/libtorch_cpu.so"
  [[ $variant != cuda ]] || check_loads "$partial/torch/lib/libtorch_cuda.so"
  expected_stamp >"$partial/.complete"
  # An old folder goes out of the way under a name that the next run would clear, too.
  [[ ! -e $libtorch ]] || mv "$libtorch" "$libtorch.old.partial-$$"
  mv "$partial" "$libtorch"
  rm -rf "$libtorch.old.partial-$$"
}

# ---- C: data files ---------------------------------------------------------------------------------------------------

# Writes the names and prompts of open_clip's module $1 (literals and one-line functions only) into folder $2.
extract_imagenet() {
  python3 - "$1" "$2" <<'PYTHON'
import runpy
import sys

module = runpy.run_path(sys.argv[1])
lists = {
    "classnames.txt": module["IMAGENET_CLASSNAMES"],
    "templates_openai.txt": [template("{c}") for template in module["OPENAI_IMAGENET_TEMPLATES"]],
    "templates_simple.txt": [template("{c}") for template in module["SIMPLE_IMAGENET_TEMPLATES"]],
}
for name, lines in lists.items():
    with open(f"{sys.argv[2]}/{name}", "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
PYTHON
}

# Makes the data files that come from wheel $1, which read_lock_entry read last, in folder $2.
make_resources() {
  local wheel=$cache/wheels/$file
  case $1 in
    open-clip-torch)
      unzip -q -o -j "$wheel" open_clip/bpe_simple_vocab_16e6.txt.gz -d "$2/clip" || die "cannot unpack $wheel"
      unzip -q -o -j "$wheel" open_clip/zero_shot_metadata.py -d "$2/wheel" || die "cannot unpack $wheel"
      extract_imagenet "$2/wheel/zero_shot_metadata.py" "$2/imagenet"
      gzip -dc "$2/clip/bpe_simple_vocab_16e6.txt.gz" >"$2/wheel/merges"
      has_digest "$2/wheel/merges" "$merges_text_sha256" || die "the text in $file's merges file is not CLIP's"
      ;;
    timm)
      unzip -q -o -p "$wheel" timm/data/_info/imagenet_synsets.txt >"$2/imagenet/synsets.txt" || die "cannot unpack $wheel"
      ;;
  esac
}

install_resources() {
  local name names path folder=$cache/resources
  names=$(missing_resources)
  for name in $names; do
    fetch_wheel "$name"
    say "unpacking data files from $file into $folder"
    partial=$folder.partial-$$
    rm -rf "$partial"
    mkdir -p "$partial"/{wheel,clip,imagenet} "$folder"/{clip,imagenet}
    make_resources "$name" "$partial"
    has_resources "$name" "$partial" || die "the data files made from $file are not those of $resources_file"
    resource_digests "$name" | while read -r _ path; do mv "$partial/$path" "$folder/$path"; done
    rm -rf "$partial"
  done
}

# ----------------------------------------------------------------------------------------------------------------------

remove_wheels() {
  local name names
  [[ ${CONTRASTIVE_KEEP_WHEELS:-0} != 1 ]] || return 0
  for name in "$@"; do
    read_lock_entry "$name"
    rm -f "$cache/wheels/$file"
  done
}

remove_partial() { [[ -z $partial ]] || rm -rf "$partial"; }

main() {
  parse_arguments "$@"
  choose_cache
  choose_variant
  check_apt
  if ! everything_in_place; then
    ((offline == 0)) || check_offline
    check_may_install
    lock_cache
    trap remove_partial EXIT
    # pip and unzip take an interrupt for themselves and only fail.
    trap 'exit 130' INT
    local wheels
    ((offline)) || install_packages
    [[ -z $obstacle ]] || say "LibTorch for the CPU alone: $obstacle"
    wheels=$(needed_wheels)
    [[ -z $wheels ]] || check_space
    install_libtorch
    install_resources
    # shellcheck disable=SC2086  # one word per wheel
    remove_wheels $wheels
  fi
  say "ready: LibTorch ($variant) in $libtorch, data files in $cache/resources"
}

main "$@"
