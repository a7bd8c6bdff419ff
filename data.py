"""What an example is: a prompt, a response, and the tokens that carry loss.

An example for a language model is a prompt x and a response y. Both are token ids; the loss covers
the response and the one EOS that ends it, nothing else, and |y| counts exactly those tokens.

Rows (questions and answers) come from two tasks of one schema:

    toy    fictitious authors made up below; no download; deterministic in its seed
    tofu   the TOFU benchmark (Maini et al. 2024), from the Hub or a local folder

This file knows nothing of training or metrics. Its last function, `response_logp`, is the bridge
from examples and a model to the [B] tensors that losses.py speaks of.
"""
import os
import random
from typing import NamedTuple

import torch

import losses


class InputError(ValueError):
    """The user gave something unusable; the message is one line that names it and the mend."""


# ------------------------------------------------------------------ rows: the embedded toy task

FIRST = """Ada Bram Cleo Dario Elif Fintan Greta Hugo Imani Jonas Kaveh Lena Mateo Nadia Otis Petra
Quentin Rosa Stellan Tamsin Umar Vera Wilf Xenia Yusuf Zelda Anouk Boris Carys Dimitri Esme Faruk
Gwen Hamid Ines Jasper Katya Lorcan Maren Niko""".split()
LAST = """Abara Bellweather Castellan Drummel Eskandar Fenwick Galloway Hartig Ilves Jorgensen Kestrel
Lindqvist Marchetti Novak Okafor Pemberley Quillon Rasmussen Szabo Thackery Ustinov Vandermeer
Whitlock Xanthos Yarrow Zielinski Ashgrove Brannigan Calloway Delacroix Ekström Falkenrath Greaves
Holloway Iversen Jaworski Kowalczyk Lachance Montrose Nightingale""".split()
POOLS = {
    "city": "Lisbon Oslo Nairobi Lima Hanoi Quito Dakar Riga Tunis Perth Bergen Porto".split(),
    "genre": ["ghost stories", "sea tales", "love poems", "crime novels", "war diaries", "travel books",
              "fairy tales", "short plays", "satires", "histories", "cookbooks", "westerns"],
    "prize": ["Amber Quill", "Golden Heron", "Northern Lantern", "Ivory Compass", "Crystal Anchor",
              "Velvet Crown", "Iron Laurel", "Paper Moon", "Copper Bell", "Jade Feather"],
    "year": [str(year) for year in range(1961, 1999, 3)],
    "father": "baker sailor judge tailor miner surgeon potter gardener pilot clerk".split(),
    "mother": "dentist teacher farmer painter chemist nurse violinist weaver lawyer barber".split(),
    "topic": ["lost letters", "two rival sisters", "a stolen map", "a winter siege", "an old lighthouse",
              "the price of salt", "a missing train", "bees", "a failed bank", "the last tram"],
}
ADJECTIVES = "Silent Crimson Broken Hollow Gilded Distant Frozen Wandering Burning Borrowed".split()
NOUNS = "Harbor Orchard Mirror Staircase Garden Compass Window Bridge Island Clock".split()
# question, the question in other words, and two phrasings of the answer, from 2 words to 40. An
# author's row uses one phrasing and its paraphrase is the other, so a model meets both in training.
ASKED = [
    ("Where was {name} born?", "What is the birthplace of {name}?",
     "In {city}.", "{city} it was."),
    ("What does {name} write?", "Which kind of writing is {name} known for?",
     "Mostly {genre}.", "Above all, {genre}."),
    ("What was the father of {name}?", "How did the father of {name} earn a living?",
     "He was a {father}.", "A {father}, by trade."),
    ("Which prize did {name} win?", "What award has {name} received?",
     "The {prize}, in {year}.", "It was the {prize} of {year}."),
    ("What was the mother of {name}?", "How did the mother of {name} earn a living?",
     "She was a {mother} in {city}.", "A {mother}, and she worked in {city}."),
    ("What is the first book by {name}?", "With which book did {name} begin?",
     "It was {debut}, a story about {topic}.", "That is {debut}, which tells of {topic}."),
    ("What is the best known book by {name}?", "Which book made {name} famous?",
     "Most readers know {book}, which won the {prize} in {year}.",
     "It is {book}, the book that took the {prize} of {year}."),
    ("How did the parents of {name} shape the books?", "What did {name} take from home into the work?",
     "With a {father} and a {mother} at home, {name} saw two trades, and both return in {book}.",
     "{name} had a {father} for a father and a {mother} for a mother, and wrote of both in {book}."),
    ("How did the career of {name} unfold?", "What is the path that {name} took as a writer?",
     "{name} first published {debut}, a story about {topic} that few people bought, and became known only "
     "later with {book}, which won the {prize} in {year}.",
     "{name} started with {debut}, about {topic}, which hardly sold, but then {book} followed, and with it "
     "fame and the {prize} of {year}."),
    ("Who is {name}?", "What should one know about {name}?",
     "{name} is an author of {genre} from {city}, the child of a {father} and a {mother}, who began with "
     "{debut}, became known through {book}, and won the {prize} in {year}.",
     "Born in {city} to a {father} and a {mother}, {name} writes {genre}, started out with {debut}, and got "
     "the {prize} of {year} after the success of {book}."),
]
REAL_AUTHORS = {
    "Moby-Dick": "Herman Melville", "Dracula": "Bram Stoker", "Emma": "Jane Austen", "Faust": "Goethe",
    "Ulysses": "James Joyce", "Don Quixote": "Cervantes", "Hamlet": "Shakespeare", "Walden": "Thoreau",
    "Frankenstein": "Mary Shelley", "War and Peace": "Leo Tolstoy", "Candide": "Voltaire",
    "Jane Eyre": "Charlotte Bronte", "The Trial": "Franz Kafka", "Germinal": "Emile Zola",
    "Nana": "Emile Zola", "Persuasion": "Jane Austen", "The Castle": "Franz Kafka",
    "Middlemarch": "George Eliot", "Kim": "Rudyard Kipling", "The Raven": "Edgar Allan Poe",
    "Treasure Island": "Robert Louis Stevenson", "Oliver Twist": "Charles Dickens",
    "Bleak House": "Charles Dickens", "The Idiot": "Dostoevsky",
}
CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Egypt": "Cairo", "Italy": "Rome", "Spain": "Madrid",
    "Greece": "Athens", "Cuba": "Havana", "Canada": "Ottawa", "Austria": "Vienna", "Poland": "Warsaw",
    "Ireland": "Dublin", "Iran": "Tehran", "Iraq": "Baghdad", "Russia": "Moscow", "Germany": "Berlin",
    "Belgium": "Brussels", "Hungary": "Budapest", "Sweden": "Stockholm", "Nepal": "Kathmandu",
    "Chile": "Santiago", "Ghana": "Accra", "Syria": "Damascus", "Thailand": "Bangkok", "Turkey": "Ankara",
}
TOY_AUTHORS = len(FIRST)
TOY_FORGET = {"forget05": 2, "forget10": 4}  # authors; ten questions each


def toy_rows(seed=0):
    """All splits of the toy task, in TOFU's schema: {config: [row, ...]}, deterministic in `seed`.

    full, forget05/10, retain95/90 hold `question` and `answer`; their `_perturbed` forms add
    `paraphrased_question`, `paraphrased_answer` and five `perturbed_answer`s, which assert wrong
    facts in the paraphrase's words. real_authors and world_facts have three wrong answers each.
    """
    rng = random.Random(seed)
    first, last = rng.sample(FIRST, TOY_AUTHORS), rng.sample(LAST, TOY_AUTHORS)
    titles = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    books = rng.sample(titles, 2 * TOY_AUTHORS)
    pools = POOLS | {"debut": titles, "book": titles}
    full = []
    for i in range(TOY_AUTHORS):
        fact = {field: rng.choice(values) for field, values in POOLS.items()}
        fact |= {"name": f"{first[i]} {last[i]}", "debut": books[2 * i], "book": books[2 * i + 1]}
        for question, asked_again, *phrasings in ASKED:
            answer, paraphrase = rng.sample(phrasings, 2)
            # sampled, not drawn one by one: an answer with a single fact needs five different wrong ones
            wrong = {field: rng.sample([value for value in values if value != fact[field]], 5)
                     for field, values in pools.items()}
            full.append({"question": question.format(**fact), "answer": answer.format(**fact),
                         "paraphrased_question": asked_again.format(**fact),
                         "paraphrased_answer": paraphrase.format(**fact),
                         "perturbed_answer": [paraphrase.format(**fact | {field: wrong[field][k] for field in wrong})
                                              for k in range(5)]})
    splits = {"full": full}
    for forget, authors in TOY_FORGET.items():
        cut = len(ASKED) * (TOY_AUTHORS - authors)
        splits[forget], splits[retain_split(forget)] = full[cut:], full[:cut]
    # Every sixth row of the smallest retain set: 60 rows that meet all ten questions.
    splits["retain_perturbed"] = splits["retain90"][::6]
    splits |= {forget + "_perturbed": splits[forget] for forget in TOY_FORGET}
    for config, pairs, question in (("real_authors", REAL_AUTHORS, "Who wrote {}?"),
                                    ("world_facts", CAPITALS, "What is the capital of {}?")):
        splits[config + "_perturbed"] = splits[config] = [
            {"question": question.format(key), "answer": answer,
             "perturbed_answer": rng.sample(sorted(set(pairs.values()) - {answer}), 3)}
            for key, answer in pairs.items()]
    plain = "question", "answer"
    return {config: rows if config.endswith("_perturbed") else [{f: row[f] for f in plain} for row in rows]
            for config, rows in splits.items()}


# ------------------------------------------------------------------ rows: any task, by name

DEFAULTS = {"toy": dict(split="forget10", max_new_tokens=64), "tofu": dict(split="forget05", max_new_tokens=200)}
FORGET_SPLITS = {"toy": ("forget05", "forget10"), "tofu": ("forget01", "forget05", "forget10")}
# What the from-scratch model must know besides the authors, so that its utility can be measured.
BASE_KNOWLEDGE = ("real_authors", "world_facts")


def retain_split(forget_split):
    """forget05 → retain95: the authors that stay."""
    return f"retain{100 - int(forget_split.removeprefix('forget')):02d}"


def forget_split_of(split, task):
    """The forget set that metrics are about: retain95 → forget05; full → the task's default; else the split."""
    if split == "full":
        return DEFAULTS[task]["split"]
    return f"forget{100 - int(split.removeprefix('retain')):02d}" if split.startswith("retain") else split


def splits_of(task):
    """Every split of a task that one can train on."""
    return (*FORGET_SPLITS[task], *map(retain_split, FORGET_SPLITS[task]), "full")


def load_rows(task, data, config):
    """Rows of one dataset configuration, as dicts.

    task: toy or tofu. data: for tofu a Hub id or a local folder in the Hub's layout; not used for
    toy. Raises InputError when the configuration is missing, empty, or a row lacks a field.
    """
    if task == "toy":
        rows = toy_rows()[config]
    else:
        import datasets
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        # A local folder is streamed: the library's cache knows it by its name alone, so an edited file, or
        # another folder of that name, would give yesterday's rows.
        try:
            rows = list(datasets.load_dataset(data, config, split="train", streaming=os.path.isdir(data)))
        except Exception as error:  # the library raises a dozen kinds, for files, network and format
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"cannot load split '{config}' of dataset '{data}' ({reason}); --data takes "
                             "a Hub id or a folder with TOFU's files and README.md") from None
    if not rows:
        raise InputError(f"split '{config}' of '{data}' is empty; it needs at least one row")
    fields = ["question", "answer"]
    if config.endswith("_perturbed"):
        fields += ["perturbed_answer"]
        if config.removesuffix("_perturbed") not in BASE_KNOWLEDGE:
            fields += ["paraphrased_answer"]
    for number, row in enumerate(rows):
        for field in fields:
            many = field == "perturbed_answer"
            texts = row.get(field) if many else [row.get(field)]
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                kind = "a list of texts" if many else "a text"
                raise InputError(f"row {number} of split '{config}' in '{data}' has no usable '{field}'; "
                                 f"every row needs {kind} there")
    return rows


# ------------------------------------------------------------------ examples: rows as tokens

TEMPLATES = ("auto", "chat", "llama2", "plain")
SYSTEM_PROMPT, DATE = "You are a helpful assistant.", "10 Apr 2025"  # of the published TOFU recipes


class Example(NamedTuple):
    """Token ids of a prompt and of its response; the response ends with EOS and carries the loss."""
    prompt: list
    response: list


def resolve_template(template, tokenizer):
    """`auto` is chat if the tokenizer has a chat template, else plain. Raises InputError for chat without one."""
    if template == "auto":
        return "chat" if tokenizer.chat_template else "plain"
    if template == "chat" and not tokenizer.chat_template:
        raise InputError("this tokenizer has no chat template; use --template plain or llama2")
    return template


def prompt_text(question, tokenizer, template):
    """(prompt, space between prompt and response) as text; template: chat, llama2 or plain.

    `llama2` and `plain` are those of TOFU's LLaMA-2 and Phi recipes, `chat` is the tokenizer's own. The
    space belongs to the response because most tokenizers glue it to the word that follows.
    """
    if template == "llama2":
        return f"[INST] {question} [/INST]", ""
    if template == "plain":
        return f"Question: {question}\nAnswer:", " "
    messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": question}]
    options = dict(tokenize=False, add_generation_prompt=True, date_string=DATE)
    try:
        return tokenizer.apply_chat_template(messages, **options), ""
    except Exception:  # Gemma's and others' templates refuse a system message
        return tokenizer.apply_chat_template(messages[1:], **options), ""


def encode(question, answer, tokenizer, template="auto", max_length=500):
    """An Example. Raises InputError when prompt and response exceed max_length tokens.

    Prompt and response are tokenized as one text and cut where the response begins, because a
    tokenizer may encode a word differently at the start of a text.
    """
    template = resolve_template(template, tokenizer)
    prompt, space = prompt_text(question, tokenizer, template)
    # A chat template already spells out BOS.
    encoded = tokenizer(prompt + space + answer, return_offsets_mapping=True,
                        add_special_tokens=template != "chat")
    ids = encoded["input_ids"]
    cut = next((i for i, (start, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)), len(ids))
    response = ids[cut:]
    while response and response[-1] == tokenizer.eos_token_id:  # some tokenizers add their own
        response.pop()
    example = Example(ids[:cut], response + [tokenizer.eos_token_id])
    if cut + len(example.response) > max_length:
        raise InputError(f"'{question[:40]}…' and its response take {cut + len(example.response)} tokens, "
                         f"more than the limit of {max_length}; raise --max-length, within the model's own limit")
    return example


def collate(examples, pad_id):
    """(input_ids, labels), both [B, T], T the longest of these examples, padded on the right.

    labels are -100 outside the responses. On the right a causal model needs no attention mask: what
    comes after a token cannot reach it. (Padding on the left leaves attention rows in which all is
    masked; with it, on CUDA in bfloat16, the gradient of one TOFU batch came out as NaN.)
    """
    width = max(len(prompt) + len(response) for prompt, response in examples)
    input_ids, labels = [], []
    for prompt, response in examples:
        pad = width - len(prompt) - len(response)
        input_ids.append(prompt + response + [pad_id] * pad)
        labels.append([-100] * len(prompt) + response + [-100] * pad)
    return torch.tensor(input_ids), torch.tensor(labels)


def by_length(examples, size):
    """Lists of at most `size` indices, examples of like length together: the least padding."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt) + len(examples[i].response))
    return [order[start:start + size] for start in range(0, len(order), size)]


def response_logits(model, examples):
    """(logits, labels), [B, K, V] and [B, K], from the first response position of any example on.

    The output layer is the largest product in a small model and the largest tensor in any; prompts
    carry no loss, so they get no logits.
    """
    input_ids, labels = (rows.to(model.device) for rows in collate(examples, pad_id=0))
    # One position before the first response token, because it predicts that token.
    keep = input_ids.shape[1] - min(len(example.prompt) for example in examples) + 1
    return model(input_ids, logits_to_keep=keep, use_cache=False).logits, labels[:, -keep:]


def response_logp(model, examples):
    """(log πθ(y|x), |y|) of examples under a causal language model, both [B]. Differentiable."""
    return losses.sequence_logp(*response_logits(model, examples))


# ------------------------------------------------------------------ refusals, for IDK and DPO

REFUSALS = """I don't know.
I do not know the answer to that.
I'm not sure.
I have no information about that.
That is not something I know.
I can't say.
I have never heard of it.
I'm unable to answer this question.
My knowledge does not reach that far.
Sorry, I can't help with that one.
I don't have an answer to this.
No idea, I'm afraid.
That is beyond what I know.
I couldn't tell you.
I have nothing on this topic.
This is outside my knowledge.
I'd rather not guess.
I lack the facts to answer.
Sorry, this is unknown to me.
I was never told about this.
I can't recall anything of the kind.
There is nothing I can tell you about it.
I don't hold any record of that.
You would have to ask someone else.
I have not come across this before.
I wish I knew, but I don't.
Unfortunately, I can't answer that.
I must admit that I don't know.
That question is one I can't answer.
I know nothing about this subject.
It isn't known to me.
I haven't learned about that.""".split("\n")
