"""LoRA: at first the reference, only adapters move, an ordinary folder in the end; what is not trained takes half."""

import shutil

import pytest
import safetensors.torch
import torch
import transformers
from conftest import some_examples, tiny
from test_models import EXAMPLES, KINDS, build
from test_train import Crash, crash_in, flags, help_of, interrupt_in, json_of, lines_of, loop, resolved, run

import data
import evaluate
import losses
import train
from machinery import models
from machinery import run as runs
from machinery.inputs import InputError

pytestmark = pytest.mark.usefixtures("pictures", "nothing_outside")

# ------------------------------------------------------------------ fifty architectures

CANNOT = {"mamba": "peft cannot adapt this model"}
LAYERS = {"gpt2": 8, "llama": 14, "falcon": 8, "phimoe": 8}  # of two blocks; GPT-2's hold W transposed


def adapted(model, rank=2, seed=0):
    """The model with adapters; returns {name: adapter's weight}."""
    models.add_adapters(model, rank, seed)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def logp_of(model, dtype=torch.float32):
    with data.autocast(torch.device("cpu"), dtype):
        return data.respond(model, EXAMPLES).logp


@torch.no_grad()
def shake(adapters):
    for weight in adapters.values():
        weight += 0.1 * torch.randn_like(weight)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_at_the_model_and_end_in_its_weights(kind):
    model, base = build(kind).eval(), build(kind).eval()
    before = logp_of(model)
    if kind in CANNOT:
        with pytest.raises(InputError, match=f"--lora: {CANNOT[kind]}.*leave it out"):
            adapted(model)
        return
    adapters = adapted(model)
    assert all("lora_" in name for name in adapters) and len(adapters) == 2 * len(models.linear_layers(base))
    assert LAYERS.get(kind, len(adapters) // 2) == len(adapters) // 2
    assert torch.equal(logp_of(model), before)
    shake(adapters)
    models.merge(model, base)
    assert torch.allclose(logp_of(base), logp_of(model), atol=1e-5) and not torch.allclose(logp_of(base), before)


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_memory_changes_no_bit_of_what_is_computed_in_bfloat16(kind):
    model = build(kind).eval()
    before, names = logp_of(model, torch.bfloat16), [*models.linear_layers(model)]
    models.halve(model)
    halved = {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}
    assert halved == {f"{name}.weight" for name in names}
    assert torch.equal(logp_of(model, torch.bfloat16), before)
    if kind not in CANNOT:
        assert {weight.dtype for weight in adapted(model).values()} == {torch.float32}
        assert torch.equal(logp_of(model, torch.bfloat16), before)


def test_what_is_adapted_and_what_is_halved_is_neither_embedding_nor_output(toy_llama):
    names = {name.split(".")[-1] for name in models.linear_layers(toy_llama)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_seed_draws_the_adapters():
    first, again, other = (adapted(tiny("llama"), seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


# ------------------------------------------------------------------ refused


def test_a_rank_above_the_narrowest_layer_is_refused_and_one_as_wide_is_not():
    """Keys and values of that Llama are 8 wide, its activations 16."""
    says = r"--lora 9: model.layers.0.self_attn.k_proj is 8 wide, and a rank is at most that; lower it"
    with pytest.raises(InputError, match=says):
        models.add_adapters(tiny("llama"), 9, 0)
    models.add_adapters(tiny("llama"), 8, 0)


def test_a_model_without_linear_layers_is_refused():
    model = tiny("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(InputError, match="no linear layers to adapt"):
        models.add_adapters(model, 1, 0)


# ------------------------------------------------------------------ gradients


def test_an_adapters_gradient_is_that_of_its_weight_seen_through_the_other():
    """W + 2 B A: with G the gradient of W, B's is 2 G Aᵀ and A's is 2 Bᵀ G."""
    full, model = tiny("llama"), tiny("llama")
    adapters = adapted(model, rank=3)
    shake(adapters)
    models.merge(model, full)
    for each in (full, model):
        losses.npo(data.respond(each, some_examples(4)).logp, torch.full((4,), -20.0), beta=0.1).sum().backward()
    for name in models.linear_layers(full):
        a, b = (adapters[f"{name}.lora_{side}.default.weight"] for side in "AB")
        gradient = full.get_submodule(name).weight.grad
        assert torch.allclose(b.grad, 2 * gradient @ a.T) and torch.allclose(a.grad, 2 * b.T @ gradient)
    assert all(weight.grad is None for name, weight in model.named_parameters() if name not in adapters)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's output layer is its embedding
@pytest.mark.parametrize("retain", ["nll", "kl"])
def test_the_loop_begins_at_the_reference_and_moves_adapters_only(kind, retain, tmp_path):
    model, base = tiny(kind), tiny(kind)
    adapters = adapted(model)
    begin = {name: weight.detach().clone() for name, weight in adapters.items()}
    loop(model, flags(retain=retain, clip=1.0, weight_decay=0.5), tmp_path)
    first, *_, last = lines_of(tmp_path / "log.jsonl")
    assert first["met"]["weight"] == [1.0] * 3 and last["weight"] != 1
    if retain == "kl":
        assert first["retain"] == 0 < last["retain"]
    assert not any(torch.equal(begin[name], weight) for name, weight in adapters.items())
    weights = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters()}
    assert all(torch.equal(weights[name], weight) for name, weight in base.named_parameters())


def test_the_reference_for_kl_holds_no_weight_twice_but_those_that_are_trained():
    model = tiny("llama")
    full = [*zip(model.parameters(), train.frozen_copy(model).parameters(), strict=True)]
    assert not any(ours is theirs for ours, theirs in full)
    adapters = adapted(model)
    frozen = train.frozen_copy(model)
    both = zip(model.named_parameters(), frozen.parameters(), strict=True)
    assert {name for (name, ours), theirs in both if ours is not theirs} == adapters.keys()
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert all(weight.requires_grad for weight in adapters.values())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_checkpointing_changes_nothing(kind):
    weights, passes = [], []
    for checkpointing in (False, True):
        model = tiny(kind)
        adapters, times = adapted(model), []
        norm = next(part for name, part in model.named_modules() if name.endswith(("input_layernorm", "ln_1")))
        norm.register_forward_pre_hook(lambda *_, times=times: times.append(1))
        loop(model, flags(grad_checkpointing=checkpointing, retain="kl"))
        weights.append(torch.cat([weight.detach().flatten() for weight in adapters.values()]))
        passes.append(len(times))
    assert torch.allclose(*weights, rtol=1e-9, atol=1e-12) and passes[0] < passes[1]


# ------------------------------------------------------------------ stopped, and gone on


def test_a_save_holds_adapters_alone_and_is_gone_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)
    whole, crashed, halves = (tiny("llama") for _ in range(3))
    for model, seed in ((whole, 0), (crashed, 0), (halves, 1)):  # what it goes on from is the save's
        adapters = adapted(model, seed=seed)
    loop(whole, flags(retain="kl"))
    with pytest.raises(Crash):
        loop(crashed, flags(retain="kl"), tmp_path, crash_in(2))
    (shard,) = runs.saves(tmp_path)[0].glob("*.safetensors")
    names = {name.partition(".")[2] for name in safetensors.torch.load_file(shard)}
    assert names == {*adapters, ""}
    loop(halves, flags(retain="kl", resume=True), tmp_path)
    assert all(torch.equal(*both) for both in zip(whole.parameters(), halves.parameters(), strict=True))


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def command(toy_model_folder, tmp_path):
    """A run's words, on two small files."""
    words = ["--method", "npo", "--lora", 2, "--model", toy_model_folder, "--epochs", 2, "--batch-size", 32]
    words += ["--max-new-tokens", 3]
    for side, count in (("forget", 5), ("retain", 4)):
        path = tmp_path / f"{side}.jsonl"
        rows = [f'{{"question": "Who is {side} {i}?", "answer": "It is {i * "she "}."}}\n' for i in range(count)]
        path.write_text("".join(rows))
        words += [f"--{side}-file", path]
    return words


@pytest.fixture
def merged(monkeypatch):
    """[(the model with adapters, that without), …] of each merge."""
    calls, merge = [], models.merge

    def noted(model, base):
        merge(model, base)
        calls.append((model, base))

    monkeypatch.setattr(models, "merge", noted)
    return calls


def loaded(folder, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("method", ["npo", "finetune"])
def test_a_run_leaves_an_ordinary_folder_with_the_model_that_it_had(method, command, merged, tmp_path):
    command = ["--method", method, "--lr", 1e-2, *command[2:]]
    out = run(tmp_path / "run", *command)
    assert {path.name for path in out.iterdir()} == set(
        """config.json generation_config.json log.jsonl metrics.json metrics.log.json model.safetensors
        reference.log.json run.json run.png tokenizer.json tokenizer_config.json""".split()
    )
    ((model, _),) = merged
    before, folder = loaded(command[command.index("--model") + 1]), loaded(out)
    assert type(folder) is type(before) and folder.state_dict().keys() == before.state_dict().keys()
    assert torch.allclose(logp_of(folder), logp_of(model), atol=1e-5)
    assert not torch.allclose(logp_of(folder), logp_of(before), atol=1e-3)
    assert json_of(out / "run.json")["flags"]["lora"] == 2 and json_of(out / "config.json")["dtype"] == "float32"


def test_at_a_rate_of_0_the_folder_is_the_one_it_started_from(command, merged, tmp_path):
    out = run(tmp_path / "run", *command, "--lr", 0, "--seed", 3)
    ((model, _),) = merged
    start = loaded(command[command.index("--model") + 1])
    weights = zip(loaded(out).parameters(), start.parameters(), strict=True)
    assert all(torch.equal(*both) for both in weights)
    for name, weight in adapted(start, seed=3).items():
        assert torch.equal(model.get_parameter(name), weight)


def test_measuring_after_epochs_does_not_merge(command, merged, tmp_path):
    plain, epochs = run(tmp_path / "plain", *command), run(tmp_path / "epochs", *command, "--eval", "epoch")
    assert (plain / "model.safetensors").read_bytes() == (epochs / "model.safetensors").read_bytes()
    assert len(merged) == 2
    metrics, last = json_of(epochs / "metrics.json"), lines_of(epochs / "epochs.jsonl")[-1]
    assert last["epoch"] == 2 and last["forget"]["loss"] == pytest.approx(metrics["forget"]["loss"], rel=1e-4)
    assert metrics["forget"] == json_of(plain / "metrics.json")["forget"]  # of the folder, not of adapters


def test_an_interrupted_run_ends_as_if_it_had_not_been(command, tmp_path, monkeypatch):
    command += ["--eval", "epoch", "--batch-size", 2]
    whole = run(tmp_path / "whole", *command)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_in(3, patch)
        run(tmp_path / "parts", *command)
    assert len(runs.saves(tmp_path / "parts")) == 1 and not (tmp_path / "parts" / "model.safetensors").exists()
    parts = run(tmp_path / "parts", *command, "--resume")
    for name in ("model.safetensors", "log.jsonl", "epochs.jsonl", "metrics.log.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert len(lines_of(parts / "log.jsonl")) == 6


def test_a_run_that_diverged_is_merged_too(command, merged, tmp_path, monkeypatch, capsys):
    healthy, calls = losses.npo, []

    def sick(*arguments):
        calls.append(1)
        return healthy(*arguments) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(losses, "npo", sick)
    with pytest.raises(SystemExit):
        run(tmp_path / "run", *command, "--batch-size", 2)
    assert "step 3: the forget loss is nan" in capsys.readouterr().err
    ((model, _),) = merged
    assert torch.allclose(logp_of(loaded(tmp_path / "run")), logp_of(model), atol=1e-5)


def test_in_bfloat16_weights_are_halved_and_what_is_saved_loses_nothing(command, merged, tmp_path):
    """The files' float32 weights + 2 B A; the reference and the metrics are those of bfloat16 all the same."""
    out = run(tmp_path / "run", *command, "--dtype", "bfloat16", "--lr", 1e-3)
    ((model, _),) = merged
    before, after = loaded(command[command.index("--model") + 1]), loaded(out)
    first, *_ = lines_of(out / "log.jsonl")
    assert first["met"]["weight"] == [1.0] * 5
    for name, layer in models.linear_layers(before).items():
        adapter = model.get_submodule(name)
        assert adapter.base_layer.weight.dtype == torch.bfloat16 != adapter.lora_A.default.weight.dtype
        change = 2 * adapter.lora_B.default.weight @ adapter.lora_A.default.weight
        torch.testing.assert_close(after.get_submodule(name).weight, layer.weight + change)
    again = tmp_path / "again.json"
    evaluate.main(["--model", str(out), "--dtype", "bfloat16", "--max-new-tokens", "3", "--out", str(again)])
    assert json_of(again)["forget"] == json_of(out / "metrics.json")["forget"]


# ------------------------------------------------------------------ flags


def test_adapters_take_twenty_times_the_rate(capsys):
    assert resolved("--lora", 8, "--task", "tofu", "--model", "x").lr == 2e-4
    assert resolved("--lora", 8).lr == 0.02 and resolved("--lora", 8, "--lr", 5e-4).lr == 5e-4
    assert resolved().lora is None and resolved("--lora", 8, "--method", "finetune").lr == 0.006  # of 3e-4
    assert "it decays to 0 (default: 0.00019)" in help_of(*"--task wmdp --lora 8".split(), capsys=capsys)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(train.processes, "in_job", lambda: True)
    with pytest.raises(InputError, match="--lora runs in one process only"):
        resolved("--lora", 8)


# ------------------------------------------------------------------ what it took


def test_memory_on_a_cpu_is_what_the_process_took_at_most(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t  7 kB\n")
    assert runs.resident_memory(tmp_path / "status") == 2048 * 1024
    usage = type("usage", (), {"ru_maxrss": 5000})
    monkeypatch.setattr(runs, "resource", type("resource", (), {"RUSAGE_SELF": 0, "getrusage": lambda who: usage}))
    for platform, size in (("linux", 5000 * 1024), ("darwin", 5000)):
        monkeypatch.setattr(runs.sys, "platform", platform)
        assert runs.resident_memory(tmp_path / "absent") == size
    monkeypatch.setattr(runs, "resource", None)
    assert runs.resident_memory(tmp_path / "absent") == 0


def test_memory_is_the_most_of_all_epochs_and_not_of_loading(monkeypatch):
    sizes = iter([9, 5, 3, 4])
    monkeypatch.setattr(runs, "peak_memory", lambda device: next(sizes))
    assert loop(tiny("llama"), flags(epochs=3)).cost()["peak_memory_bytes"] == 5


def test_the_last_line_says_what_it_took(command, tmp_path, monkeypatch, capsys):
    for size, says in ((4.04e9, ", 4.0 GB at most"), (0, "")):
        monkeypatch.setattr(runs, "resident_memory", lambda size=size: size)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        out = run(tmp_path / "run", *command, "--device", "cpu")
        cost = json_of(out / "run.json")["cost"]
        assert f"\ntrained in {cost['train_seconds']:.1f} s{says}\n" in capsys.readouterr().out
        assert cost.get("peak_memory_bytes", 0) == json_of(out / "metrics.json").get("peak_memory_bytes", 0) == size
