#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The shared library exports exactly the functions that the public headers declare with PFX_API.

  symbols_check.py HEADER_FOLDER LIBRARY
  symbols_check.py --self-test    compiles small libraries that export too much, too little, and the right things
"""
import glob
import re
import subprocess
import sys
import tempfile


def declared(folder):
    names = set()
    for path in glob.glob(folder + "/*.h"):
        with open(path, encoding="utf-8") as file:
            text = re.sub(r"/\*.*?\*/|//[^\n]*|^\s*#(?:[^\n]*\\\n)*[^\n]*", "", file.read(), flags=re.DOTALL | re.MULTILINE)
        names.update(re.findall(r"\bPFX_API\b[^;{(]*?(\w+)\s*\(", text))
    return names


def exported(library):
    # The linker's own marks and the sanitizers' are nobody's interface.
    listing = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in listing.splitlines()} - {"_init", "_fini", "_edata", "_end", "__bss_start"}


def differences(folder, library):
    headers, symbols = declared(folder), exported(library)
    return [f"{name}: declared in the headers, not exported" for name in sorted(headers - symbols)] + \
           [f"{name}: exported, but no public header declares it" for name in sorted(symbols - headers)]


def self_test():
    header = '#define PFX_API __attribute__((visibility("default")))\n/* PFX_API int pfx_no(void); */\n' \
             'PFX_API int pfx_one(void);\nPFX_API const char *pfx_two(int a,\n  int b);\n'
    both = "int pfx_one(void) { return 1; }\nconst char *pfx_two(int a, int b) { return a > b ? (void *)0 : (void *)1; }\n"
    cases = [("int pfx_one(void) { return 1; }\n", 1), (both, 0), (both + "int px_inner(void) { return 2; }\n", 0),
             (both + 'PFX_API int px_leak(void);\nint px_leak(void) { return 3; }\n', 1)]
    wrong = 0
    for source, count in cases:
        with tempfile.TemporaryDirectory() as folder:
            with open(folder + "/x.h", "w", encoding="utf-8") as file:
                file.write(header)
            with open(folder + "/x.c", "w", encoding="utf-8") as file:
                file.write('#include "x.h"\n' + source)
            subprocess.run(["cc", "-shared", "-fPIC", "-fvisibility=hidden", "-o", folder + "/x.so", folder + "/x.c"], check=True)
            found = differences(folder, folder + "/x.so")
            if len(found) != count:
                wrong += 1
                print(f"expected {count} findings, got {found} for:\n{source}")
    print(f"{len(cases)} libraries, {wrong} misjudged")
    return wrong


def main():
    if sys.argv[1:] == ["--self-test"]:
        return 1 if self_test() else 0
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    found = differences(sys.argv[1], sys.argv[2])
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
