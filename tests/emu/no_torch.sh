#!/bin/sh
# SPDX-License-Identifier: MIT
# A Python without PyTorch, for gpu_check.sh under test.
exec python3 -S "$@"
