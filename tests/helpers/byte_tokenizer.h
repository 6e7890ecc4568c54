/* SPDX-License-Identifier: MIT
 * A tokenizer whose ids can be read off: id = byte, then a few added tokens. */
#ifndef PX_TESTS_BYTE_TOKENIZER_H
#define PX_TESTS_BYTE_TOKENIZER_H

#include "text/tokenizer.h"

enum { BYTE_BOS = 256, BYTE_EOS, BYTE_IM_START, BYTE_IM_END, BYTE_START_HEADER, BYTE_END_HEADER, BYTE_EOT, BYTE_VOCAB };

/* Writes tokenizer.json and tokenizer_config.json into `folder` and opens them. The added tokens are <s> </s>
 * <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|>; chat_template may be NULL. */
px_status byte_tokenizer_open(const char *folder, bool add_bos, const char *chat_template, px_tokenizer **out,
                              px_error *err);

#endif
