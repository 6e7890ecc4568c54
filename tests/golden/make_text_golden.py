# SPDX-License-Identifier: MIT
"""chat.json: conversations as transformers' apply_chat_template renders them. metrics.json: BLEU, chrF, ROUGE-L and
exact match of generated texts as sacrebleu and rouge-score compute them (see README.md).

    make_text_golden.py [--check] [--smollm FILE.gguf]
"""
import argparse
import hashlib
import json
import os
from pathlib import Path

from golden_lib import HERE, check_pins, rng

check_pins(["sacrebleu", "rouge_score", "Jinja2", "gguf", "tokenizers"])
import gguf  # noqa: E402
import sacrebleu  # noqa: E402
from jinja2.exceptions import TemplateError  # noqa: E402
from rouge_score import rouge_scorer  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

SEED = 7

# The well-known forms, written out as functions of our own; begin and end token of each, and the SHA-256 of the published
# template, whose rendering by transformers these were compared with. SmolLM2's own is read from the model.


class Refused(Exception):
    """The published template raises an exception for such a conversation."""


def turns(messages):
    """Roles must alternate, the user first."""
    for i, m in enumerate(messages):
        if (m["role"] == "user") != (i % 2 == 0):
            raise Refused
    return messages


def chatml(messages, prompt):
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if prompt else "")


def llama2(messages, _):
    system = None
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    text = ""
    for i, m in enumerate(turns(messages)):
        content = m["content"]
        if i == 0 and system is not None:
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}"
        if m["role"] == "user":
            text += f"<s>[INST] {content.strip()} [/INST]"
        elif m["role"] == "assistant":
            text += f" {content.strip()} </s>"
    return text


def llama3(messages, prompt):
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = "".join(head.format(m["role"]) + m["content"].strip() + "<|eot_id|>" for m in messages)
    return ("<|begin_of_text|>" if messages else "") + text + (head.format("assistant") if prompt else "")


def mistral(messages, _):
    text = "<s>"
    for m in turns(messages):
        if m["role"] not in ("user", "assistant"):
            raise Refused
        text += f"[INST] {m['content']} [/INST]" if m["role"] == "user" else m["content"] + "</s>"
    return text


FORMS = {
    "chatml": (chatml, "<|im_start|>", "<|im_end|>", "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3"),
    "llama-2": (llama2, "<s>", "</s>", "e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf"),
    "llama-3": (llama3, "<|begin_of_text|>", "<|eot_id|>", "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122"),
    "mistral": (mistral, "<s>", "</s>", "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7"),
}


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "What is the capital of France?")],
    [message("system", "You answer in one word."), message("user", "Capital of France?")],
    [message("user", "Hi"), message("assistant", "Hello! How can I help?"), message("user", "Name a colour.")],
    [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello."), message("user", "2+2?"),
     message("assistant", "4")],
    [message("user", "  leading and trailing space \n"), message("assistant", "\n\tanswer  ")],
    [message("system", " \n system with space \n"), message("user", "\n\nquestion")],
    [message("user", "Grüße 你好 🙂 <|im_end|> [/INST] </s> <|eot_id|>"), message("assistant", "naïve \"quotes\" {{ x }} {% y %}")],
    [message("user", ""), message("assistant", "")],
    [message("system", ""), message("user", "empty system message")],
    [message("user", "\u00a0no-break\u3000ideographic\u2028"), message("assistant", "\u0085next line\u001c")],
    # Wrong for the templates that insist on turns:
    [message("assistant", "I begin."), message("user", "Why?")],
    [message("user", "one"), message("user", "two")],
    [message("system", "only a system message")],
    [message("user", "a"), message("system", "late"), message("assistant", "b")],
]


def smollm2_form(smollm):
    text = gguf.GGUFReader(smollm).fields["tokenizer.chat_template"].contents()
    begin, end = "<|im_start|>", "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizers/small_llama3.json"), bos_token=begin,
                                        eos_token=end)

    def render(messages, prompt):
        try:
            return tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False,
                                                 add_generation_prompt=prompt)
        except TemplateError as error:
            raise Refused from error

    return render, begin, end, hashlib.sha256(text.encode()).hexdigest()


def chat(smollm):
    result = []
    for name, (render, begin, end, digest) in sorted((FORMS | {"smollm2": smollm2_form(smollm)}).items()):
        cases = []
        for messages in CONVERSATIONS:
            case = {"messages": messages}
            for key, prompt in (("text", False), ("text_with_prompt", True)):
                try:
                    case[key] = render(messages, prompt)
                except Refused:
                    case[key] = None
            cases.append(case)
        result.append({"template": name, "bos": begin, "eos": end, "template_sha256": digest, "cases": cases})
    return result


WORDS = ("the a of in is and to pub restaurant near river city centre price range cheap high family friendly it serves "
         "English French Japanese food coffee shop rating customer out 5 3 1 located called with not").split()
ODD = ["£20-25", "3.5", "1,000", "don't", "e.g.", "U.S.", "state-of-the-art", "50%", "$9.99", "&amp;", "&lt;b&gt;", "(see)",
       "\"quoted\"", "...", "--", "naïve", "Zürich", "你好", "世界", "Привет", "🙂", "👩‍🔬", "İstanbul", "\u212Aelvin", "STRASSE",
       "straße", "e\u0301te\u0301", "x_1", "a/b", "2024-02-29", "12:30", "[0]", "{k}", "~", "^", "#tag", "@me", "co-\noperate",
       "no\u00a0break", "thin\u2009space", "\u3000", "tab\there", "\u0085", "\u001c", "don’t", "–", "—", "9.", ".9", "-7", "7-",
       "1,", ",1", "1.2.3", "a.b", "a,b", "۴۲", "４２", "ſ", "ß", "Σίσυφος", "ΣΑΣ"]


def sentence(random, odd):
    words = [str(random.choice(ODD if random.random() < odd else WORDS)) for _ in range(random.integers(1, 16))]
    return (" ".join(words) + str(random.choice([" .", ".", "", "!", " ?", " "]))).capitalize()


def changed(random, text, odd):
    """The words of a text with some dropped, doubled, replaced and swapped."""
    words = text.split(" ")
    for _ in range(random.integers(0, 4)):
        at = int(random.integers(0, len(words)))
        change = random.integers(0, 4)
        if change == 0 and len(words) > 1:
            words.pop(at)
        elif change == 1:
            words.insert(at, words[at])
        elif change == 2:
            words[at] = sentence(random, odd).split(" ")[0]
        elif at > 0:
            words[at - 1], words[at] = words[at], words[at - 1]
    return " ".join(words)


def measure(items):
    """Corpus figures of sacrebleu (an item may have fewer references than another), means of the other two."""
    most = max(len(item["references"]) for item in items)
    predictions = [item["prediction"] for item in items]
    columns = [[item["references"][i] if i < len(item["references"]) else None for item in items] for i in range(most)]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for item in items:
        item["rouge_l"] = 100 * scorer.score_multi(item["references"], item["prediction"])["rougeL"].fmeasure
        item["exact_match"] = 100 * int(any(item["prediction"].strip() == r.strip() for r in item["references"]))
    mean = {key: sum(item[key] for item in items) / len(items) for key in ("rouge_l", "exact_match")}
    return {"bleu": sacrebleu.corpus_bleu(predictions, columns).score,
            "chrf": sacrebleu.corpus_chrf(predictions, columns).score} | mean


def metrics():
    fixed = {
        "equal": [("The pub is near the river .", ["The pub is near the river ."])],
        "nothing equal": [("aaa bbb ccc ddd", ["xxx yyy zzz www vvv"])],
        "empty prediction": [("", ["A pub ."])],
        "empty among others": [("", ["A pub ."]), ("A cheap pub near the river .", ["A cheap pub by the river ."])],
        "white space alone": [(" \n\t ", ["A pub ."]), ("\u3000", ["A pub ."])],
        "empty reference": [("A pub .", [""]), ("A cheap pub in the city .", ["A cheap pub in the city ."])],
        "both empty": [("", [""]), ("a b c d", ["a b c d"])],
        "one word": [("pub", ["pub"])],
        "three words": [("a cheap pub", ["a cheap pub"])],
        "shorter than its references": [("cheap pub", ["a cheap pub in the city centre near the river", "cheap pub here"])],
        "closest length": [("a b c d e", ["a b c", "a b c d e f g"]), ("x y z", ["x y", "x y z w"])],
        "different numbers of references": [("the pub is cheap .", ["the pub is cheap ."]),
                                            ("it is a pub", ["it is a cheap pub", "a pub it is", "it is a pub !"]),
                                            ("near the river", ["by the river", "near the river"])],
        "case": [("THE PUB IS NEAR", ["the pub is near"])],
        "trimmed": [("  the pub \n", ["the pub"]), ("the pub", ["\tthe pub\u00a0"])],
        "repeated words": [("the the the the the the", ["the cat is on the mat"])],
        "entities": [("a &amp; b &quot;c&quot; &lt;d&gt; <skipped> e", ["a & b \"c\" <d> e"])],
        "numbers": [("It costs 1,000.50 or 3-5 .", ["It costs 1,000.50 or 3 - 5 ."])],
        "line ends": [("one-\ntwo three\nfour five", ["onetwo three four five"])],
        "no letters": [("!!! ... ???", ["!!! ... ???"])],
        "chinese": [("我想在苹果工作。", ["我想在苹果公司工作。"])],
        "kelvin": [("\u212A \u212B İ ı", ["k å i̇ i"])],
    }
    sets = [{"name": name, "items": [{"prediction": p, "references": r} for p, r in items]} for name, items in fixed.items()]
    for number in range(40):
        random, odd, items = rng(SEED, f"metrics/{number}"), [0.0, 0.15, 0.5][number % 3], []
        for _ in range(1 + number % 8):
            references = [sentence(random, odd)]
            references += [changed(random, references[0], odd) for _ in range(random.integers(0, 4))]
            prediction = changed(random, references[int(random.integers(0, len(references)))], odd)
            items.append({"prediction": prediction, "references": references})
        sets.append({"name": f"generated {number}", "items": items})
    for entry in sets:
        entry |= measure(entry["items"])
    return sets


def rounded(value):
    if isinstance(value, float):
        return round(value, 10)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--smollm", type=Path, default=cache / "pfx/SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    made, ok = {"metrics.json": metrics()}, True
    if args.smollm.exists():
        made["chat.json"] = chat(args.smollm)
    else:
        print(f"chat.json: skipped, no {args.smollm}")
    for name, value in made.items():
        text = json.dumps(rounded(value), indent=1, ensure_ascii=True) + "\n"
        if args.check:
            same = (HERE / name).read_text() == text
            print(f"{name}: {'equal' if same else 'differs'}")
            ok &= same
        else:
            (HERE / name).write_text(text)
            print(f"{name}: {len(text)} bytes")
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
