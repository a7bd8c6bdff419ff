"""The benchmarks, by the name that --task takes."""

from benchmarks.muse import MUSE_BOOKS, MUSE_NEWS, TOY_MUSE
from benchmarks.own import OWN
from benchmarks.tofu import TOFU, TOY
from benchmarks.wmdp import TOY_WMDP, WMDP

TASKS = TOY, TOFU, MUSE_NEWS, MUSE_BOOKS, TOY_MUSE, WMDP, TOY_WMDP, OWN
BENCHMARKS = {task.name: task for task in TASKS}
