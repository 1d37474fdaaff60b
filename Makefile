# make demo   distils on built-in data, compares with the teacher, streams a video
# make student   trains the student that is shipped, its trust in parallax included: an hour
# make test   runs the tests
# make test-oldest   the same with the oldest versions that pyproject.toml allows, on Python 3.10
# They set up everything in .venv first; the second time that takes no time.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := runs/demo
OLDEST := .venv-oldest
PYTHON_OLDEST ?= python3.10

.PHONY: demo student test test-slow test-oldest lint setup clean

demo: setup
	@echo "== 1/3  train a student on the synthetic world (no ground truth) =="
	$(BIN)/python train.py experiment=demo
	@echo "== 2/3  compare it, and the student that is shipped, with the teacher on worlds that none has seen =="
	$(BIN)/python scripts/evaluate.py "checkpoint=[demo:$(DEMO)/last,shipped:embedded]" geometry=true output=$(DEMO) synthetic.videos=6 synthetic.frames=32 palindrome=false cut_frames=0 workers=2
	@echo "== 3/3  stream a video, frame by frame =="
	$(BIN)/python inference_streaming.py checkpoint=$(DEMO)/last input=videomamba_depth/assets/clip.mp4 output=$(DEMO)/stream overwrite=true
	@echo "== files written =="
	@ls -d $(DEMO)/last $(DEMO)/evaluation.md $(DEMO)/evaluation.json $(DEMO)/pictures $(DEMO)/stream/*

student: setup
	$(BIN)/python train.py experiment=embedded
	$(BIN)/python scripts/learn_trust.py runs/embedded/last runs/embedded/with_trust
	@echo "== runs/embedded/with_trust: scripts/ship_embedded_student.py makes it the one that is shipped =="

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-oldest: $(OLDEST)/complete
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/complete

# torch and torchvision in one call: separate calls may pick builds that do not fit each other.
$(VENV)/complete: pyproject.toml
	@echo "== setting up $(VENV): PyTorch and the package, several GB, a few minutes =="
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --upgrade torch torchvision
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

# uv resolves to the lowest versions of what pyproject.toml names.
$(OLDEST)/complete: pyproject.toml
	$(PYTHON_OLDEST) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e ".[dev,datasets]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) site runs multirun build *.egg-info
