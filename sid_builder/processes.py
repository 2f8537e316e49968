"""One process or many (`accelerate launch`, torchrun): who is who, and which rows belong to whom."""

import os
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Processes:
    """This process among its siblings. All of them read the same inputs and share one file system."""

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def current() -> "Processes":
        """As a launcher set it in the environment (`RANK`, `WORLD_SIZE`); without one: one process."""
        return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here; nothing happens with one."""
        if self.world_size > 1:
            # Imported here: they take seconds, and a single process needs neither.
            import torch
            from accelerate import PartialState

            # Without `cpu` accelerate 1.15 takes torchrun's processes on a machine without a GPU for single
            # ones and waits for nobody. A process may have hours of work that the others wait for.
            cpu = not torch.cuda.is_available()
            PartialState(cpu=cpu, timeout=timedelta(days=1)).wait_for_everyone()

    def share_of(self, num_rows: int) -> tuple[int, int]:
        """Rows [low, high) of this process: contiguous parts whose sizes differ by one at most."""
        return (
            num_rows * self.rank // self.world_size,
            num_rows * (self.rank + 1) // self.world_size,
        )
