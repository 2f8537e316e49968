"""Commands in two processes under torchrun, on CPU, and accelerate's sharding there.

accelerate 1.15 does not shard on CPU (it would train under DDP); a worker script that begins with
`SHARDED_ON_CPU` opens that way to it, and everything behind it is real.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FSDP2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
SHARDED_ON_CPU = """
import os, signal, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType

if "ACCELERATE_TORCH_DEVICE" in os.environ:
    PartialState._prepare_backend = lambda *given: ("gloo", DistributedType.MULTI_GPU)
"""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, with one thread a process, and imports from wherever this one imports."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(more or {})}


def in_two(
    command: Sequence[object], more: Mapping[str, str] | None = None, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `command` (a script or -m module, and its flags) in two processes; `fails`: whether it must."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, *map(str, command)], cwd=ROOT, env=environment(more), capture_output=True, text=True
    )
    assert (done.returncode != 0) is fails, done.stderr[-6000:]
    return done
