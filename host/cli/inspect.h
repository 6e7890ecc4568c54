/* SPDX-License-Identifier: MIT
 * An inspection for people and for programs. */
#ifndef PFX_CLI_INSPECT_H
#define PFX_CLI_INSPECT_H

#include "cli/cli.h"

/* data NULL: the built-in sentences. */
void inspect_text(const pfx_inspection *i, const char *data, FILE *out);
/* One object on one line. */
void inspect_json(const pfx_inspection *i, const char *adapter, const char *model, const char *data, FILE *out);

#endif
