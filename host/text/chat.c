/* SPDX-License-Identifier: MIT */
#include "text/chat.h"

#include <string.h>

#include "core/hash.h"
#include "text/space.h"

static const char *const names[] = {
    [PX_TEMPLATE_NONE] = "none",      [PX_TEMPLATE_CHATML] = "chatml",  [PX_TEMPLATE_SMOLLM2] = "smollm2",
    [PX_TEMPLATE_LLAMA2] = "llama-2", [PX_TEMPLATE_LLAMA3] = "llama-3", [PX_TEMPLATE_MISTRAL] = "mistral",
};
enum { NAME_COUNT = sizeof names / sizeof names[0] };

const char *px_template_name(px_template t) { return (unsigned)t < NAME_COUNT ? names[t] : NULL; }

px_status px_template_parse(const char *name, px_template *out, px_error *err) {
  for (int i = 0; i < NAME_COUNT; i++) {
    if (strcmp(name, names[i]) != 0) continue;
    *out = (px_template)i;
    return PX_OK;
  }
  return px_fail(err, PX_INVALID,
                 "unknown chat template \"%s\"; known: chatml, smollm2, llama-2, llama-3, mistral, none", name);
}

/* SHA-256 of the texts as models publish them (the texts are not ours to carry). A template stands here more than once
 * where it is published in spellings that render alike: newlines written into JSON as \n or as \\n, ChatML with and
 * without a first statement that sets add_generation_prompt, one or two spaces before a plus sign. */
static const struct {
  const char *sha256;
  px_template id;
} known[] = {
    {"153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3", PX_TEMPLATE_CHATML},
    {"fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e", PX_TEMPLATE_CHATML},
    {"58c1a1f04baa7adaeaba1f90267c3d57d9396f0c1f0129bdde9e76d3c6784af7", PX_TEMPLATE_CHATML},
    {"d7b5b8c7b58f7a6bf868aa46a5f73ee976d7292f40fcb9c3e7a1defd8d235cfb", PX_TEMPLATE_CHATML},
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", PX_TEMPLATE_SMOLLM2},
    {"e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf", PX_TEMPLATE_LLAMA2},
    {"1623de5159d584da0b6c78f86ae57b2328746122f2c58446ab7f84bce8c7c57f", PX_TEMPLATE_LLAMA2},
    {"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122", PX_TEMPLATE_LLAMA3},
    {"4f46ecd43418f216df8c26936c60e5d04bcc81db47db5d86fbe889f64212dd4c", PX_TEMPLATE_LLAMA3},
    {"26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7", PX_TEMPLATE_MISTRAL},
};

px_status px_template_detect(const px_tokenizer *tok, px_template *out, px_error *err) {
  const char *text = px_tokenizer_info_get(tok)->chat_template;
  *out = PX_TEMPLATE_NONE;
  if (!text) return PX_OK;
  char digest[65];
  px_sha256_of(text, strlen(text), digest);
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    if (strcmp(digest, known[i].sha256) != 0) continue;
    *out = known[i].id;
    return PX_OK;
  }
  return px_fail(err, PX_BAD_FILE,
                 "the tokenizer's chat template (SHA-256 %.16s...) is none that is known byte for byte; if one renders "
                 "the same text, name it: --template chatml, smollm2, llama-2, llama-3 or mistral",
                 digest);
}

/* --- rendering --- */

enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT };

typedef struct writer {
  px_arena *arena;
  px_chat_piece *pieces;
  size_t count;
  px_buf text; /* of the piece that is open */
  bool assistant;
  bool failed;
  const char *bos, *eos;
} writer;

static void close_piece(writer *w) {
  if (w->text.len == 0 || w->failed) return;
  char *copy = px_arena_alloc(w->arena, w->text.len + 1, 1);
  if (!copy || w->text.failed) {
    w->failed = true;
    return;
  }
  memcpy(copy, w->text.data, w->text.len);
  w->pieces[w->count++] = (px_chat_piece){.text = copy, .bytes = w->text.len, .assistant = w->assistant};
  w->text.len = 0;
}

/* Neighbours of one kind join; an assistant turn is never joined with another. */
static void put(writer *w, bool assistant, const char *text, size_t bytes) {
  if (assistant != w->assistant) close_piece(w);
  w->assistant = assistant;
  px_buf_append(&w->text, text, bytes);
}
static void puts_as(writer *w, bool assistant, const char *text) { put(w, assistant, text, strlen(text)); }

static void put_trimmed(writer *w, bool assistant, const char *text) {
  size_t bytes = strlen(text);
  px_space_trim(&text, &bytes);
  put(w, assistant, text, bytes);
}

static void chatml(writer *w, const px_chat_message *messages, size_t count, const int *roles, bool header) {
  for (size_t i = 0; i < count; i++) {
    bool assistant = roles[i] == ROLE_ASSISTANT;
    puts_as(w, false, "<|im_start|>");
    puts_as(w, false, messages[i].role);
    puts_as(w, false, "\n");
    puts_as(w, assistant, messages[i].content);
    puts_as(w, assistant, "<|im_end|>");
    puts_as(w, false, "\n");
  }
  if (header) puts_as(w, false, "<|im_start|>assistant\n");
}

static void smollm2(writer *w, const px_chat_message *messages, size_t count, const int *roles, bool header) {
  if (roles[0] != ROLE_SYSTEM)
    puts_as(w, false,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n");
  chatml(w, messages, count, roles, header);
}

static void llama3(writer *w, const px_chat_message *messages, size_t count, const int *roles, bool header) {
  puts_as(w, false, w->bos);
  for (size_t i = 0; i < count; i++) {
    bool assistant = roles[i] == ROLE_ASSISTANT;
    puts_as(w, false, "<|start_header_id|>");
    puts_as(w, false, messages[i].role);
    puts_as(w, false, "<|end_header_id|>\n\n");
    put_trimmed(w, assistant, messages[i].content);
    puts_as(w, assistant, "<|eot_id|>");
  }
  if (header) puts_as(w, false, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

/* The system message stands inside the first user turn, and the two are trimmed as one; alone it renders to nothing. */
static void llama2(writer *w, const px_chat_message *messages, size_t count, const int *roles, bool header) {
  (void)header; /* a user turn ends with [/INST]: there is nothing to add */
  size_t first = roles[0] == ROLE_SYSTEM;
  for (size_t i = first; i < count; i++) {
    if (roles[i] == ROLE_ASSISTANT) {
      puts_as(w, true, " ");
      put_trimmed(w, true, messages[i].content);
      puts_as(w, true, " ");
      puts_as(w, true, w->eos);
      continue;
    }
    puts_as(w, false, w->bos);
    puts_as(w, false, "[INST] ");
    if (first && i == first) {
      const char *content = messages[i].content;
      size_t bytes = strlen(content);
      while (bytes && px_space_before(content, bytes)) bytes -= px_space_before(content, bytes);
      puts_as(w, false, "<<SYS>>\n");
      puts_as(w, false, messages[0].content);
      puts_as(w, false, bytes ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
      put(w, false, content, bytes);
    } else {
      put_trimmed(w, false, messages[i].content);
    }
    puts_as(w, false, " [/INST]");
  }
}

static void mistral(writer *w, const px_chat_message *messages, size_t count, const int *roles, bool header) {
  (void)header;
  puts_as(w, false, w->bos);
  for (size_t i = 0; i < count; i++) {
    bool assistant = roles[i] == ROLE_ASSISTANT;
    if (!assistant) puts_as(w, false, "[INST] ");
    puts_as(w, assistant, messages[i].content);
    puts_as(w, assistant, assistant ? w->eos : " [/INST]");
  }
}

/* Roles as numbers; also the order that the Llama-2 and Mistral templates insist on. */
static px_status check_roles(px_template t, const px_chat_message *messages, size_t count, int *roles, px_error *err) {
  static const char *const role_names[] = {"system", "user", "assistant"};
  bool alternate = t == PX_TEMPLATE_LLAMA2 || t == PX_TEMPLATE_MISTRAL;
  if (count == 0) return px_fail(err, PX_BAD_FILE, "a conversation needs a message");
  for (size_t i = 0; i < count; i++) {
    roles[i] = 0;
    while (roles[i] < 3 && strcmp(messages[i].role, role_names[roles[i]]) != 0) roles[i]++;
    if (roles[i] == 3)
      return px_fail(err, PX_BAD_FILE, "message %zu: unknown role \"%.40s\"; system, user or assistant", i + 1,
                     messages[i].role);
  }
  if (!alternate) return PX_OK;
  size_t first = roles[0] == ROLE_SYSTEM;
  if (first && t == PX_TEMPLATE_MISTRAL)
    return px_fail(err, PX_BAD_FILE, "message 1: the mistral template has no system message");
  for (size_t i = first; i < count; i++) {
    int want = (i - first) % 2 ? ROLE_ASSISTANT : ROLE_USER;
    if (roles[i] != want)
      return px_fail(err, PX_BAD_FILE,
                     "message %zu: role %s where the %s template needs %s (user and assistant take turns)", i + 1,
                     role_names[roles[i]], px_template_name(t), role_names[want]);
  }
  return PX_OK;
}

/* The spellings of the begin and end token, for the templates that write them. */
static px_status find_tokens(px_template t, const px_tokenizer *tok, writer *w, px_error *err) {
  bool bos = t == PX_TEMPLATE_LLAMA2 || t == PX_TEMPLATE_LLAMA3 || t == PX_TEMPLATE_MISTRAL;
  if (!bos) return PX_OK;
  const px_tokenizer_info *info = tok ? px_tokenizer_info_get(tok) : NULL;
  w->bos = info && info->bos >= 0 ? px_tokenizer_token(tok, info->bos) : NULL;
  w->eos = info && info->eos >= 0 ? px_tokenizer_token(tok, info->eos) : NULL;
  if (!w->bos)
    return px_fail(err, PX_BAD_FILE, "the %s template needs a begin token, the tokenizer has none", names[t]);
  if (!w->eos && t != PX_TEMPLATE_LLAMA3)
    return px_fail(err, PX_BAD_FILE, "the %s template needs an end token, the tokenizer has none", names[t]);
  return PX_OK;
}

px_status px_chat_render(px_template t, const px_tokenizer *tok, const px_chat_message *messages, size_t count,
                         bool add_generation_prompt, px_arena *arena, px_chat_piece **pieces, size_t *piece_count,
                         px_error *err) {
  typedef void render_fn(writer *, const px_chat_message *, size_t, const int *, bool);
  static render_fn *const render[] = {
      [PX_TEMPLATE_CHATML] = chatml, [PX_TEMPLATE_SMOLLM2] = smollm2, [PX_TEMPLATE_LLAMA2] = llama2,
      [PX_TEMPLATE_LLAMA3] = llama3, [PX_TEMPLATE_MISTRAL] = mistral,
  };
  *pieces = NULL;
  *piece_count = 0;
  if (t <= PX_TEMPLATE_NONE || (unsigned)t >= NAME_COUNT)
    return px_fail(err, PX_INVALID, "no chat template is chosen; the tokenizer has none, name one with --template");
  writer w = {.arena = arena};
  int *roles = px_arena_alloc(arena, count, sizeof *roles);
  w.pieces = px_arena_alloc(arena, 2 * count + 2, sizeof *w.pieces); /* at most two for a message */
  if (!roles || !w.pieces) return px_fail(err, PX_NO_MEMORY, "no memory for a conversation of %zu messages", count);
  PX_TRY(check_roles(t, messages, count, roles, err));
  PX_TRY(find_tokens(t, tok, &w, err));
  render[t](&w, messages, count, roles, add_generation_prompt);
  close_piece(&w);
  bool failed = w.failed || w.text.failed;
  px_buf_free(&w.text);
  if (failed) return px_fail(err, PX_NO_MEMORY, "no memory for a conversation of %zu messages", count);
  *pieces = w.pieces;
  *piece_count = w.count;
  return PX_OK;
}
