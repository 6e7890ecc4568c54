#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Rules of the source tree that no compiler checks.

  tree_check.py ROOT CHECK     prints violations, one a line; exit code 1 when there are any
  tree_check.py --self-test    plants a violation of every rule in a scratch tree and sees that it is found
"""
import os
import re
import sys
import tempfile

# A room may include itself, core, and what stands here.
ROOMS = {
    "core": [],
    "format": [],
    "text": ["format"],
    "backend": ["format", "text", "kernels"],
    "model": ["backend", "format", "text", "kernels"],
    "tune": ["model", "backend", "format", "text", "kernels"],
    "train": ["tune", "model", "backend", "format", "text", "kernels"],
    "generate": ["tune", "model", "backend", "format", "text", "kernels"],
    "api": ["train", "generate", "tune", "model", "backend", "format", "text", "kernels"],
}
KERNELS_MAY_INCLUDE = ("core/types.h", "core/random.h")
FILE_LINES = 800
FUNCTION_LINES = 70

C_FILES = (".c", ".h", ".cu", ".cuh", ".cpp", ".hpp")
SOURCES = C_FILES + (".py", ".sh", ".cmake", "CMakeLists.txt", "Makefile", ".ci/run", ".cmake.in")
# Names that tools prescribe, so that one folder each may have its own; and an operation whose public header is called as it is.
PRESCRIBED = ("CMakeLists.txt", "README.md", "__init__.py", ".gitignore", "attention.h")


def tree_files(root):
    """Paths below root, relative; without build products and version control."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f == ".ci" or f != "build" and f != "__pycache__" and f[0] != ".")
        for file in sorted(files):
            path = os.path.relpath(os.path.join(folder, file), root)
            if not os.path.islink(os.path.join(root, path)) and file != ".git":
                yield path


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def source_files(root, endings=SOURCES):
    return [path for path in tree_files(root) if path.endswith(endings)]


def includes(root, path):
    """(line number, file named, whether in quotes) of every #include."""
    for number, line in enumerate(read(root, path).splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if match:
            yield number, match.group(2), match.group(1) == '"'


def check_includes(root):
    """Includes run one way between the rooms."""
    found = []
    for path in source_files(root, C_FILES):
        parts = path.split("/")
        for number, name, quoted in includes(root, path):
            ours = name.split("/")[0]
            is_ours = ours in ROOMS or ours in ("kernels", "cli", "pfx") or quoted
            allowed = True
            if parts[0] == "kernels" and is_ours:
                allowed = ours == "kernels" or name in KERNELS_MAY_INCLUDE
            elif parts[0] == "include" and is_ours:
                allowed = ours == "pfx"
            elif parts[0] == "examples" and is_ours:
                allowed = ours == "pfx"
            elif parts[:2] == ["host", "cli"] and is_ours:
                allowed = ours == "cli" or name == "pfx/pfx.h"
            elif parts[0] == "host" and is_ours:
                room = parts[1]
                allowed = ours in [room, "core"] + ROOMS.get(room, []) or room == "api" and ours == "pfx"
            if not allowed:
                found.append(f"{path}:{number}: may not include {name}")
    return found


def check_spdx(root):
    """Every source file names its licence in its first three lines."""
    return [f"{path}:1: no SPDX-License-Identifier: MIT line" for path in source_files(root)
            if "SPDX-License-Identifier: MIT" not in "\n".join(read(root, path).splitlines()[:3])]


def functions(text):
    """(name, first line, last line) of C functions, as clang-format lays them out: braces in column 0."""
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if start is None:
            # The line with the opening brace starts the body; a signature may run over several lines before it.
            if line.endswith("{") and not re.match(r"\s*(typedef|struct|union|enum|extern|namespace)\b[^()]*\{$", line) \
                    and "=" not in line and not line.startswith((" ", "#", "/")):
                start = number
            elif line.endswith(") {") and line.startswith("  "):  # the end of a signature that was broken
                first = next((n for n in range(number - 1, 0, -1) if lines[n - 1][:1] not in (" ", "")), None)
                if first and not lines[first - 1].startswith(("#", "/", "}")) and "(" in lines[first - 1]:
                    start = first
        elif line.startswith("}"):
            name = re.search(r"(\w+)\s*\(", lines[start - 1])
            yield (name.group(1) if name else "?"), start, number
            start = None


def check_length(root):
    """Files of 800 lines and functions of 70 lines at the most."""
    found = []
    for path in source_files(root):
        text = read(root, path)
        count = len(text.splitlines())
        if count > FILE_LINES:
            found.append(f"{path}:1: {count} lines, {FILE_LINES} at the most")
        if path.endswith(C_FILES):
            for name, first, last in functions(text):
                if last - first + 1 > FUNCTION_LINES:
                    found.append(f"{path}:{first}: {name} has {last - first + 1} lines, {FUNCTION_LINES} at the most")
    return found


def check_names(root):
    """No two sources or pages have the same name."""
    seen = {}
    found = []
    for path in source_files(root, SOURCES + (".md",)):
        name = os.path.basename(path)
        if name not in PRESCRIBED and name in seen:
            found.append(f"{path}:1: {seen[name]} has the same name")
        seen[name] = path
    return found


def check_words(root):
    """Nothing in the tree knows the machine it was written on or names a registry's host."""
    # Put together here so that this file does not hold them itself.
    words = ["/wo" + r"rk\b", "bash_" + "jobs", "/op" + "t/peers", "/op" + "t/wheels", "py" + r"pi\.org",
             "python" + r"hosted\.", "deb\\." + r"debian\.org", "/ro" + "ot/", "clau" + "de", "anthro" + "pic", "chat" + "gpt"]
    pattern = re.compile("|".join(words), re.IGNORECASE)
    found = []
    for path in tree_files(root):
        if path.endswith((".safetensors", ".gguf", ".bin")):
            continue
        for number, line in enumerate(read(root, path).splitlines(), 1):
            match = pattern.search(line)
            if match:
                found.append(f"{path}:{number}: holds '{match.group(0)}'")
    return found


def check_links(root):
    """Every relative link of a page leads somewhere."""
    found = []
    for path in source_files(root, (".md",)):
        for number, line in enumerate(read(root, path).splitlines(), 1):
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line):
                if not re.match(r"[a-z]+:", target) and \
                        not os.path.exists(os.path.join(root, os.path.dirname(path), target)):
                    found.append(f"{path}:{number}: no such file: {target}")
    return found


CHECKS = {"includes": check_includes, "spdx": check_spdx, "length": check_length, "names": check_names,
          "words": check_words, "links": check_links}

# (check, file, contents, whether it breaks the rule)
MIT = "/* SPDX-License-Identifier: MIT */\n"
PLANTED = [
    ("includes", "host/core/a.c", '#include "format/json.h"\n', True),
    ("includes", "host/format/a.c", '#include "text/rows.h"\n', True),
    ("includes", "host/model/a.c", '#include "tune/tune.h"\n', True),
    ("includes", "host/train/a.c", '#include "generate/cache.h"\n', True),
    ("includes", "host/cli/a.c", '#include "core/error.h"\n', True),
    ("includes", "host/cli/a.c", '#include <core/error.h>\n', True),
    ("includes", "host/cli/a.c", '#include "pfx/attention.h"\n', True),
    ("includes", "host/model/a.c", '#include "pfx/pfx.h"\n', True),
    ("includes", "kernels/a_cpu.c", '#include "core/file.h"\n', True),
    ("includes", "kernels/a_cpu.c", '#include "core/types.h"\n#include "kernels/a.h"\n#include <math.h>\n', False),
    ("includes", "host/cli/a.c", '#include "cli/args.h"\n#include "pfx/pfx.h"\n#include <stdio.h>\n', False),
    ("includes", "host/backend/a.c", '#include "kernels/rope.h"\n#include "core/error.h"\n', False),
    ("includes", "examples/a.c", '#include "core/error.h"\n', True),
    ("spdx", "host/core/a.c", "int a;\n", True),
    ("spdx", "scripts/a.sh", "#!/bin/sh\n", True),
    ("spdx", "host/core/a.c", MIT, False),
    ("length", "host/core/a.c", "\n" * 801, True),
    ("length", "host/core/a.c", "static int f(void) {\n" + "  g();\n" * 69 + "}\n", True),
    ("length", "host/core/a.c", "static int f(int a,\n             int b) {\n" + "  g();\n" * 68 + "}\n", True),
    ("length", "host/core/a.c", "static int f(void) {\n" + "  g();\n" * 68 + "}\n", False),
    ("length", "host/core/a.c", "static const int t[] = {\n" + "  1,\n" * 90 + "};\nstruct s {\n" + "  int a;\n" * 90 + "};\n",
     False),
    ("names", "host/core/same.c", MIT, True),
    ("names", "host/core/other.c", MIT, False),
    ("words", "docs/a.md", "see /wo" + "rk/x\n", True),
    ("words", "docs/a.md", "files.python" + "hosted.org\n", True),
    ("links", "docs/a.md", "[see](absent.md#part)\n", True),
    ("links", "docs/a.md", "[see](../host/format/same.c) [and](https://example.org/x)\n", False),
    ("words", "docs/a.md", "it works in the network\n", False),
]


def self_test():
    failures = 0
    for check, path, contents, breaks in PLANTED:
        with tempfile.TemporaryDirectory() as root:
            for file, text in ((path, contents), ("host/format/same.c", MIT)):
                os.makedirs(os.path.dirname(os.path.join(root, file)), exist_ok=True)
                with open(os.path.join(root, file), "w", encoding="utf-8") as target:
                    target.write(text)
            found = CHECKS[check](root)
            if bool(found) != breaks:
                failures += 1
                print(f"{check}: {path} {'was not found' if breaks else 'was refused: ' + found[0]}:\n{contents[:200]}")
    print(f"{len(PLANTED)} planted files, {failures} misjudged")
    return failures


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    if len(sys.argv) != 3 or sys.argv[2] not in CHECKS:
        print(__doc__ + "checks: " + " ".join(CHECKS), file=sys.stderr)
        return 2
    found = CHECKS[sys.argv[2]](sys.argv[1])
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
