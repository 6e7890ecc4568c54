/* SPDX-License-Identifier: MIT
 * README.md beside an adapter: what a reviewer who has to approve it asks for. It says what the run knows and nothing of
 * when or where, so that a resumed run writes the same bytes. A README.md that a person wrote has no mark and stays. */
#include <math.h>
#include <stdlib.h>

#include "core/version.h"
#include "format/json.h"
#include "train/run.h"
#include "tune/merge.h"

#define MARK "<!-- written by pfx train: remove this line to keep your own text -->"
enum { MOST_README_BYTES = 16 << 20 };

/* A double-quoted YAML scalar of UTF-8 text. Control characters, also those of two bytes (U+0080 to U+009F), the line
 * separators U+2028 and U+2029 and U+FEFF may not stand there as they are. */
static void yaml_text(px_buf *out, const char *text) {
  px_buf_puts(out, "\"");
  for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
    bool separator = c[0] == 0xe2 && c[1] == 0x80 && (c[2] == 0xa8 || c[2] == 0xa9), mark = c[0] == 0xef && c[1] == 0xbb && c[2] == 0xbf;
    if (*c == '"' || *c == '\\')
      px_buf_printf(out, "\\%c", *c);
    else if (*c < 0x20 || *c == 0x7f)
      px_buf_printf(out, "\\x%02x", *c);
    else if (c[0] == 0xc2 && c[1] < 0xa0)
      px_buf_printf(out, "\\x%02x", *++c);
    else if (separator || mark)
      px_buf_puts(out, separator ? (c[2] == 0xa8 ? "\\u2028" : "\\u2029") : "\\ufeff"), c += 2;
    else
      px_buf_append(out, c, 1);
  }
  px_buf_puts(out, "\"");
}

/* A code span of Markdown: a fence longer than any run of backticks in the text, and one line. */
static void code(px_buf *out, const char *text) {
  int run = 0, longest = 0;
  for (const char *c = text; *c; c++) {
    run = *c == '`' ? run + 1 : 0;
    if (run > longest) longest = run;
  }
  for (int i = 0; i <= longest; i++) px_buf_puts(out, "`");
  if (longest) px_buf_puts(out, " ");
  for (const char *c = text; *c; c++) px_buf_append(out, *c == '\n' || *c == '\r' ? " " : c, 1);
  if (longest) px_buf_puts(out, " ");
  for (int i = 0; i <= longest; i++) px_buf_puts(out, "`");
}

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

/* What a card says of each kind of part. peft: PEFT can load one, alone in its folder. */
static const struct {
  const char *tag, *text;
  bool peft;
} kinds[PX_PART_KINDS] = {
    [PX_PART_PREFIX] = {"prefix-tuning", "keys and values that layers of the frozen model attend to before the real tokens", true},
    [PX_PART_PROMPT] = {"prompt-tuning", "rows at the embedding, before the real tokens", true},
    [PX_PART_LORA] = {"lora", "low-rank deltas of projections", true},
    [PX_PART_IA3] = {"ia3", "scales of projections", true},
    [PX_PART_NORM] = {"ln-tuning", "other weights of the norms", true},
    [PX_PART_BIAS] = {"bias-tuning", "other biases", false},
    [PX_PART_TOP] = {"last-layers", "other weights of the last layers", false},
    [PX_PART_FULL] = {"full", "other weights throughout", false},
};

static bool is_peft(const px_part_spec *part) { return kinds[part->kind].peft && !part->layers; }

static void front_matter(px_buf *out, const px_run *run) {
  const px_tune_spec *spec = &run->spec;
  px_buf_puts(out, "---\nbase_model: ");
  yaml_text(out, run->options.model_path);
  px_buf_printf(out, "\nlibrary_name: %s\npipeline_tag: text-generation\ntags:\n",
                px_tune_is_whole(run->tune) ? "transformers" : spec->part_count == 1 && is_peft(&spec->parts[0]) ? "peft" : "pfx");
  for (int i = 0; i < spec->part_count; i++) px_buf_printf(out, "- %s\n", kinds[spec->parts[i].kind].tag);
  px_buf_puts(out, "- pfx\n---\n" MARK "\n\n");
}

static void parts(px_buf *out, const px_run *run) {
  px_buf_puts(out, "# ");
  code(out, run->options.tune);
  px_buf_puts(out, " for ");
  code(out, last_part(run->options.model_path));
  px_buf_printf(out, "\n\n%lld numbers, learned by pfx %s:\n\n", (long long)px_tune_trainable(run->tune), PX_VERSION);
  for (int i = 0; i < run->spec.part_count; i++) {
    px_part_kind kind = run->spec.parts[i].kind;
    int32_t tokens = px_tune_part_tokens(run->tune, i);
    px_buf_printf(out, "- %s: %s", px_part_kind_name(kind), kinds[kind].text);
    px_buf_printf(out, tokens ? ", %d virtual tokens\n" : "\n", tokens);
  }
}

static void base(px_buf *out, const px_run *run) {
  const px_config *c = px_model_config(run->model);
  px_buf_puts(out, "\n## Base model\n\n- path at training: ");
  code(out, run->options.model_path);
  px_buf_printf(out, "\n- %s, %d layers, width %d, %d heads (%d for keys and values), vocabulary of %d, context of %d tokens\n", c->family, c->layers,
                c->dim, c->heads, c->kv_heads, c->vocab, c->context);
  px_buf_printf(out, "- architecture digest: `%s`\n- weights digest: `%s`\n", run->model->fingerprint.arch, run->model->fingerprint.base);
  px_buf_printf(out, "- tokenizer digest: `%s`\n- computed in %s\n\n", run->tok ? px_tokenizer_info_get(run->tok)->digest : "none: rows of ids",
                px_dtype_name(run->model->dtype));
}

static void rows(px_buf *out, const char *what, const char *path, const px_rows *r) {
  px_buf_printf(out, "- %s: ", what);
  code(out, last_part(path));
  px_buf_printf(out, ", %zu rows, %llu tokens, %zu labelled (with a loss)", r->count, (unsigned long long)r->offsets[r->count], r->scored_tokens);
  if (r->dropped || r->cut) px_buf_printf(out, "; too long: %zu rows left out, %zu cut", r->dropped, r->cut);
  px_buf_printf(out, "; SHA-256 `%s`\n", r->digest);
}

static void scores(px_buf *out, const px_run *run) {
  const px_run_state *s = &run->state;
  px_buf_printf(out, "\n## Scores\n\n- after step %lld of %lld, %lld tokens seen\n", (long long)s->step, (long long)run->options.steps,
                (long long)s->tokens_seen);
  if (isfinite(s->last_loss)) px_buf_printf(out, "- training loss of that step: %.6g\n", s->last_loss);
  if (isfinite(s->first_valid_loss)) px_buf_printf(out, "- validation loss before training: %.6g\n", s->first_valid_loss);
  if (isfinite(s->best_valid_loss))
    px_buf_printf(out, "- validation loss of this adapter, the best so far: %.6g (step %lld)\n", s->best_valid_loss, (long long)s->best_step);
  else
    px_buf_puts(out, "- validation loss: not measured\n");
  px_buf_puts(out, "\nA loss is the sum over labelled tokens divided by their number (natural logarithm).\n");
}

static void limits(px_buf *out, const px_run *run) {
  const px_config *c = px_model_config(run->model);
  int32_t window = 0, tokens = run->tune->tokens;
  for (int l = 0; l < c->layers; l++)
    if (c->windows[l] > window) window = c->windows[l];
  px_buf_puts(out, "\n## Limits\n\n");
  px_buf_printf(out, run->options.valid ? "- Tested on the validation rows alone, by their loss, which also chose this adapter: it is no score on unseen data.\n"
                                        : "- Not tested at all: the run had no validation rows.\n");
  px_buf_puts(out, "- Not tested: generated text, other tasks or languages, what the model forgets, bias, safety, resistance to attack.\n");
  px_buf_puts(out, "- Made for exactly the weights above. On other weights of the same shape it loads and its effect is unknown; `pfx check` tells.\n");
  if (tokens) px_buf_printf(out, "- The first real token has position %d; at most %d real tokens fit into the context.\n", tokens, c->context - tokens);
  if (window && tokens)
    px_buf_printf(out, "- The model has a sliding window of %d tokens. In pfx it counts real tokens only and the prefix stays visible; PEFT with transformers "
                       "loses sight of the prefix once %d virtual and the real tokens exceed the window.\n", window, tokens);
}

static void loading(px_buf *out, const px_run *run) {
  const px_tune_spec *spec = &run->spec;
  bool one = spec->part_count == 1 && is_peft(&spec->parts[0]);
  if (px_tune_is_whole(run->tune)) {
    px_buf_puts(out, "\n## Loading it\n\nThis folder is a model of its own:\n\n```sh\npfx generate --model FOLDER --prompt 'TEXT'\n```\n\n"
                     "```python\nfrom transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(\"FOLDER\")\n```\n");
    return;
  }
  px_buf_puts(out, "\n## Loading it\n\n```sh\npfx check --model MODEL --adapter FOLDER\npfx generate --model MODEL --adapter FOLDER --prompt 'TEXT'\n```\n\n");
  for (int i = 0; !one && i < spec->part_count; i++)
    px_buf_printf(out, is_peft(&spec->parts[i]) ? "- %s: PEFT loads it, from its own folder and without the others\n" : "- %s%s: pfx alone has it\n",
                  px_part_kind_name(spec->parts[i].kind), spec->parts[i].layers ? " on chosen layers" : "");
  if (one)
    px_buf_puts(out, "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                     "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"MODEL\"), \"FOLDER\")\n```\n\n"
                     "PEFT does not compare the digests above. With a GGUF base it needs the same weights as a Hugging Face folder.\n");
}

/* Everything that makes the run but the files named above, whose places are nobody else's business. */
static px_status settings(px_buf *out, const px_run *run, px_error *err) {
  json_t *all = px_run_settings(run);
  static const char *const places[] = {"model", "data", "valid", "out", "tensorboard"};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) json_object_del(all, places[i]);
  px_buf_printf(out, "\n## Settings\n\npfx %s, %s, %s, %d threads\n\n```json\n", PX_VERSION, run->be->name, run->be->products, run->be->threads);
  px_status status = px_json_dump(all, out, err);
  px_buf_puts(out, "\n```\n");
  json_decref(all);
  return status;
}

/* Whether a README.md that is there may be replaced. */
static px_status is_ours(const char *path, bool *ours, px_error *err) {
  px_buf text = {0};
  *ours = !px_file_exists(path);
  if (*ours) return PX_OK;
  px_status status = px_file_read(path, MOST_README_BYTES, &text, err);
  *ours = status == PX_OK && text.len && strstr(text.data, MARK) != NULL;
  px_buf_free(&text);
  return status;
}

px_status px_run_write_card(px_run *run, px_error *err) {
  char *path = px_arena_printf(&run->arena, "%s/README.md", run->options.out);
  bool ours = false;
  if (!path) return px_fail(err, PX_NO_MEMORY, "no memory");
  if (is_ours(path, &ours, NULL) != PX_OK || !ours) {
    if (!run->card_kept) px_log_message(&run->calls->log, PX_LOG_INFO, "%s was not written by pfx: it stays as it is", path);
    run->card_kept = true;
    return PX_OK;
  }
  px_buf out = {0};
  front_matter(&out, run);
  parts(&out, run);
  base(&out, run);
  px_buf_puts(&out, "## Data\n\n");
  rows(&out, "learned from", run->options.data, &run->train);
  if (run->options.valid) rows(&out, "validated on", run->options.valid, &run->valid);
  scores(&out, run);
  limits(&out, run);
  loading(&out, run);
  px_status status = settings(&out, run, err);
  if (status == PX_OK) status = out.failed ? px_fail(err, PX_NO_MEMORY, "no memory") : px_file_write(path, out.data, out.len, err);
  px_buf_free(&out);
  return status;
}

void px_run_remove_card(const char *dir) {
  px_arena arena = {0};
  char *path = px_arena_printf(&arena, "%s/README.md", dir);
  bool ours = false;
  if (path && px_file_exists(path) && is_ours(path, &ours, NULL) == PX_OK && ours) remove(path);
  px_arena_free(&arena);
}
