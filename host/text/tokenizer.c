/* SPDX-License-Identifier: MIT */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "text/tokenizer_internal.h"

/* ---- opening ---- */

static px_status open_folder(px_tokenizer *tok, const char *dir, px_error *err) {
  px_arena arena = {0};
  char *json = px_arena_printf(&arena, "%s/tokenizer.json", dir),
       *model = px_arena_printf(&arena, "%s/tokenizer.model", dir);
  char *vocab = px_arena_printf(&arena, "%s/vocab.json", dir), *merges = px_arena_printf(&arena, "%s/merges.txt", dir);
  char *encoder = px_arena_printf(&arena, "%s/encoder.json", dir), *bpe = px_arena_printf(&arena, "%s/vocab.bpe", dir);
  px_status status = PX_OK;
  bool pair = false;
  if (!json || !model || !vocab || !merges || !encoder || !bpe) {
    status = px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  } else if (px_file_exists(json)) {
    status = px_tokenizer_from_json(tok, json, err);
  } else if (px_file_exists(vocab) && px_file_exists(merges)) {
    pair = true;
    status = px_tokenizer_from_pair(tok, vocab, merges, err);
  } else if (px_file_exists(encoder) && px_file_exists(bpe)) {
    pair = true;
    status = px_tokenizer_from_pair(tok, encoder, bpe, err);
  } else if (px_file_exists(model)) {
    status = px_fail(err, PX_BAD_FILE,
                     "%s: a tokenizer.model alone is not supported: convert it to tokenizer.json "
                     "(transformers' save_pretrained of the fast tokenizer writes it)",
                     model);
  } else {
    status = px_fail(err, PX_BAD_FILE, "%s: there is no tokenizer.json, and no vocab.json with merges.txt", dir);
  }
  if (status == PX_OK) status = px_tokenizer_side_files(tok, dir, pair, err);
  px_arena_free(&arena);
  return status;
}

static bool is_gguf(const char *path) {
  px_map map;
  if (px_map_open(path, &map, NULL) != PX_OK) return false;
  bool gguf = map.bytes >= 4 && memcmp(map.data, "GGUF", 4) == 0;
  px_map_close(&map);
  return gguf;
}

px_status px_tokenizer_open(const char *path, px_tokenizer **out, px_error *err) {
  *out = NULL;
  px_tokenizer *tok = px_calloc(1, sizeof *tok);
  if (!tok) return px_fail(err, PX_NO_MEMORY, "no memory for a tokenizer");
  tok->info.bos = tok->info.eos = tok->info.pad = tok->unk = -1;
  px_status status;
  if (px_file_is_dir(path))
    status = open_folder(tok, path, err);
  else if (is_gguf(path))
    status = px_tokenizer_from_gguf(tok, path, err);
  else
    status = px_tokenizer_from_json(tok, path, err);
  if (status == PX_OK) status = px_build_finish(tok, path, err);
  if (status != PX_OK)
    px_tokenizer_close(tok);
  else
    *out = tok;
  return status;
}

void px_tokenizer_close(px_tokenizer *tok) {
  if (!tok) return;
  px_vocab_free(&tok->vocab);
  px_bpe_free(&tok->bpe);
  for (size_t i = 0; i < tok->added_count; i++) free(tok->added[i].text);
  for (int i = 0; i < tok->normal_count; i++) {
    free(tok->normal[i].from);
    free(tok->normal[i].to);
  }
  for (int i = 0; i < tok->pre_count; i++) px_split_close(&tok->pre[i].splitter);
  for (int i = 0; i < tok->decode_count; i++) {
    free(tok->decode[i].from);
    free(tok->decode[i].to);
  }
  free(tok->added);
  free(tok->raw_trie.nodes);
  free(tok->normal_trie.nodes);
  free(tok->flags);
  free(tok->char_symbol);
  free(tok->rules);
  free(tok->stop_ids);
  free(tok->chat_template);
  free(tok);
}

/* ---- looking things up ---- */

const px_tokenizer_info *px_tokenizer_info_get(const px_tokenizer *tok) { return &tok->info; }

const char *px_tokenizer_token(const px_tokenizer *tok, int32_t id) { return px_vocab_text(&tok->vocab, id); }

int32_t px_tokenizer_id(const px_tokenizer *tok, const char *token) {
  return px_vocab_find(&tok->vocab, token, strlen(token));
}

bool px_tokenizer_is_special(const px_tokenizer *tok, int32_t id) {
  return id >= 0 && id < tok->vocab.size && (tok->flags[id] & TOKEN_SPECIAL);
}

/* ---- lists of ids ---- */

void px_ids_free(px_ids *ids) {
  free(ids->data);
  *ids = (px_ids){0};
}

px_status px_ids_push(px_ids *ids, int32_t id, px_error *err) {
  if (ids->len == ids->cap && px_reserve(&ids->data, &ids->cap, ids->len + 1, sizeof *ids->data))
    return px_fail(err, PX_NO_MEMORY, "no memory for %zu token ids", ids->len + 1);
  ids->data[ids->len++] = id;
  return PX_OK;
}
