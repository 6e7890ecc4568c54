#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The metrics of the E2E NLG challenge, in plain Python from their definitions.

    metrics.py REFERENCES.txt OUTPUTS.txt

prints e2e_bleu, e2e_nist, e2e_rouge_l and e2e_cider as JSON. OUTPUTS holds a text a line; REFERENCES one or more lines for
each, an empty line between two groups (the format of the challenge's own scripts). They are apart from what `pfx eval` prints: other
tokens, other averages. METEOR is left out: it is a program of its own with tables of synonyms.

e2e_bleu, e2e_nist  as mteval-v13a: its tokens, lower case, all references of a prompt at once, the whole corpus at once
e2e_rouge_l         as coco-caption: best precision and best recall over the references, beta 1.2, mean over the prompts
e2e_cider           as coco-caption (CIDEr-D): tf-idf over 1- to 4-grams, document frequency among these prompts, sigma 6, times 10
"""
import json
import math
import re
import sys
from collections import Counter

BLEU_ORDERS = 4
NIST_ORDERS = 5
CIDER_ORDERS = 4
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
ASCII_LOWER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# What coco-caption drops after the Penn Treebank tokenizer. Brackets stay there: its list has them in capitals, its tokens are in small letters.
COCO_DROPS = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())


def mteval_words(text):
    """Every ASCII symbol but ' , - . alone; full stop and comma unless between digits, a hyphen behind a digit."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} ".translate(ASCII_LOWER)
    text = re.sub(r"([ -&(-+:-@\[-`{-~/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])(-)", r"\1 \2 ", text)
    return text.split()


def coco_words(text):
    """Small letters, cut as the Penn Treebank does where restaurant reviews need it, without COCO_DROPS. What its tokenizer
    also knows (addresses, dates, abbreviations) is not here."""
    text = f" {text.lower()} ".replace("\n", " ").replace("’", "'").replace("‘", "'").replace("£", "#")
    text = re.sub(r"(?<=[\s(\[])[\"“]|[“]", " `` ", text)
    text = re.sub(r"[\"”]", " '' ", text)
    text = re.sub(r"\.\.+|…", " ... ", text)
    text = re.sub(r"--+|[–—]", " -- ", text)
    text = re.sub(r"([$€%&@#;!?\[\](){}<>*=+~^|])", r" \1 ", text)
    text = re.sub(r"([,:])(?![0-9])|(?<![0-9])([,:])", r" \g<0> ", text)
    text = re.sub(r"(?<=\s)\.(?=[a-z])", ". ", text)
    text = re.sub(r"(?<=[\w'])([.-])(?=\s)", r" \1", text)
    text = re.sub(r"(?<=\s)-(?=\w)", "- ", text)
    text = re.sub(r"(?<=[a-z])n't\b", " n't", text)
    text = re.sub(r"(?<=\w)('(?:s|re|ve|ll|d|m))(?!\w)", r" \1", text)
    text = re.sub(r"\bcannot\b", "can not", text)
    text = re.sub(r"(?<=\w)'(?=\s)", " '", text)
    text = re.sub(r"(?<=\s)'(?!(?:s|re|ve|ll|d|m)\s)(?=\w)", "` ", text)
    for sign, name in (("(", "-lrb-"), (")", "-rrb-"), ("[", "-lsb-"), ("]", "-rsb-"), ("{", "-lcb-"), ("}", "-rcb-")):
        text = text.replace(f" {sign} ", f" {name} ")
    return [word for word in text.split() if word not in COCO_DROPS]


def grams(words, order):
    return Counter(zip(*(words[i:] for i in range(order))))


def most(counters):
    """The largest count of every n-gram in any of them."""
    merged = Counter()
    for counter in counters:
        merged |= counter
    return merged


def bleu(items):
    """items: (words of the text, [words of each reference]). A precision without a match counts as 1/2, 1/4, ... of a match."""
    matched, possible = [0] * BLEU_ORDERS, [0] * BLEU_ORDERS
    text_words = reference_words = 0
    for words, references in items:
        text_words += len(words)
        reference_words += min((abs(len(each) - len(words)), len(each)) for each in references)[1]
        for n in range(BLEU_ORDERS):
            found = grams(words, n + 1)
            matched[n] += sum((found & most(grams(each, n + 1) for each in references)).values())
            possible[n] += sum(found.values())
    if text_words == 0:
        return 0.0
    logs, halves = 0.0, 1
    for hits, count in zip(matched, possible):
        if count and not hits:
            halves *= 2
        logs += math.log((hits or 1 / halves) / count) if count else 0.0
    return math.exp(logs / BLEU_ORDERS + min(0.0, 1 - reference_words / text_words))


def nist(items, even_references=False):
    """Matched n-grams weigh log2(count of their beginning / count of them) in all references. The length penalty compares
    with all words of the references divided by the largest number of references that a prompt has: so does the challenge's
    mteval-v13a, which takes absent references for empty ones. even_references: by each prompt's own number instead."""
    counts = [Counter() for _ in range(NIST_ORDERS + 1)]
    reference_words = 0.0
    most_references = max(len(references) for _, references in items)
    for _, references in items:
        for each in references:
            counts[0][()] += len(each)
            for n in range(1, NIST_ORDERS + 1):
                counts[n].update(grams(each, n))
        reference_words += sum(map(len, references)) / (len(references) if even_references else most_references)
    score, text_words = 0.0, sum(len(words) for words, _ in items)
    for n in range(1, NIST_ORDERS + 1):
        weight, possible = 0.0, 0
        for words, references in items:
            found = grams(words, n)
            possible += sum(found.values())
            for gram, hits in (found & most(grams(each, n) for each in references)).items():
                weight += hits * math.log2(counts[n - 1][gram[:-1]] / counts[n][gram])
        score += weight / max(possible, 1)
    ratio = text_words / reference_words if reference_words else 0.0
    if ratio <= 0:
        return 0.0
    return score * math.exp(math.log(0.5) * (math.log(min(ratio, 1.0)) / math.log(1.5)) ** 2)


def common_subsequence(a, b):
    """Length of the longest."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(items):
    total = 0.0
    for words, references in items:
        common = [common_subsequence(each, words) for each in references]
        precision = max(common) / max(len(words), 1)
        recall = max(length / max(len(each), 1) for length, each in zip(common, references))
        if precision and recall:
            total += (1 + ROUGE_BETA ** 2) * precision * recall / (recall + ROUGE_BETA ** 2 * precision)
    return total / len(items)


def cider(items):
    seen = Counter()  # in how many prompts' references an n-gram stands
    for _, references in items:
        seen.update({gram for each in references for n in range(CIDER_ORDERS) for gram in grams(each, n + 1)})
    prompts = math.log(len(items))

    def vectors(words):
        found = [{gram: count * (prompts - math.log(max(1, seen[gram]))) for gram, count in grams(words, n + 1).items()}
                 for n in range(CIDER_ORDERS)]
        return found, [math.sqrt(sum(value * value for value in each.values())) for each in found]

    total = 0.0
    for words, references in items:
        mine, lengths = vectors(words)
        for each in references:
            theirs, other_lengths = vectors(each)
            # coco-caption's length of a text is its number of 2-grams
            delta = max(len(words) - 1, 0) - max(len(each) - 1, 0)
            near = 0.0
            for n in range(CIDER_ORDERS):
                product = sum(min(value, theirs[n][gram]) * theirs[n][gram] for gram, value in mine[n].items() if gram in theirs[n])
                near += product / (lengths[n] * other_lengths[n]) if lengths[n] and other_lengths[n] else 0.0
            total += 10 * near * math.exp(-delta * delta / (2 * CIDER_SIGMA ** 2)) / CIDER_ORDERS / len(references)
    return total / len(items)


def scores(texts, references):
    """texts: one a prompt; references: a list of texts for each."""
    if not texts or len(texts) != len(references) or not all(references):
        raise ValueError(f"{len(texts)} texts and {len(references)} groups of references, each with at least one, are wanted in equal number")
    mteval = [(mteval_words(text), [mteval_words(each) for each in group]) for text, group in zip(texts, references)]
    coco = [(coco_words(text), [coco_words(each) for each in group]) for text, group in zip(texts, references)]
    return {"e2e_bleu": bleu(mteval), "e2e_nist": nist(mteval), "e2e_rouge_l": rouge_l(coco), "e2e_cider": cider(coco)}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        groups = [block.split("\n") for block in re.split(r"\n\s*\n", file.read().strip())]
    with open(sys.argv[2], encoding="utf-8") as file:
        texts = file.read().rstrip("\n").split("\n")
    try:
        print(json.dumps(scores(texts, groups)))
    except ValueError as error:
        sys.exit(f"metrics.py: {error}")


if __name__ == "__main__":
    main()
