"""Small models and data that the tests share; nothing here is downloaded."""

import dataclasses
import itertools
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails at once
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores
CACHE = tempfile.TemporaryDirectory()  # from-scratch models, made once for all tests
os.environ["MINUNLEARN_CACHE"] = CACHE.name
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "results")]

import matplotlib.figure
import pytest
import torch
import transformers

import data
import evaluate
from benchmarks import BENCHMARKS
from benchmarks.protocol import table


def pytest_collection_modifyitems(items):
    """The longest test first, where others can run beside it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.name != "test_the_readmes_command_unlearns")


def tiny(kind, seed=0, dtype=torch.float64, vocab=50):
    torch.manual_seed(seed)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocab, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
            )
        )
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocab,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=100,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        if dtype == torch.float64:
            # transformers' RMSNorm computes in float32 whatever the dtype, which hides errors below 1e-7
            for layer in model.model.layers:
                layer.input_layernorm = torch.nn.RMSNorm(16, eps=1e-6)
                layer.post_attention_layernorm = torch.nn.RMSNorm(16, eps=1e-6)
            model.model.norm = torch.nn.RMSNorm(16, eps=1e-6)
    return model.to(dtype).eval()


def some_examples(count, seed=0, vocab=50, longest=12):
    draw = torch.Generator().manual_seed(seed)

    def ids(low, high):
        length = torch.randint(low, high, (1,), generator=draw).item()
        return torch.randint(1, vocab, (length,), generator=draw).tolist()

    return [data.Example(ids(2, 9), ids(1, longest)) for _ in range(count)]


@pytest.fixture(scope="session")
def toy_tokenizer():
    """The tokenizer that the toy's from-scratch model uses."""
    return evaluate.new_model("toy", None, seed=0)[1]


@pytest.fixture(scope="session")
def toy_model_folder(tmp_path_factory, toy_tokenizer):
    """An untrained toy model as a save_pretrained folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", dtype=torch.float32, vocab=len(toy_tokenizer)).save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tofu_dir():
    folder = os.environ.get("TOFU_DIR")
    if not folder:
        pytest.skip("TOFU_DIR names no folder with the TOFU dataset")
    return folder


@pytest.fixture
def pictures(monkeypatch):
    """Figures instead of their files, which take most of a short run's time."""
    kept = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, path, **_: kept.append(figure) or Path(path).write_bytes(b"picture"),
    )
    return kept


def change_benchmark(monkeypatch, name="toy", **changed):
    monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], **changed))


@pytest.fixture
def nothing_outside(monkeypatch):
    """Runs on own data that ask no general questions, which would take most of their time."""
    change_benchmark(monkeypatch, "own", outside=None)


@pytest.fixture
def nothing_written(tmp_path, monkeypatch):
    """An empty working folder that must stay empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@torch.no_grad()
def token_losses(model, prompt, response):
    """−log p of each token of a response, the plain way: one text, all logits, no batch."""
    logp = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return [-logp[len(prompt) + i - 1, token].item() for i, token in enumerate(response)]


def lm_of(model, tokenizer, dtype=torch.float64, template="llama2", max_length=500, max_new_tokens=200, batch_size=2):
    """What benchmarks ask, of a model in memory."""
    return evaluate.LM(model, tokenizer, dtype, template, max_length, max_new_tokens, batch_size)


@pytest.fixture
def saying(monkeypatch):
    """saying(text, …): whatever a model is asked, it says these in turn. Gives the list that each call's (prompts,
    dtype, most tokens) goes to."""

    def say(*texts):
        calls = []

        def generate(lm, examples, max_new_tokens=None):
            def nothing(batch):
                assert not lm.model.training
                return [None] * len(batch)

            lm.in_batches(nothing, examples, "generating")
            prompts = [lm.tokenizer.decode(example.prompt) for example in examples]
            calls.append((prompts, lm.dtype, max_new_tokens or lm.max_new_tokens))
            return [text for text, _ in zip(itertools.cycle(texts), examples, strict=False)]

        monkeypatch.setattr(evaluate.LM, "generate", generate)
        return calls

    return say


@pytest.fixture
def toy_llama(toy_tokenizer):
    """A random model of the toy's tokens, in float64."""
    return tiny("llama", vocab=len(toy_tokenizer))


def shown(benchmark, metrics):
    """All that tables and figures show of a model, a line each; of a column also if it is a main one or gets bold."""
    lines = []
    for column in benchmark.columns:
        where = " main" * column.main + " bold" * column.bold
        lines.append(f"{column.show(metrics)} {column.title}{where}")
    for column in (benchmark.kept, benchmark.forgotten, *benchmark.over_epochs):
        lines.append(f"{column.value(metrics):g} {column.name}")
    lines += [" ".join(line.split()) for line in table(benchmark.columns, {"NPO": metrics}).splitlines()]
    return "\n".join([*lines, ""])


def refused(main, arguments, capsys, *says):
    """Run a command that must refuse, and check how."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for words in says:
        assert str(words) in error, error


def near(value, exact):
    """Whether numbers in bfloat16 are about these, but not the same."""
    return value == pytest.approx(exact, rel=0.02) and value != pytest.approx(exact, rel=1e-6)
