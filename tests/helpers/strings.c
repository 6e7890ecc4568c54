/* SPDX-License-Identifier: MIT
 * The generator behind strings.h. Changing anything here changes the strings: make the digests again. */
#include "helpers/strings.h"

#include "helpers/string_ranges.h"

#define COUNT(table) ((uint32_t)(sizeof(table) / sizeof((table)[0])))
#define PICK(state, table) ((table)[below(state, COUNT(table))])

/* splitmix64 */
static uint64_t next(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint32_t below(uint64_t *state, uint32_t count) { return (uint32_t)((next(state) >> 32) * count >> 32); }

static void put(px_buf *out, uint32_t c) {
  char bytes[4];
  size_t n = 0;
  if (c < 0x80) {
    bytes[n++] = (char)c;
  } else if (c < 0x800) {
    bytes[n++] = (char)(0xC0 | c >> 6);
  } else if (c < 0x10000) {
    bytes[n++] = (char)(0xE0 | c >> 12);
    bytes[n++] = (char)(0x80 | (c >> 6 & 0x3F));
  } else {
    bytes[n++] = (char)(0xF0 | c >> 18);
    bytes[n++] = (char)(0x80 | (c >> 12 & 0x3F));
    bytes[n++] = (char)(0x80 | (c >> 6 & 0x3F));
  }
  if (c >= 0x80) bytes[n++] = (char)(0x80 | (c & 0x3F));
  px_buf_append(out, bytes, n);
}

static void put_from(uint64_t *state, px_buf *out, uint32_t first, uint32_t last) {
  put(out, first + below(state, last - first + 1));
}

/* clang-format off */
static const char *const words[] = {
    "the", "of", "and", "a", "in", "is", "it", "to", "was", "for", "on", "that", "with", "as", "his", "they", "be",
    "at", "one", "have", "this", "from", "or", "had", "by", "not", "word", "but", "what", "some", "we", "can", "out",
    "other", "were", "all", "there", "when", "up", "use", "your", "how", "said", "an", "each", "she", "which", "do",
    "their", "time", "if", "will", "way", "about", "many", "then", "them", "write", "would", "like", "so", "these",
    "her", "long", "make", "thing", "see", "him", "two", "has", "look", "more", "day", "could", "go", "come", "did",
    "number", "sound", "no", "most", "people", "my", "over", "know", "water", "than", "call", "first", "who", "may",
    "down", "side", "been", "now", "find", "token", "prefix", "language", "model", "learning", "gradient",
    "attention", "restaurant", "international", "uncharacteristically", "x", "Zürich", "naïve", "café", "Straße",
    "façade", "coöperate", "Łódź", "señor", "TTFB", "iPhone", "McDonald", "GPU",
};
static const char *const contractions[] = {
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'M", "'LL", "'lL", "'D", "'x", "''s",
    "'", "\xE2\x80\x99s", "\xE2\x80\x99ll",
    "'\xC5\xBF" /* long s: equals 's without regard to case */,
    " 's", "s'", "'r", "'l",
};
static const char *const snippets[] = {
    "for (int i = 0; i < n; ++i) {\n    sum += a[i];\n}\n", "def f(x):\n\treturn x**2  # square\n",
    "if (p != NULL && *p == '\\0') return -1;", "<div class=\"a b\">&nbsp;&lt;</div>",
    "SELECT * FROM t WHERE id=42;--", "{\"key\": [1, 2.5e-3, null], \"\\u00e9\": \"\xC3\xA9\"}",
    "https://example.org/a/b?c=d&e=%20f#g", "user.name+tag@mail.example.com", "C:\\path\\to\\file.txt",
    "#include <stdio.h>\r\nint main(void)\r\n{\r\n\treturn 0;\r\n}\r\n",
    "E = mc^2, \\frac{1}{2}, $x_{i+1}$",
    "0x1F 1e10 3.14159 1,000,000 12:34:56 2024-02-29 +49-30-123456",
    "====----####****////\\\\\\\\", "[[1,2],[3,4]]", "name : Blue Spice | Type : pub | area : city centre || ",
};
static const char *const specials[] = {
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<fim_prefix>", "<|padding|>", "<think>",
    "</think>", "<filename>", "<|eot_id|>", "<|begin_of_text|>", "[INST]", "[/INST]", "<<SYS>>\n", "<0x41>",
    "<0x0A>", "<|endoftext", "<reponame>", "<|end_of_text|>", "\xE2\x96\x81", "<tool_call>", "<code>", "\xC4\xA0",
    "<s", "s>", "<pr>",
};
static const uint32_t spaces[] = {' ',    ' ',    ' ',    ' ',    '\t',   '\n',   '\r',   0x0B,
                                  0x0C,   0x85,   0xA0,   0x1680, 0x2000, 0x2003, 0x2007, 0x2009,
                                  0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
static const char *const line_ends[] = {"\n",    "\n\n",   "\r\n", "\n \n",      " \n",
                                        "\n   ", "\t\n\t", "\r",   "\n\n\n    ", "\r\n\r\n"};
static const uint32_t zeros[] = {0x660,  0x6F0,  0x7C0,  0x966,  0x9E6,  0xAE6,  0xBE6,  0xE50,   0xED0,   0xF20,
                                 0x1040, 0x17E0, 0x1810, 0x1946, 0x1A80, 0xA620, 0xFF10, 0x104A0, 0x1D7CE, 0x1E950};
static const uint32_t emoji[] = {0x1F600, 0x1F44B, 0x1F468, 0x1F469, 0x1F467, 0x1F466, 0x2764,
                                 0x1F525, 0x1F680, 0x1F3F3, 0x1F308, 0x2620,  0x1F9D1, 0x1F4BB,
                                 0x1F99C, 0x270A,  0x2B50,  0x231B,  0x1FAE0, 0x1F1E6};
static const uint32_t marks[] = {0x300, 0x301, 0x302,  0x303,  0x307,  0x308,  0x30A,  0x30C,  0x316, 0x323,
                                 0x327, 0x328, 0x331,  0x338,  0x345,  0x5B0,  0x5BC,  0x651,  0x64E, 0x93C,
                                 0x94D, 0xE38, 0x1AB0, 0x20D7, 0x3099, 0x309A, 0xFE20, 0x1D165};
/* Characters that NFC changes, alone or with what stands beside them; composition exclusions among them. */
static const uint32_t unstable[] = {0x212B, 0x2126, 0x212A, 0x340,  0x344,  0x374,   0x37E,   0x387,  0x958,  0x95C,
                                    0x9DF,  0xA33,  0xB5C,  0xF43,  0xF73,  0x1F71,  0x1FEE,  0x2000, 0x2329, 0x2ADC,
                                    0xF900, 0xFA10, 0xFB1D, 0xFB2A, 0xFB4E, 0x1D15E, 0x2F800, 0x2FA1D};
static const uint32_t formats[] = {0xAD,   0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060,  0x202E, 0xFEFF,
                                   0x180E, 0xFFF9, 0xFFFC, 0xFFFD, 0xFE0F, 0x34F,  0xE0041, 0x61C,  0x2066};
/* Bytes that are no UTF-8; each also stands before whatever the next fragment brings. */
static const char *const invalid[] = {
    "\x80",
    "\xBF\xBF", /* continuation bytes alone */
    "\xC3", "\xE2\x82", "\xF0\x9F", "\xF0\x9F\x98", "\xE2",
    "\xF0", /* cut short */
    "\xC0\xAF", "\xC1\xBF", "\xE0\x80\xAF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x80\x80\xAF", "\xED\xA0\x80",
    "\xED\xBF\xBF",
    "\xED\xA0\xBD\xED\xB8\x80", /* surrogates */
    "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF\xFF", "\xF8\x88\x80\x80\x80", "\xE1\x80\xE2\x80",
    "\xF1\x80\x80\xE1\x80\x80", "\xC3(", "\xE2\x28\xA1", "\xF0\x28\x8C\xBC",
};

/* clang-format on */

/* One to eight characters of one run, with now and then one from anywhere. */
static void script_word(uint64_t *state, px_buf *out) {
  uint32_t run = below(state, COUNT(string_ranges));
  for (uint32_t n = 1 + below(state, 8); n > 0; --n) {
    uint32_t from = below(state, 12) ? run : below(state, COUNT(string_ranges));
    put_from(state, out, string_ranges[from].first, string_ranges[from].last);
  }
}

static void latin_word(uint64_t *state, px_buf *out) {
  const char *word = PICK(state, words);
  uint32_t style = below(state, 8);
  for (const char *c = word; *c; ++c) {
    int upper = *c >= 'a' && *c <= 'z' && (style == 0 || (style == 1 && c == word));
    char byte = (char)(upper ? *c - 32 : *c);
    px_buf_append(out, &byte, 1);
  }
}

static void emoji_sequence(uint64_t *state, px_buf *out) {
  uint32_t shape = below(state, 8);
  if (shape == 0) { /* a flag, now and then of an odd number of letters */
    for (uint32_t n = 2 + below(state, 2); n > 0; --n) put_from(state, out, 0x1F1E6, 0x1F1FF);
  } else if (shape == 1) { /* keycap */
    put_from(state, out, '0', '9');
    put(out, 0xFE0F);
    put(out, 0x20E3);
  } else {
    for (uint32_t n = 1 + below(state, 4); n > 0; --n) {
      put(out, PICK(state, emoji));
      if (!below(state, 3)) put_from(state, out, 0x1F3FB, 0x1F3FF);
      if (!below(state, 3)) put(out, 0xFE0F);
      if (n > 1 && below(state, 3)) put(out, 0x200D);
    }
  }
}

static void digits(uint64_t *state, px_buf *out) {
  uint32_t zero = below(state, 3) ? '0' : PICK(state, zeros);
  for (uint32_t n = 1 + below(state, 9); n > 0; --n) put_from(state, out, zero, zero + 9);
  if (!below(state, 8)) put_from(state, out, 0x2150, 0x218B); /* fractions and Roman numerals: numbers, not digits */
}

static void marked_letters(uint64_t *state, px_buf *out) {
  for (uint32_t n = 1 + below(state, 4); n > 0; --n) {
    uint32_t first = below(state, 2) ? 'a' : 'A';
    put_from(state, out, first, first + 25);
    for (uint32_t m = below(state, 4); m > 0; --m) put(out, PICK(state, marks));
  }
}

static void hangul(uint64_t *state, px_buf *out) {
  for (uint32_t n = 1 + below(state, 4); n > 0; --n) {
    uint32_t shape = below(state, 4);
    if (shape == 0) put_from(state, out, 0xAC00, 0xD7A3);
    if (shape == 1) put(out, 0xAC00 + 28 * below(state, 399)); /* without final: a final jamo after it composes */
    if (shape >= 2) put_from(state, out, 0x1100, 0x1112);
    if (shape >= 2) put_from(state, out, 0x1161, 0x1175);
    if (shape == 1 || shape == 3) put_from(state, out, 0x11A7, 0x11C2);
  }
}

static void far_east(uint64_t *state, px_buf *out) {
  static const uint32_t sets[][2] = {{0x4E00, 0x9FFF}, {0x4E00, 0x5FFF}, {0x3041, 0x3096},   {0x30A1, 0x30FC},
                                     {0x3001, 0x3011}, {0xFF01, 0xFF5E}, {0x20000, 0x2A6DF}, {0x3400, 0x4DBF}};
  uint32_t set = below(state, COUNT(sets));
  for (uint32_t n = 1 + below(state, 10); n > 0; --n) {
    if (!below(state, 5)) set = below(state, COUNT(sets));
    put_from(state, out, sets[set][0], sets[set][1]);
  }
}

static void marked_script(uint64_t *state, px_buf *out) {
  static const uint32_t sets[][4] = {{0x627, 0x64A, 0x64B, 0x652},     {0x905, 0x939, 0x93E, 0x94D},
                                     {0x5D0, 0x5EA, 0x5B0, 0x5BD},     {0xE01, 0xE2E, 0xE30, 0xE3A},
                                     {0x1780, 0x17A2, 0x17B6, 0x17D2}, {0x995, 0x9A8, 0x9BE, 0x9C4}};
  const uint32_t *set = sets[below(state, COUNT(sets))];
  for (uint32_t n = 1 + below(state, 7); n > 0; --n) {
    put_from(state, out, set[0], set[1]);
    if (below(state, 2)) put_from(state, out, set[2], set[3]);
  }
}

static void repeated(uint64_t *state, px_buf *out) {
  static const uint32_t what[] = {' ',  '\n', 'a',    'A',    '=',     '-',   '0', '!',
                                  '\t', 0xA0, 0x3000, 0x4E00, 0x1F600, 0x301, '.', '\''};
  uint32_t c = PICK(state, what);
  for (uint32_t n = 2 + below(state, 40); n > 0; --n) put(out, c);
}

static void control(uint64_t *state, px_buf *out) {
  if (below(state, 2)) {
    put_from(state, out, 0x01, 0x1F);
  } else {
    put_from(state, out, 0x7F, 0x9F);
  }
}

static void characters(uint64_t *state, px_buf *out, const uint32_t *table, uint32_t count, uint32_t most) {
  for (uint32_t n = 1 + below(state, most); n > 0; --n) put(out, table[below(state, count)]);
}

static void fragment(uint64_t *state, px_buf *out) {
  switch (below(state, 24)) {
    case 0:
    case 1:
    case 2:
    case 3:
      script_word(state, out);
      break;
    case 4:
    case 5:
    case 6:
      latin_word(state, out);
      break;
    case 7:
      characters(state, out, spaces, COUNT(spaces), 6);
      break;
    case 8:
      digits(state, out);
      break;
    case 9:
      px_buf_puts(out, PICK(state, contractions));
      break;
    case 10:
      for (uint32_t n = 1 + below(state, 6); n > 0; --n) put_from(state, out, '!', '/');
      break;
    case 11:
      emoji_sequence(state, out);
      break;
    case 12:
      marked_letters(state, out);
      break;
    case 13:
      hangul(state, out);
      break;
    case 14:
      control(state, out);
      break;
    case 15:
      characters(state, out, formats, COUNT(formats), 3);
      break;
    case 16:
      px_buf_puts(out, PICK(state, invalid));
      break;
    case 17:
      px_buf_puts(out, PICK(state, snippets));
      break;
    case 18:
      px_buf_puts(out, PICK(state, specials));
      break;
    case 19:
      far_east(state, out);
      break;
    case 20:
      marked_script(state, out);
      break;
    case 21:
      px_buf_puts(out, PICK(state, line_ends));
      break;
    case 22:
      repeated(state, out);
      break;
    default:
      characters(state, out, unstable, COUNT(unstable), 3);
      break;
  }
}

void px_test_string(uint64_t seed, uint32_t index, px_buf *out) {
  uint64_t state = seed;
  state = next(&state) ^ index;
  for (uint32_t n = below(&state, 13); n > 0; --n) {
    fragment(&state, out);
    if (below(&state, 2)) px_buf_puts(out, " ");
  }
}
