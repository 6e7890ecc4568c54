#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""e2e_metrics_check.py SOURCE_DIR [E2E_FOLDER]: bench/e2e/metrics.py against what the published programs say about TEXTS, and
against small cases worked out by hand; with E2E_FOLDER (code 77 where it is not) about the task's own test file instead.

PUBLISHED was printed by those programs, not by ours: BLEU and NIST by pymteval.py of the E2E metrics scripts (the Python side of
their mteval-v13a; BLEU also by sacrebleu 2.6.0 with lower case), ROUGE-L and CIDEr by pycocoevalcap 1.2 behind the Stanford
PTBTokenizer that it brings. The texts are our own."""
import math
import subprocess
import sys
import tempfile
from pathlib import Path

TEXTS = [
    "The Blue Heron is a cheap coffee shop near the river , with a 5 out of 5 rating .",
    "Stone Mill serves Italian food for less than £20. It is family-friendly.",
    "There is a pub called The Old Lamp in the city centre . It 's not family - friendly .",
    "Prices at Garden House start at £ 20 - 25 (on Sundays) and it isn't for children.",
    "Winter Café is an Indian restaurant in the riverside area near Market Hall .",
]
REFERENCES = [
    ["The Blue Heron is a cheap coffee shop by the river . It has a customer rating of 5 out of 5 .",
     "Near the river , the Blue Heron is a cheap coffee shop rated 5 out of 5 .",
     "A cheap coffee shop near the river is The Blue Heron ."],
    ["Stone Mill is a family-friendly Italian restaurant where food costs less than £20.", "For Italian food under £20, try Stone Mill."],
    ["The Old Lamp is a pub in the city centre that is not family - friendly ."],
    ["Garden House isn't for children and costs £ 20 - 25 .", "At Garden House , which isn't for children , prices are £ 20 - 25 .",
     "Children aren't welcome at Garden House (£ 20 - 25)."],
    ["Near Market Hall in the riverside area there is an Indian restaurant called Winter Café .", "Winter Café serves Indian food near Market Hall ."],
]
PUBLISHED = {"e2e_bleu": 0.4647788824033495, "e2e_nist": 5.560276660312242, "e2e_rouge_l": 0.6141366187503591, "e2e_cider": 3.308817816769276}
# The same with two references for each (the first two; a single one twice).
PUBLISHED_TWO = {"e2e_bleu": 0.4314200645127518, "e2e_nist": 5.171680787220537, "e2e_rouge_l": 0.6111220010314199, "e2e_cider": 3.53300489962126}
# The first text of every prompt of the task's test file that has several, against its other texts: 616 texts, 4,063 references. NIST
# is pymteval's, which divides by each prompt's own number of references.
PUBLISHED_TEST_FILE = {"e2e_bleu": 0.6117665260031044, "nist": 8.929005262528653, "e2e_rouge_l": 0.6392250041899338, "e2e_cider": 1.8944722307690935}
# How far tokens of our own may move these: 1 reference in 1,000 is cut otherwise.
TOKENS_MOVE = {"e2e_bleu": 0, "e2e_rouge_l": 0.0002, "e2e_cider": 0.002}
# What PTBTokenizer -lowerCase prints, without the punctuation that coco-caption drops.
COCO_TOKENS = {
    "Stone Mill serves Italian food for less than £20. It is family-friendly.":
        "stone mill serves italian food for less than # 20 it is family-friendly",
    "Prices at Garden House start at £ 20 - 25 (on Sundays) and it isn't for children.":
        "prices at garden house start at # 20 25 -lrb- on sundays -rrb- and it is n't for children",
}
MTEVAL_TOKENS = {
    "A £20-25 pub, isn't it? (Yes.)": "a £20 - 25 pub , isn't it ? ( yes . )",
    "It costs 1,000.50 & is family-friendly": "it costs 1,000.50 & is family-friendly",
    "salt &amp; pepper<skipped>": "salt & pepper",
}


def expect(condition, what):
    if not condition:
        sys.exit("e2e_metrics_check: " + what)


def near(found, wanted, what):
    expect(abs(found - wanted) <= 1e-12 * max(1.0, abs(wanted)), f"{what}: {found!r}, not {wanted!r}")


def against_published(metrics):
    two = [group[:2] if len(group) > 1 else group * 2 for group in REFERENCES]
    for references, published, what in ((REFERENCES, PUBLISHED, "references"), (two, PUBLISHED_TWO, "two references")):
        found = metrics.scores(TEXTS, references)
        expect(sorted(found) == sorted(published), f"{what}: {sorted(found)}")
        for name, wanted in published.items():
            near(found[name], wanted, f"{what}: {name}")
    for words, table in ((metrics.coco_words, COCO_TOKENS), (metrics.mteval_words, MTEVAL_TOKENS)):
        for text, wanted in table.items():
            expect(" ".join(words(text)) == wanted, f"{words.__name__}({text!r}): {words(text)}")


def by_hand(metrics):
    """What the definitions say, worked out in the comments."""
    def item(text, *references):
        return text.split(), [each.split() for each in references]

    # 3 of 5 words match, no 2-, 3- or 4-gram: 1/2 of 4, 1/4 of 3, 1/8 of 2.
    near(metrics.bleu([item("a b c d e", "a x c y e")]), (3 / 5 / 8 / 12 / 16) ** 0.25, "BLEU without longer matches")
    # Two words have no 3-grams: these orders count as 1; half the reference's length: exp(1 - 4/2).
    near(metrics.bleu([item("a b", "a b c d")]), math.exp(-1), "BLEU of a short text")
    # 6 and 8 words are as near to 7: the shorter counts.
    near(metrics.bleu([item("a b c d e f g", "a b c d e f g h", "a b c d e f")]), 1.0, "BLEU's closest reference")
    # A word counts as often as in the reference that has it most often: 2 of 3; then 1 of 2, 0 of 1 (half), and no 4-gram.
    near(metrics.bleu([item("a a a", "a b c", "a a")]), (2 / 3 * 1 / 2 * 1 / 2) ** 0.25, "BLEU's clipping")
    near(metrics.bleu([item("", "a b")]), 0.0, "BLEU of nothing")
    # 8 words of references, a and b once, c and d twice: log2 of 8, 8, 4, 4 over 4 words; 2-grams tell nothing more.
    uneven = [item("a b", "a b"), item("c d", "c d", "c d e f")]
    # 8 words over at most 2 references: as long as the texts. By each prompt's own number: 2 + 3 words.
    near(metrics.nist(uneven), 2.5, "NIST")
    near(metrics.nist(uneven, even_references=True), 2.5 * math.exp(math.log(0.5) * (math.log(0.8) / math.log(1.5)) ** 2), "NIST's penalty")
    near(metrics.nist([item("", "a b")]), 0.0, "NIST of nothing")
    # Precision 2/4 with either, recall 2/2 with the first.
    near(metrics.rouge_l([item("a b c d", "a c", "a b x y z w")]), 2.44 * 0.5 / (1 + 1.44 * 0.5), "ROUGE-L")
    near(metrics.rouge_l([item("a", "b"), item("", "b"), item("a b", "a b")]), 1 / 3, "ROUGE-L without a match")
    # Equal texts that share nothing with the other prompt: 10 times the share of the four orders that they have.
    near(metrics.cider([item("a b c d", "a b c d"), item("e f g", "e f g")]), (10 + 7.5) / 2, "CIDEr")
    # One 2-gram more than the reference: exp(-1 / 72); words: 1/sqrt(2), 2-grams: none in common.
    near(metrics.cider([item("a b", "a"), item("c", "c")]), (2.5 * math.exp(-1 / 72) / math.sqrt(2) + 2.5) / 2, "CIDEr's length")
    # An n-gram of every prompt weighs nothing.
    near(metrics.cider([item("a", "a"), item("a", "a")]), 0.0, "CIDEr of common words")


def as_a_program(source):
    program = [sys.executable, "-B", f"{source}/bench/e2e/metrics.py"]
    with tempfile.TemporaryDirectory() as folder:
        references, texts = Path(folder, "references.txt"), Path(folder, "texts.txt")
        references.write_text("\n\n".join("\n".join(group) for group in REFERENCES) + "\n", encoding="utf-8")
        texts.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        done = subprocess.run([*program, references, texts], capture_output=True, text=True, check=False)
        expect(done.returncode == 0 and f"{PUBLISHED['e2e_bleu']:.12f}" in done.stdout, f"metrics.py: {done.stdout}{done.stderr}")
        texts.write_text("only one\n", encoding="utf-8")
        done = subprocess.run([*program, references, texts], capture_output=True, text=True, check=False)
        expect(done.returncode == 1 and "1 texts and 5 groups" in done.stderr, f"metrics.py with one text: {done.stdout}{done.stderr}")


def on_the_test_file(metrics, path):
    groups = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        source, _, text = line.partition("||")
        groups.setdefault(source.strip(), []).append(text.strip())
    several = [group for group in groups.values() if len(group) > 1]
    texts, references = [group[0] for group in several], [group[1:] for group in several]
    expect((len(texts), sum(map(len, references))) == (616, 4063), "not the test file that was measured")
    found = metrics.scores(texts, references)
    for name, allowed in TOKENS_MOVE.items():
        wanted = PUBLISHED_TEST_FILE[name]
        expect(abs(found[name] - wanted) <= allowed + 1e-12, f"test file: {name} {found[name]!r}, published {wanted!r}")
    items = [(metrics.mteval_words(text), [metrics.mteval_words(each) for each in group]) for text, group in zip(texts, references)]
    near(metrics.nist(items, even_references=True), PUBLISHED_TEST_FILE["nist"], "test file: NIST")


def main():
    source = sys.argv[1]
    sys.path.insert(0, source + "/bench/e2e")
    import metrics
    if len(sys.argv) > 2:
        path = Path(sys.argv[2], "test.txt")
        if not path.is_file():
            print(f"skipped: no {path}")
            sys.exit(77)
        return on_the_test_file(metrics, path)
    against_published(metrics)
    by_hand(metrics)
    as_a_program(source)
    return None


if __name__ == "__main__":
    main()
