"""Bad input: one clear line on stderr that names the thing and the mend, exit status 2, nothing written."""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused
from refusals import row_name, rows_of, save_tiny
from test_tofu import a_log

import compare
import evaluate
import train
from benchmarks import BENCHMARKS, tofu
from machinery import folder
from machinery import run as runs

# MODEL is an untrained model's folder, OTHER one of a larger vocabulary.
REFUSED = rows_of("""
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
train --method npo --lora 0  | --lora | at least 1
train --method npo --lora -8  | --lora | at least 1
train --method npo --lora 1.5  | --lora
train --method npo --lora NINES  | --lora
train --method npo --lora 9 --model MODEL  | --lora 9 | k_proj is 8 wide
train --method rmu --lora 2 --model MODEL  | --lora | rmu | leave it out
train --method task-vector --lora 2 --model MODEL  | --lora | task-vector | leave it out
train --method finetune --lora 2 --model new  | --lora | --model new
train --method npo --resume  | --out
train --method npo --resume --out absent  | run.json
train --method npo --resume --overwrite --out absent  | give one of them
train --method npo --task tofu --data absent/folder --model tiny  | absent/folder
train --method npo --model absent/model  | absent/model
train --method npo --retrain absent.json  | absent.json
train --method npo --out /proc/none/below  | /proc
train --method finetune --split retain90  | --model new
train --method finetune --split full --model tiny  | --model new
train --method npo --forget-split forget05  | --forget-split has no use | forgets --split
train --method finetune --model new --split full --forget-split forget01  | --forget-split forget01 | forget05, forget10
train --method npo --retain none --retain-batch-size 8  | --retain-batch-size
train --method npo --retain-batch-size 0  | --retain-batch-size
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
train --method rmu --retain nll  | --retain nll | activations or none
train --method rmu --retain kl  | --retain kl | activations or none
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
evaluate --log x --holdout-file x  | --holdout-file has no use with --log
evaluate --log x --probe-file x  | --probe-file has no use with --log
evaluate --log x --split forget05  | --split has no use with --log
evaluate --log x --template plain  | --template has no use with --log
evaluate --log x --max-length 9  | --max-length has no use with --log
evaluate --log x --max-new-tokens 9  | --max-new-tokens has no use with --log
evaluate --log x --dtype float32  | --dtype has no use with --log
evaluate --log x --device cpu  | --device has no use with --log
evaluate --log x --batch-size 9  | --batch-size has no use with --log
evaluate --ask Who?  | --ask needs --model
evaluate --model MODEL --ask ""  | --ask is empty
evaluate --model MODEL --ask " "  | --ask | not empty
evaluate --log x --ask Who?  | --log has no use with --ask
evaluate --model MODEL --ask Who? --out m.json  | --out has no use with --ask
evaluate --model MODEL --ask Who? --split forget05  | --split has no use with --ask
evaluate --model absent/model --ask Who?  | absent/model
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
compare table ""  | runs is empty
compare claims absent  | 'claims'
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


def test_standard_input_without_questions(toy_model_folder, nothing_written, capsys, monkeypatch):
    for content, says in ((b"\n \n", "holds no question"), (b"Who?\nI\xff?\n", "a text that")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        refused(evaluate.main, ["--model", toy_model_folder, "--ask", "-"], capsys, "--ask", says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present")
def test_cuda_asked_for_and_absent(nothing_written, capsys):
    refused(train.main, ["--method", "npo", "--device", "cuda"], capsys, "CUDA", "--device cpu")
    refused(evaluate.main, ["--model", "x", "--device", "cuda"], capsys, "CUDA", "--device cpu")


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
    runs.write_settings(out, {"format": folder.FORMAT, "flags": {"model": "tiny", "forget_split": "forget10"}})
    (out / "config.json").write_text("{}")
    train_refuses(out, "--model", out, "--overwrite", "--model")
    own = ["--forget-file", "f.jsonl", "--retain", "none", "--model", toy_model_folder, "--overwrite"]
    train_refuses(out, "--task", "tofu", "--data", out, "--model", toy_model_folder, "--overwrite", "holds --data")
    for flag in ("--holdout-file", "--probe-file"):
        train_refuses(out, *own, flag, theirs, f"holds {flag}")
    # nor the folder that one is in, nor a run's own metrics
    monkeypatch.chdir(out)
    train_refuses(".", "--overwrite", "the folder you are in")
    evaluate_refuses(out / "metrics.json", "--overwrite", "a run's folder")
    assert precious.read_text() == theirs.read_text() == "mine" and [*tmp_path.iterdir()] == [out]


def test_a_damaged_log_of_a_retrained_run_is_refused_before_anything_is_measured(
    toy_model_folder, tmp_path, monkeypatch, capsys
):
    """Changed after the run, or before its end, when it has no sums yet."""
    retrain, sets = tmp_path / "retrain", tofu.evaluation_rows(None, "forget10")
    command = ["--method", "npo", "--model", str(toy_model_folder), "--device", "cpu", "--dtype", "float32"]
    args = train.resolve(train.build_parser().parse_args(command))
    retrain.mkdir()
    (retrain / "metrics.log.json").write_text("{}\n")
    settings = {"format": folder.FORMAT, "asked": evaluate.questions_digest(args, sets)}
    monkeypatch.setattr(evaluate.LM, "in_batches", lambda *arguments: 1 / 0)
    for sums in ({"sums": folder.sums_of(retrain)}, {}):
        runs.write_settings(retrain, settings | sums)
        for log in ("{}", '{"forget": {}}', "{", "[]"):
            (retrain / "metrics.log.json").write_text(log)
            refused(train.main, [*command, "--retrain", retrain, "--out", tmp_path / "out"], capsys, "metrics.log.json")
            assert not (tmp_path / "out").exists()
    # a good one counts, without what another Retrain thought of its answers
    good = a_log()
    good["forget"]["judged"] = [1.0] * 3
    (retrain / "metrics.log.json").write_text(json.dumps(good))
    assert "judged" not in evaluate.log_of(args, sets, str(retrain))["forget"]


def test_resuming_what_was_trained_to_the_end_keeps_that_on_record(
    toy_model_folder, nothing_outside, pictures, tmp_path, capsys
):
    run, rows = tmp_path / "run", tmp_path / "forget.jsonl"
    rows.write_text('{"question": "Who?", "answer": "Ada."}\n')
    command = [*"--method npo --epochs 1 --max-new-tokens 1 --model".split(), str(toy_model_folder), "--out", str(run)]
    command += ["--forget-file", str(rows), "--retain", "none"]
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
    runs.write_settings(run, settings)  # as before it was trained to the end
    (run / "save-00000001").mkdir()
    (run / "save-00000001" / "shard-00001.safetensors").write_bytes(b"damaged")
    (run / "save-00000001" / "sums.json").write_text("{}")
    with pytest.raises(SystemExit) as end:
        train.main([*command, "--resume"])
    first, last = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and "save-00000001 is damaged" in first
    assert "every save" in last and "--overwrite" in last


BOTH = """
import runpy, sys
for sys.argv in (["train.py", "--model", "absent/model"], ["evaluate.py", "--model", "absent/model"]):
    try:
        runpy.run_path(f"{ROOT}/{sys.argv[0]}", run_name="__main__")
    except SystemExit as stop:
        print(stop.code)
"""


def test_from_the_shell(tmp_path, capsys):
    """In a process of its own, where the libraries' own messages would show too."""
    root = Path(train.__file__).parent
    script = f"ROOT = {str(root)!r}\nimport sys; sys.path.insert(0, ROOT)\n{BOTH}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.stdout == "2\n2\n" and len(lines) == 2 and all("absent/model" in line for line in lines), lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [train, evaluate])
def test_help_names_the_tasks(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and all(task in shown for task in BENCHMARKS)
