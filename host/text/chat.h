/* SPDX-License-Identifier: MIT
 * Chat templates: a handful of known ones, recognised by their exact text or forced by name.
 *
 *   chatml    OpenHermes-2.5's text and its spellings; any order of roles, no default system message
 *   smollm2   SmolLM2-Instruct's
 *   llama-2   Llama-2-chat's: an optional system message, then user and assistant in turns
 *   llama-3   Meta-Llama-3-Instruct's (3.1 and later write dates and tools into the system message: not this one)
 *   mistral   Mistral-7B-Instruct-v0.2's first one: user and assistant in turns, no system message
 *
 * Each is recognised by the SHA-256 of its text; any other text reaches one of them only through --template NAME. */
#ifndef PX_TEXT_CHAT_H
#define PX_TEXT_CHAT_H

#include "text/tokenizer.h"

typedef enum px_template {
  PX_TEMPLATE_NONE = 0,
  PX_TEMPLATE_CHATML,
  PX_TEMPLATE_SMOLLM2, /* ChatML with SmolLM2's default system message */
  PX_TEMPLATE_LLAMA2,
  PX_TEMPLATE_LLAMA3,
  PX_TEMPLATE_MISTRAL,
} px_template;

typedef struct px_chat_message {
  const char *role; /* "system", "user", "assistant" */
  const char *content;
} px_chat_message;

/* "chatml", "smollm2", "llama-2", "llama-3", "mistral", "none"; NULL for an unknown value. */
const char *px_template_name(px_template t);
/* From a name (--template). PX_INVALID lists the names. */
px_status px_template_parse(const char *name, px_template *out, px_error *err);
/* From the tokenizer's own template text: equal byte for byte to a known one, else PX_BAD_FILE that says so and names
 * --template. No template in the tokenizer: PX_TEMPLATE_NONE. */
px_status px_template_detect(const px_tokenizer *tok, px_template *out, px_error *err);

/* A run of text and whether it is what an assistant turn must produce (scores). */
typedef struct px_chat_piece {
  char *text;      /* in the arena */
  size_t bytes;
  bool assistant;  /* content of an assistant turn with its end token */
} px_chat_piece;
/* Writes the messages as text pieces; with add_generation_prompt the header of the next assistant turn ends it.
 * The ids of the joined pieces equal transformers' apply_chat_template. Wrong roles or order: PX_BAD_FILE. */
px_status px_chat_render(px_template t, const px_tokenizer *tok, const px_chat_message *messages, size_t count,
                         bool add_generation_prompt, px_arena *arena, px_chat_piece **pieces, size_t *piece_count, px_error *err);

#endif
