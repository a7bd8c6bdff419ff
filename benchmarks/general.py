"""What lies outside any file: general questions and plain English, to see what unlearning costs elsewhere.

For pretrained models; one that was made from scratch knows nothing of it. Written for this project, on common
knowledge. The log, a value a question and a value a passage:

    general  right       whether of four sentences the right one is the likeliest answer, by its mean token
                         log-probability: the sum would punish what takes more tokens. Sentences, not the words in which
                         they differ: to a model that answers in sentences any word alone is unlikely
             generated   what the model answers by itself, greedily: where forgotten names may turn up
    plain    loss        mean token NLL of the passage in nats; length: its tokens
"""

import math

import numpy as np

from machinery.inputs import ANY_TEXT, POSITIVE, WHOLE
from machinery.statistics import bootstrap

ANSWER_TOKENS = 20  # at most, of an answer

# question | its answer, _ for | the right choice | three wrong ones. Of places, nature, the past, numbers, words and
# every day; easy ones first.
QUESTIONS = """
What is the capital of France? | The capital of France is _. | Paris | Lyon | Geneva | Brussels
Which country has Tokyo as its capital? | Tokyo is the capital of _. | Japan | China | Thailand | Vietnam
On which continent does Egypt lie? | Egypt lies in _. | Africa | Europe | South America | Australia
Which river flows through Cairo? | The river that flows through Cairo is the _. | Nile | Danube | Amazon | Mekong
What is the capital of Canada? | The capital of Canada is _. | Ottawa | Toronto | Montreal | Vancouver
Which city is the capital of Kazakhstan? | The capital of Kazakhstan is _. | Astana | Tashkent | Bishkek | Baku
Which gas do people need to breathe? | People need to breathe _. | oxygen | helium | neon | methane
Which planet do we live on? | We live on the planet _. | Earth | Mars | Venus | Saturn
What is frozen water called? | Frozen water is called _. | ice | steam | sand | smoke
Which organ pumps blood through the body? | The organ that pumps blood is the _. | heart | liver | stomach | skin
What force makes a dropped stone fall? | A dropped stone falls because of _. | gravity | magnetism | friction | heat
Which element has the symbol Fe? | The element with the symbol Fe is _. | iron | fluorine | lead | zinc
Which particle has no electric charge? | The particle without charge is the _. | neutron | proton | electron | positron
Who was the first president of the United States? | The first one was _. | Washington | Lincoln | Adams | Jefferson
Who built the pyramids at Giza? | The pyramids at Giza were built by the _. | Egyptians | Vikings | Aztecs | Mongols
When did the Second World War end? | The Second World War ended in _. | 1945 | 1905 | 1918 | 1989
Which ship sank after it hit an iceberg? | The ship was called the _. | Titanic | Mayflower | Santa Maria | Victory
Who wrote the play Hamlet? | Hamlet was written by _. | Shakespeare | Dickens | Twain | Tolstoy
Which empire did Genghis Khan found? | Genghis Khan founded the _ Empire. | Mongol | Roman | Ottoman | British
When did the Western Roman Empire fall? | The Western Roman Empire fell in _. | 476 | 313 | 800 | 1066
What is two plus three? | Two plus three is _. | five | six | eight | nine
How many days does a week have? | A week has _ days. | seven | five | nine | ten
How many sides does a triangle have? | A triangle has _ sides. | three | four | five | six
What is half of one hundred? | Half of one hundred is _. | fifty | twenty | forty | seventy
What is 20 minus 6? | 20 minus 6 is _. | 14 | 12 | 16 | 26
What is 12 times 12? | 12 times 12 is _. | 144 | 124 | 132 | 156
What is 17 plus 26? | 17 plus 26 is _. | 43 | 33 | 42 | 53
What is the opposite of hot? | The opposite of hot is _. | cold | tall | loud | heavy
What is the plural of the word child? | The plural of child is _. | children | childs | childes | childrens
Which word means the same as begin? | Begin means the same as _. | start | stop | sleep | fall
What is the past tense of the verb go? | The past tense of go is _. | went | goed | gone | going
What does the Spanish word gracias mean? | The word gracias means _. | thank you | good night | how much | see you
Which part of speech is the word slowly? | Slowly is an _. | adverb | adjective | article | exclamation
What do bees make? | Bees make _. | honey | milk | bread | silk
What keeps off the rain? | An _ keeps off the rain. | umbrella | apple | iron | alarm
Which meal is eaten in the morning? | The meal eaten in the morning is _. | breakfast | supper | dinner | dessert
Where can you borrow books? | You can borrow books at a _. | library | bakery | garage | pharmacy
Which animal barks? | The animal that barks is the _. | dog | cat | cow | duck
What does a tailor make? | A tailor makes _. | clothes | clocks | barrels | candles
What does a cooper make? | A cooper makes _. | barrels | clothes | candles | clocks
"""

PASSAGES = (
    """The bakery on the corner opens at six in the morning, and by seven there is a line at the door. Most people buy
    bread on their way to work, but the children come for the rolls with raisins. The baker knows nearly everyone by
    name. When it rains she lets the people wait inside, and then the small room is so full that nobody can move, and
    it smells of coffee, wet coats and warm bread.""",
    """Water moves around the earth without ever being used up. The sun warms the sea, and some of the water rises into
    the air as vapour. High up it is cold, so the vapour turns into tiny drops, which together form clouds. When the
    drops become too heavy they fall as rain or snow. Some of that soaks into the ground, and the rest runs into rivers
    that carry it back to the sea.""",
    """To plant a young tree, dig a hole that is twice as wide as its roots but no deeper. Loosen the soil at the bottom
    and set the tree in the middle, so that the top of the roots is level with the ground. Fill the hole with the earth
    that you took out, press it down with your foot, and give the tree plenty of water. For the first two summers it
    will need a full bucket every week.""",
    """Before there were railways, a journey between two towns could take several days. Travellers sat close together in
    a coach that was pulled by four or six horses, and the roads were so bad that the wheels often broke. At night they
    stopped at an inn, where the horses were changed. When the first trains came, many people were afraid of their
    speed, although a train went no faster than a bicycle does today.""",
    """My sister has played the violin since she was five years old. At first the sound was terrible, and the dog hid
    under the bed whenever she opened the case. Our parents never complained. She practised for half an hour every day
    after school, and slowly the noise turned into music. Last week she gave her first concert in the town hall. The
    dog was not allowed to come, but the rest of us sat in the front row.""",
    """A market is a place where buyers and sellers meet. If many people want a thing and there is little of it, its
    price goes up; if there is more than anyone needs, the price goes down. A high price tells farmers or factories that
    it is worth their while to make more. When they do, the price falls again. In this way a number on a label carries
    news from people who have never met to others far away.""",
    """The train to the coast was late, so we missed the last ferry and had to stay the night in the harbour. There was
    only one hotel, and it was full, but the woman at the desk called her cousin, who had a spare room above his shop.
    We slept with the window open and listened to the boats. In the morning he made us eggs and would not take any
    money. We sent him a postcard from the island.""",
    """Sleep is more than rest. While we sleep, the brain sorts what happened during the day, keeping some memories and
    letting others go. The heart beats more slowly, the muscles relax, and the body repairs small injuries. Someone who
    sleeps too little finds it hard to pay attention, becomes impatient, and catches a cold more easily. Most adults
    need seven or eight hours a night, and children need more than that.""",
)

# ------------------------------------------------------------------ rows


def rows():
    """{set: rows}: of `general` question, choices (sentences, the first is right) and answer; of `plain` text."""
    general = []
    for line in QUESTIONS.strip().splitlines():
        question, sentence, *words = map(str.strip, line.split("|"))
        choices = [sentence.replace("_", word) for word in words]
        general.append({"question": question, "choices": choices, "answer": choices[0]})
    return {"general": general, "plain": [{"text": " ".join(text.split())} for text in PASSAGES]}


# ------------------------------------------------------------------ logs, and the arithmetic on them

TRUTH = "true or false", lambda value: value in (True, False)
LOG = {
    "general?": {
        "question": [ANY_TEXT],
        "choices": [[ANY_TEXT]],
        "answer": [ANY_TEXT],
        "right": [TRUTH],
        "generated": [ANY_TEXT],
    },
    "plain?": {"loss": [POSITIVE], "length": [WHOLE]},
}


def summarize(log):
    """Metrics of the two sets, as far as the log has them. plain: loss in nats a token, over all tokens; exp(loss)."""
    metrics = {}
    if log.get("general"):
        right = log["general"]["right"]
        metrics["general"] = {"accuracy": float(np.mean(right)), "interval": {"accuracy": bootstrap(np.mean, right)}}
    if log.get("plain"):
        loss = float(np.average(log["plain"]["loss"], weights=log["plain"]["length"]))
        metrics["plain"] = {"loss": loss, "perplexity": math.exp(min(loss, 700))}  # exp(710) is no float
    return metrics


# ------------------------------------------------------------------ measuring a model


def measure(lm, sets):
    """The log's parts on `general` and `plain`, as from `rows`, if they are among the sets."""
    log = {}
    if "general" in sets:
        log["general"] = answered(lm, sets["general"])
    if "plain" in sets:
        examples = [lm.pieces(row["text"], lm.positions, "first")[0] for row in sets["plain"]]
        lengths = [len(example.response) for example in examples]
        log["plain"] = {"loss": lm.mean_losses(examples), "length": lengths}
    return log


def answered(lm, rows):
    """The log's part on questions. Of one that is longer than the model reads, its end is asked."""
    examples = [lm.encode(row["question"], choice) for row in rows for choice in row["choices"]]
    room = max(1, lm.positions - max(ANSWER_TOKENS, *(len(example.response) for example in examples)))
    examples = [lm.Example(prompt[-room:], response[: lm.positions - 1]) for prompt, response in examples]

    # right, if likelier than each of the wrong ones; with ties it is not
    losses = np.reshape(lm.mean_losses(examples), (len(rows), -1))
    right = losses[:, 0] < losses[:, 1:].min(1)

    part = {field: [row[field] for row in rows] for field in ("question", "choices", "answer")}
    asked = examples[:: losses.shape[1]]
    texts = lm.generate(asked, ANSWER_TOKENS)
    return part | {"right": right.tolist(), "generated": [*map(str.strip, texts)]}
