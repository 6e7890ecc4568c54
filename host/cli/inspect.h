/* SPDX-License-Identifier: MIT
 * An inspection for people and for programs. */
#ifndef PFX_CLI_INSPECT_H
#define PFX_CLI_INSPECT_H

#include "cli/cli.h"

/* data NULL: the built-in sentences. */
void inspect_text(const pfx_inspection *i, const char *data, FILE *out);
/* One object on one line. */
void inspect_json(const pfx_inspection *i, const char *adapter, const char *model, const char *data, FILE *out);

/* cmd_inspect_changes.c: what parts without virtual tokens do to the weights, a table for each. Nothing where there are none. */
void inspect_changes_text(const pfx_inspection *i, FILE *out);
/* Two more fields of that object. */
void inspect_changes_json(const pfx_inspection *i, FILE *out);

#endif
