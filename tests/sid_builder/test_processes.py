"""Processes of a launch find out who they are, share rows out and wait for each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sid_builder.processes import Processes

ROOT = Path(__file__).parents[2]
WORKER = """
import sys, time
from pathlib import Path
from sid_builder.processes import Processes

processes, out = Processes.current(), Path(sys.argv[1])
for turn in range(2):
    if processes.rank == 1:
        time.sleep(1)
    (out / f"{turn}-{processes.rank}").touch()
    processes.wait()
    present = [(out / f"{turn}-{rank}").exists() for rank in range(2)]
    assert all(present), f"rank {processes.rank} did not wait in turn {turn}"
"""


def test_shares_are_contiguous_and_even():
    for num_rows, world_size in ((10, 3), (2, 4), (0, 2), (7, 1)):
        shares = [Processes(rank, world_size).share_of(num_rows) for rank in range(world_size)]
        assert shares[0][0] == 0 and shares[-1][1] == num_rows
        assert all(left[1] == right[0] for left, right in zip(shares, shares[1:], strict=False))
        sizes = [high - low for low, high in shares]
        assert max(sizes) - min(sizes) <= 1


def test_without_a_launcher_there_is_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.current() == Processes(0, 1) and Processes.current().is_main
    Processes.current().wait()


@pytest.mark.slow
def test_processes_without_a_gpu_wait_for_each_other(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(tmp_path / "worker.py"), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=240)
