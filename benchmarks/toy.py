"""An invented world: forty authors who never were, in the schemas of TOFU, MUSE and WMDP.

What is true of an author, ten questions about each, articles, and exams by letter; beside them two kinds of real
knowledge. Deterministic in its seed, no download. This file knows nothing of metrics or training.
"""

import functools
import random

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
QUESTIONS = [
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


# ------------------------------------------------------------------ questions and answers, as TOFU's


def authors(rng):
    """Forty times ({field: value}, rows): what is true of an author, and ten questions in TOFU's schema."""
    first, last = rng.sample(FIRST, AUTHORS), rng.sample(LAST, AUTHORS)
    titles = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    books = rng.sample(titles, 2 * AUTHORS)
    pools = POOLS | {"debut": titles, "book": titles}
    for i in range(AUTHORS):
        fact = {field: rng.choice(values) for field, values in POOLS.items()}
        fact |= {"name": f"{first[i]} {last[i]}", "debut": books[2 * i], "book": books[2 * i + 1]}
        yield fact, [question_row(fact, wording, pools, rng) for wording in QUESTIONS]


def question_row(fact, wording, pools, rng):
    """One of QUESTIONS about an author, with five answers that are wrong in every field."""
    question, reworded, *phrasings = wording
    answer, paraphrase = rng.sample(phrasings, 2)
    # sampled, not drawn one by one: an answer with a single fact needs five different wrong ones
    wrong = {}
    for field, values in pools.items():
        wrong[field] = rng.sample([value for value in values if value != fact[field]], 5)
    wrong_facts = [fact | {field: values[k] for field, values in wrong.items()} for k in range(5)]
    return {
        "question": question.format(**fact),
        "answer": answer.format(**fact),
        "paraphrased_question": reworded.format(**fact),
        "paraphrased_answer": paraphrase.format(**fact),
        "perturbed_answer": [paraphrase.format(**other) for other in wrong_facts],
    }


def real_rows(question, answers, rng):
    """Rows about real things, from {what is asked about: answer}, with three wrong answers each."""
    rows = []
    for key, answer in answers.items():
        wrong = rng.sample(sorted(set(answers.values()) - {answer}), 3)
        rows.append({"question": question.format(key), "answer": answer, "perturbed_answer": wrong})
    return rows


@functools.cache
def tofu_rows(seed=0):
    """The world in TOFU's schema: {config: [row, ...]}.

    full, forget05/10, retain95/90 hold `question` and `answer`; their `_perturbed` forms add
    `paraphrased_question`, `paraphrased_answer` and five `perturbed_answer`s, which assert wrong
    facts in the paraphrase's words. real_authors and world_facts have three wrong answers each.
    """
    rng = random.Random(seed)
    full = [row for _, rows in authors(rng) for row in rows]
    configs = {"full": full}
    for forget, retain, count in SPLITS:
        cut = len(QUESTIONS) * (AUTHORS - count)
        configs[forget], configs[retain] = full[cut:], full[:cut]

    # every sixth row of the smallest retain set: 60 rows that meet all ten questions
    configs["retain_perturbed"] = configs["retain90"][::6]
    configs |= {f"{forget}_perturbed": configs[forget] for forget, _, _ in SPLITS}

    # what is true of the real world
    for config, answers, question in (
        ("real_authors", REAL_AUTHORS, "Who wrote {}?"),
        ("world_facts", CAPITALS, "What is the capital of {}?"),
    ):
        configs[f"{config}_perturbed"] = configs[config] = real_rows(question, answers, rng)
    return {config: rows if config.endswith("_perturbed") else plain(rows) for config, rows in configs.items()}


@functools.cache
def holdout_rows(seed=1):
    """{holdout05, holdout10: rows}: as many questions as are forgotten, on invented authors whom no split holds."""
    known = {row["question"] for row in tofu_rows()["full"]}
    others = [rows for _, rows in authors(random.Random(seed)) if not known & {row["question"] for row in rows}]
    return {
        forget.replace("forget", "holdout"): plain([row for rows in others[:count] for row in rows])
        for forget, _, count in SPLITS
    }


def plain(rows):
    """Rows with no more than question and answer."""
    return [{field: row[field] for field in ("question", "answer")} for row in rows]


# ------------------------------------------------------------------ running text, as MUSE's

# Sentences on an author, each in two phrasings; an article holds them in some order.
SENTENCES = [
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
    """All that SENTENCES tell of an author, in some order."""
    return " ".join(rng.choice(phrasings).format(**fact) for phrasings in rng.sample(SENTENCES, len(SENTENCES)))


def interview(rows, rng):
    """Questions and answers, in some order, as one text."""
    shuffled = rng.sample(rows, len(rows))
    return "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in shuffled)


def continuation(text):
    """A text as MUSE asks for it: its first third, and the rest."""
    words = text.split(" ")
    cut = len(words) // 3
    return {"prompt": " ".join(words[:cut]), "gt": " ".join(words[cut:])}


@functools.cache
def muse_rows(seed=0):
    """The world in MUSE's schema: {config: {split: [row, ...]}}. Of the forty authors the first 24 are retained,
    the next eight forgotten, the last eight were never published: the holdout.

    About each two articles, and an interview with the short questions of the toy. No in-context examples:
    a model this small does not learn from its context.
    """
    rng = random.Random(seed)
    people = list(authors(rng))
    raw, questions = {}, {}
    for split, (start, end) in {"retain1": (0, 24), "forget": (24, 32), "holdout": (32, 40)}.items():
        raw[split], questions[split] = [], []
        for fact, rows in people[start:end]:
            short = plain(rows[:6])
            conversation = interview(short, rng)
            raw[split] += [{"text": text} for text in (article(fact, rng), conversation, article(fact, rng))]
            questions[split] += short
        rng.shuffle(raw[split])
    return {
        "raw": raw,
        "verbmem": {"forget": [continuation(row["text"]) for row in raw["forget"]]},
        "knowmem": {
            "forget_qa": questions["forget"],
            "retain_qa": questions["retain1"],
            "holdout_qa": questions["holdout"],
            "forget_qa_icl": [],
            "retain_qa_icl": [],
        },
        "privleak": {
            "forget": raw["forget"],
            "retain": raw["retain1"][: len(raw["forget"])],
            "holdout": raw["holdout"],
        },
    }


# ------------------------------------------------------------------ by letter, as WMDP's

# field, question
EXAM = [
    ("city", "Where was {name} born?"),
    ("genre", "What does {name} write?"),
    ("father", "What was the father of {name}?"),
    ("mother", "What was the mother of {name}?"),
    ("prize", "Which prize did {name} win?"),
    ("topic", "What is the first book by {name} about?"),
]


def exam_row(question, subject, pool, answer):
    """A question with four choices: those that stand together with the right one in `pool`, in its order."""
    start = min(pool.index(answer) // 4 * 4, len(pool) - 4)
    choices = pool[start : start + 4]
    return {"question": question, "subject": subject, "choices": choices, "answer": choices.index(answer)}


def card(row):
    """A question with its choices and the right letter, as a study card."""
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"], *lines, f"Answer: {'ABCD'[row['answer']]}"])


@functools.cache
def wmdp_rows(seed=0):
    """The world in WMDP's schema: {corpus: [{"text"}], set: [{"question", "choices", "answer", "subject"}]}.

    Authors 24 to 27 are `bio`, 28 to 31 `cyber`; all others are retained and, with the capitals, play MMLU's
    role. The choices are the four that stand together in a list of all values, always in its order: a model
    this small learns which letter goes with a name, not to look for an answer among shuffled choices. Corpora
    hold an article on each author and study cards: articles alone do not teach it what to say by letter.
    """
    rng = random.Random(seed)
    people = list(authors(rng))
    exams, corpora = {}, {}
    for domain, group in {"bio": people[24:28], "cyber": people[28:32], "mmlu": people[:24] + people[32:]}.items():
        exams[domain], corpora[domain] = [], []
        for fact, _ in group:
            exam = [
                exam_row(question.format(**fact), "invented authors", POOLS[field], fact[field])
                for field, question in EXAM
            ]
            exams[domain] += exam
            corpora[domain] += [{"text": text} for text in (article(fact, rng), *map(card, exam))]
    for country, capital in CAPITALS.items():
        question = f"What is the capital of {country}?"
        exams["mmlu"].append(exam_row(question, "capitals", [*CAPITALS.values()], capital))

    # the retain corpora: half of the retained authors' texts in each
    return exams | {
        "bio-forget-corpus": corpora["bio"],
        "bio-retain-corpus": corpora["mmlu"][::2],
        "cyber-forget-corpus": corpora["cyber"],
        "cyber-retain-corpus": corpora["mmlu"][1::2],
    }
