# Two commands do all set-up on a fresh machine: `make demo` and `make test`.

SHELL := /bin/bash
PYTHON ?= python3.11
# The whole set on CPU. On a GPU machine: make demo EXTRAS=vllm,embed,qlora,dev
EXTRAS ?= cpu,embed,qlora,dev
# uv does not read pip's settings: a local folder of wheels is handed on, if pip knows one.
LINKS := $(foreach folder,$(PIP_FIND_LINKS),--find-links $(folder))
OUT ?= out/toy
PORT ?= 8011
RUN := .venv/bin/python -m
LAUNCH := .venv/bin/accelerate launch --config_file configs/accelerate/cpu.yaml --num_cpu_threads_per_process $(shell nproc) -m

export HF_HUB_DISABLE_TELEMETRY = 1
export TRL_EXPERIMENTAL_SILENCE = 1
export TOKENIZERS_PARALLELISM = false
# Waiting OpenMP threads sleep instead of spinning: on two cores, spinning costs more than it saves.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test lint clean

.venv/.installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode $(LINKS) -e '.[$(EXTRAS)]'
	touch $@

# The chain of README.md on a generated shop: about five minutes on two free cores after download.
demo: .venv/.installed
	rm -rf $(OUT)
	$(RUN) sid_builder.build --config configs/sid/toy_rq_kmeans.yaml --output_dir $(OUT)/sids
	$(LAUNCH) sft.train --config configs/sft/toy_qwen3_scratch.yaml --sid_dir $(OUT)/sids --output_dir $(OUT)/sft
	$(RUN) sft.merge --adapter $(OUT)/sft --output_dir $(OUT)/model
	$(LAUNCH) rl.train_grpo --config configs/grpo/toy_cpu.yaml --model_name_or_path $(OUT)/model --output_dir $(OUT)/grpo
	$(LAUNCH) rl.train_dpo --config configs/dpo/toy_cpu.yaml --model_name_or_path $(OUT)/model --output_dir $(OUT)/dpo
	$(RUN) serve.evaluate --model $(OUT)/model --also $(OUT)/grpo/model $(OUT)/dpo/model --split test --output_dir $(OUT)/results
	@set -e; $(RUN) serve.launch --model $(OUT)/grpo/model --config configs/serve/cpu.yaml --port $(PORT) > $(OUT)/serve.log 2>&1 & \
	server=$$!; trap "kill $$server 2>/dev/null; wait $$server 2>/dev/null" EXIT; \
	echo "starting vLLM (log: $(OUT)/serve.log)"; \
	for request in "waterproof red trail shoes" "I am looking for a warm blue jacket." "Can you find me a windproof camp stove?"; do \
		echo; echo "> $$request"; \
		$(RUN) serve.chat --model $(OUT)/grpo/model --base_url http://127.0.0.1:$(PORT)/v1 --wait 300 --n 3 "$$request" || exit 1; \
	done
	@echo; cat $(OUT)/results/table.md

test: .venv/.installed
	.venv/bin/python -m pytest

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv out *.egg-info
