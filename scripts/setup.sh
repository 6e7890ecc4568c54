#!/bin/sh
# SPDX-License-Identifier: MIT
# Installs the Debian or Ubuntu packages that a purpose needs and that are not there yet.
#
#   scripts/setup.sh build|demo|test|fuzz|format|peers|cuda [--dry-run]
#
# build: the library and the command; demo: also the model and the dictionary; test: everything `make test` runs;
# fuzz: the compiler with libFuzzer; peers: what a Python environment with torch needs. What is needed is found by looking
# for the tool, header or module itself, not for the package, so a cmake from elsewhere counts and a second run takes
# milliseconds. Without the right to install, the missing packages are named in one line and the exit code is 1.
set -eu

purpose=${1:-build}
dry_run=${2:-}
missing=

# need PACKAGE CHECK...: PACKAGE is missing when CHECK fails.
need() {
  package=$1
  shift
  "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_command() { command -v "$1"; }
has_library() { pkg-config --exists "$1"; }
has_file() { for file in "$@"; do [ -e "$file" ] && return 0; done; return 1; }
has_header() { printf '#include <%s>\n' "$1" | cc -E -o /dev/null -; }
has_module() { python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
# Compiler run-time parts come in packages of their own, which clang only recommends.
clang_has() { has_file "$(clang -print-file-name="$1")" && [ "$(clang -print-file-name="$1")" != "$1" ]; }
clang_libraries() { dirname "$(dirname "$(readlink -f "$(command -v clang)")")"; }
clang_has_openmp() { has_file "$(clang_libraries)/lib/libomp.so" && printf '#include <omp.h>\n' | clang -fopenmp -E -o /dev/null -; }
clang_has_archer() { has_file "$(clang_libraries)/lib/libarcher.so"; }

need_build() {
  need build-essential has_command cc
  need make has_command make
  need cmake has_command cmake
  need ninja-build has_command ninja
  need pkg-config has_command pkg-config
  need libjansson-dev has_library jansson
  need libpcre2-dev has_library libpcre2-8
  need libutf8proc-dev has_library libutf8proc
  need libssl-dev has_library libcrypto
  need libdnnl-dev has_header oneapi/dnnl/dnnl.h
}
need_demo() {
  need python3 has_command python3
  need python3-pip has_module pip
  need ca-certificates has_file /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt
  need wordnet-base has_file /usr/share/wordnet/data.noun
}
need_fuzz() {
  need clang has_command clang
  need libclang-rt-dev clang_has libclang_rt.fuzzer-x86_64.a
  need llvm has_command llvm-symbolizer
  need libomp-dev clang_has_openmp
  need libcmocka-dev has_library cmocka
}
need_test() {
  need g++ has_command g++
  need libboost-context-dev has_file /usr/include/boost/context/detail/fcontext.hpp
  need libomp-dev clang_has_archer
  # The browser that looks at the report of pfx compare; where it is no package (Ubuntu), that test is skipped.
  if grep -qs '^ID=debian' /etc/os-release; then need chromium has_command chromium; fi
}
# The name a package has here: Ubuntu knows some parts of the default clang by their version only.
known_name() {
  if [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; then
    echo "$1"
  else
    version=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
    echo "${1%-dev}${version:+-$version}-dev"
  fi
}
known_names() {
  for package in $missing; do
    case $package in
      libclang-rt-dev | libomp-dev) known_name "$package" ;;
      *) echo "$package" ;;
    esac
  done
}
collect() {
  missing=
  need_build
  case $purpose in
    build) ;;
    demo) need_demo ;;
    fuzz) need_fuzz ;;
    peers) need_demo; need python3-venv has_module ensurepip ;;
    format) need clang-format has_command clang-format ;;
    cuda) need_demo; need g++ has_command g++; need libcmocka-dev has_library cmocka ;;
    test) need_demo; need_fuzz; need_test ;;
    *) echo "usage: scripts/setup.sh build|demo|test|fuzz|format|peers|cuda [--dry-run]" >&2; exit 2 ;;
  esac
  missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ' | sed 's/^ *//; s/ *$//')
}

collect
[ -n "$missing" ] || exit 0
if [ "$dry_run" = --dry-run ]; then
  echo "$missing"
  exit 0
fi

as_root=
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    as_root=sudo
  else
    as_root=none
  fi
fi
if [ "$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "pfx: these packages are missing and cannot be installed from here:" $(known_names) >&2
  exit 1
fi

apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@"; }
install_missing() { apt install --no-install-recommends $(known_names); }

echo "pfx: installing $missing" >&2
lists=$(find /var/lib/apt/lists -name '*_Packages*' 2>/dev/null | head -n 1)
if [ -z "$lists" ] || ! install_missing >&2; then
  apt update >&2
  install_missing >&2
fi
collect
if [ -n "$missing" ]; then
  echo "pfx: installed, yet still not usable: $missing" >&2
  exit 1
fi
