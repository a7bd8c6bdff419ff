"""Models that no run can start from: one line that names the folder and the mend; nothing is written or unpickled."""

import json
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import refused, tiny
from refusals import rows_of, save_tiny

import evaluate
import train
from machinery.inputs import ask_the_hub
from machinery.models import load_model


def copied(folder, to, *leave_out):
    """A copy of a flat folder without some of its files."""
    to.mkdir()
    for path in Path(folder).iterdir():
        if path.name not in leave_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def with_json(folder, to, name, **changed):
    """A copy of a model folder, other values in one of its files."""
    content = json.loads((folder / name).read_text()) | changed
    (copied(folder, to) / name).write_text(json.dumps(content))
    return to


def with_weights(folder, to, **changed):
    """A copy of a model folder with other weights, or more."""
    weights = safetensors.torch.load_file(folder / "model.safetensors") | changed
    safetensors.torch.save_file(weights, copied(folder, to) / "model.safetensors", metadata={"format": "pt"})
    return to


def both_refuse(folder, capsys, *says):
    """train.py and evaluate.py a model folder."""
    refused(train.main, ["--method", "npo", "--model", folder, "--eval", "none"], capsys, *says)
    refused(evaluate.main, ["--model", folder], capsys, *says)


@pytest.mark.parametrize("config", ["[]", "null", '"llama"', "[" * 100_000, '{"a": ' * 100_000])
def test_a_config_that_is_no_object(config, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = copied(toy_model_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    both_refuse(folder, capsys, folder, "config.json")


@pytest.mark.parametrize(
    "row",
    rows_of("""
{"num_hidden_layers": 1}  | no use for 9 weights | model.layers.1.
{"quantization_config": {"quant_method": "magic"}}  | quantized
{"architectures": ["BertForMaskedLM"]}  | BertForMaskedLM | LlamaForCausalLM
{"architectures": 5}  | architectures are 5
{"model_type": "mistral"}  | a MistralForCausalLM, but | LlamaForCausalLM
"""),
)
def test_a_config_of_other_weights(row, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = with_json(toy_model_folder, tmp_path / "model", "config.json", **json.loads(row[0]))
    refused(train.main, ["--method", "npo", "--model", folder, "--eval", "none"], capsys, folder, *row[1:])


@pytest.mark.parametrize("value, says", [(float("nan"), "NaN"), (float("-inf"), "infinity"), (3, "whole numbers")])
def test_weights_that_no_run_can_start_from(value, says, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = with_weights(toy_model_folder, tmp_path / "model", **{"model.norm.weight": torch.full((16,), value)})
    both_refuse(folder, capsys, folder, says, "model.norm.weight")


def test_weights_that_a_file_may_hold_besides(toy_model_folder, toy_tokenizer, tmp_path):
    """Constants that older versions saved, and an output layer that is the embedding."""
    rotary = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    gpt2, output = tmp_path / "gpt2", tiny("gpt2", vocab=len(toy_tokenizer)).lm_head.weight
    tied = {"lm_head.weight": output.detach().float()}
    save_tiny(gpt2, toy_tokenizer, "gpt2")
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    for name, folder, changed in (("rotary", toy_model_folder, rotary), ("tied", gpt2, tied | masks)):
        changed = with_weights(folder, tmp_path / f"with {name}", **changed)
        model, _ = load_model(str(changed), "cpu", torch.float32)
        before = safetensors.torch.load_file(folder / "model.safetensors")
        assert all(torch.equal(model.state_dict()[key], weight) for key, weight in before.items())


@pytest.mark.parametrize(
    "template, says",
    rows_of("""
"{% for %}"  | Expected an expression
"{{ raise_exception('not today') }}"  | not today
"{{ messages[9].x.y }}"  | no element 9
"{% for i in range(999999999) %}x{% endfor %}"  | Range too big
"{{ '' }}"  | empty prompt
5  | fails
"""),
)
def test_a_chat_template_that_gives_no_prompt(template, says, toy_model_folder, tmp_path, nothing_written, capsys):
    template = json.loads(template)
    folder = with_json(toy_model_folder, tmp_path / "model", "tokenizer_config.json", chat_template=template)
    both_refuse(folder, capsys, "chat template", says, "--template plain")


@pytest.mark.parametrize("task, says", [("toy-muse", "takes 43 tokens"), ("toy", "limit of 40")])
def test_a_model_with_too_few_positions(task, says, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = with_json(toy_model_folder, tmp_path / "model", "config.json", max_position_embeddings=40)
    refused(evaluate.main, ["--model", folder, "--task", task], capsys, says)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "kind, says",
    [
        ("no weights", ["safetensors"]),
        ("pickled", ["pickle"]),
        ("no tokenizer", []),
        ("no config", []),
        ("broken", []),
        ("partial", ["model.layers.1.mlp.up_proj.weight"]),
        ("50", ["embeds 50 tokens"]),
        ("1330", ["embeds 1330 tokens", "tokenizer has 1200"]),
        ("3600", ["embeds 3600 tokens"]),
    ],
)
def test_unusable_model_folders(kind, says, toy_model_folder, toy_tokenizer, tmp_path, nothing_written, capsys):
    lacking = {"no tokenizer": ["tokenizer.json", "tokenizer_config.json"], "no config": ["config.json"]}
    folder, trap = tmp_path / kind, tmp_path / "trap"
    if kind.isdigit():
        save_tiny(folder, toy_tokenizer, vocab=int(kind))
    else:
        copied(toy_model_folder, folder, *lacking.get(kind, ["model.safetensors"]))
    if kind == "pickled":
        torch.save(Trap(trap), folder / "pytorch_model.bin")
    if kind == "broken":
        (folder / "model.safetensors").write_bytes(b"not weights")
    if kind == "partial":
        weights = safetensors.torch.load_file(toy_model_folder / "model.safetensors")
        weights.pop("model.layers.1.mlp.up_proj.weight")
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    both_refuse(folder, capsys, folder, *says)
    assert not trap.exists()  # it was not even opened


def test_without_a_network_a_name_that_is_no_folder_fails_soon(nothing_written, tmp_path, monkeypatch, capsys):
    """The Hub's address is one that does not exist; the libraries would try for a minute."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")
    started = time.monotonic()
    refused(train.main, ["--method", "npo", "--model", "none/such"], capsys, "none/such", "no local folder")
    assert huggingface_hub.constants.HF_HUB_OFFLINE and time.monotonic() - started < 10
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "none/such"}')
    (tmp_path / "adapter_model.safetensors").touch()
    refused(train.main, ["--method", "npo", "--model", tmp_path], capsys, tmp_path)  # its base is none
    assert huggingface_hub.constants.HF_HUB_OFFLINE and time.monotonic() - started < 10
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    ask_the_hub(".")  # a folder: nothing is asked
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
