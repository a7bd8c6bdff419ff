"""Several processes that train one model (torchrun): the only file that knows torch.distributed.

Of one process every function here does nothing, or gives back what it got.
"""

import contextlib
import datetime
import os
import sys
import warnings

import torch
import torch.distributed as dist

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process saves as several do


def ranks():
    """(number of this process, number of processes) of the job that torchrun started; (0, 1) without one."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def first():
    """Whether this is the process that speaks and writes."""
    return ranks()[0] == 0


def several():
    return ranks()[1] > 1


def wait():
    """Until all processes are here."""
    if several():
        dist.barrier()


def agree(*numbers):
    """The largest value of each number in any process."""
    if several():
        together = torch.tensor(numbers, dtype=torch.int32)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        numbers = together.tolist()
    return numbers


def add_up(tensor):
    """Make `tensor` its sum over the processes, in place; returns it."""
    if several():
        dist.all_reduce(tensor)
    return tensor


def gather(values):
    """The union of a dict of each process."""
    if not several():
        return values
    parts = [None] * ranks()[1]
    dist.all_gather_object(parts, values)
    return {key: value for part in parts for key, value in part.items()}


def in_job():
    """Whether torchrun started this process, and others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"


@contextlib.contextmanager
def job():
    """Joins the other processes of the job, if torchrun started one; only the first speaks."""
    if not in_job():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Long enough for the first to write a large model while the others wait.
    dist.init_process_group(timeout=datetime.timedelta(hours=2))
    with open(os.devnull, "w") as nowhere:
        if dist.get_rank():
            sys.stdout = nowhere
        try:
            yield
            dist.barrier()  # without it gloo's processes sometimes abort when one leaves first
        finally:
            sys.stdout = sys.__stdout__
            dist.destroy_process_group()


def shard(model, dtype, trained=True):
    """Spread a model's weights, gradients and optimizer over the processes, layer by layer. Of None nothing.

    PyTorch's FSDP2: a layer's weights are gathered for its forward and its backward pass, and its gradient is
    averaged over the processes, in float32.
    """
    if not several() or model is None:
        return
    from torch.distributed import fsdp  # here, as it takes a second that one process need not spend

    half = {"param_dtype": dtype, "reduce_dtype": torch.float32} if dtype == torch.bfloat16 else {}
    options = {
        "mp_policy": fsdp.MixedPrecisionPolicy(**half),
        "mesh": dist.init_device_mesh(model.device.type, (ranks()[1],)),
    }
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            fsdp.fully_shard(module, reshard_after_forward=True, **options)
    # What no optimizer changes may stay gathered.
    fsdp.fully_shard(model, reshard_after_forward=trained, **options)


def whole_weights(model):
    """{name: tensor} of a sharded model, gathered in the first process; None for a model that is whole."""
    if not several():
        return None
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = state_dict.get_model_state_dict(model, options=options)
    for name in getattr(model, "all_tied_weights_keys", ()):
        weights.pop(name, None)  # gathered, they are no longer seen to be one
    return weights
