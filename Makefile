# Commands, not logic: every target is one or a few cellseg commands that can be run by hand.
PYTHON ?= python3
DATASET ?= livecell
DATA ?= data/$(DATASET)
PREPARED ?= data/prepared/$(DATASET)
EXP ?= real_plain
SEED ?= 0
MINUTES ?= 30
SHARED ?= ../shared/data
RULE ?= --foreground 0.38 --min-score 0.7
RUNS := experiments/runs
BIN := .venv/bin
CELLSEG := $(BIN)/cellseg
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: help setup demo test test-slow lint types data preprocess train adapt eval tables figures real experiments paper adaptation bench-crops bench-data bench-env bench-metrics bench-l2sp bench-networks bench-inference bench-inference-huge bench-inference-slides bench-slides cellpose-equal faults fuzz ship-teacher leave-one-out mutations soak teacher clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: .venv/.installed ## Make .venv with the package and the pinned dependencies

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup ## Adapt the shipped teacher to synthetic images: a table and a page in a few minutes
	$(CELLSEG) prepare synthetic --root data/synthetic --out data/prepared/synthetic --seed $(SEED)
	rm -rf $(RUNS)/demo_student/s$(SEED)
	$(CELLSEG) adapt experiments/demo_student.toml --seed $(SEED)
	$(CELLSEG) report $(RUNS)/demo_student/s$(SEED) --out $(RUNS)/demo.html
	$(CELLSEG) table experiments/tables/demo.toml --out $(RUNS)
	@echo "Open in a browser: $(RUNS)/demo.html"

test: setup lint types ## Lint, types and the tests, in a process for every core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: setup ## The slower tests
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

data: setup ## Download a data set: make data DATASET=livecell|neurips|dsb2018
	$(CELLSEG) download $(DATASET) --root data

preprocess: setup ## Index a downloaded data set (of NeurIPS one published file is cut short): make preprocess DATASET=livecell
	$(CELLSEG) prepare $(DATASET) --root $(DATA) --out $(PREPARED) $(if $(filter neurips,$(DATASET)),--clusters 4 --on-error skip)

train: setup ## Train experiments/EXP.toml: make train EXP=real_teacher SEED=0
	$(CELLSEG) train experiments/$(EXP).toml --seed $(SEED)

adapt: setup ## Adapt as experiments/EXP.toml says
	$(CELLSEG) adapt experiments/$(EXP).toml --seed $(SEED)

eval: setup ## Predict and score the evaluation sets of a run
	$(CELLSEG) evaluate $(RUNS)/$(EXP)/s$(SEED)

tables: setup ## Keep what the runs that are there measured, and render every table from what is kept
	$(BIN)/python experiments/archive.py
	$(BIN)/python experiments/declared.py
	$(BIN)/python experiments/never_worse.py
	$(BIN)/python experiments/source_test.py
	$(BIN)/python experiments/oracle.py --shared $(SHARED)

figures: setup ## Draw the figures of the experiments from the committed CSVs
	$(BIN)/python experiments/figures.py

real: setup ## DSB2018 to LIVECell on the small real samples (an hour and more of two cores)
	@if [ ! -d $(SHARED) ]; then echo "make real: skipped, the real samples are not in $(SHARED)"; exit 0; fi; \
	set -e; \
	$(CELLSEG) prepare livecell --root $(SHARED)/livecell --out data/prepared/livecell; \
	$(CELLSEG) prepare folder --root $(SHARED)/dsb2018 --out data/prepared/dsb2018; \
	for run in real_teacher real_plain real_l2sp; do \
	  $(CELLSEG) train experiments/$$run.toml --seed $(SEED) --resume; \
	  $(CELLSEG) evaluate $(RUNS)/$$run/s$(SEED); \
	done; \
	$(CELLSEG) table experiments/tables/real.toml

experiments: setup ## The rows of the comparison tables; resumes: make experiments HOURS=3, EXP=n5_plain, SEEDS=0, EXP=n5_plain RERUN=1
	@if [ ! -d $(SHARED) ]; then echo "make experiments: skipped, the real samples are not in $(SHARED)"; exit 0; fi; \
	set -e; \
	$(CELLSEG) prepare livecell --root $(SHARED)/livecell --out data/prepared/livecell; \
	for set in dsb2018 ctc_dic_c2dh_hela ctc_fluo_n2dl_hela ctc_phc_c2dl_psc neurips2022_weak; do \
	  $(CELLSEG) prepare folder --root $(SHARED)/$$set --out data/prepared/$$set; \
	done; \
	$(CELLSEG) prepare synthetic --seed 101 --lines SynFluo,SynPhase,SynSheet \
	  --root data/synthetic_replay --out data/prepared/synthetic_replay; \
	$(CELLSEG) prepare synthetic --seed 101 --lines SynStain \
	  --root data/synthetic_stain --out data/prepared/synthetic_stain; \
	$(BIN)/python experiments/run_all.py $(if $(HOURS),--hours $(HOURS)) $(if $(filter command line,$(origin EXP)),--only $(EXP)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(RERUN),--rerun); \
	$(BIN)/python experiments/archive.py

paper: setup ## The runs that need the full LIVECell and NeurIPS sets (make data, make preprocess), then the tables; resumes
	$(BIN)/python experiments/paper.py
	$(BIN)/python experiments/archive.py

adaptation: setup ## The adaptation cases on the small real samples, three seeds: hours of two cores; resumes; then make tables
	@if [ ! -d $(SHARED) ]; then echo "make adaptation: skipped, the real samples are not in $(SHARED)"; exit 0; fi; \
	set -e; \
	$(CELLSEG) prepare livecell --root $(SHARED)/livecell --out data/prepared/livecell; \
	for set in dsb2018 ctc_dic_c2dh_hela ctc_fluo_n2dl_hela ctc_phc_c2dl_psc; do \
	  $(CELLSEG) prepare folder --root $(SHARED)/$$set --out data/prepared/$$set; \
	done; \
	for run in real_teacher real_teacher2 adapt_teacher adapt_teacher_fluorescence; do \
	  $(CELLSEG) train experiments/$$run.toml --resume; $(CELLSEG) evaluate $(RUNS)/$$run/s0; \
	done; \
	for run in five_replay five_plain five_l2sp collapse; do $(CELLSEG) adapt experiments/$$run.toml --resume; done; \
	for seed in 0 1 2; do \
	  for run in livecell_mixed livecell_selfadapt seen_mixed stained_mixed; do \
	    $(CELLSEG) adapt experiments/$$run.toml --seed $$seed --resume; \
	  done; \
	done; \
	for run in livecell_pseudo livecell_hard livecell_held livecell_wise livecell_alone \
	    seen_selfadapt seen_hard seen_wise stained_selfadapt stained_hard known; do \
	  $(CELLSEG) adapt experiments/$$run.toml --resume; \
	done

bench-crops: setup ## Training crops from slides of 8,000 x 10,000 pixels: memory and time
	$(BIN)/python tests/bench/bench_crops.py

bench-data: setup ## Parse a 250 MB COCO file: seconds and memory
	$(BIN)/python tests/bench/bench_data.py

bench-env: .venv-bench/.installed ## Make .venv-bench with the peers that the benchmarks compare with

.venv-bench/.installed: tests/bench/peers.txt constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-bench/bin/python -m pip install --quiet --requirement tests/bench/peers.txt
	touch $@

bench-metrics: setup bench-env ## Matching against its peers: experiments/results/bench_metrics.md
	$(BIN)/python tests/bench/bench_metrics.py

cellpose-equal: setup bench-env ## Our Cellpose network against cellpose itself: experiments/results/cellpose_equal.md
	$(BIN)/python tests/bench/cellpose_equal.py

bench-l2sp: setup ## What a penalty costs a training step: experiments/results/bench_l2sp.md
	$(BIN)/python tests/bench/bench_l2sp.py

bench-networks: setup ## Speed of every network: experiments/results/bench_networks.md
	$(BIN)/python tests/bench/bench_networks.py

bench-inference: setup bench-env ## Decoders, networks, whole images against their peers: experiments/results/bench_inference_*.md
	$(BIN)/python tests/bench/bench_inference_decode.py
	$(BIN)/python tests/bench/bench_inference_networks.py
	$(BIN)/python tests/bench/bench_inference_end_to_end.py --shared $(SHARED) --resume

bench-inference-huge: setup bench-env ## Targets and decoding at 10,000², against Cellpose: half an hour
	$(BIN)/python tests/bench/bench_inference_decode.py --huge --rounds 2

bench-inference-slides: setup ## Segment slides of 5,000² and 20,000² with the shipped teacher: memory, time, ids
	$(BIN)/python tests/bench/bench_inference_slides.py --model teacher

bench-slides: setup ## Score a pair of 20,000 x 20,000 label images: memory and time
	$(BIN)/python tests/bench/bench_slides.py

fuzz: setup ## Throw damaged inputs at every reader: 2,400 cases, then properties; resumes where it was stopped
	$(BIN)/python tests/faults/fuzz.py --seed $(SEED) --shared $(SHARED)
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/test_properties.py

teacher: setup ## Train the shipped teacher anew and put it in its place: made-up images, four trainings (hours of two cores), scores, weights, card; resumes
	@set -e; \
	if [ -d $(SHARED) ]; then \
	  $(CELLSEG) prepare livecell --root $(SHARED)/livecell --out data/prepared/livecell; \
	  $(CELLSEG) prepare folder --root $(SHARED)/dsb2018 --out data/prepared/dsb2018; \
	fi; \
	for set in dsb2018 livecell; do if [ ! -f data/prepared/$$set/index.csv ]; then \
	  echo "make teacher: skipped, $$set is not there; make data and make preprocess DATASET=$$set bring it"; exit 0; \
	fi; done; \
	for seed in 101 102 103; do \
	  $(CELLSEG) prepare synthetic --seed $$seed --lines SynFluo,SynPhase \
	    --root data/synthetic_teacher/$$seed --out data/prepared/synthetic_teacher_$$seed; \
	  $(CELLSEG) prepare synthetic --seed $$seed --lines SynSheet \
	    --root data/synthetic_sheets/$$seed --out data/prepared/synthetic_sheets_$$seed; \
	done; \
	for run in real_teacher real_teacher2 real_teacher3 real_teacher4; do \
	  $(CELLSEG) train experiments/$$run.toml --resume; $(CELLSEG) evaluate $(RUNS)/$$run/s0; \
	done; \
	$(BIN)/python experiments/mix_teacher.py $(RUNS)/real_teacher4/s0 --out $(RUNS)/teacher/s0; \
	$(CELLSEG) evaluate $(RUNS)/teacher/s0; \
	$(MAKE) ship-teacher RUN=$(RUNS)/teacher/s0

ship-teacher: setup ## Make a finished and scored run the shipped teacher: make ship-teacher RUN=experiments/runs/NAME/s0 (RULE= how its maps are read)
	$(BIN)/python experiments/ship_teacher.py $(RUN)
	$(BIN)/python experiments/score_teacher.py $(RULE)

faults: setup ## Kill works 200 times and compare; full disks and read-only folders: experiments/results/faults_*.csv; resumes
	$(BIN)/python tests/faults/kills.py --seed $(SEED) --out experiments/results/faults_kills.csv
	$(BIN)/python tests/faults/disks.py --seed $(SEED) --out experiments/results/faults_disks.csv

mutations: setup ## Put known defects back in a copy and see which test notices each
	$(BIN)/python tests/faults/mutations.py

soak: setup ## Half an hour of predicting and training: memory, open files, processes: experiments/results/soak.md
	$(BIN)/python tests/faults/soak.py --minutes $(MINUTES)

leave-one-out: setup ## Choose the settings of experiments/real_five.toml on its five training images
	$(BIN)/python experiments/leave_one_out.py experiments/real_five.toml --set train.steps=250,train.lr=1e-3 --set train.steps=250,train.lr=3e-4

clean: ## Remove what the demo made
	rm -rf data/synthetic data/synthetic_neurips data/prepared/synthetic data/prepared/synthetic_neurips $(RUNS)/demo_student
