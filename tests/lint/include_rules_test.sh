#!/usr/bin/env bash
# Who may include whom, and what no file of the project contains. Usage: include_rules_test.sh [--self-test | FOLDER]
# --self-test makes a small tree for every rule that breaks it, and fails if the breach goes unnoticed.
set -euo pipefail

# Reads "file:line:#include ..." and prints the lines that break a rule, with the reason.
readonly include_rules='
  function allow(layer, list,    i, n, names) {
    n = split(list, names, " ")
    known[layer] = 1
    for (i = 1; i <= n; ++i) allowed[layer, names[i]] = 1
    allowed[layer, layer] = 1
  }
  function complain(reason) { print $0 "  <- " reason }
  BEGIN {
    FS = ":"
    allow("core", "")
    allow("text", "core"); allow("image", "core"); allow("ops", "core"); allow("distributed", "core")
    allow("data", "core text image ops distributed")
    allow("models", "core ops distributed")
    allow("loss", "core text image ops distributed data models")
    allow("optim", "core text image ops distributed data models")
    allow("eval", "core text image ops distributed data models loss optim")
    allow("train", "core text image ops distributed data models loss optim eval")
    allow("adapt", "core text image ops distributed data models loss optim eval")
    allow("tools", "core text image ops distributed data models loss optim eval train adapt")
  }
  {
    path = $1
    text = $0
    sub(/^[^:]*:[0-9]*:/, "", text)
    quoted = text ~ /^[ ]*#[ ]*include[ ]*"/
    if (!match(text, /["<][^">]*[">]/)) next
    target = substr(text, RSTART + 1, RLENGTH - 2)

    is_public = path ~ /^include\/contrastive\//
    layer = path
    if (!sub(/^(include\/contrastive|src)\//, "", layer)) layer = "tools/"
    if (!sub(/\/.*/, "", layer)) next  # src/pch.h belongs to no layer
    if (!(layer in known)) { complain("no layer is named " layer); next }

    if (target ~ /^contrastive\//) {
      if (!quoted) complain("our own headers are included in quotes")
      split(target, parts, "/")
      if (!((layer, parts[2]) in allowed)) complain(layer " must not include " parts[2])
    } else if (quoted) {
      other = target
      sub(/\/.*/, "", other)
      if (is_public) complain("a public header includes public headers only")
      else if (target ~ /\// && other != layer && !(layer == "tools" && other == "common")) {
        complain("not a private header of " layer)
      }
    } else if (is_public && target !~ /^([a-z_0-9]+|(torch|ATen|c10)\/.*)$/) {
      complain("a public header includes std, LibTorch and contrastive/ only")
    }
  }'

# Prints every breach in the tree $1; returns 1 if there is one.
check_tree() {
  local found
  found=$(
    cd "$1"
    folders=()
    for folder in include src tools; do [[ ! -d $folder ]] || folders+=("$folder"); done
    ((${#folders[@]} == 0)) ||
      grep -rnE --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' '^ *# *include' "${folders[@]}" |
      awk "$include_rules"

    # Tables of fixtures are separated by tabs.
    others=(-rInE --exclude-dir=.git --exclude-dir=build --exclude-dir=runs --exclude-dir=.cache --exclude='*.tsv')
    grep "${others[@]}" $'\t' . | sed 's/$/  <- a tab/' || true
    grep "${others[@]}" ' +$' . | sed 's/$/<- spaces at the end of the line/' || true
    grep "${others[@]}" '(^|[^A-Za-z0-9_.}])/([r]oot|[w]ork)(/|[^A-Za-z0-9_/]|$)' . | sed 's/$/  <- a path of one machine/' || true
  )
  [[ -z $found ]] && return 0
  printf '%s\n' "$found"
  return 1
}

# expect TEXT FILE CONTENT: a tree of that one file is refused for that reason, or taken if TEXT is "".
expect() {
  local tree output status=0
  tree=$(mktemp -d)
  mkdir -p "$tree/$(dirname "$2")"
  printf '%b' "$3" >"$tree/$2"
  output=$(check_tree "$tree") || status=$?
  rm -rf "$tree"
  if [[ -z $1 ]]; then
    ((status == 0)) || fail "$2 is fine, but: $output"
  else
    ((status == 1)) && [[ $output == *"$1"* ]] || fail "$2 with '$3' must be refused as '$1', but: $output"
  fi
}

fail() {
  printf 'FAILED: %s\n' "$1" >&2
  exit 1
}

self_test() {
  expect "" src/data/a.cpp '#include "contrastive/text/a.h"\n#include "data/b.h"\n#include "c.h"\n#include <webp/decode.h>\n'
  expect "" include/contrastive/eval/a.h '#include <vector>\n#include <torch/types.h>\n#include "contrastive/loss/a.h"\n'
  expect "" tools/a.cpp '#include "contrastive/train/a.h"\n#include "common/b.h"\n'
  expect "core must not include data" src/core/a.cpp '#include "contrastive/data/a.h"\n'
  expect "text must not include image" src/text/a.h '#include "contrastive/image/a.h"\n'
  expect "models must not include text" include/contrastive/models/a.h '#include "contrastive/text/a.h"\n'
  expect "loss must not include optim" src/loss/a.cpp '  #  include "contrastive/optim/a.h"\n'
  expect "data must not include eval" src/data/deep/a.cpp '#include "contrastive/eval/a.h"\n'
  expect "adapt must not include train" src/adapt/a.cu '#include "contrastive/train/a.h"\n'
  expect "not a private header of data" src/data/a.cpp '#include "core/b.h"\n'
  expect "not a private header of tools" tools/a.cpp '#include "data/b.h"\n'
  expect "no layer is named extra" src/extra/a.cpp '#include <vector>\n'
  expect "included in quotes" src/data/a.cpp '#include <contrastive/core/a.h>\n'
  expect "public headers only" include/contrastive/core/a.h '#include "core/b.h"\n'
  expect "std, LibTorch and contrastive/ only" include/contrastive/core/a.h '#include <fmt/format.h>\n'
  expect "std, LibTorch and contrastive/ only" include/contrastive/core/a.h '#include <unistd.h>\n'
  expect "" docs/a.md 'a / root / b, network/work/x, ./work/a, ${x}/work/y\n'
  expect "a tab" docs/a.md 'a\tb\n'
  expect "spaces at the end" docs/a.md 'a \n'
  local folder
  for folder in root work; do
    expect "a path of one machine" docs/a.md "see /$folder/a\n"
    expect "a path of one machine" configs/a.yaml "a: '/$folder'\n"
  done
}

case ${1:-} in
  --self-test) self_test ;;
  *) check_tree "${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}" ;;
esac
