"""ROUGE-L (Lin 2004), with the published tokenizer and with one for any script.

TOFU and MUSE are defined by rouge-score's tokenizer, which keeps a–z and 0–9 and nothing else: of a Chinese, Russian
or Arabic answer nothing is left, of an accented one pieces, and an answer that is exactly right scores 0. They keep
it, to the bit, and `unseen` says under their tables when it sees little of the answers. Your own data (own.py) has no
published numbers to agree with, and takes `AnyScript`.
"""

import unicodedata

import regex

# Scripts that put no space between words; a mark (a vowel sign, a tone) belongs to the letter before it.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Tai_Le}\p{New_Tai_Lue}]"
WORDS = regex.compile(rf"(?V1)[{UNSPACED}&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{UNSPACED}]+")


class AnyScript:
    """A tokenizer for RougeScorer: words of any script, single characters where a script does not separate words.

    Upper and lower case, composed and decomposed accents, full and half width are the same. Words of ASCII letters are
    stemmed as rouge-score stems them, so a plain ASCII text has the published tokenizer's tokens.
    """

    def __init__(self):
        from nltk.stem.porter import PorterStemmer

        self.stem = PorterStemmer().stem

    def tokenize(self, text):
        words = WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
        return [self.stem(word) if word.isascii() and len(word) > 3 else word for word in words]


def scores(answers, texts, stem=False, tokenizer=None):
    """ROUGE-L of each text against its answer: objects with `recall` and `fmeasure`, numbers in [0, 1].

    tokenizer: None for the published one, which may `stem` English words.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stem, tokenizer=tokenizer)
    return [scorer.score(answer, text)["rougeL"] for answer, text in zip(answers, texts, strict=True)]


def unseen(answers):
    """[a line for under a table] where the published tokenizer sees less than half of the answers' letters, else []."""
    letters = [letter for answer in answers for letter in answer.lower() if letter.isalpha()]
    others = sum(not letter.isascii() for letter in letters)
    if others <= len(letters) / 2:
        return []
    share = f"{others / len(letters):.0%}"
    return [
        f"ROUGE-L is blind here: its published tokenizer knows a–z and 0–9, {share} of the answers' letters are others"
    ]
