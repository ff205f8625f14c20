"""Byte-pair encoding against tiktoken and Hugging Face's tokenizers: `python -m bench.tokenizers`.

Training: seconds to 1,024 tokens, for ours and for `tokenizers`, on the same words. Encoding: MB/s
of all three with the vocabulary that ours has learned, and whether their ids equal ours. "First" is
a tokenizer that has not seen the text, "again" one that has just encoded it: ours and `tokenizers`
remember words. This is done twice: with our pattern of words, which works on bytes and so is
compared on ASCII only, and with GPT-2's, whose ids are also compared on a text of many scripts. A
library that is not installed is left out. Everything runs on one thread.
"""

import importlib.metadata
import os
from importlib.util import find_spec
from pathlib import Path

from minqkv.tasks.tokenizers import BPE, GPT2

from .common import ROOT, interleaved, median, progress, ratio, run, spread, table

os.environ["TOKENIZERS_PARALLELISM"] = "false"
SIZE = 1024
PATTERNS = {  # for characters; ours is the same for bytes as long as all of them are ASCII
    "bpe": r" ?[A-Za-z]{1,63}| ?[0-9]{1,63}| ?[^\sA-Za-z0-9]{1,63}|\s{1,64}(?!\S)|\s",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
SCRIPTS = (
    "I'll say we're 12½ naïve ² Ⅷ ٣٤ — 你好,世界。こんにちは 안녕하세요 Привет мир!  γειά שלום "
    "עולם مرحبا नमस्ते दुनिया สวัสดีชาวโลก 😀👍🏽 \u00a0\u3000 e\u0301 x\x1c\x1dy\x85z \r\n\n\t_1\x00"
)


def add_arguments(parser):
    """The text."""
    parser.add_argument(
        "--text", type=Path, help="train on and encode this file (default: this project's sources)"
    )


def measure(options):
    """A row for training and two for encoding."""
    data = options.text.read_bytes() if options.text else sources()
    text = data.decode("ascii", "ignore")
    text = text[: 100_000 if options.quick else None]
    rounds = options.rounds or (2 if options.quick else 7)
    timing = {"least": 0, "rest": 0} if options.quick else {}
    rows = [training(text, rounds, timing)]
    rows += [encoding(cls, text, rounds, timing) for cls in (BPE, GPT2)]
    summary = {"megabytes": len(text) / 1e6, "vocabulary": SIZE} | versions()
    summary["training seconds"] = median(rows[0]["samples"], "minqkv")
    for row in rows[1:]:
        summary[f"{row['words']}: MB/s"] = row["mb_per_s"]
    show(rows, len(text))
    return rows, summary


def sources():
    """The package as one text."""
    files = sorted((ROOT / "minqkv").rglob("*.py"))
    return b"\n".join(path.read_bytes() for path in files)


def versions():
    """The versions of the other two; None for one that is not installed."""
    names = ("tiktoken", "tokenizers")
    return {name: importlib.metadata.version(name) if find_spec(name) else None for name in names}


def training(text, rounds, timing):
    """Ours and `tokenizers` to the same number of tokens, with our pattern of words."""
    progress("tokenizers: training")
    data = text.encode()
    candidates = {"minqkv": lambda: BPE.train(data, SIZE)}
    if find_spec("tokenizers"):
        candidates["tokenizers"] = lambda: hf_trained(text)
    samples = interleaved(candidates, rounds, **timing)
    return {"kind": "train", "tokens": BPE.train(data, SIZE).vocab_size, "samples": samples}


def encoding(cls, text, rounds, timing):
    """The same vocabulary in all three."""
    progress(f"tokenizers: encoding, words of {cls.kind}")
    data = text.encode()
    ours = cls.train(data, SIZE)
    candidates = {
        "minqkv, first": lambda: cls(ours.merges).encode(data),
        "minqkv, again": lambda: ours.encode(data),
    }
    others = {}
    if find_spec("tiktoken"):
        others["tiktoken"] = tiktoken_encode(ours)
        candidates["tiktoken"] = lambda: others["tiktoken"](text)
    if find_spec("tokenizers"):
        others["tokenizers"] = hf_encode(ours)
        candidates["tokenizers, first"] = lambda: hf_encode(ours)(text)
        candidates["tokenizers, again"] = lambda: others["tokenizers"](text)
    texts = (text, SCRIPTS) if cls is GPT2 else (text,)
    agree = {}
    for name, encode in others.items():
        agree[name] = all(encode(one) == ours.encode(one.encode()).tolist() for one in texts)
    samples = interleaved(candidates, rounds, **timing)
    speed = {name: round(len(data) / median(samples, name) / 1e6, 2) for name in samples}
    row = {"kind": "encode", "words": cls.kind, "tokens": len(ours.encode(data))}
    return row | {"ids_agree": agree, "mb_per_s": speed, "samples": samples}


def tiktoken_encode(ours):
    """tiktoken with our vocabulary: text -> list of ids."""
    import tiktoken

    ranks = {piece: i for i, piece in enumerate(ours.pieces[:-1])}
    end = {"<|endoftext|>": ours.end}
    pattern = PATTERNS[ours.kind]
    encoding = tiktoken.Encoding(
        ours.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=end
    )
    return encoding.encode_ordinary


def hf_encode(ours):
    """`tokenizers` with our vocabulary: text -> list of ids, without offsets, which cost time."""
    from tokenizers import Tokenizer, models

    letters = dict(zip(GPT2.order, GPT2.letters, strict=True))
    spelled = ["".join(letters[byte] for byte in piece) for piece in ours.pieces[:-1]]
    merges = [(spelled[left], spelled[right]) for left, right in ours.merges]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(spelled)}, merges))
    tokenizer.pre_tokenizer = hf_words(PATTERNS[ours.kind])
    return lambda text: tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def hf_words(pattern):
    """What cuts a text into words, and writes each byte as a visible character."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    visible = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, visible])


def hf_trained(text):
    """`tokenizers` trained on the text. It has no end token, so it gets one token fewer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = hf_words(PATTERNS["bpe"])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def show(rows, size):
    """Two tables."""
    train, *encodes = rows
    lines = []
    for name in train["samples"]:
        over = spread(ratio(train["samples"], name, "minqkv")) if name != "minqkv" else ""
        lines.append([name, f"{median(train['samples'], name):.2f}", over])
    title = f"Training to {train['tokens']:,} tokens on {size / 1e6:.2f} MB"
    table(title, ["", "seconds", "over ours"], lines)
    for row in encodes:
        lines = []
        for name, speed in row["mb_per_s"].items():
            agree = row["ids_agree"].get(name.split(",")[0])
            lines.append([name, f"{speed:.2f}", {None: "", True: "ours", False: "others"}[agree]])
        table(f"Encoding, words of {row['words']}", ["", "MB/s", "ids"], lines)
    missing = [name for name, version in versions().items() if version is None]
    if missing:
        print(f"not compared with {' and '.join(missing)}: not installed (pip install them)")


if __name__ == "__main__":
    run("tokenizers", __doc__, measure, add_arguments, one_thread=True)
