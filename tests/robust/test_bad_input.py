"""Bad input: one clear line on stderr that names the thing and the mend, exit status 2, nothing written."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import refused, tiny
from test_compare import UNSEEN, a_run, flags_of, on_the_way
from test_tofu import a_log, make_dataset, published

import compare
import evaluate
import runs
import tofu
import train
from data import InputError


def save_tiny(folder, tokenizer, kind="llama", vocab=None):
    tiny(kind, dtype=torch.float32, vocab=vocab or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def flags_with(**changed):
    return (
        dict(
            task="toy",
            forget_split="forget10",
            model="tiny",
            family="tiny",
            method="npo",
            seed=0,
            beta=1.0,
            gamma=0.0,
            out="x",
        )
        | changed
    )


def table(text):
    """Rows of words, of lines whose cells are separated by ` | `."""
    return [[cell.strip() for cell in line.split(" | ")] for line in text.strip().splitlines()]


def row_name(cells):
    return " ".join(cells[0].split()[:9]) if isinstance(cells, list) else None


# MODEL is an untrained model's folder, OTHER one of a larger vocabulary.
REFUSED = table("""
train  | --method
train --method magic  | magic
train --method npo --task muse  | muse
train --method npo --split forget20  | forget05, forget10
train --method npo --split retain90  | forget05, forget10
train --method npo --split forget01  | forget01
train --method npo --template alpaca  | alpaca
train --method npo --retain l2  | l2
train --method npo --beta -0.1  | --beta
train --method npo --beta nan  | --beta
train --method npo --beta much  | --beta
train --method simnpo --gamma -1  | --gamma
train --method npo --forget-coeff -1  | --forget-coeff
train --method npo --retain-coeff -1  | --retain-coeff
train --method npo --lr inf  | --lr
train --method npo --weight-decay -1  | --weight-decay
train --method npo --warmup -1  | --warmup
train --method npo --epochs -1  | --epochs
train --method npo --epochs 0  | --epochs
train --method npo --epochs 1.5  | --epochs
train --method npo --epochs NINES  | --epochs
train --method npo --max-steps 0  | --max-steps | at least 1
train --method npo --batch-size 0  | --batch-size
train --method npo --micro-batch-size -4  | --micro-batch-size
train --method npo --batch-size 4 --micro-batch-size 8  | --micro-batch-size 8 is larger
train --method npo --max-length -1  | --max-length
train --method npo --max-length 10 --eval none --model tiny  | --max-length
train --method npo --max-new-tokens 0  | --max-new-tokens
train --method npo --seed -1  | --seed
train --method npo --resume  | --out
train --method npo --resume --out absent  | run.json
train --method npo --resume --overwrite --out absent  | give one of them
train --method npo --task tofu --data absent/folder --model tiny  | absent/folder
train --method npo --model absent/model  | absent/model
train --method npo --retrain absent.json  | absent.json
train --method npo --out /proc/none/below  | /proc
train --method finetune --split retain90  | --model new
train --method finetune --split full --model tiny  | --model new
train --method npo --model new  | --model tiny
train --method npo --data my.jsonl  | --data has no use with --task toy
train --method npo --gamma 0.5  | --gamma has no use with --method npo
train --method ga --beta 0.1  | --beta has no use with --method ga
train --method npo --layer 1  | --layer | npo
train --method simnpo --alpha 1  | --alpha
train --method npo --finetuned MODEL  | --finetuned | npo
train --method ga --retain-coeff 2  | --retain-coeff has no use without a retain loss
train --method npo --retain none --retain-coeff 2  | --retain-coeff
train --method npo --eval none --retrain x  | --retrain has no use with --eval none
train --method npo --eval none --max-new-tokens 9  | --max-new-tokens
train --method npo --eval none --eval-batch-size 9  | --eval-batch-size
train --method finetune --subset shortest  | --subset
train --method finetune --subset longest:0.2  | --subset
train --method finetune --subset random:0  | --subset
train --method finetune --subset random:-1  | --subset
train --method finetune --subset random:1.5  | --subset
train --method finetune --subset random:nan  | --subset
train --method finetune --subset shortest:a  | --subset
train --method finetune --subset :0.2  | --subset
train --method npo --never-learnt -0.1  | --never-learnt
train --method npo --never-learnt 1.1  | --never-learnt
train --method npo --never-learnt nan  | --never-learnt
train --method npo --never-learnt half  | --never-learnt
train --method npo --task toy-muse --never-learnt 0.5  | --never-learnt is for --model tiny
train --method npo --task toy-wmdp --never-learnt 0.5  | --never-learnt is for --model tiny
train --method npo --model some/model --never-learnt 0.5  | --never-learnt is for --model tiny
train --method npo --task tofu --never-learnt 0.5  | --never-learnt is for --model tiny
train --method finetune --model new --split retain90 --never-learnt 0.5  | --never-learnt is for --model tiny
train --method npo --out ""  | --out is empty
train --method npo --model ""  | --model is empty
train --method npo --retrain ""  | --retrain is empty
train --method npo --data ""  | --data is empty
train --method npo --forget-file ""  | --forget-file is empty
train --method npo --retain-file ""  | --retain-file is empty
train --method npo --fields ""  | --fields is empty
train --method npo --tokenizer ""  | --tokenizer is empty
train --method npo --split ""  | --split is empty
train --method npo --beta=--  | --beta
train --method npo --epochs=--  | --epochs
train --method npo --out=--  | --out
train --method npo --model=--  | --model
train --method npo --model CODES  | 'absent\\n\\x1b[2J\\u2028'
train --method npo BROKEN  | a\\nb
train --method rmu --layer 7 --model MODEL  | --layer 7 | layers 0 to 1
train --method rmu --retain-coeff 3  | --retain-coeff | --alpha
train --method rmu --retain none --alpha 3  | --alpha | retain loss
train --method npo --retain activations  | activations | nll or kl
train --method task-vector --eval epoch  | --eval epoch | task-vector
train --method task-vector --finetuned absent/model --model MODEL  | absent/model
train --method task-vector --finetuned MODEL --epochs 2  | --epochs | --finetuned
train --method task-vector --finetuned OTHER --model MODEL  | OTHER | shapes
train --method idk --task toy-muse --model MODEL  | running text | another method
train --method npo --task toy-muse --data x  | --data | embedded
train --method npo --task muse-news --split forget05  | forget05 | scal_1
train --method npo --task muse-books --split scal_1  | scal_1 | forget
train --method npo --task muse-news --model tiny  | tiny | pretrained
train --method npo --task muse-news --data absent/data --model MODEL  | absent/data
train --method npo --task wmdp --split chem  | chem | both, bio, cyber
train --method npo --task toy-wmdp --model absent/model  | absent/model
train --method npo --task own  | --forget-file
train --method ga --forget-file absent.jsonl  | absent.jsonl
train --method npo --forget-file absent.jsonl  | --retain-file | --retain none
train --method npo --task own --data x  | --data | --forget-file
train --method npo --fields a,b,c  | --fields | --forget-file
train --method npo --task toy --forget-file x.jsonl  | --forget-file | toy
evaluate  | --model
evaluate --model x --log y  | --log
evaluate --model x --split forget20  | forget20
evaluate --model absent/model  | absent/model
evaluate --log absent.json  | absent.json
evaluate --model x --batch-size 0  | --batch-size
evaluate --model x --out absent/metrics.json  | absent
evaluate --model x --out .  | '.'
evaluate --model x --out metrics.txt  | .json
evaluate --model x --out /proc/none.json  | /proc
evaluate --model x --data y  | --data has no use with --task toy
evaluate --log x --data x  | --data has no use with --log
evaluate --log x --split forget05  | --split has no use with --log
evaluate --log x --template plain  | --template has no use with --log
evaluate --log x --max-length 9  | --max-length has no use with --log
evaluate --log x --max-new-tokens 9  | --max-new-tokens has no use with --log
evaluate --log x --dtype float32  | --dtype has no use with --log
evaluate --log x --device cpu  | --device has no use with --log
evaluate --log x --batch-size 9  | --batch-size has no use with --log
evaluate tables runs/a  | unrecognized arguments: tables
evaluate --model ""  | --model is empty
evaluate --log ""  | --log is empty
evaluate --retrain ""  | --retrain is empty
evaluate --out ""  | --out is empty
compare  | COMMAND
compare tables absent  | 'tables'
compare table absent  | absent
compare table  | RUN
compare table absent --columns few  | few
compare figure  | KIND
compare figure pie absent  | pie
compare figure epochs absent --out picture.pdf  | .png
compare figure epochs absent --out absent/picture.png  | absent
compare answers absent --show 0  | --show
compare answers absent  | absent
compare claims absent  | absent
compare paths absent  | absent
compare table ""  | runs is empty
compare figure epochs absent --out ""  | --out is empty
compare table BROKEN  | a\\nb
""")


@pytest.mark.parametrize("row", REFUSED, ids=row_name)
def test_a_command_is_refused(row, toy_model_folder, toy_tokenizer, tmp_path, nothing_written, capsys):
    script, *words = shlex.split(row[0])
    names = {
        "MODEL": toy_model_folder,
        "OTHER": tmp_path / "OTHER",
        "NINES": "9" * 400,
        "BROKEN": "a\nb",
        "CODES": "absent\n\x1b[2J\u2028",
    }
    if "OTHER" in words:
        save_tiny(tmp_path / "OTHER", toy_tokenizer, vocab=len(toy_tokenizer) + 3)
    main = {"train": train, "evaluate": evaluate, "compare": compare}[script].main
    refused(main, [names.get(word, word) for word in words], capsys, f"{script}.py", *row[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present")
def test_cuda_asked_for_and_absent(nothing_written, capsys):
    refused(train.main, ["--method", "npo", "--device", "cuda"], capsys, "CUDA", "--device cpu")
    refused(evaluate.main, ["--model", "x", "--device", "cuda"], capsys, "CUDA", "--device cpu")


def copied(folder, to, *leave_out):
    to.mkdir()
    for path in Path(folder).iterdir():
        if path.name not in leave_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("flag", ["out", "out/below", "model", "retrain", "forget-file", "data"])
def test_a_link_that_leads_to_itself(flag, toy_model_folder, tmp_path, nothing_written, capsys):
    (tmp_path / "loop").symlink_to("loop")
    flag, *below = flag.split("/")
    model = [] if flag == "model" else ["--model", toy_model_folder]
    refused(
        train.main,
        ["--method", "npo", *model, f"--{flag}", Path(tmp_path, "loop", *below)],
        capsys,
        "loop",
        "symbolic link",
    )


def both_refuse(folder, capsys, *says):
    """train.py and evaluate.py a model folder."""
    refused(train.main, ["--method", "npo", "--model", folder, "--eval", "none"], capsys, *says)
    refused(evaluate.main, ["--model", folder], capsys, *says)


def with_json(folder, to, name, **changed):
    """A copy of a model folder, other values in one of its files."""
    content = json.loads((folder / name).read_text()) | changed
    (copied(folder, to) / name).write_text(json.dumps(content))
    return to


@pytest.mark.parametrize("config", ["[]", "null", '"llama"', "[" * 100_000, '{"a": ' * 100_000])
def test_a_config_that_is_no_object(config, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = copied(toy_model_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    both_refuse(folder, capsys, folder, "config.json")


@pytest.mark.parametrize(
    "row",
    table("""
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


def with_weights(folder, to, **changed):
    weights = safetensors.torch.load_file(folder / "model.safetensors") | changed
    safetensors.torch.save_file(weights, copied(folder, to) / "model.safetensors", metadata={"format": "pt"})
    return to


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
        model, _ = runs.load_model(str(changed), "cpu", torch.float32)
        before = safetensors.torch.load_file(folder / "model.safetensors")
        assert all(torch.equal(model.state_dict()[key], weight) for key, weight in before.items())


@pytest.mark.parametrize(
    "template, says",
    table("""
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


@pytest.mark.parametrize(
    "task, says", [("toy-wmdp", "takes 74 tokens"), ("toy-muse", "takes 43 tokens"), ("toy", "limit of 40")]
)
def test_a_model_with_too_few_positions(task, says, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = with_json(toy_model_folder, tmp_path / "model", "config.json", max_position_embeddings=40)
    refused(evaluate.main, ["--model", folder, "--task", task], capsys, says)


DEEP = '{"question": ' + '{"a": ' * 100_000


@pytest.mark.parametrize(
    "text, says",
    [
        ("null", "line 1"),
        ("null\nnull\n", "line 1"),
        ("\ufeffnull", "line 1"),
        ("5", "line 1"),
        ('{"a": 1}\n"b"', "line 2"),
        ('{"question": "Who?", "answer": "I."}\n{"question": "Wh', "line 2"),
        ("[null]", "object"),
        ('[null, {"question": "Who?", "answer": "I."}]', "object"),
        ("[5", "line 1"),
        (DEEP + "1" + "}" * 100_001, "recursion"),
        (f"[{DEEP}1{'}' * 100_001}]", "recursion"),
        ('{"question": "a", "question": "b"}', "twice"),
    ],
)
def test_a_data_set_that_the_library_dies_of_or_logs(text, says, toy_model_folder, tmp_path, nothing_written, capfd):
    folder = Path(make_dataset(tmp_path / "data", []))
    (folder / "forget05.json").write_text(text)
    refused(
        train.main,
        ["--method", "npo", "--task", "tofu", "--data", folder, "--model", toy_model_folder, "--eval", "none"],
        capfd,
        folder,
        says,
    )


def test_what_would_fill_the_memory(toy_model_folder, tmp_path, nothing_written, monkeypatch, capsys):
    monkeypatch.setattr(runs, "LARGEST", 50)
    row = json.dumps({"question": "Who?", "answer": "I." * 30})
    (tmp_path / "rows.jsonl").write_text(row)
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for path in ("rows.jsonl", "zero.json"):
        refused(train.main, ["--method", "ga", "--forget-file", tmp_path / path], capsys, path, "at most 50 bytes")
    for content, name in ((row, "line 1 has 50 letters"), (f"[{row}]", "at most 50 bytes")):
        folder = Path(make_dataset(tmp_path / "data", []))
        (folder / "forget05.json").write_text(content)
        with pytest.raises(InputError, match=name):
            tofu.load_rows("tofu", str(folder), "forget05")
    refused(evaluate.main, ["--log", tmp_path / "rows.jsonl"], capsys, "rows.jsonl", "at most 50 bytes")
    refused(evaluate.main, ["--model", toy_model_folder], capsys, toy_model_folder, "at most 50 bytes")
    refused(compare.main, ["table", a_run(tmp_path / "run")], capsys, "run.json", "at most 50 bytes")


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
        ("1230", ["embeds 1230 tokens", "tokenizer has 1200"]),
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


@pytest.mark.parametrize("row, says", [({"question": "Who?"}, "'answer'"), (None, "'forget05'")])
def test_unusable_datasets(row, says, toy_model_folder, tmp_path, nothing_written, capsys):
    folder = make_dataset(tmp_path / "data", [{"question": "Who?", "answer": "I."}, row] if row else [])
    refused(
        train.main,
        ["--method", "npo", "--task", "tofu", "--data", folder, "--model", toy_model_folder, "--eval", "none"],
        capsys,
        folder,
        says,
    )


def test_without_a_network_a_name_that_is_no_folder_fails_soon(nothing_written, monkeypatch, capsys):
    """The Hub's address is one that does not exist; the libraries would try for a minute."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://hub.invalid")
    started = time.monotonic()
    refused(train.main, ["--method", "npo", "--model", "none/such"], capsys, "none/such", "no local folder")
    assert huggingface_hub.constants.HF_HUB_OFFLINE and time.monotonic() - started < 10
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    runs.ask_the_hub(".")  # a folder: nothing is asked
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_an_existing_output_is_left_alone(tmp_path, toy_model_folder, monkeypatch, capsys):
    out = tmp_path / "out"
    precious, theirs = out / "precious.txt", out / "precious.json"

    def train_refuses(path, *arguments):
        refused(train.main, ["--method", "npo", "--out", path, *arguments[:-1]], capsys, arguments[-1])

    def evaluate_refuses(path, *arguments):
        refused(evaluate.main, ["--model", toy_model_folder, "--out", path, *arguments[:-1]], capsys, arguments[-1])

    out.mkdir()
    precious.write_text("mine")
    train_refuses(out, "--overwrite")
    train_refuses(precious, "precious.txt")
    # even when told to: a folder that no run made is not for us to delete
    train_refuses(out, "--overwrite", "run.json")
    train_refuses(precious / "below", "cannot write")
    theirs.write_text("mine")
    evaluate_refuses(theirs, "--overwrite")
    # nor one that holds the model which the run starts from
    (out / "run.json").write_text(json.dumps({"format": runs.FORMAT, "flags": flags_with()}))
    (out / "config.json").write_text("{}")
    train_refuses(out, "--model", out, "--overwrite", "--model")
    # nor the folder that one is in, nor a run's own metrics
    monkeypatch.chdir(out)
    train_refuses(".", "--overwrite", "the folder you are in")
    evaluate_refuses(out / "metrics.json", "--overwrite", "a run's folder")
    assert precious.read_text() == theirs.read_text() == "mine" and [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("log", ["{}", '{"forget": {}}', "{", "[]"])
def test_a_damaged_log_of_a_retrained_run_is_refused_before_training(
    log, toy_model_folder, tmp_path, monkeypatch, capsys
):
    retrain, sets = a_run(tmp_path / "retrain"), tofu.evaluation_rows("toy", None, "forget10")
    command = ["--method", "npo", "--model", str(toy_model_folder), "--device", "cpu", "--dtype", "float32"]
    args = train.resolve(train.build_parser().parse_args(command))
    settings = json.loads((retrain / "run.json").read_text()) | {"asked": evaluate.asked(args, sets)}
    (retrain / "run.json").write_text(json.dumps(settings))
    (retrain / "metrics.log.json").write_text(log)
    monkeypatch.setattr(tofu, "measure", lambda *arguments: {"forget": {}})
    refused(train.main, [*command, "--retrain", retrain, "--out", tmp_path / "out"], capsys, "metrics.log.json")
    assert not (tmp_path / "out").exists()


def test_resuming_what_was_trained_to_the_end_keeps_that_on_record(toy_model_folder, tmp_path, capsys):
    run = tmp_path / "run"
    command = [*"--method npo --epochs 1 --max-new-tokens 1 --model".split(), str(toy_model_folder), "--out", str(run)]
    train.main(command)
    # some epochs would lack metrics
    refused(train.main, [*command, "--resume", "--eval", "epoch"], capsys, "--eval end")
    settings, weights = json.loads((run / "run.json").read_text()), (run / "model.safetensors").read_bytes()
    with open(run / "log.jsonl", "a") as log:
        log.write("{bad}\n")
    (run / "model.safetensors").write_bytes(b"damaged")
    (run / "run.png").unlink()  # killed before its end
    refused(train.main, [*command, "--resume"], capsys, run)
    assert json.loads((run / "run.json").read_text())["cost"] == settings["cost"]
    assert not (run / "metrics.log.json").exists()  # or it would stand for the damaged model
    (run / "model.safetensors").write_bytes(weights)
    train.main([*command, "--resume"])
    assert (run / "metrics.log.json").exists() and "bad" not in (run / "log.jsonl").read_text()


def test_resuming_from_a_damaged_checkpoint_is_refused(toy_model_folder, tmp_path, capsys):
    run = tmp_path / "run"
    command = [*"--method npo --epochs 1 --eval none --model".split(), str(toy_model_folder), "--out", str(run)]
    train.main(command)
    settings = json.loads((run / "run.json").read_text())
    assert settings.pop("cost")["train_seconds"] > 0
    (run / "run.json").write_text(json.dumps(settings))  # as before it was trained to the end
    (run / "save-00000001").mkdir()
    (run / "save-00000001" / "shard-00001.safetensors").write_bytes(b"damaged")
    (run / "save-00000001" / "sums.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        train.main([*command, "--resume"])
    first, last = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and "save-00000001 is damaged" in first
    assert "every save" in last and "--overwrite" in last


LACKING = table("""
retain  | gone  | 'retain'
forget rouge  | gone  | 'rouge'
forget loss  | [1.0, 2.0, 3.0, 4.0]  | every example needs both
forget  | 3  | 'forget'
real_authors loss  | [NaN, 1.0]  | finite
world_facts perturbed_loss  | [[], [1.0]]  | one or more
world_facts perturbed_loss  | [["high"], [1.0]]  | finite
world_facts perturbed_loss  | [1.0, 2.0]  | 'perturbed_loss'
retain loss  | ["1.5", 1, 1, 1]  | 'loss'
retain loss  | [[1.5], 1, 1, 1]  | 'loss'
retain loss  | [-1.0, 1, 1, 1]  | 'loss'
retain rouge  | [5.0, 5.0, 5.0, 5.0]  | 'rouge'
retain rouge  | 5  | 'rouge'
""")


@pytest.mark.parametrize("place, value, says", LACKING)
@pytest.mark.parametrize("layout", ["ours", "list", "dict"])
def test_a_log_without_what_is_needed(place, value, says, layout, tmp_path, nothing_written, capsys):
    log, (*above, name) = a_log(), place.split()
    part = log[above[0]] if above else log
    part.pop(name) if value == "gone" else part.update({name: json.loads(value)})
    try:
        content = log if layout == "ours" else published(log, layout)
    except (KeyError, TypeError):
        pytest.skip("this defect has no form in the published layout")
    (tmp_path / "log.json").write_text(json.dumps(content))
    refused(evaluate.main, ["--log", tmp_path / "log.json"], capsys, says)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "{",
        '{"forget_truth_ratio": {"value_by_index": {"0": {}}}}',
        "{}",
        '{"forget_truth_ratio": {"value_by_index": {}}}',
        '{"forget_truth_ratio": {"value_by_index": {"a": {"score": 1}}}}',
    ],
)
def test_a_retrain_log_that_is_none(text, tmp_path, nothing_written, capsys):
    (tmp_path / "log.json").write_text(json.dumps(a_log()))
    (tmp_path / "retrain.json").write_text(text)
    refused(evaluate.main, ["--log", tmp_path / "log.json", "--retrain", tmp_path / "retrain.json"], capsys)


def test_the_newer_frameworks_log_cannot_be_summarized(tmp_path, nothing_written, capsys):
    (tmp_path / "log.json").write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}}}')
    refused(evaluate.main, ["--log", tmp_path / "log.json"], capsys, "truth ratios", "losses", "--retrain")


def test_a_retrain_log_of_another_forget_split(toy_model_folder, tmp_path, nothing_written, monkeypatch, capsys):
    def measure(*arguments):
        raise AssertionError("it must be refused before anything is measured")

    monkeypatch.setattr(tofu, "measure", measure)
    (tmp_path / "log.json").write_text(json.dumps(a_log()))
    (tmp_path / "retrain.json").write_text(json.dumps(a_log(rows=(7, 4, 2, 2))))
    refused(evaluate.main, ["--log", tmp_path / "log.json", "--retrain", tmp_path / "retrain.json"], capsys, "3", "7")
    refused(evaluate.main, ["--model", toy_model_folder, "--retrain", tmp_path / "retrain.json"], capsys, "40", "7")
    refused(
        train.main,
        [
            "--method",
            "npo",
            "--model",
            toy_model_folder,
            "--retrain",
            tmp_path / "retrain.json",
            "--max-new-tokens",
            "1",
        ],
        capsys,
        "40",
        "7",
    )


COMPARISONS = ["table"], ["answers"], ["claims"], ["paths"], *(["figure", kind] for kind in compare.FIGURES)


@pytest.mark.parametrize("command", COMPARISONS, ids=" ".join)
@pytest.mark.parametrize("other", [{"task": "tofu"}, {"forget_split": "forget05"}, {"family": "some/model"}])
def test_runs_that_do_not_compare(command, other, tmp_path, nothing_written, capsys):
    runs = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo", **other)
    refused(compare.main, [*command, *runs], capsys, runs[1], *other.values(), "one task, split and model")


ALWAYS = ["metrics.json", "--eval end"], ["run.json", "train.py"]
NEEDED = [[" ".join(command), *cells] for command in COMPARISONS for cells in ALWAYS] + table("""
figure halves  | metrics.log.json  | --eval end
figure halves  | reference.log.json  | --eval end
figure weights  | path.jsonl  | train.py
figure boxes  | path.jsonl  | train.py
figure epochs  | epochs.jsonl  | --eval epoch
figure relearn  | epochs.jsonl  | --eval epoch
answers  | metrics.log.json  | --eval end
claims  | path.jsonl  | train.py
claims  | epochs.jsonl  | --eval epoch
paths  | path.jsonl  | train.py
paths  | reference.log.json  | --eval end
table  | reference.log.json  | --eval end
""")


@pytest.mark.parametrize("command, file, mend", NEEDED)
@pytest.mark.parametrize("damage", [None, "", "{", "[1]"])
def test_a_run_that_lacks_what_is_asked_for(command, file, mend, damage, tmp_path, nothing_written, capsys):
    good, bad = a_run(tmp_path / "good"), a_run(tmp_path / "bad", "simnpo")
    (bad / file).unlink() if damage is None else (bad / file).write_text(damage)
    if file == "run.json" and damage is None:  # then it is no run, and passed over
        (good / file).unlink()
        return refused_after_passing_over(command.split(), [good, bad], capsys)
    refused(compare.main, [*command.split(), good, bad], capsys, bad, file, mend if damage != "[1]" else "")


@pytest.mark.parametrize(
    "command", [["claims"], ["figure", "halves"], ["figure", "epochs"], ["figure", "tradeoff"]], ids=" ".join
)
def test_a_run_without_a_retrained_reference(command, tmp_path, nothing_written, capsys):
    good, bad = a_run(tmp_path / "good"), a_run(tmp_path / "bad", seed=1)
    for name in ("metrics.json", "epochs.jsonl"):
        text = (bad / name).read_text().splitlines()
        (bad / name).write_text("\n".join(json.dumps(json.loads(line) | {"forget_quality": None}) for line in text))
    (bad / "reference.log.json").write_text(json.dumps({"Original": {"truth_ratio": [1.0]}}))
    refused(compare.main, [*command, good, bad], capsys, bad, "--retrain")


READ_BY = table("""
claims  | run.json metrics.json path.jsonl epochs.jsonl
table  | run.json metrics.json reference.log.json
paths  | run.json metrics.json path.jsonl reference.log.json
answers  | run.json metrics.json metrics.log.json reference.log.json
figure epochs  | run.json metrics.json epochs.jsonl
figure halves  | run.json metrics.json metrics.log.json reference.log.json
""")
WRONG = table("""
metrics.json  | {"forget_quality": "x"}
metrics.json  | {"forget_quality": [1]}
metrics.json  | {"model_utility": null}
metrics.json  | {"forget_quality_halves": "x"}
metrics.json  | {"forget_quality_halves": {"shortest": 1}}
metrics.json  | {"repetition": "x"}
metrics.json  | {"reference": []}
metrics.json  | {"reference": {"Other": {}}}
metrics.json  | {"retain": []}
metrics.json  | {"retain": {}}
metrics.json  | {"forget_examples": "40"}
metrics.json  | {"peak_memory_bytes": "x"}
metrics.json  | {"distance": -1}
metrics.json  | {"judged": "x"}
run.json  | {"flags": []}
run.json  | {"flags": {"task": null}}
run.json  | {"start": {"task": "toy"}}
run.json  | {"flags": {"beta": "x"}}
run.json  | {"flags": {"gamma": -1}}
run.json  | {"flags": {"subset": true}}
run.json  | {"flags": {"never_learnt": "half"}}
run.json  | {"flags": {"max_length": "x"}}
path.jsonl  | {"weight": ["x"]}
path.jsonl  | {"weight": []}
path.jsonl  | {"weight": null}
path.jsonl  | {"length": [1]}
path.jsonl  | {"epoch": "x"}
path.jsonl  | {"epoch": 7}
path.jsonl  | {"logp": [1.0]}
path.jsonl  | {"logp": ["x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x", "x"]}
path.jsonl  | {"retain": -1}
epochs.jsonl  | {"distance": "x"}
epochs.jsonl  | {"forget_quality": "x"}
epochs.jsonl  | {"model_utility": null}
metrics.log.json  | {"forget": {}}
metrics.log.json  | {"forget": {"loss": "x"}}
reference.log.json  | {"Original": {"truth_ratio": [1.0], "generated": [1]}}
reference.log.json  | {"Retrain": []}
reference.log.json  | {"Retrain": {}}
reference.log.json  | {"Retrain": {"truth_ratio": ["x"]}}
""")


@pytest.mark.parametrize("file, spoil", WRONG)
def test_values_of_the_wrong_kind(file, spoil, tmp_path, nothing_written, capsys):
    good, bad, spoil = a_run(tmp_path / "good"), a_run(tmp_path / "bad", "simnpo"), json.loads(spoil)
    if isinstance(spoil.get("flags"), dict):
        spoil["flags"] = flags_with(**spoil["flags"])
    lines = (bad / file).read_text().splitlines()
    (bad / file).write_text("\n".join(json.dumps(json.loads(line) | spoil) for line in lines[:3]))
    for command, files in READ_BY:
        if file in files.split():
            refused(compare.main, [*command.split(), good, bad], capsys, bad, file)


def refused_after_passing_over(command, folders, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main([*command, *map(str, folders)])
    *passed, error = capsys.readouterr().err.splitlines()
    assert error == "compare.py: none of these folders is a run; give folders that train.py made"
    assert stop.value.code == 2
    assert passed == [f"passed over {folder}: it has no run.json, so it is no run" for folder in folders]


def test_a_folder_that_is_no_run_is_passed_over_and_said_so(tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    compare.main(["table", str(tmp_path / "cache"), str(a_run(tmp_path / "a"))])
    said = capsys.readouterr()
    assert said.err == f"passed over {tmp_path / 'cache'}: it has no run.json, so it is no run\n"
    assert "| NPO | 1 |" in said.out


@pytest.mark.parametrize("format_", [None, 2, "3", 4])
def test_a_run_of_another_version(format_, tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"format": format_}))
    refused(compare.main, ["table", run], capsys, run, "run.json", "another version")


def test_runs_that_do_not_belong_together(tmp_path, nothing_written, capsys):
    npo, simnpo = a_run(tmp_path / "npo"), a_run(tmp_path / "simnpo", "simnpo")
    other = a_run(tmp_path / "other", beta=3.0)
    again = a_run(tmp_path / "again", "finetune", start=flags_of(other), model=str(other), subset="random:0.2")
    refused(compare.main, ["claims", npo, simnpo, again], capsys, again, npo)
    refused(compare.main, ["table", npo, f"{npo}/"], capsys, npo, "twice")


def test_figures_and_claims_of_the_wrong_runs(tmp_path, nothing_written, capsys):
    runs = a_run(tmp_path / "a"), a_run(tmp_path / "b", "simnpo"), a_run(tmp_path / "c")
    refused(compare.main, ["figure", "relearn", *runs], capsys, runs[0], "--method finetune")
    refused(compare.main, ["claims", runs[0]], capsys, "--method simnpo")
    refused(compare.main, ["claims", *runs], capsys, runs[2], "seed 0")


@pytest.mark.parametrize("command", [["paths"], ["figure", "paths"]], ids=" ".join)
def test_paths_of_the_wrong_runs(command, tmp_path, nothing_written, capsys):
    good = on_the_way(tmp_path / "good", "simnpo")

    def spoiled(name, file, change):
        """A run of NPO whose lines of a file became what `change` makes of them."""
        run = on_the_way(tmp_path / name, "npo")
        lines = [json.dumps(change(json.loads(line))) for line in (run / file).read_text().splitlines()]
        (run / file).write_text("\n".join(lines))
        return run

    def without(name):
        return lambda line: {key: line[key] for key in line if key != name}

    def cut(line):
        return line | {key: line[key][:5] for key in ("weight", "length", "logp") if line["epoch"] == 3}

    def with_text(run, file, old, new):
        (run / file).write_text((run / file).read_text().replace(old, new))
        return run

    lossless, short = {"Retrain": {"truth_ratio": [1.0] * 10}}, {"Retrain": {"truth_ratio": [1.0], "loss": [1.0]}}
    some = on_the_way(tmp_path / "unseen", "npo", unseen=UNSEEN["npo"])
    for run, *says in (
        (on_the_way(tmp_path / "twice", "simnpo"), "a second one of seed 0"),
        (
            on_the_way(tmp_path / "idk", "idk", short=[1, 2], long=[1, 2], retain=[0.1, 0.2]),
            "no log π",
            "leave IDK out",
        ),
        (spoiled("broken", "path.jsonl", without("logp")), "no log π", "leave NPO out"),
        (
            with_text(spoiled("rmu", "path.jsonl", without("logp")), "run.json", '"npo"', '"rmu"'),
            "no log π",
            "leave RMU out",
        ),
        (spoiled("sampleless", "path.jsonl", without("retain")), "no retain set"),
        (spoiled("lossless", "reference.log.json", lambda log: lossless), "no Retrain's losses"),
        (spoiled("alone", "reference.log.json", lambda log: {"Original": log["Retrain"]}), "no Retrain's losses"),
        (spoiled("other", "reference.log.json", lambda log: short), "has 1 forget answers"),
        (spoiled("half", "path.jsonl", cut), "whole epochs"),
        (some, "0.5 of it never learnt", "one task, split and model"),
    ):
        refused(compare.main, [*command, good, run], capsys, run, *says)
    with_text(some, "run.json", '"never_learnt": 0.5', '"never_learnt": 1.0')
    refused(compare.main, [*command, some], capsys, some, "lower --never-learnt")


def test_answers_that_were_not_generated(tmp_path, nothing_written, capsys):
    run = a_run(tmp_path / "a")
    log = json.loads((run / "metrics.log.json").read_text())
    del log["forget"]["generated"]
    (run / "metrics.log.json").write_text(json.dumps(log))
    refused(compare.main, ["answers", run], capsys, run, "generated", "--eval end")


def test_an_existing_picture_is_left_alone(tmp_path, capsys):
    run, picture = a_run(tmp_path / "a"), tmp_path / "f.png"
    picture.write_text("mine")
    refused(compare.main, ["figure", "tradeoff", run, "--out", picture], capsys, "--overwrite")
    assert picture.read_text() == "mine"


@pytest.mark.parametrize("command", ["train.py --method npo", "evaluate.py"])
def test_from_the_shell(command, tmp_path, capsys):
    """In a process of its own, where the libraries' own messages would show too."""
    script, *arguments = command.split()
    words = [sys.executable, Path(runs.__file__).with_name(script), *arguments, "--model", "absent/model"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "absent/model" in done.stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as stop:
        {"train.py": train, "evaluate.py": evaluate}[script].main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and all(task in shown for task in tofu.TASKS)


def test_a_retain_set_smaller_than_a_batch_is_drawn_from_again(toy_model_folder, tmp_path):
    files = [tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"]
    for path, count in zip(files, (9, 1)):
        path.write_text("".join(f'{{"question": "Who is {i}?", "answer": "Ada."}}\n' for i in range(count)))
    train.main(
        [
            *"--method npo --epochs 1 --eval none --model".split(),
            str(toy_model_folder),
            "--forget-file",
            str(files[0]),
            "--retain-file",
            str(files[1]),
            "--out",
            str(tmp_path / "run"),
        ]
    )
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["retain"] > 0
