#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kernel_table.py <build folder> <tools folder> [--write] : what the compiler made of every kernel, against
tests/kernels/resources.csv.

Registers, spilled bytes and static shared memory are ptxas's; counts of instructions come from the machine code
(cuobjdump): tensor-core products, 16-byte loads from global and shared memory, asynchronous copies, accesses to local
memory (which should be none). A spill is a failure. With the compiler that made the committed table every number must
be the same; with another one only spills count. --write replaces the table."""
import collections
import csv
import glob
import os
import re
import subprocess
import sys

TABLE = os.path.join(os.path.dirname(__file__), "..", "kernels", "resources.csv")
COLUMNS = ("kernel", "architecture", "registers", "spill_bytes", "shared_bytes", "mma", "wide_loads", "ldmatrix",
           "async_copies", "local")
COUNTED = (("mma", re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")), ("wide_loads", re.compile(r"\b(LDG|LDS|LD)\.[\w.]*128")),
           ("ldmatrix", re.compile(r"\bLDSM\b")), ("async_copies", re.compile(r"\bLDGSTS\b|\bUBLKCP\b|\bUTMALDG\b")),
           ("local", re.compile(r"\b(LDL|STL)\b")))


def plain_names(mangled):
    names = subprocess.run(["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True,
                           check=True).stdout.split("\n")
    return dict(zip(mangled, (name.replace("void ", "").strip() for name in names)))


def of_log(path):
    """{(mangled, architecture): [registers, spill bytes, shared bytes]} from ptxas's report."""
    found, key = {}, None
    for line in open(path):
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            key = match.groups()
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spill = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[key] = [int(match[1]), spill, int(shared[1]) if shared else 0]
    return found


def of_code(path, tools):
    """{(mangled, architecture): Counter} from the machine code."""
    env = dict(os.environ, PATH=os.path.join(tools, "bin") + ":" + os.environ["PATH"])
    code = subprocess.run([os.path.join(tools, "bin", "cuobjdump"), "-sass", path], capture_output=True, text=True,
                          check=True, env=env).stdout
    found, arch, counter = {}, None, None
    for line in code.splitlines():
        if match := re.search(r"code for sm_(\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            counter = found.setdefault((match[1], arch), collections.Counter())
        elif counter is not None and "/*" in line:
            for name, pattern in COUNTED:
                counter[name] += bool(pattern.search(line))
    return found


def table_of(build, tools):
    rows = []
    for log in sorted(glob.glob(os.path.join(build, "kernels", "*.log"))):
        report, code = of_log(log), of_code(log[:-len(".log")], tools)
        names = plain_names([mangled for mangled, _ in report])
        source = os.path.basename(log).replace(".o.log", "")
        for (mangled, arch), numbers in report.items():
            counts = code[mangled, arch]
            rows.append([f"{source}: {names[mangled]}", f"sm_{arch}", *numbers, *(counts[name] for name, _ in COUNTED)])
    return sorted([str(x) for x in row] for row in rows)


def compiler_of(build):
    cache = open(os.path.join(build, "CMakeCache.txt")).read()
    nvcc = re.search(r"^PFX_NVCC:\w+=(.*)$", cache, re.M)[1]
    return re.search(r", V(\S+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout)[1]


def main():
    build, tools, *more = sys.argv[1:]
    rows, compiler = table_of(build, tools), compiler_of(build)
    if not rows:
        sys.exit(f"{build}/kernels: no kernel was compiled here")
    if more == ["--write"]:
        with open(TABLE + ".tmp", "w", newline="") as out:
            out.write(f"# nvcc {compiler}\n")
            csv.writer(out, lineterminator="\n").writerows([COLUMNS, *rows])
        os.replace(TABLE + ".tmp", TABLE)
    with open(TABLE) as lines:
        known_compiler = next(lines).split()[-1]
        known = list(csv.reader(lines))[1:]
    wrong = [f"{row[0]} {row[1]}: spills {row[3]} bytes, {row[9]} accesses to local memory" for row in rows
             if row[3] != "0"]
    architectures = {row[1] for row in rows}
    if compiler == known_compiler:
        here = {tuple(row) for row in rows}
        there = {tuple(row) for row in known if row[1] in architectures}
        wrong += [f"only in the table: {','.join(row)}" for row in sorted(there - here)]
        wrong += [f"only in the build: {','.join(row)}" for row in sorted(here - there)]
    print(f"{len(rows)} kernels for {', '.join(sorted(architectures))}, nvcc {compiler} (table: {known_compiler})")
    if wrong:
        sys.exit("\n".join(wrong) + "\nif this is meant: make kernel-table, and look at the difference")


main()
