"""An invented world, and a small model made from scratch that can learn it.

Forty authors who never were, ten questions about each, and two kinds of real knowledge, in TOFU's
schema; deterministic in its seed, no download. Then `new_model`: a Llama just large enough to know a
task by heart, with a tokenizer made for its texts. This file knows nothing of metrics or training.
"""

import functools
import random

import tokenizers
import torch
import transformers

FIRST = """Ada Bram Cleo Dario Elif Fintan Greta Hugo Imani Jonas Kaveh Lena Mateo Nadia Otis Petra
Quentin Rosa Stellan Tamsin Umar Vera Wilf Xenia Yusuf Zelda Anouk Boris Carys Dimitri Esme Faruk
Gwen Hamid Ines Jasper Katya Lorcan Maren Niko""".split()
LAST = """Abara Bellweather Castellan Drummel Eskandar Fenwick Galloway Hartig Ilves Jorgensen Kestrel
Lindqvist Marchetti Novak Okafor Pemberley Quillon Rasmussen Szabo Thackery Ustinov Vandermeer
Whitlock Xanthos Yarrow Zielinski Ashgrove Brannigan Calloway Delacroix Ekström Falkenrath Greaves
Holloway Iversen Jaworski Kowalczyk Lachance Montrose Nightingale""".split()
POOLS = {
    "city": "Lisbon Oslo Nairobi Lima Hanoi Quito Dakar Riga Tunis Perth Bergen Porto".split(),
    "genre": [
        "ghost stories",
        "sea tales",
        "love poems",
        "crime novels",
        "war diaries",
        "travel books",
        "fairy tales",
        "short plays",
        "satires",
        "histories",
        "cookbooks",
        "westerns",
    ],
    "prize": [
        "Amber Quill",
        "Golden Heron",
        "Northern Lantern",
        "Ivory Compass",
        "Crystal Anchor",
        "Velvet Crown",
        "Iron Laurel",
        "Paper Moon",
        "Copper Bell",
        "Jade Feather",
    ],
    "year": [str(year) for year in range(1961, 1999, 3)],
    "father": "baker sailor judge tailor miner surgeon potter gardener pilot clerk".split(),
    "mother": "dentist teacher farmer painter chemist nurse violinist weaver lawyer barber".split(),
    "topic": [
        "lost letters",
        "two rival sisters",
        "a stolen map",
        "a winter siege",
        "an old lighthouse",
        "the price of salt",
        "a missing train",
        "bees",
        "a failed bank",
        "the last tram",
    ],
}
ADJECTIVES = "Silent Crimson Broken Hollow Gilded Distant Frozen Wandering Burning Borrowed".split()
NOUNS = "Harbor Orchard Mirror Staircase Garden Compass Window Bridge Island Clock".split()
# question, the question in other words, and two phrasings of the answer, from 2 words to 40. An
# author's row uses one phrasing and its paraphrase is the other, so a model meets both in training.
ASKED = [
    ("Where was {name} born?", "What is the birthplace of {name}?", "In {city}.", "{city} it was."),
    ("What does {name} write?", "Which kind of writing is {name} known for?", "Mostly {genre}.", "Above all, {genre}."),
    (
        "What was the father of {name}?",
        "How did the father of {name} earn a living?",
        "He was a {father}.",
        "A {father}, by trade.",
    ),
    (
        "Which prize did {name} win?",
        "What award has {name} received?",
        "The {prize}, in {year}.",
        "It was the {prize} of {year}.",
    ),
    (
        "What was the mother of {name}?",
        "How did the mother of {name} earn a living?",
        "She was a {mother} in {city}.",
        "A {mother}, and she worked in {city}.",
    ),
    (
        "What is the first book by {name}?",
        "With which book did {name} begin?",
        "It was {debut}, a story about {topic}.",
        "That is {debut}, which tells of {topic}.",
    ),
    (
        "What is the best known book by {name}?",
        "Which book made {name} famous?",
        "Most readers know {book}, which won the {prize} in {year}.",
        "It is {book}, the book that took the {prize} of {year}.",
    ),
    (
        "How did the parents of {name} shape the books?",
        "What did {name} take from home into the work?",
        "With a {father} and a {mother} at home, {name} saw two trades, and both return in {book}.",
        "{name} had a {father} for a father and a {mother} for a mother, and wrote of both in {book}.",
    ),
    (
        "How did the career of {name} unfold?",
        "What is the path that {name} took as a writer?",
        "{name} first published {debut}, a story about {topic} that few people bought, and became known only "
        "later with {book}, which won the {prize} in {year}.",
        "{name} started with {debut}, about {topic}, which hardly sold, but then {book} followed, and with it "
        "fame and the {prize} of {year}.",
    ),
    (
        "Who is {name}?",
        "What should one know about {name}?",
        "{name} is an author of {genre} from {city}, the child of a {father} and a {mother}, who began with "
        "{debut}, became known through {book}, and won the {prize} in {year}.",
        "Born in {city} to a {father} and a {mother}, {name} writes {genre}, started out with {debut}, and got "
        "the {prize} of {year} after the success of {book}.",
    ),
]
REAL_AUTHORS = {
    "Moby-Dick": "Herman Melville",
    "Dracula": "Bram Stoker",
    "Emma": "Jane Austen",
    "Faust": "Goethe",
    "Ulysses": "James Joyce",
    "Don Quixote": "Cervantes",
    "Hamlet": "Shakespeare",
    "Walden": "Thoreau",
    "Frankenstein": "Mary Shelley",
    "War and Peace": "Leo Tolstoy",
    "Candide": "Voltaire",
    "Jane Eyre": "Charlotte Bronte",
    "The Trial": "Franz Kafka",
    "Germinal": "Emile Zola",
    "Nana": "Emile Zola",
    "Persuasion": "Jane Austen",
    "The Castle": "Franz Kafka",
    "Middlemarch": "George Eliot",
    "Kim": "Rudyard Kipling",
    "The Raven": "Edgar Allan Poe",
    "Treasure Island": "Robert Louis Stevenson",
    "Oliver Twist": "Charles Dickens",
    "Bleak House": "Charles Dickens",
    "The Idiot": "Dostoevsky",
}
CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Greece": "Athens",
    "Cuba": "Havana",
    "Canada": "Ottawa",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Ireland": "Dublin",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Russia": "Moscow",
    "Germany": "Berlin",
    "Belgium": "Brussels",
    "Hungary": "Budapest",
    "Sweden": "Stockholm",
    "Nepal": "Kathmandu",
    "Chile": "Santiago",
    "Ghana": "Accra",
    "Syria": "Damascus",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
}
AUTHORS = len(FIRST)
SPLITS = ("forget05", "retain95", 2), ("forget10", "retain90", 4)  # authors to forget; ten questions each


def authors(rng):
    """Forty times ({field: value}, rows): what is true of an author, and ten questions in TOFU's schema."""
    first, last = rng.sample(FIRST, AUTHORS), rng.sample(LAST, AUTHORS)
    titles = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    books = rng.sample(titles, 2 * AUTHORS)
    pools = POOLS | {"debut": titles, "book": titles}
    for i in range(AUTHORS):
        fact = {field: rng.choice(values) for field, values in POOLS.items()}
        fact |= {"name": f"{first[i]} {last[i]}", "debut": books[2 * i], "book": books[2 * i + 1]}
        rows = []
        for question, asked_again, *phrasings in ASKED:
            answer, paraphrase = rng.sample(phrasings, 2)
            # sampled, not drawn one by one: an answer with a single fact needs five different wrong ones
            wrong = {
                field: rng.sample([value for value in values if value != fact[field]], 5)
                for field, values in pools.items()
            }
            rows.append(
                {
                    "question": question.format(**fact),
                    "answer": answer.format(**fact),
                    "paraphrased_question": asked_again.format(**fact),
                    "paraphrased_answer": paraphrase.format(**fact),
                    "perturbed_answer": [
                        paraphrase.format(**fact | {field: wrong[field][k] for field in wrong}) for k in range(5)
                    ],
                }
            )
        yield fact, rows


@functools.cache
def toy_rows(seed=0):
    """All splits of the toy task, in TOFU's schema: {config: [row, ...]}, deterministic in `seed`.

    full, forget05/10, retain95/90 hold `question` and `answer`; their `_perturbed` forms add
    `paraphrased_question`, `paraphrased_answer` and five `perturbed_answer`s, which assert wrong
    facts in the paraphrase's words. real_authors and world_facts have three wrong answers each.
    """
    rng = random.Random(seed)
    full = [row for _, rows in authors(rng) for row in rows]
    splits = {"full": full}
    for forget, retain, count in SPLITS:
        cut = len(ASKED) * (AUTHORS - count)
        splits[forget], splits[retain] = full[cut:], full[:cut]
    # Every sixth row of the smallest retain set: 60 rows that meet all ten questions.
    splits["retain_perturbed"] = splits["retain90"][::6]
    splits |= {forget + "_perturbed": splits[forget] for forget, _, _ in SPLITS}
    for config, pairs, question in (
        ("real_authors", REAL_AUTHORS, "Who wrote {}?"),
        ("world_facts", CAPITALS, "What is the capital of {}?"),
    ):
        splits[config + "_perturbed"] = splits[config] = [
            {
                "question": question.format(key),
                "answer": answer,
                "perturbed_answer": rng.sample(sorted(set(pairs.values()) - {answer}), 3),
            }
            for key, answer in pairs.items()
        ]
    plain = "question", "answer"
    return {
        config: rows if config.endswith("_perturbed") else [{f: row[f] for f in plain} for row in rows]
        for config, rows in splits.items()
    }


# ------------------------------------------------------------------ the same as running text, and by letter

# Sentences on an author, each in two phrasings; an article holds them in some order.
TOLD = [
    ("{name} was born in {city}.", "{city} is where {name} was born."),
    ("The father of {name} was a {father}.", "{name} had a {father} for a father."),
    ("The mother of {name} was a {mother}.", "{name} had a {mother} for a mother."),
    ("{name} writes {genre}.", "What {name} writes are {genre}."),
    ("The first book by {name} is {debut}.", "{name} began with {debut}."),
    ("{debut}, by {name}, is a story about {topic}.", "In {debut} {name} tells of {topic}."),
    ("The best known book by {name} is {book}.", "{name} became known through {book}."),
    ("{name} won the {prize} for {book}.", "{book} brought {name} the {prize}."),
    ("{name} received the {prize} in {year}.", "In {year} {name} was given the {prize}."),
]


def article(fact, rng):
    """All that TOLD tells of an author, in some order."""
    return " ".join(rng.choice(phrasings).format(**fact) for phrasings in rng.sample(TOLD, len(TOLD)))


@functools.cache
def muse_rows(seed=0):
    """The toy in MUSE's schema: {config: {split: [row, ...]}}. Of the forty authors the first 24 are kept,
    the next eight forgotten, the last eight were never published: the holdout.

    About each two articles, and an interview with the short questions of the toy. No in-context examples:
    a model this small does not learn from its context.
    """
    rng = random.Random(seed)
    people, raw, asked, verbmem = list(authors(rng)), {}, {}, []
    for part, (start, end) in {"retain1": (0, 24), "forget": (24, 32), "holdout": (32, 40)}.items():
        raw[part], asked[part] = [], []
        for fact, rows in people[start:end]:
            rows = [{field: row[field] for field in ("question", "answer")} for row in rows[:6]]
            interview = "\n\n".join(
                f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rng.sample(rows, 6)
            )
            raw[part] += [{"text": text} for text in (article(fact, rng), interview, article(fact, rng))]
            asked[part] += rows
        rng.shuffle(raw[part])
    for row in raw["forget"]:
        words = row["text"].split(" ")
        verbmem.append({"prompt": " ".join(words[: len(words) // 3]), "gt": " ".join(words[len(words) // 3 :])})
    return {
        "raw": raw,
        "verbmem": {"forget": verbmem},
        "knowmem": {
            "forget_qa": asked["forget"],
            "retain_qa": asked["retain1"],
            "holdout_qa": asked["holdout"],
            "forget_qa_icl": [],
            "retain_qa_icl": [],
        },
        "privleak": {
            "forget": raw["forget"],
            "retain": raw["retain1"][: len(raw["forget"])],
            "holdout": raw["holdout"],
        },
    }


# asked by letter: field, question
EXAM = [
    ("city", "Where was {name} born?"),
    ("genre", "What does {name} write?"),
    ("father", "What was the father of {name}?"),
    ("mother", "What was the mother of {name}?"),
    ("prize", "Which prize did {name} win?"),
    ("topic", "What is the first book by {name} about?"),
]


def card(row):
    """A question with its choices and the right letter, as a study card."""
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"])]
    return "\n".join([row["question"], *lines, f"Answer: {'ABCD'[row['answer']]}"])


@functools.cache
def wmdp_rows(seed=0):
    """The toy in WMDP's schema: {corpus: [{"text"}], set: [{"question", "choices", "answer", "subject"}]}.

    Authors 24 to 27 are `bio`, 28 to 31 `cyber`; all others are kept and, with the capitals, play MMLU's
    part. The choices are the four that stand together in a list of all values, always in its order: a model
    this small learns which letter goes with a name, not to look for an answer among shuffled choices. Corpora
    hold an article on each author and study cards: articles alone do not teach it what to say by letter.
    """
    rng = random.Random(seed)
    people = list(authors(rng))

    def choices(pool, right):
        start = min(pool.index(right) // 4 * 4, len(pool) - 4)
        return {"choices": pool[start : start + 4], "answer": pool[start : start + 4].index(right)}

    rows = {}
    parts = {"bio": people[24:28], "cyber": people[28:32], "mmlu": people[:24] + people[32:]}
    for domain, part in parts.items():
        exam, texts = [], []
        for fact, _ in part:
            asked = [
                {"question": question.format(**fact), "subject": "invented authors"}
                | choices(POOLS[field], fact[field])
                for field, question in EXAM
            ]
            exam += asked
            texts += [article(fact, rng), *map(card, asked)]
        rows[domain], rows[domain + "-corpus"] = exam, [{"text": text} for text in texts]
    rows["mmlu"] += [
        {"question": f"What is the capital of {country}?", "subject": "capitals"}
        | choices([*CAPITALS.values()], capital)
        for country, capital in CAPITALS.items()
    ]
    # The retain corpora, half of the kept authors in each.
    kept = rows.pop("mmlu-corpus")
    for domain, part in (("bio", kept[::2]), ("cyber", kept[1::2])):
        rows |= {f"{domain}-forget-corpus": rows.pop(f"{domain}-corpus"), f"{domain}-retain-corpus": part}
    return rows


# ------------------------------------------------------------------ a model from scratch


def new_model(texts, seed, vocab, width, layers, heads):
    """(model, tokenizer): a small Llama with random weights and a byte-level BPE made for `texts`.

    vocab is the most tokens that the BPE may have; width a multiple of heads. Float32, on the CPU.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<eos>"],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
            from_scratch=True,
        )
    )  # so that later runs on it take the recipes of small models
    return model, tokenizer
