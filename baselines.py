"""Two methods with a way of their own: RMU, which steers activations, and Task Vector, which goes back in weight space.

Neither has a weight on log πθ(y|x). RMU has the loop of train.py with other losses; Task Vector is its fine-tuning, and
one line after it.
"""

import copy
import itertools
import math

import torch

import data
import losses
from machinery import processes
from machinery.inputs import InputError
from methods import METHODS

# ------------------------------------------------------------------ RMU (Li et al. 2024, the WMDP paper)


def steered_weights(model, layer):
    """Names of the parameters that RMU trains: `down_proj` of the layers up to `layer`, at most three.

    InputError for a layer that the model lacks, or a model that calls them otherwise.
    """
    names = {name for name, _ in model.named_parameters()}

    def down_proj(number):
        return f"model.layers.{number}.mlp.down_proj.weight"

    if down_proj(0) not in names:
        blocks = sorted({name for name in names if ".0." in name})
        raise InputError(
            f"--method rmu trains {down_proj('N')}, which this model lacks; in its first layer it "
            f"has {', '.join(blocks) or 'nothing'}; use another method"
        )
    if down_proj(layer) not in names:
        last = max(number for number in range(len(names)) if down_proj(number) in names)
        raise InputError(f"--layer {layer}: this model has layers 0 to {last}")
    return [down_proj(number) for number in range(max(0, layer - 2), layer + 1)]


def hidden_states(model, examples, layer):
    """(activations after decoder layer `layer`, counted from 0, [B, T, d]; which are of tokens [B, T]).

    Differentiable. Of models whose layers are `model.layers`, as Llama's.
    """
    input_ids, _ = data.collate(examples, pad_id=0)
    length = torch.tensor([len(prompt) + len(response) for prompt, response in examples])
    outputs = []
    hook = model.get_submodule(f"model.layers.{layer}").register_forward_hook(
        lambda module, inputs, output: outputs.append(output if torch.is_tensor(output) else output[0])
    )
    try:
        model(input_ids.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return outputs[0], (torch.arange(input_ids.shape[1]) < length[:, None]).to(model.device)


def mean_of_tokens(values, tokens):
    """Mean over an example's tokens: values, tokens [B, T] give [B]."""
    return (values * tokens).sum(1) / tokens.sum(1)


def target_of(model, args):
    """c·u [d]: `--steer` times a random unit vector, drawn by --seed."""
    draw = torch.Generator().manual_seed(args.seed)
    direction = torch.rand(model.config.hidden_size, generator=draw).to(model.device, model.dtype)
    return args.steer * direction / direction.norm()


def train_rmu(model, forget, retain, args, run):
    """Update `model` in place by RMU. The arguments of train.train.

    Logged as weight of a forget sequence: the mean norm of the gradient with respect to a token's activation.
    """
    method, dtype = METHODS[args.method], getattr(torch, args.dtype)
    forget = forget["answer"]
    frozen = copy.deepcopy(model).eval().requires_grad_(False) if retain else None
    trained = steered_weights(model, args.layer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    target = target_of(model, args)

    processes.shard(model, dtype)
    processes.shard(frozen, dtype, trained=False)

    data.make_deterministic(model)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=args.weight_decay, fused=True)
    epoch_steps = math.ceil(len(forget) / args.batch_size)
    steps = args.max_steps or args.epochs * epoch_steps
    warmup = data.warmup_steps(args, steps, epoch_steps)
    done = run.resume(model, optimizer)
    schedule = data.batches(len(forget), len(retain), args.batch_size, args.seed, args.retain_batch_size)

    with run.loop(done, steps, epoch_steps):
        for step, (rows, drawn) in enumerate(itertools.islice(schedule, done, steps), done + 1):
            optimizer.zero_grad()

            # forget: activations towards the target
            batch = [forget[row] for row in rows]
            for places, divisor in data.microbatches(batch, args.micro_batch_size):
                with data.autocast(model.device, dtype):
                    hidden, tokens = hidden_states(model, [batch[i] for i in places], args.layer)
                    loss = mean_of_tokens(method.loss(args, hidden, target), tokens)
                    weight = mean_of_tokens(method.weight(args, hidden, target).norm(dim=-1), tokens)
                (args.forget_coeff * loss.sum() / divisor).backward()
                length = torch.tensor([len(batch[i].response) for i in places], device=model.device)
                run.add("forget", places, divisor, loss, weight, length)
            run.check_finite(step, "forget", len(rows), model)

            # retain: activations stay what they were
            batch = [retain[row] for row in drawn]
            for places, divisor in data.microbatches(batch, args.micro_batch_size):
                examples = [batch[i] for i in places]
                with data.autocast(model.device, dtype):
                    hidden, tokens = hidden_states(model, examples, args.layer)
                    with torch.no_grad():
                        ref_hidden, _ = hidden_states(frozen, examples, args.layer)
                    loss = mean_of_tokens(losses.rmu(hidden, ref_hidden), tokens)
                (args.retain_coeff * loss.sum() / divisor).backward()
                run.add("retain", places, divisor, loss)
            run.check_finite(step, "retain", len(drawn), model)

            # step
            rate = data.learning_rate(step, steps, warmup, args.lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if args.clip:
                torch.nn.utils.clip_grad_norm_(weights, args.clip)
            optimizer.step()
            run.log(step, rows, drawn, rate, args)
            run.save_if_due(step, model, optimizer)
    model.requires_grad_()


# ------------------------------------------------------------------ Task Vector (Ilharco et al. 2023)


def prepare(lm, args, load):
    """(the model that is saved in the end, θ as a list of tensors or None), from the model that --model names.

    For --finetuned that is already done, by load(args, name). InputError if RMU or Task Vector cannot work on it.
    """
    if "layer" in METHODS[args.method].flags:
        steered_weights(lm.model, args.layer)
    if "finetuned" not in METHODS[args.method].flags:
        return lm, None
    theta = [parameter.detach().cpu().clone() for parameter in lm.model.parameters()]
    if args.finetuned:
        lm = lm._replace(model=load(args, args.finetuned, trained=True).model)
        subtract(theta, lm.model, args)
    return lm, theta


@torch.no_grad()
def subtract(theta, model, args):
    """Make `model`, fine-tuned from theta, a list of tensors, what the task vector makes of it: θ − α (θ_ft − θ).

    InputError for a model that is no fine-tuned form of theta.
    """
    parameters = dict(model.named_parameters())
    mend = "give a model fine-tuned from --model"
    if len(parameters) != len(theta):
        raise InputError(f"--finetuned {args.finetuned} has {len(parameters)} weights, --model {len(theta)}; {mend}")
    for (name, tuned), before in zip(parameters.items(), theta, strict=True):
        try:
            tuned.copy_(losses.task_vector(before, tuned.cpu(), args.alpha))
        except ValueError as error:
            raise InputError(f"--finetuned {args.finetuned}: {error} at {name}; {mend}") from None
