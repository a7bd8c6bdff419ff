"""Measure how well a model forgot, and what it still knows.

    python evaluate.py --task tofu --split forget05 --model DIR_OR_HUB_ID \\
        --retrain DIR_OR_HUB_ID_OR_LOG --out metrics.json
    python evaluate.py --log PUBLISHED_LOG.json --retrain OTHER_LOG.json --out metrics.json
    python evaluate.py --model RUN --ask "Who wrote …?"     what it answers, beside Original and Retrain

The metrics are the benchmark's (benchmarks/). Several runs are compared by compare.py.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tqdm import tqdm

import data
import losses
from benchmarks import BENCHMARKS
from benchmarks.protocol import table
from machinery import flags, folder, inputs, models, processes
from machinery.command import number, refuse, run_command
from machinery.inputs import InputError
from machinery.run import MEASURING, ROOT, code_digest, write_json

# ------------------------------------------------------------------ what a benchmark asks of a model


class LM(NamedTuple):
    """A language model, as a benchmark asks it. Lists come back in the order given, batches are sorted by length."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    dtype: torch.dtype
    template: str
    max_length: int  # tokens of an example, at most as many as the model has positions
    max_new_tokens: int
    batch_size: int
    too_long: str = "refuse"  # what becomes of longer examples: refuse, cut or skip

    Example = data.Example

    @property
    def positions(self):
        """Most tokens that the model reads."""
        return getattr(self.model.config, "max_position_embeddings", sys.maxsize)

    def encode(self, question, answer, before=()):
        """An Example of any length."""
        return data.encode(question, answer, self.tokenizer, self.template, before)

    def examples(self, rows, **options):
        """Examples of rows (data.examples_of), of at most max_length tokens.

        With --too-long cut longer ones lose the end of their response, EOS with it. InputError, which counts them all,
        without, and where a prompt leaves no room for a response.
        """
        examples = data.examples_of(rows, self.tokenizer, self.template, self.max_length, **options)
        long = [example for example in examples if self.is_long(example)]
        if not long:
            return examples
        count = f"{len(long)} of {len(examples)} examples take more than the limit of {self.max_length} tokens"
        if self.too_long != "cut" or max(len(prompt) for prompt, _ in long) >= self.max_length:
            prompt, response = max(long, key=lambda example: len(example.prompt + example.response))
            text = self.tokenizer.decode(response[:40], skip_special_tokens=True).strip()[:40]
            untried = {"refuse": ", or let --too-long cut or skip them", "cut": ", or let --too-long skip them"}
            raise InputError(
                f"{count}, the longest {len(prompt + response)}: '{text}…'; raise --max-length, within the model's"
                + untried.get(self.too_long, "")  # a refusal may be too long where the answer fits
            )
        inputs.note(f"{count}: the ends of their responses are cut off")
        return [data.Example(prompt, response[: self.max_length - len(prompt)]) for prompt, response in examples]

    def fitting(self, rows, texts_of=lambda row: [row["answer"]]):
        """With --too-long skip the rows of which every text, as an answer, fits into max_length tokens; else all."""
        if self.too_long != "skip":
            return rows

        def fits(row):
            if "text" in row:  # which is cut into pieces
                return True
            asked = [row | {"answer": text} for text in texts_of(row)]
            return not any(map(self.is_long, data.examples_of(asked, self.tokenizer, self.template, self.max_length)))

        fitting = [row for row in rows if fits(row)]
        skipped = f"{len(rows) - len(fitting)} of {len(rows)} rows take more than the limit of {self.max_length} tokens"
        if not fitting:
            raise InputError(f"{skipped}, and --too-long skip leaves none; raise --max-length")
        if len(fitting) < len(rows):
            inputs.note(f"{skipped}: they are skipped")
        return fitting

    def is_long(self, example):
        return len(example.prompt) + len(example.response) > self.max_length

    def pieces(self, text, length, cut=None):
        return data.pieces(text, self.tokenizer, length, cut)

    def prompt(self, text):
        """An Example without a response: all of `text` is its prompt."""
        return data.Example(data.without_eos(self.tokenizer(text)["input_ids"], self.tokenizer), [])

    def check_fits(self, examples):
        """Raise InputError if an example is longer than the model has positions."""
        longest = max(len(prompt) + len(response) for prompt, response in examples)
        if longest > self.positions:
            raise InputError(
                f"a prompt takes {longest} tokens, more than this model's max_position_embeddings, "
                f"{self.positions}; take a model that reads more"
            )

    def token_scores(self, examples):
        """Of the tokens of each response: the log-probability, in nats; whether the token is the likeliest (1 or 0);
        the log-probability less its mean under the model's own distribution there, in standard deviations. A list of
        arrays [3, |y|]."""

        def score(batch):
            logits, targets, length = data.response_logits(self.model, batch)
            token_logp = losses.token_logp(logits, targets)
            likeliest = logits.argmax(-1) == targets
            log_p = logits.to(token_logp.dtype).log_softmax(-1)
            mean = (log_p.exp() * log_p).nansum(-1)  # 0 · -∞ where a token has no probability at all
            variance = (log_p.exp() * (log_p - mean[:, None]).square()).nansum(-1)
            normalized = (token_logp - mean) / variance.clamp(min=1e-6).sqrt()
            scores = torch.stack([token_logp, likeliest.to(token_logp), normalized])
            return [tokens.cpu().numpy() for tokens in scores.split(length.tolist(), 1)]

        return self.in_batches(score, examples, "scoring")

    def token_logps(self, examples):
        """Log-probabilities of the tokens of each response, in nats: a list of arrays."""

        def score(batch):
            logits, targets, length = data.response_logits(self.model, batch)
            return [tokens.cpu().numpy() for tokens in losses.token_logp(logits, targets).split(length.tolist())]

        return self.in_batches(score, examples, "scoring")

    def mean_losses(self, examples):
        """Mean token NLL of each example's response, in nats: a list of floats."""
        return [-float(logp.mean()) for logp in self.token_logps(examples)]

    def generate(self, examples, max_new_tokens=None):
        """Greedy continuation of each example's prompt, as text, up to the end of a turn.

        Shorter than `max_new_tokens` where the model has no more positions; of how many that may be is said on stderr.
        """
        wanted = max_new_tokens or self.max_new_tokens
        cramped = [i for i, example in enumerate(examples) if len(example.prompt) + wanted > self.positions]
        if cramped:
            count = f"{len(cramped)} of {len(examples)} answers"
            print(f"{count} can go no further than the {self.positions} positions that the model has", file=sys.stderr)

        # one at a time where there is less room, so that the others of a batch are not cut too; and under a model that
        # carries a state from token to token (RWKV), into which padding on the left would get
        batch_size = 1 if getattr(self.model, "_is_stateful", False) else self.batch_size
        texts = {}
        for batch_size, places in ((1, cramped), (batch_size, sorted({*range(len(examples))} - {*cramped}))):
            prompts = [data.Example(examples[i].prompt, []) for i in places]
            answers = self._replace(batch_size=batch_size).in_batches(self.greedy(wanted), prompts, "generating")
            texts |= zip(places, answers, strict=True)
        return [texts[i] for i in range(len(examples))]

    def greedy(self, wanted):
        """A function that continues a batch of prompts by the likeliest token, at most `wanted` times.

        Whatever the model's own generation_config asks for besides (n-gram blocks, penalties, forced tokens) would
        change what greedy means, and is left out; but its EOS tokens count.
        """

        def answer(batch):
            # padded on the left here, so that every prompt ends where its continuation begins
            prompts = {"input_ids": [example.prompt for example in batch]}
            inputs = self.tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(self.model.device)
            width = inputs["input_ids"].shape[1]
            greedy = transformers.GenerationConfig(
                max_new_tokens=max(1, min(wanted, self.positions - width)),
                do_sample=False,
                num_beams=1,
                eos_token_id=self.ends_of_turn(),
                pad_token_id=self.tokenizer.pad_token_id,
            )
            own, self.model.generation_config = self.model.generation_config, transformers.GenerationConfig()
            try:
                output = self.model.generate(**inputs, generation_config=greedy)
            finally:
                self.model.generation_config = own
            return self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)

        return answer

    def ends_of_turn(self):
        """Ids of the tokens at which an answer ends: EOS, those of generation_config.json, the template's own."""
        own = self.model.generation_config.eos_token_id
        own = [] if own is None else own if isinstance(own, list) else [own]
        template = self.encode("Who?", "Nobody.").response[-1]
        return sorted({self.tokenizer.eos_token_id, template, *own})

    def next_token_logps(self, examples, token_ids):
        """Log-probability of each of `token_ids` after each example's prompt, in nats: a list of lists of floats.

        From the model's own forward, so that what it does to its logits (a scale, a cap) counts. Under bfloat16 its
        output layer still computes in the precision of its weights: else near tokens would tie, and the first of
        them win.
        """

        def in_full(layer, inputs, output):
            with torch.autocast(self.model.device.type, enabled=False):
                return layer.forward(inputs[0].to(layer.weight.dtype))

        def answer(batch):
            input_ids, _ = data.collate(batch, pad_id=0)
            lengths = torch.tensor([len(example.prompt) for example in batch])
            last = torch.arange(input_ids.shape[1]) == lengths[:, None] - 1
            device = self.model.device
            logits = self.model(input_ids.to(device), use_cache=False, logits_to_keep=last.to(device)).logits
            return logits.log_softmax(-1)[:, token_ids].float().tolist()

        # before other hooks, which so see what counts
        hook = self.model.get_output_embeddings().register_forward_hook(in_full, prepend=True)
        try:
            prompts = [data.Example(example.prompt, []) for example in examples]
            return self.in_batches(answer, prompts, "answering")
        finally:
            hook.remove()

    @torch.no_grad()
    def in_batches(self, function, examples, desc):
        """What function(some examples) gives for each. Several processes share the work, and all get all."""
        models.check_ids(self.model, examples)
        self.model.eval()
        rank, ranks = processes.ranks()
        values = {}
        batches = data.by_length(examples, self.batch_size)[0][rank::ranks]
        for batch in tqdm(batches, desc=desc, leave=False, disable=rank > 0 or None):
            with data.autocast(self.model.device, self.dtype):
                values |= zip(batch, function([examples[i] for i in batch]), strict=True)
        values = processes.gather(values)
        return [values[i] for i in range(len(examples))]


def new_model(task, dataset, seed):
    """(model, tokenizer) with random weights, of the task's size."""
    # The tokenizer sees the same for Original and Retrain: a tokenizer is not what is to be unlearned.
    benchmark = BENCHMARKS[task]
    rows = benchmark.training_rows(dataset, benchmark.tokenizer_split, base_knowledge=True)
    return models.new_model(data.REFUSALS + [*map(data.text_of, rows)], seed, **benchmark.size)


def load(args, name, trained=False):
    """The LM of a model by its name, under the resolved flags; `new` is one with random weights.

    trained: its own weights will be; else they may take less memory.
    """
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if name == "new":
        model, tokenizer = new_model(args.task, args.data, args.seed)
        model.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    else:
        model, tokenizer = models.load_model(name, device, dtype, args.tokenizer, not trained)
    limit = min(args.max_length, getattr(model.config, "max_position_embeddings", math.inf))
    lengths = limit, args.max_new_tokens, args.eval_batch_size
    return LM(model, tokenizer, dtype, args.template, *lengths, args.too_long)


# ------------------------------------------------------------------ a model's log, and what it is compared with


def questions_digest(args, sets):
    """What tells whether two logs answer the same questions under the same flags, by the same code."""
    how = args.template, args.max_length, args.too_long, args.max_new_tokens, args.dtype
    return inputs.digest([sets, *how, *(code_digest(ROOT / name) for name in MEASURING)])


def log_of(args, sets, name):
    """The log of a model by its name; of a run that was asked the same, the one that it left, without what another
    Retrain thought of its answers."""
    benchmark = BENCHMARKS[args.task]
    if folder.is_run(name) and Path(name, "metrics.log.json").is_file():
        if folder.read(name, "run.json").get("asked") == questions_digest(args, sets):
            log = folder.read(name, "metrics.log.json")
            inputs.check(log, benchmark.log, f"'{Path(name, 'metrics.log.json')}': the log's")
            log.get("forget", {}).pop("judged", None)
            return log
    return benchmark.measure(load(args, name), sets)


def retrained_part(args, sets, logs):
    """What the model is compared with: --retrain's log, or its model, whose own log is put into `logs`; without the
    flag what the benchmark's authors published of their Retrain, or None."""
    benchmark = BENCHMARKS[args.task]
    if not args.retrain:
        return benchmark.published
    if args.retrain.endswith(".json"):
        return benchmark.read_retrained(args.retrain, sets)
    logs["Retrain"] = log_of(args, sets, args.retrain)
    return benchmark.compared_part(logs["Retrain"])


def sets_of(args, forget_split):
    """What is measured: {set: rows}. What lies outside the data is asked of pretrained models only: one made from
    scratch knows nothing of it."""
    benchmark = BENCHMARKS[args.task]
    sets = benchmark.evaluation_rows(args.data, forget_split)
    if benchmark.outside and folder.family_of(args.model) not in ("tiny", "new"):
        sets |= benchmark.outside()
    return sets


def compared_with(args, sets, names):
    """({name: log} of models and of Retrain; its part of `retrained_part`). names: {name: model}.

    InputError for a Retrain of another kind.
    """
    if not sets:
        return {}, None
    logs = dict.fromkeys(names)
    retrained = retrained_part(args, sets, logs)  # first: what is wrong with it shows before the models are measured
    for name, model in names.items():
        logs[name] = log_of(args, sets, model)
        if retrained:
            BENCHMARKS[args.task].summarize(logs[name], retrained)  # for its InputError
    return logs, retrained


def ask_retrained(args, logs):
    """Put into the logs what a model in --retrain thinks of the answers in them, where the benchmark asks for that."""
    benchmark = BENCHMARKS[args.task]
    if benchmark.judge and args.retrain and not args.retrain.endswith(".json"):
        retrained = load(args, args.retrain)
        for log in logs.values():
            log["forget"]["judged"] = benchmark.judge(retrained, log["forget"])


def write_metrics(args, logs, retrained, cost):
    """metrics.json and the logs behind it, from {name: log}; returns {name: metrics}."""
    benchmark = BENCHMARKS[args.task]
    metrics = {name: benchmark.summarize(log, retrained) for name, log in logs.items()}
    metrics[args.method] |= cost
    if "Retrain" in logs and folder.is_run(args.retrain):
        metrics["Retrain"] |= folder.read(args.retrain, "run.json").get("cost", {})

    others = [name for name in logs if name != args.method]
    parts = {"Retrain": retrained} if args.retrain else {}
    parts |= {name: benchmark.compared_part(logs[name]) for name in others}
    compared = {"reference": {name: metrics[name] for name in others}}
    write_json(args.out / "metrics.log.json", logs[args.method])
    write_json(args.out / "reference.log.json", parts)
    write_json(args.out / "metrics.json", metrics[args.method] | compared)
    return metrics


def report(args, logs, metrics, retrained):
    """Print the table, what it says in words, and the answers to the question whose answer is of middle length."""
    benchmark = BENCHMARKS[args.task]
    known = ({"Retrain": {"forget": retrained}} if args.retrain else {}) | logs  # of a log only that part is known
    verdict = benchmark.verdict(metrics, known, args.method, vars(args))
    learns = {"Original": "before"} if args.method == "finetune" else {}  # what makes an Original begins from none
    lines = [table(benchmark.columns, {learns.get(name, name): numbers for name, numbers in metrics.items()})]
    lines += ["", *verdict, ""] if verdict else benchmark.notes(metrics[args.method], logs[args.method])
    seconds, peak = (metrics[args.method].get(name) for name in ("train_seconds", "peak_memory_bytes"))
    memory = f", {peak / 1e9:.1f} GB at most" if peak else ""
    print("", *lines, f"trained in {seconds:.1f} s{memory}", "", sep="\n")

    forget = logs[args.method].get("forget", {})
    if "generated" not in forget:
        return
    by_length = sorted(range(len(forget["length"])), key=forget["length"].__getitem__)
    texts = {"question": forget["question"], "truth": forget["answer"]}
    texts |= {learns.get(name, name): log["forget"]["generated"] for name, log in logs.items()}
    for name, column in texts.items():
        print(f"{name:>10s}: {column[by_length[len(by_length) // 2]]}")


def best_epoch(benchmark, lines, original, keep=0.95):
    """In words: the epoch that forgot best of those that keep `keep` of what Original has; of equals the first.

    lines: [{"epoch", and the metrics after it}]; original: Original's metrics.
    """
    forgotten, kept = benchmark.forgotten, benchmark.kept
    if None in [column.value(line) for line in (original, *lines) for column in (forgotten, kept)]:
        return "which epoch was best is not known; it takes --retrain and a retain set"
    enough = [line for line in lines if kept.value(line) >= keep * kept.value(original)]
    last = f"the model saved is that of the last, {lines[-1]['epoch']}"
    if not enough:
        return f"no epoch keeps {keep:.0%} of Original's {kept.name}; {last}"
    best = max(enough, key=forgotten.value)
    return (
        f"best of the epochs that keep {keep:.0%} of Original's {kept.name}: {best['epoch']}, "
        f"{forgotten.words(best)}, {kept.words(best)}; {last}"
    )


# ------------------------------------------------------------------ the command


def summarize_log(args):
    """(log, metrics of other models, its own metrics, benchmark) of --log, without any model."""
    unused = (
        "data forget_file retain_file holdout_file probe_file fields split template max_length too_long max_new_tokens "
        "tokenizer dtype device batch_size"
    )
    refuse(args.given, unused.split(), "with --log, where nothing is measured")
    benchmark = BENCHMARKS[args.given.task or "tofu"]
    retrained = benchmark.read_retrained(args.retrain) if args.retrain else benchmark.published
    log = benchmark.read_log(args.log)
    return log, {}, benchmark.summarize(log, retrained), benchmark


def measure_model(args):
    """(log, metrics of Retrain and of the model, its own metrics, benchmark) of --model."""
    benchmark = BENCHMARKS[args.task]
    flags.check(args, benchmark)
    flags.check_split(args, benchmark.forget_splits)
    flags.print_handed_on(args.given)
    args.eval_batch_size = args.batch_size
    sets = sets_of(args, args.split)
    logs = {}
    retrained = retrained_part(args, sets, logs)
    logs["model"] = benchmark.measure(load(args, args.model), sets)
    ask_retrained(args, logs)
    metrics = {name: benchmark.summarize(log, retrained) for name, log in logs.items()}
    return logs["model"], metrics, metrics["model"], benchmark


def models_to_ask(args):
    """{name: model} to put a question to: --model, --retrain (a run's own, by default), what a run started from."""
    names, own = {}, "model"
    if folder.is_run(args.model):
        settings = folder.read(args.model, "run.json")
        original, start, _ = folder.lineage(settings)
        names["before" if start else "Original"] = settings["flags"]["model"]
        if settings["flags"]["model"] in ("tiny", "new"):  # in the cache, if anywhere
            names["Original"] = original and original["out"]
        own = settings["method"]["name"]
    names["Retrain"] = args.retrain
    return {name: model for name, model in names.items() if model and not model.endswith(".json")} | {own: args.model}


def of_models(args, use):
    """{name: use(LM)} of `models_to_ask`, one after another; which of those beside --model cannot be had is said."""
    used = {}
    for name, model in models_to_ask(args).items():
        try:
            used[name] = use(load(args, model))
        except InputError as error:
            if model == args.model:
                raise
            inputs.note(f"{name} is left out: {error}")
    return used


def questions_of(args):
    """--ask, or of `-` the lines of standard input that are not blank, as they come."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused
    for question in [args.ask] if args.ask != "-" else filter(str.strip, sys.stdin):
        inputs.check(question, inputs.TEXT, "--ask: the question")
        yield question.strip()


def answers(lm, questions):
    examples = [lm.encode(question, "") for question in questions]
    lm.check_fits(examples)
    return [text.strip() or "(nothing)" for text in lm.generate(examples)]


def ask(args):
    """Print what models answer, greedily, to --ask, or to each line of standard input. Nothing is written."""
    unused = "log out split data forget_file retain_file holdout_file probe_file fields max_length too_long"
    refuse(args.given, unused.split(), "with --ask")
    if args.model is None:
        raise InputError("--ask needs --model, a folder or a Hub id, to put the question to")
    flags.check_device(args)
    args.eval_batch_size = args.batch_size

    def show(question, texts):
        width = max(map(len, texts))
        print(f"{'Q':>{width}s}  {question}", *(f"{name:>{width}s}  {text}" for name, text in texts.items()), sep="\n")
        print(flush=True)

    if args.ask == "-" and sys.stdin.isatty():
        loaded = of_models(args, lambda lm: lm)
        print("a question a line; Ctrl-D ends", file=sys.stderr)
        for question in questions_of(args):
            show(question, {name: answers(lm, [question])[0] for name, lm in loaded.items()})
        return
    questions = [*questions_of(args)]
    if not questions:
        raise InputError("--ask -: standard input holds no question")
    columns = of_models(args, lambda lm: answers(lm, questions))
    for question, *texts in zip(questions, *columns.values(), strict=True):
        show(question, dict(zip(columns, texts, strict=True)))


def run(args):
    if args.ask is not None:
        return ask(args)
    if (args.model is None) == (args.log is None):
        raise InputError("give one of --model and --log; runs of train.py are compared by compare.py")

    # what would be written, before anything is read
    out = Path(args.out)
    if out.suffix != ".json" or out.is_dir():
        raise InputError(f"--out: '{args.out}' is not the name of a .json file")
    log_path = out.with_suffix(".log.json")  # metrics.json → metrics.log.json
    if folder.is_run(out.parent):
        raise InputError(f"--out: {out.parent} is a run's folder, with files of that name; name another")
    for path in (out, log_path) if args.model else (out,):
        if path.exists() and not args.overwrite:
            raise InputError(f"--out: {path} exists; name another file or add --overwrite")
    processes.wait()  # all have seen what is there
    inputs.check_writable(out.parent)

    log, others, metrics, benchmark = measure_model(args) if args.model else summarize_log(args)
    if args.model:
        write_json(log_path, log)
    write_json(out, metrics)
    print(table(benchmark.columns, others | {"model": metrics}))
    print("\n".join([*benchmark.notes(metrics, log), f"written: {out}"]))


def defaults_of(given):
    """{flag: default}, from what the user gave."""
    values = flags.defaults(given, BENCHMARKS)
    return values | {"out": "metrics.json", "batch_size": BENCHMARKS[values["task"]].eval_batch_size}


def build_parser():
    parser = flags.parser("evaluate.py", __doc__)
    what = parser.add_argument_group("what").add_argument
    what("--model", help="the model to evaluate: a folder or a Hub id")
    what("--log", help="or an evaluation log to summarize without any model")
    what(
        "--retrain",
        help="to compare with: the retrained model's folder or Hub id, or its log, a .json: ours, a run's "
        "reference.log.json, TOFU's published one, TOFU_EVAL.json (default: what the run in --model was compared with)",
    )
    what(
        "--ask",
        metavar="QUESTION",
        help="print what the model answers, and what the run in --model started from and its Retrain do; -: to every "
        "line of standard input. Nothing is measured or written",
    )
    flags.add_task(what, BENCHMARKS)
    what("--split", help="forget set")
    flags.add_data(parser)
    how = parser.add_argument_group("run").add_argument
    how("--out", help="to write, and *.log.json beside it")
    how("--batch-size", type=number(int, 1), help="examples at a time")
    flags.add_measuring(how)
    return parser


def main(argv=None):
    parser = build_parser()

    def resolve(words):
        given = flags.parse(parser, words, defaults_of)
        return flags.fill(given, defaults_of(given))

    run_command(parser, run, resolve, sys.argv[1:] if argv is None else argv, processes.job)


if __name__ == "__main__":
    main()
