/* SPDX-License-Identifier: MIT
 *
 * pfx: learn a few vectors that steer a frozen language model, and use them.
 *
 * A prefix (Li and Liang, "Prefix-Tuning", 2021) is a set of keys and values that every layer attends to before the real
 * tokens. This header is the whole library: open a model, train a prefix, check that it fits, generate with it.
 *
 * Rules that hold for every call
 * - Status. A call that can fail returns pfx_status and fills *err, which is the caller's and may be NULL. The message is
 *   one line that says what is wrong, where, and what to do.
 * - Ownership. An out-parameter is yours: release handles with their close or destroy (which accept NULL) and texts and
 *   arrays with pfx_free. A returned pointer is borrowed and lives as long as the handle it came from. Strings that are
 *   passed in are only read during the call, unless a comment says otherwise.
 * - Threads. pfx_model, pfx_tokenizer and pfx_adapter are immutable once open and may be shared by any number of threads.
 *   pfx_trainer and pfx_generator belong to one thread at a time. Close a model after all that was made from it.
 * - Blocking. A name that ends in _wait works until it is done; all others return soon.
 * - Options. An options struct begins with struct_bytes; its _init function (below, inline) writes that and the defaults.
 *   Fields are only ever appended, and a library newer than its caller gives defaults to the ones the caller does not have.
 *   After _init, zero means zero.
 * - The library never prints, exits, installs signal handlers or reads environment variables of its own. Messages, progress
 *   and cancellation go through callbacks, which run on the calling thread and must not call back into the same handle.
 * - Texts are UTF-8. Sizes of tensors are given outermost first.
 */
#ifndef PFX_PFX_H
#define PFX_PFX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PFX_API __attribute__((visibility("default")))
#else
#define PFX_API
#endif

#define PFX_VERSION_MAJOR 0
#define PFX_VERSION_MINOR 1
#define PFX_VERSION_PATCH 0
/* The number in the shared library's name; changes when an old program would no longer work. */
#define PFX_ABI 0

/* "0.1.0" */
PFX_API const char *pfx_version(void);
/* The libraries behind it, one line: "oneDNN 2.6.3, PCRE2 10.42, ..." */
PFX_API const char *pfx_libraries(void);

/* ---- Status ---------------------------------------------------------------------------------------------------------- */

typedef enum pfx_status {
  PFX_OK = 0,
  PFX_FAILED = 1,     /* anything without a better name */
  PFX_INVALID = 2,    /* an argument or option is wrong */
  PFX_BAD_FILE = 3,   /* an input file is missing, damaged or not supported */
  PFX_MISMATCH = 4,   /* an adapter or a saved run does not fit the model or the data */
  PFX_NO_MEMORY = 5,
  PFX_NO_DEVICE = 6,  /* a device or its library is absent or failed */
  PFX_IO = 7,         /* writing failed: disk full, no permission */
  PFX_CANCELLED = 8,  /* a callback asked to stop; what can be saved is saved */
  PFX_NOT_FINITE = 9, /* a loss or gradient became NaN or infinite; nothing was changed by it */
} pfx_status;

typedef struct pfx_error {
  pfx_status status;
  int native; /* errno or another library's code; 0 if none */
  char message[1000];
} pfx_error;

/* "PFX_BAD_FILE"; never NULL. */
PFX_API const char *pfx_status_name(pfx_status status);
/* Releases a text or array that a call handed out. NULL is fine. */
PFX_API void pfx_free(void *pointer);

enum { PFX_LOG_ERROR = 0, PFX_LOG_WARN = 1, PFX_LOG_INFO = 2, PFX_LOG_VERBOSE = 3 };
/* A message without a final newline. */
typedef void (*pfx_log_fn)(void *user, int level, const char *message);
/* Asked between pieces of work; true: stop as soon as possible. */
typedef bool (*pfx_cancel_fn)(void *user);

/* ---- Models ---------------------------------------------------------------------------------------------------------- */

typedef struct pfx_model pfx_model;

typedef enum pfx_dtype {
  PFX_DTYPE_AUTO = 0, /* bf16 where the device computes in it, else f32 */
  PFX_DTYPE_F32 = 1,
  PFX_DTYPE_BF16 = 2, /* weights, stored activations and residual stream in bfloat16; sums, statistics, loss, gradients of
                         trained tensors and the optimizer in float32 */
} pfx_dtype;

/* What does attention on a GPU. */
typedef enum pfx_attention {
  PFX_ATTENTION_AUTO = 0,  /* what was measured to be the fastest on the device; fused where nothing was */
  PFX_ATTENTION_FUSED = 1, /* our own kernels, prefix and tokens in one; the same bits every time */
  PFX_ATTENTION_CUDNN = 2, /* cuDNN for the tokens, merged with our own kernels for the prefix; what it lacks is fused */
} pfx_attention;

typedef struct pfx_model_options {
  size_t struct_bytes;
  pfx_dtype dtype;    /* default PFX_DTYPE_AUTO */
  int32_t threads;    /* default 0: every processor this process may use */
  const char *device; /* "cpu" (default), "cuda", or "cuda:N" for the Nth GPU */
  pfx_log_fn log;
  void *log_user;
  pfx_attention attention; /* default PFX_ATTENTION_AUTO; cuDNN: PFX_NO_DEVICE where it is missing */
} pfx_model_options;

static inline pfx_model_options pfx_model_options_init(void) {
  pfx_model_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  o.device = "cpu";
  return o;
}

/* `path`: a Hugging Face folder (config.json, *.safetensors) or a GGUF file; families gpt2, llama, mistral, qwen2, qwen3.
 * Weights of the computing type are mapped, others converted by all cores. options NULL: defaults. */
PFX_API pfx_status pfx_model_open(const char *path, const pfx_model_options *options, pfx_model **model, pfx_error *err);
PFX_API void pfx_model_close(pfx_model *model);

typedef struct pfx_model_info {
  const char *path, *family;
  int32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab, context;
  pfx_dtype dtype;
  int32_t threads;
  int64_t parameters;         /* weights, tied ones once */
  const char *arch, *base;    /* the fingerprint's digests: SHA-256 in hexadecimal */
  const char *products;       /* the library that multiplies matrices */
  double open_seconds;
} pfx_model_info;
PFX_API void pfx_model_info_get(const pfx_model *model, pfx_model_info *info);

/* Searches every weight for values that are not finite. PFX_BAD_FILE names the first. */
PFX_API pfx_status pfx_model_verify_wait(const pfx_model *model, pfx_error *err);

/* ---- Tokenizers ------------------------------------------------------------------------------------------------------ */

typedef struct pfx_tokenizer pfx_tokenizer;

/* `path`: a folder with tokenizer.json, vocab.json + merges.txt or encoder.json + vocab.bpe; a tokenizer.json; a GGUF file. */
PFX_API pfx_status pfx_tokenizer_open(const char *path, pfx_tokenizer **tokenizer, pfx_error *err);
PFX_API void pfx_tokenizer_close(pfx_tokenizer *tokenizer);

typedef struct pfx_tokenizer_info {
  int32_t vocab_size, bos, eos; /* -1: none */
  bool add_bos;                 /* rows and prompts begin with bos */
  const char *kind, *split;     /* "byte-level BPE", "smollm" */
  const char *digest;           /* SHA-256 over tokens, merges, split rule and special ids */
} pfx_tokenizer_info;
PFX_API void pfx_tokenizer_info_get(const pfx_tokenizer *tokenizer, pfx_tokenizer_info *info);

/* Ids of a text, without begin or end token. Added tokens in the text are parsed. *ids: pfx_free. */
PFX_API pfx_status pfx_tokenizer_encode(const pfx_tokenizer *tokenizer, const char *text, size_t bytes, int32_t **ids, size_t *count,
                                        pfx_error *err);
/* Text of ids, NUL-terminated; *bytes (may be NULL) its length. *text: pfx_free. */
PFX_API pfx_status pfx_tokenizer_decode(const pfx_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special, char **text,
                                        size_t *bytes, pfx_error *err);

/* ---- Adapters -------------------------------------------------------------------------------------------------------- */

typedef struct pfx_adapter pfx_adapter;

/* A folder in PEFT's format (PREFIX_TUNING, CARTRIDGE, PROMPT_TUNING, P_TUNING, LORA, IA3, LN_TUNING), a delta of pfx's own,
 * or a hybrid: a folder for each part and pfx.json. What pfx does not have is refused by name. */
PFX_API pfx_status pfx_adapter_open(const char *path, pfx_adapter **adapter, pfx_error *err);
PFX_API void pfx_adapter_close(pfx_adapter *adapter);

typedef struct pfx_adapter_info {
  const char *path, *kind;      /* "PREFIX_TUNING"; a hybrid's parts are joined: "PREFIX_TUNING+LORA" */
  int32_t virtual_tokens;       /* prefix and prompt together */
  int32_t layers, kv_heads, head_dim; /* of the prefix; 0 where there is none */
  const char *base_model;       /* as the file names it; NULL: not said */
  const char *base, *arch;      /* digests of the model it was trained on; NULL: the file carries none */
  const char *training;         /* JSON summary of its training; NULL: none */
} pfx_adapter_info;
PFX_API void pfx_adapter_info_get(const pfx_adapter *adapter, pfx_adapter_info *info);

typedef enum pfx_fit {
  PFX_FIT_VERIFIED = 0,   /* trained on exactly these weights */
  PFX_FIT_UNVERIFIED = 1, /* carries no fingerprint; every shape fits */
  PFX_FIT_FORCED = 2,     /* other weights of the same shape, and `force` was given */
} pfx_fit;

/* Does the adapter fit, and can it be computed with? PFX_MISMATCH says what differs and by how much. A shape that does not fit is a mismatch with
 * `force` too. tokenizer may be NULL. *warning (may be NULL; pfx_free) becomes NULL or a text, e.g. another tokenizer. */
PFX_API pfx_status pfx_adapter_check(const pfx_adapter *adapter, const pfx_model *model, const pfx_tokenizer *tokenizer, bool force,
                                     pfx_fit *fit, char **warning, pfx_error *err);

typedef enum pfx_kv_type { PFX_KV_F32 = 0, PFX_KV_F16 = 1, PFX_KV_BF16 = 2 } pfx_kv_type;
typedef enum pfx_rotary_layout {
  PFX_ROTARY_HALVES = 0,     /* pairs (i, i + head_dim / 2): Hugging Face */
  PFX_ROTARY_INTERLEAVED = 1 /* pairs (2 i, 2 i + 1): GGUF's llama */
} pfx_rotary_layout;

/* A key/value cache that the caller owns. Element (token t, head h, dim d) of the keys stands at
 *   k + (slot(t) * token_stride + (h - first_head) * head_stride + d) * size of the type,
 * slot(t) = block_table ? block_table[t / block_tokens] * block_tokens + t % block_tokens : t, and the values likewise. */
typedef struct pfx_kv_target {
  size_t struct_bytes;
  void *k, *v;
  pfx_kv_type type;
  pfx_rotary_layout rotary;
  int64_t token_stride, head_stride;    /* elements */
  const int32_t *block_table;           /* NULL: contiguous */
  int32_t block_tokens;
  int32_t first_head, head_count;       /* range of key/value heads to write (tensor parallel servers) */
} pfx_kv_target;

static inline pfx_kv_target pfx_kv_target_init(void) {
  pfx_kv_target t;
  memset(&t, 0, sizeof t);
  t.struct_bytes = sizeof t;
  return t;
}

/* Writes one layer of the prefix into the target; keys are final (no rotary embedding is to be applied), and the first
 * real token has position `virtual_tokens`. `stream` must be NULL on the CPU. An adapter that is more or other than a
 * prefix on all layers is PFX_INVALID. */
PFX_API pfx_status pfx_adapter_write_kv(const pfx_adapter *adapter, int32_t layer, const pfx_kv_target *target, void *stream, pfx_error *err);

/* ---- Data ------------------------------------------------------------------------------------------------------------ */

typedef enum pfx_on_long { PFX_LONG_ERROR = 0, PFX_LONG_CUT = 1, PFX_LONG_DROP = 2 } pfx_on_long;

/* How the rows of a file become tokens; the same everywhere. */
typedef struct pfx_data_options {
  int32_t max_row_tokens;    /* 0: the context less the prefix */
  pfx_on_long on_long;
  bool loss_all;             /* every token but a row's first scores, not the completion alone */
  bool no_bos, no_end;
  const char *chat_template; /* "chatml", "smollm2", "llama-2", "llama-3", "mistral"; NULL: the tokenizer's own */
} pfx_data_options;

/* ---- Training -------------------------------------------------------------------------------------------------------- */

typedef struct pfx_trainer pfx_trainer;

typedef enum pfx_schedule { PFX_SCHEDULE_LINEAR = 0, PFX_SCHEDULE_COSINE = 1, PFX_SCHEDULE_CONSTANT = 2 } pfx_schedule;

typedef struct pfx_progress {
  int64_t step, steps;
  double loss, lr, grad_norm, tokens_per_s, eta_seconds, seconds;
  double valid_loss;      /* NaN: not measured at this step */
  double best_valid_loss; /* NaN: none yet */
  int64_t tokens;         /* of this step */
  uint64_t peak_bytes;
} pfx_progress;

typedef enum pfx_optimizer {
  PFX_OPTIMIZER_ADAMW = 0,
  PFX_OPTIMIZER_SGD = 1, /* plain descent: no moments, a third of AdamW's memory; the rate is yours to find */
} pfx_optimizer;

/* Of a model folder that is written. */
typedef enum pfx_weight_type {
  PFX_WEIGHT_BASE = 0, /* each tensor in its own type of the base, bf16 where that is quantised */
  PFX_WEIGHT_F32 = 1,
  PFX_WEIGHT_BF16 = 2,
  PFX_WEIGHT_F16 = 3,
} pfx_weight_type;

typedef struct pfx_train_options {
  size_t struct_bytes;
  const char *data, *valid, *out;  /* valid NULL: no validation */
  const char *tune;                /* "prefix:20" (docs/cli.md has the grammar) */
  const char *init;                /* NULL: the part's own; "data", "random", "zero", "text:...", "text-file:F", "adapter:DIR" */
  int32_t reparam;                 /* hidden width of the reparameterisation; 0: none */
  int64_t steps;                   /* 0: from epochs */
  double epochs;                   /* default 1 */
  int64_t stop_after;              /* 0: never */
  double max_seconds;              /* 0: no limit */
  double lr;                       /* 0: the part's usual value */
  int64_t warmup;                  /* steps; default -1: a twentieth of the run */
  pfx_schedule schedule;
  int32_t batch_rows;              /* rows a batch; 0 with batch_tokens 0: 16 */
  int64_t batch_tokens;
  int32_t accumulate;              /* default 1 */
  double beta1, beta2, eps, weight_decay, clip; /* 0.9 0.999 1e-8 0 1; clip < 0: none */
  int64_t eval_every, save_every;  /* steps; default 0: five a run; -1: never (the end is always saved) */
  int32_t patience;                /* evaluations without a better loss before the run ends; 0: no early stop */
  double prefix_dropout;
  pfx_data_options rows;
  bool no_fingerprint, force;      /* force: write into a folder that is not empty, start from an adapter of other weights */
  uint64_t seed;
  bool no_graph;                   /* on a GPU: launch every operation by itself, replay no recorded steps; same bits */
  void (*progress)(void *user, const pfx_progress *p); /* after every step, and after the validation before the first */
  pfx_cancel_fn cancelled;         /* asked after every step: saves, PFX_CANCELLED */
  void *user;
  pfx_log_fn log;
  void *log_user;
  pfx_attention attention;         /* default PFX_ATTENTION_AUTO: as the model was opened */
  pfx_optimizer optimizer;         /* default PFX_OPTIMIZER_ADAMW */
  const char *tensorboard;         /* folder for TensorBoard event files; NULL: none. A failure to write is logged and ends no run */
  pfx_weight_type out_type;        /* of the model that a run with tune "full" leaves; other runs leave float32 adapters */
} pfx_train_options;

static inline pfx_train_options pfx_train_options_init(void) {
  pfx_train_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  o.tune = "prefix:20";
  o.epochs = 1;
  o.warmup = -1;
  o.accumulate = 1;
  o.beta1 = 0.9;
  o.beta2 = 0.999;
  o.eps = 1e-8;
  o.clip = 1;
  return o;
}

/* A part of a value of --tune, for programs that show or search settings. */
typedef struct pfx_tune_part {
  char name[16];          /* "prefix" */
  int32_t virtual_tokens; /* positions that it takes before the first real token; 0: none, or known only once it is made */
  double lr;              /* the learning rate that it names with lr=; 0: it names none */
  double usual_lr;        /* what it trains with where none is named */
} pfx_tune_part;
/* Reads `tune` as pfx_train_options has it, without a model, and describes part number `part` (from 0). *count: how many
 * there are. PFX_INVALID says what is wrong with it. */
PFX_API pfx_status pfx_tune_describe(const char *tune, int32_t part, pfx_tune_part *out, int32_t *count, pfx_error *err);

typedef struct pfx_train_result {
  int64_t step, steps, best_step;
  double first_valid_loss, best_valid_loss, last_valid_loss, last_loss; /* NaN: not measured; first: before any update */
  double seconds, tokens_per_s;
  uint64_t peak_bytes;
  bool finished, early_stopped;
  int64_t trainable;        /* numbers that were trained */
} pfx_train_result;

/* A new run. Strings of the options are copied; the model and tokenizer must outlive the trainer. tokenizer NULL: the
 * data is `ids` rows. The files of the run: docs/formats.md. */
PFX_API pfx_status pfx_trainer_create(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_train_options *options,
                                      pfx_trainer **trainer, pfx_error *err);
/* What a saved run in `dir` (or the run.json `dir`) needs opened before it can go on or be repeated. Strings: pfx_free each. */
PFX_API pfx_status pfx_run_read(const char *dir, char **model_path, char **device, pfx_dtype *dtype, int32_t *threads, pfx_error *err);
/* The options that a run.json holds, to repeat its run elsewhere (--config). Strings live until pfx_free(*memory). */
PFX_API pfx_status pfx_run_options(const char *run_json, pfx_train_options *options, char **model_path, void **memory, pfx_error *err);
/* Goes on with the run in `dir`. Of `changes` (may be NULL) only steps, epochs, patience, eval_every, save_every,
 * stop_after, max_seconds, no_graph, tensorboard and the callbacks are read; zero keeps what the run began with. */
PFX_API pfx_status pfx_trainer_resume(const pfx_model *model, const pfx_tokenizer *tokenizer, const char *dir, const pfx_train_options *changes,
                                      pfx_trainer **trainer, pfx_error *err);
/* Trains to the end, to stop_after, or until cancelled. *result is filled on failure too. */
PFX_API pfx_status pfx_trainer_run_wait(pfx_trainer *trainer, pfx_train_result *result, pfx_error *err);
PFX_API void pfx_trainer_destroy(pfx_trainer *trainer);

/* ---- Generating ------------------------------------------------------------------------------------------------------ */

typedef struct pfx_generator pfx_generator;

typedef struct pfx_generator_options {
  size_t struct_bytes;
  int32_t max_rows;     /* sequences computed at once; default 16 */
  int64_t cache_bytes;  /* of the key/value cache; default 0: by need, at most 1 GiB */
  pfx_log_fn log;
  void *log_user;
} pfx_generator_options;

static inline pfx_generator_options pfx_generator_options_init(void) {
  pfx_generator_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  o.max_rows = 16;
  return o;
}

PFX_API pfx_status pfx_generator_create(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_generator_options *options,
                                        pfx_generator **generator, pfx_error *err);
PFX_API void pfx_generator_destroy(pfx_generator *generator);
/* Makes an adapter usable in this generator and gives its number. Check it first (pfx_adapter_check); it must outlive the
 * generator. Any mixture of adapters runs in one batch. */
PFX_API pfx_status pfx_generator_add_adapter(pfx_generator *generator, const pfx_adapter *adapter, int32_t *id, pfx_error *err);

/* Why a sequence ended. A stop text comes before the other reasons where they meet, also when it is complete only with the
 * bytes that the decoder held back until the end. */
typedef enum pfx_finish {
  PFX_FINISH_NONE = 0,
  PFX_FINISH_STOP_TOKEN = 1,
  PFX_FINISH_STOP_TEXT = 2,
  PFX_FINISH_LENGTH = 3,  /* max_tokens */
  PFX_FINISH_CONTEXT = 4, /* the model's context is full */
} pfx_finish;

typedef struct pfx_request {
  size_t struct_bytes;
  const char *prompt;     /* text, or NULL with ids */
  const int32_t *ids;     /* used as they are: no begin token is added */
  int32_t id_count;
  bool chat;              /* the prompt is a user's message: apply the chat template */
  const char *chat_template; /* NULL: the tokenizer's own */
  bool no_bos;
  int32_t adapter;        /* number from add_adapter; default -1: the frozen model */
  uint64_t row;           /* this prompt's number in the random stream: same seed and row, same text */
  int32_t max_tokens;     /* default 256 */
  float temperature;      /* default 0: greedy */
  float top_p, min_p, repetition_penalty; /* defaults 1, 0, 1: off */
  int32_t top_k;          /* default 0: off */
  uint64_t seed;
  const char *const *stop; /* texts that end generation; not shown; must live until the row is done */
  int32_t stop_count;
  /* Complete UTF-8 as it appears; the last call has finish != PFX_FINISH_NONE. */
  void (*text)(void *user, uint64_t row, const char *bytes, size_t count, pfx_finish finish);
  void *user;
} pfx_request;

static inline pfx_request pfx_request_init(void) {
  pfx_request r;
  memset(&r, 0, sizeof r);
  r.struct_bytes = sizeof r;
  r.adapter = -1;
  r.max_tokens = 256;
  r.top_p = 1;
  r.repetition_penalty = 1;
  return r;
}

/* Queues a prompt. */
PFX_API pfx_status pfx_generator_add(pfx_generator *generator, const pfx_request *request, pfx_error *err);
/* Computes until every queued prompt is done. cancelled may be NULL. */
PFX_API pfx_status pfx_generator_run_wait(pfx_generator *generator, pfx_cancel_fn cancelled, void *user, pfx_error *err);

typedef struct pfx_generator_stats {
  int64_t prompt_tokens, new_tokens;
  double prefill_seconds, decode_seconds;
} pfx_generator_stats;
PFX_API void pfx_generator_stats_get(const pfx_generator *generator, pfx_generator_stats *stats);

/* The prompts of a file: rows with `prompt`, else a line each. *prompts: one pfx_free for all. */
PFX_API pfx_status pfx_prompts_read(const char *path, char ***prompts, size_t *count, pfx_error *err);

/* ---- Measuring ------------------------------------------------------------------------------------------------------- */

/* What measuring took. */
typedef struct pfx_eval_costs {
  double loss_seconds, prefill_seconds, decode_seconds; /* losses; prompts and new tokens of what was generated */
  int64_t prompt_tokens, new_tokens;                    /* of what was generated */
  double shots;                                         /* examples before a row, on average */
} pfx_eval_costs;

typedef struct pfx_eval_options {
  size_t struct_bytes;
  const char *data;
  pfx_data_options rows;
  bool generate;              /* also generate for every prompt and score the texts (greedy) */
  int32_t max_tokens;         /* of a generated text; default 128 */
  const char *predictions;    /* file for the texts, JSON Lines: adapter, prompt, prediction, references; NULL: none */
  const char *rows_out;       /* file for adapter, line, loss, tokens and text of every row, JSON Lines; NULL: none */
  void (*progress)(void *user, int64_t done, int64_t all);
  pfx_cancel_fn cancelled;
  void *user;
  pfx_log_fn log;
  void *log_user;
  bool append;                /* the files keep the lines that they hold */
  const char *items_out;      /* file for what each generated text adds to the scores, JSON Lines: adapter, lines, prompt,
                                 prediction, references, bleu, chrf, rouge_l, exact_match (docs/compare.md); NULL: none */
  const char *shots_data;     /* file of examples that are put before every row (in-context learning), an empty line behind each
                                 that no end token closes; such a line then ends generated texts too; NULL: none */
  int32_t shots;              /* how many, fewer where the context is full */
  uint64_t shots_seed;        /* which */
  pfx_eval_costs *costs;      /* filled; NULL: not wanted */
} pfx_eval_options;

static inline pfx_eval_options pfx_eval_options_init(void) {
  pfx_eval_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  o.max_tokens = 128;
  return o;
}

typedef struct pfx_eval_result {
  double loss, perplexity; /* per labelled token: sum of losses / their number */
  int64_t tokens, rows, items; /* labelled tokens; rows; prompts generated for (rows with equal prompts are one) */
  double bleu, chrf, rouge_l, exact_match; /* 0 to 100; NaN without generate */
  double seconds;
} pfx_eval_result;

/* adapter NULL: the frozen model. Check the adapter first. */
PFX_API pfx_status pfx_eval_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter,
                                 const pfx_eval_options *options, pfx_eval_result *result, pfx_error *err);

/* Writes logits, loss and (with an adapter, or freshly initialised parts `tune` with `seed`) gradients of the rows of a
 * file as safetensors. At most one of adapter and tune. */
typedef struct pfx_probe_options {
  size_t struct_bytes;
  const char *data, *out, *tune, *init;
  int32_t reparam;
  uint64_t seed;
  pfx_data_options rows;
  pfx_log_fn log;
  void *log_user;
  bool force; /* `init` may be an adapter of other weights */
} pfx_probe_options;

static inline pfx_probe_options pfx_probe_options_init(void) {
  pfx_probe_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  return o;
}
PFX_API pfx_status pfx_probe_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter,
                                  const pfx_probe_options *options, pfx_error *err);

/* What a path holds (model, tokenizer, adapter, data, run folder), as text for people or as one JSON object. verify: also
 * search a model's weights for values that are not finite. *text: pfx_free. */
PFX_API pfx_status pfx_inspect_wait(const char *path, bool json, bool verify, char **text, pfx_error *err);

/* ---- Model folders --------------------------------------------------------------------------------------------------- */

typedef struct pfx_merge_options {
  size_t struct_bytes;
  pfx_weight_type type; /* of the new weights; default PFX_WEIGHT_BASE */
  bool force;           /* the adapter may have been trained on other weights of the same shape */
  void (*progress)(void *user, uint64_t done_bytes, uint64_t all_bytes); /* of weights, as they are written */
  pfx_cancel_fn cancelled; /* asked between tensors: PFX_CANCELLED, nothing is left */
  void *user;
  pfx_log_fn log;
  void *log_user;
} pfx_merge_options;

static inline pfx_merge_options pfx_merge_options_init(void) {
  pfx_merge_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  return o;
}

typedef struct pfx_merge_result {
  int64_t tensors, changed, files; /* of weights; those that the adapter changed; files that hold them */
  uint64_t bytes;                  /* of weights */
  pfx_weight_type type;            /* of the matrices */
  pfx_fit fit;                     /* of the adapter; PFX_FIT_VERIFIED without one */
} pfx_merge_result;

/* Puts an adapter into its base's weights and writes the result as a Hugging Face model folder `out`, which must not exist or be
 * empty and appears whole or not at all. `model` and `adapter` are paths, as pfx_model_open and pfx_adapter_open take them;
 * adapter NULL: the base itself (a GGUF file becomes a folder). Only what a weight can hold is merged: low-rank deltas, scales,
 * norms, biases, layers; an adapter with a prefix or prompt is PFX_INVALID. Weights are computed in float32 and pass through
 * memory one at a time; no backend is opened. A GGUF's tokenizer and settings become the files that transformers reads. An
 * adapter of other weights is PFX_MISMATCH unless `force`. result may be NULL, and is filled on success. */
PFX_API pfx_status pfx_merge_wait(const char *model, const char *adapter, const char *out, const pfx_merge_options *options,
                                  pfx_merge_result *result, pfx_error *err);

/* ---- Looking inside -------------------------------------------------------------------------------------------------- */

typedef struct pfx_inspect_options {
  size_t struct_bytes;
  const char *data;       /* rows to measure on; NULL: a few sentences of the library's own (needs the tokenizer) */
  pfx_data_options rows;
  bool all_tokens;        /* average over every token of the rows; else over those that a labelled token is predicted from */
  int64_t sample_tokens;  /* rows are measured from the first on until they have so many tokens; default 8192; 0: all */
  int32_t words;          /* nearest vocabulary words of each virtual token; default 5; 0: none are looked for */
  double dead_below;      /* default 0.01: a virtual token is dead where no query of any head gives it this share */
  const char *html;       /* file for a self-contained page with heat maps; NULL: none */
  pfx_cancel_fn cancelled;
  void *user;
  pfx_log_fn log;
  void *log_user;
} pfx_inspect_options;

static inline pfx_inspect_options pfx_inspect_options_init(void) {
  pfx_inspect_options o;
  memset(&o, 0, sizeof o);
  o.struct_bytes = sizeof o;
  o.sample_tokens = 8192;
  o.words = 5;
  o.dead_below = 0.01;
  return o;
}

typedef struct pfx_near_word {
  int32_t id;       /* -1: none, the vector is zero */
  float cosine;
  const char *text; /* as the tokenizer decodes it; NULL without one */
} pfx_near_word;

/* Lengths (Euclidean) of one head's key or value, averaged over heads and tokens. */
typedef struct pfx_vector_lengths {
  double prefix_key, real_key, prefix_value, real_value;
} pfx_vector_lengths;

/* What a part without virtual tokens changes in one tensor of the model. */
typedef struct pfx_change {
  const char *part;    /* "lora", "ia3", "norm", "bias", "top" or "full" */
  const char *module;  /* Hugging Face's name, "model.layers.3.self_attn.q_proj" */
  const char *role;    /* "weight" or "bias" */
  const char *column;  /* a short name, the same in every layer: "q_proj", "q_proj.bias" */
  int32_t layer;       /* -1: of none (embeddings, the last norm, the head) */
  /* IA3: its scales, and the share of them that lie further than far_from_one from one. Else zero. */
  double mean, smallest, largest, far;
  /* Every other part: Euclidean (of matrices Frobenius) length of what is added to the model's own tensor, and of that itself. */
  double length, base_length;
  double relative;     /* length / base_length; -1: the model has no such tensor or only zeros, or the part is IA3 */
} pfx_change;

/* What an adapter does in a model: its virtual tokens (a prefix's first, then a prompt's), and what its other parts change in
 * the weights. Without virtual tokens nothing is measured on rows: virtual_tokens, rows and the like are 0, their arrays NULL. Arrays are indexed [layer][head] or [layer][virtual token], the last index fastest.
 * A share is a part of one query's attention, from 0 to 1. */
typedef struct pfx_inspection {
  int32_t layers, heads, kv_heads, head_dim, virtual_tokens;
  int64_t rows, tokens, queries;   /* measured rows, their tokens, and the queries that were averaged over */
  int64_t rows_in_data;
  bool built_in;                   /* measured on the library's own sentences */
  double dead_below;
  int32_t dead;                    /* virtual tokens that are dead in every layer */
  int32_t prefix_tokens;           /* that many are a prefix's; the others are rows of a prompt */
  const double *mass;              /* [layers][heads] mean share of all virtual tokens together */
  const double *even;              /* [layers] that share if every visible key had the same */
  const double *slot_mass;         /* [layers][virtual_tokens] mean share over queries and heads */
  const double *slot_peak;         /* [layers][virtual_tokens] largest share in any query and head */
  const int32_t *first_token;      /* [layers] virtual tokens before this one are not in the layer */
  const pfx_vector_lengths *lengths; /* [layers] */
  int32_t words;
  /* [virtual_tokens][words] by cosine, the nearest first: to a prefix's key of the first layer the key that a word would have
   * there, to a prompt's row a word's embedding. NULL: words is 0. */
  const pfx_near_word *near_words;
  const double *usual_cosine;      /* [virtual_tokens] mean over the whole vocabulary, to compare with */
  const pfx_change *changes;       /* [change_count] parts in the adapter's order, tensors in that of the forward pass */
  int64_t change_count;
  double far_from_one;             /* 0.1: what pfx_change's `far` counts lies further from one */
} pfx_inspection;

/* Measures how much attention goes to virtual tokens, by layer, head and token, how long their keys and values are beside real
 * ones, and which words they are most like; and what the other parts change in the weights. `data` is read for virtual tokens alone.
 * Check the adapter first. tokenizer NULL: `data` must be ids rows. *inspection: pfx_inspection_free. */
PFX_API pfx_status pfx_inspect_adapter_wait(const pfx_model *model, const pfx_tokenizer *tokenizer, const pfx_adapter *adapter,
                                            const pfx_inspect_options *options, const pfx_inspection **inspection, pfx_error *err);
PFX_API void pfx_inspection_free(const pfx_inspection *inspection);

#ifdef __cplusplus
}
#endif

#endif
