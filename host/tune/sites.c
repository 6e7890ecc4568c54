/* SPDX-License-Identifier: MIT
 * The projections of a layer by name: as --targets says them, and as Hugging Face's modules are called. */
#include <stdlib.h>

#include "tune/part.h"

static const char *const short_names[PX_SITES] = {"q", "k", "v", "o", "gate", "up", "down"};

static const char *template_of(const px_config *c, px_site site) {
  const px_names *n = c->hf;
  const char *const names[PX_SITES] = {n->qkv ? n->qkv : n->q, n->qkv ? n->qkv : n->k, n->qkv ? n->qkv : n->v, n->o, n->gate, n->up, n->down};
  return names[site];
}

const char *px_site_module(const px_config *config, int layer, px_site site, px_arena *arena) {
  const char *name = template_of(config, site);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  return px_arena_printf(arena, name, layer);
#pragma GCC diagnostic pop
}

px_status px_site_names(const px_config *c, const bool sites[PX_SITES], px_arena *arena, px_name_list *out, px_error *err) {
  const char **list = px_arena_alloc(arena, PX_SITES, sizeof *list);
  if (!list) return px_fail(err, PX_NO_MEMORY, "no memory");
  *out = (px_name_list){.items = list};
  for (int s = 0; s < PX_SITES; s++) {
    if (!sites[s] || (c->hf->qkv && (s == PX_SITE_K || s == PX_SITE_V))) continue;
    const char *name = template_of(c, (px_site)s), *end = strrchr(name, '.');
    if (c->hf->qkv) /* "attn.c_proj" and "mlp.c_proj" */
      while (end > name && end[-1] != '.') end--;
    else
      end++;
    list[out->count++] = end;
  }
  return PX_OK;
}

int64_t px_site_in(const px_config *c, px_site site) {
  return site == PX_SITE_DOWN ? c->ffn_dim : site == PX_SITE_O ? (int64_t)c->heads * c->head_dim : c->dim;
}

int64_t px_site_out(const px_config *c, px_site site) {
  if (site == PX_SITE_GATE || site == PX_SITE_UP) return c->ffn_dim;
  if (site == PX_SITE_O || site == PX_SITE_DOWN) return c->dim;
  return (int64_t)(site == PX_SITE_Q ? c->heads : c->kv_heads) * c->head_dim;
}

/* Whether `word` names the module: its last component ("q_proj"), or its last two ("attn.c_proj"). */
static bool names_module(const char *template, const char *word) {
  size_t all = strlen(template), n = strlen(word);
  return n < all && strcmp(template + all - n, word) == 0 && template[all - n - 1] == '.';
}

static bool takes(const px_config *c, px_site site, const char *word) {
  const char *name = template_of(c, site);
  if (!name) return false;
  if (strcmp(word, "all") == 0) return true;
  if (names_module(name, word)) return true;
  if (c->hf->qkv && site <= PX_SITE_V) return strcmp(word, "qkv") == 0;
  return strcmp(word, short_names[site]) == 0;
}

static px_status unknown(const px_config *c, const char *part, const char *word, px_error *err) {
  if (c->hf->qkv && word[0] && !word[1] && strchr("qkv", word[0]))
    return px_fail(err, PX_INVALID, "%s: targets=%s: %s holds q, k and v in one matrix, as PEFT sees it too: write targets=qkv", part, word, c->family);
  return px_fail(err, PX_INVALID, "%s: %s has no projection \"%s\": %s and all are known", part, c->family, word,
                 c->hf->qkv ? "qkv, o, up, down" : "q, k, v, o, gate, up, down");
}

px_status px_part_sites(const px_config *c, const char *part, const char *targets, bool sites[PX_SITES], px_error *err) {
  char *copy = strdup(targets), *save = NULL;
  if (!copy) return px_fail(err, PX_NO_MEMORY, "no memory");
  px_status status = PX_OK;
  int count = 0;
  for (int s = 0; s < PX_SITES; s++) sites[s] = false;
  for (char *word = strtok_r(copy, ",", &save); status == PX_OK && word; word = strtok_r(NULL, ",", &save)) {
    bool found = false;
    for (int s = 0; s < PX_SITES; s++)
      if (takes(c, (px_site)s, word)) sites[s] = found = true;
    if (!found) status = unknown(c, part, word, err);
    count++;
  }
  free(copy);
  if (status == PX_OK && count == 0) status = px_fail(err, PX_INVALID, "%s: targets= names no projection", part);
  return status;
}
