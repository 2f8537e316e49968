"""Flags of small, seeded runs of sft.train on CPU."""

from sft import train

ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]
COMMON = [*ON_CPU, "--logging_steps", "1", "--seed", "3"]
SCRATCH = (
    '{"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "text_vocab_size": 400}'
)
FROM_SCRATCH = ["--from_scratch", SCRATCH, "--training", "full", "--prompt_pack", "plain"]


def run_sft(sids, output_dir, *flags):
    train.main(["--sid_dir", str(sids), "--output_dir", str(output_dir), *COMMON, *map(str, flags)])
