/* SPDX-License-Identifier: MIT
 * A tokenizer whose ids can be read off: id = byte, then a few added tokens. */
#ifndef PX_TESTS_BYTE_TOKENIZER_H
#define PX_TESTS_BYTE_TOKENIZER_H

#include "text/tokenizer.h"

enum { BYTE_BOS = 256, BYTE_EOS, BYTE_VOCAB = 264 };

typedef struct byte_tokenizer_options {
  bool add_bos;
  const char *bos, *eos;     /* one of the added tokens; NULL: <s> and </s> */
  const char *chat_template; /* NULL: none */
} byte_tokenizer_options;

/* Writes tokenizer.json and tokenizer_config.json into `folder` and opens them. The added tokens, from 256 on, are <s>
 * </s>
 * <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|begin_of_text|>. */
px_status byte_tokenizer_open(const char *folder, byte_tokenizer_options o, px_tokenizer **out, px_error *err);

#endif
