"""What a plan says, for people and, on its last line, for programs (JSON)."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.plan_hardware import EFFICIENCY, FITS, GPUS, Launch, Machine, this_cpu
from sft.plan_memory import Memory
from sft.plan_model import ModelShape


@dataclass(frozen=True)
class Plan:
    """One planned run.

    Attributes:
        facts: what to say before memory and hours, by label; `figures`: the same as numbers.
        device_flops: of the busiest device in the whole run; `cpu_flops`: the same on a CPU, where TRL's head
            may score positions that it skips on a GPU.
        half: whether matrix products run in bfloat16 or float16.
        remedies: what would take less memory, by the part of `memory` it acts on.
    """

    command: str
    shape: ModelShape
    launch: Launch
    facts: Mapping[str, str]
    figures: Mapping[str, Any]
    memory: Memory
    device_flops: float
    cpu_flops: float
    half: bool
    remedies: Mapping[str, Sequence[str]]

    def hours(self, machine: Machine, on_cpu: bool = False) -> float:
        """On one such machine per process, at `EFFICIENCY` of its peak."""
        peak = machine.bf16_tflops if self.half else machine.fp32_tflops
        return (self.cpu_flops if on_cpu else self.device_flops) / (peak * 1e12 * EFFICIENCY) / 3600

    def fits(self, machine: Machine) -> bool:
        return self.memory.total <= FITS * machine.memory_gib

    def show(self) -> None:
        """Print the report, once per launch."""
        if int(os.environ.get("RANK", "0")) == 0:
            print(self.text())

    def text(self) -> str:
        """The report; its last line is a JSON object of the figures."""
        width = max(len(label) for label in self.facts) + 2
        lines = [f"Plan of {self.command}: nothing was loaded, trained or written.", ""]
        lines += [f"{label:<{width}}{fact}" for label, fact in self.facts.items()]
        lines += ["", f"GiB a device ({self.launch.sharding}, {self.launch.processes} processes)"]
        lines += [f"  {name:<16}{size:9.3f}" for name, size in self.memory.parts().items()]
        lines += [f"  {'peak':<16}{self.memory.total:9.3f}"]
        if self.memory.rollout:
            lines += [f"  ({' + '.join(self.memory.step)} or {' + '.join(self.memory.rollout)}, not both)"]
        machines = [(machine, False) for machine in GPUS]
        if self.launch.processes == 1:
            machines.append((this_cpu(), True))
        name_width = max(len(machine.name) for machine, _ in machines) + 2
        lines += ["", f"{'machine':<{name_width}}{'GiB':<8}{'':<14}hours at {EFFICIENCY:.0%} of its peak"]
        for machine, on_cpu in machines:
            verdict = "fits" if self.fits(machine) else "does not fit"
            hours = self.hours(machine, on_cpu)
            shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
            lines += [f"{machine.name:<{name_width}}{machine.memory_gib:<8.1f}{verdict:<14}{shown}"]
        if not all(self.fits(machine) for machine, _ in machines):
            lines += ["", "To take less memory:", *(f"  - {remedy}" for remedy in self._ordered_remedies())]
        return "\n".join([*lines, "", json.dumps(self._numbers(machines))])

    def _ordered_remedies(self) -> list[str]:
        """Those for the largest part first."""
        sizes = self.memory.parts()
        order = sorted(self.remedies, key=lambda part: -sizes.get(part, 0.0))
        return [remedy for part in order if part in sizes for remedy in self.remedies[part]]

    def _numbers(self, machines: Sequence[tuple[Machine, bool]]) -> dict[str, Any]:
        return {
            **self.figures,
            "parameters": self.shape.total,
            "trainable": self.shape.trainable,
            "processes": self.launch.processes,
            "sharding": self.launch.sharding,
            "memory_gib": {name: round(size, 3) for name, size in self.memory.parts().items()},
            "peak_gib": round(self.memory.total, 3),
            "hours": {
                machine.name: round(self.hours(machine, on_cpu), 4) if self.fits(machine) else None
                for machine, on_cpu in machines
            },
        }


def model_facts(shape: ModelShape, launch: Launch) -> dict[str, str]:
    """The lines every plan begins with."""
    tied = "tied" if shape.tied else "untied"
    return {
        "model": f"{shape.architecture}, {shape.layers} layers x {shape.hidden}, vocabulary "
        f"{shape.vocabulary:,} ({tied})",
        "parameters": f"{shape.total:,}, of which {shape.trainable:,} learn "
        f"({shape.trainable / shape.total:.2%})",
        "processes": f"{launch.processes}, sharding {launch.sharding} (from {launch.source})",
    }


def remedies(
    training: str, half_weights: bool, config: Any, launch: Launch, shared: str, can_quantise: bool
) -> dict[str, list[str]]:
    """What a user could change, by the part of memory it acts on.

    Args:
        shared: the launch file whose sharding the command trains under.
        can_quantise: whether the command takes load_in_4bit and it is off.
    """
    found: dict[str, list[str]] = {"activations": [], "optimizer": [], "weights": []}
    batch, accumulate = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if not config.gradient_checkpointing:
        found["activations"].append("gradient_checkpointing: true (one more forward pass)")
    if batch > 1:
        found["activations"].append(
            f"per_device_train_batch_size: {batch // 2} with gradient_accumulation_steps: {2 * accumulate} "
            "(same steps, half the activations)"
        )
    if training == "full":
        found["optimizer"].append("training: lora (gradients and optimizer of a hundredth of the weights)")
        if launch.sharding in ("none", "ddp"):
            found["optimizer"].append(
                f"several GPUs under configs/accelerate/{shared} (gradients and optimizer shared out)"
            )
    elif not half_weights:
        found["weights"].append("dtype: bfloat16 (half the weights; what learns stays fp32)")
    if can_quantise:
        found["weights"].append("training: lora with load_in_4bit: true (a quarter of bfloat16's weights)")
    return {part: texts for part, texts in found.items() if texts}


def scientific(value: float) -> str:
    """1.23e+15 as `1.23e15`."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
