# pyloop: run it, test it, check it. `make help` says what each target does.
#
# Everything is installed into .venv and built into build/; `make clean` removes both.

PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV ?= .venv
SECONDS ?= 60
ROWS ?=
ROUNDS ?= 5
SUITE ?= ../shared/asyncio-suite
BACKEND ?= epoll
TWINS := $(if $(filter 0,$(PYLOOP_FASTPATH)),-twins)

PY := $(VENV)/bin/python
PYTEST := $(abspath $(PY)) -m pytest -n 4 --dist worksteal # neighbours share servers; many a test waits
PIP := $(PY) -m pip --disable-pip-version-check -qq
CORE := $(wildcard csrc/*.c csrc/*.h csrc/fastpath/*.c csrc/fastpath/*.h)

.DEFAULT_GOAL := help
.PHONY: help run test test-asyncio test-twins check asan asan-fastpath tsan compiled fuzz bench bench-all bench-models soak docs wheel format clean build
MAKEFLAGS += --no-print-directory --no-builtin-rules
.PRECIOUS: build/asan/%.o build/tsan/%.o build/steps/%.o build/strict/%.o
.DELETE_ON_ERROR:

help: ## say what each target does
	@echo "pyloop: make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

run: $(VENV)/.built ## build and start the chat server on 127.0.0.1:8888 (Ctrl-C ends it)
	@exec $(PY) examples/chat.py

test: $(VENV)/.test $(VENV)/.built ## build and run all tests, those of the C core under sanitizers first
	@$(MAKE) -j3 ARGS= test-asyncio asan tsan compiled # the first mostly waits
	@$(PYTEST) $(ARGS)
	@$(MAKE) asan-fastpath ARGS="--backend epoll"
	@$(MAKE) test-twins

# One backend is enough here: the twins do not know which it is. `make soak` runs all there is.
test-twins: $(VENV)/.test $(VENV)/.built ## the tests that run on epoll, without the fast path: its Python twins serve alone
	@PYLOOP_FASTPATH=0 $(PYTEST) --backend $(BACKEND) $(ARGS)$(if $(ARGS), || [ $$? -eq 5 ]) # it may choose none

# Once, instead of each process of the run for itself.
compiled: $(VENV)/.test $(VENV)/.built
	@$(PY) -m pytest --collect-only -qq >/dev/null || true

# What failed, in detail, is left in build/asyncio-$(BACKEND)/results.json (or -$(BACKEND)-twins).
test-asyncio: $(VENV)/.built ## CPython's own asyncio tests on a pyloop.Loop: SUITE=../shared/asyncio-suite, BACKEND=epoll
	@if [ ! -e "$(SUITE)/aio_suite.py" ]; then \
		echo "skipped: CPython's asyncio tests, because there is no $(SUITE)/aio_suite.py"; \
	elif ! $(PY) -c 'import importlib.util as u; raise SystemExit(not u.find_spec("test.test_asyncio"))' 2>/dev/null; then \
		echo "skipped: CPython's asyncio tests, because this Python has none (Debian: apt-get install libpython3-testsuite)"; \
		[ -z "$$PYLOOP_CI" ]; \
	else echo "-- CPython's asyncio tests, $(BACKEND)$(if $(TWINS), without the fast path)"; \
		PYLOOP_BACKEND=$(BACKEND) env -u PYTHONASYNCIODEBUG -u PYTHONDEVMODE $(PY) -X faulthandler "$(SUITE)/aio_suite.py" \
		pyloop:new_event_loop --expected tests/asyncio_expected.txt -o build/asyncio-$(BACKEND)$(TWINS) $(ARGS); fi

build: $(VENV)/.built ## build into the checkout, as run and test do by themselves

# ---- the virtual environment ----------------------------------------------

define PREFLIGHT
import importlib.util, os, shlex, shutil, sys, sysconfig
missing = []
if sys.version_info < (3, 11):
    missing.append("Python 3.11 or newer (this is %d.%d)" % sys.version_info[:2])
if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    missing.append("Python's venv module       (Debian, Ubuntu: apt-get install python3-venv)")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    missing.append("Python's C headers         (Debian, Ubuntu: apt-get install python3-dev)")
cc = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
if not shutil.which(shlex.split(cc)[0]):
    missing.append("a C compiler, %-12s (Debian, Ubuntu: apt-get install gcc libc6-dev)" % cc)
if missing:
    print("pyloop cannot be built with " + sys.executable + ": missing are", file=sys.stderr)
    sys.exit("".join("  - " + what + "\n" for what in missing).rstrip())
endef
export PREFLIGHT

# A stamp is newer than what it was made from, so a target with nothing to do costs milliseconds.
$(VENV)/.venv: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "pyloop needs Python 3.11 or newer, and none of python3.11 ... python3.14, python3 is one." >&2; \
		echo "Install it (Debian 12, Ubuntu 24.04 and later: apt-get install python3 python3-venv python3-dev)" >&2; \
		echo "or say where it is: make run PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@"$(PYTHON)" -c "$$PREFLIGHT"
	@$(PY) -c '' 2>/dev/null || { echo "making $(VENV) with $(PYTHON)"; rm -rf $(VENV); "$(PYTHON)" -m venv $(VENV); }
	@$(PIP) install "pip>=25.1" "setuptools>=77" "cffi>=1.16" "click>=8.1"
	@touch $@

$(VENV)/.built: $(VENV)/.venv setup.py build_ffi.py $(CORE)
	@echo "building pyloop"; rm -f pyloop/_core.cpython-*.so # left by build_ffi.py, and found before abi3
	@PYLOOP_FASTPATH=1 $(PIP) install --no-build-isolation --no-deps --config-settings editable_mode=compat -e .
	@touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.wheel $(VENV)/.bench: $(VENV)/.%: $(VENV)/.venv
	@echo "installing what '$*' needs"
	@$(PIP) install --group $*
	@touch $@

ifeq ($(wildcard pyloop/_core.*so),)
$(VENV)/.built: FORCE
endif
FORCE:

# ---- the C core by itself ---------------------------------------------------

WARN := -Wall -Wextra -Wshadow -Wconversion
SAN := -std=c11 -D_GNU_SOURCE -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all $(WARN) \
	-Icsrc -Itests/c -pthread
WRAP := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
C_SOURCES := $(sort $(wildcard csrc/*.c))
LIBS := -lrt # shm_open, before glibc 2.34
ifneq ($(shell uname -s),Linux)
LIBS :=
C_SOURCES := $(filter-out csrc/poller_epoll.c csrc/uring.c,$(C_SOURCES))
endif
C_TESTS := $(patsubst tests/c/%.c,%,$(sort $(wildcard tests/c/test_*.c)))
C_FUZZ := $(patsubst tests/c/%.c,%,$(sort $(wildcard tests/c/fuzz_*.c)))
ASAN_OBJECTS := $(C_SOURCES:csrc/%.c=build/asan/%.o)
# clang, if it has libFuzzer; asked for only when there is something to fuzz.
CLANG = $(shell echo 'int LLVMFuzzerTestOneInput(void){return 0;}' | clang -fsanitize=fuzzer -x c - -o /dev/null \
	>/dev/null 2>&1 && echo clang)
comma := ,

build/asan/%.o: csrc/%.c
	@mkdir -p $(@D)
	@$(CC) $(SAN) -MMD -MP -c $< -o $@

build/asan/test_%: tests/c/test_%.c $(ASAN_OBJECTS)
	@mkdir -p $(@D)
	@$(CC) $(SAN) -MMD -MP -MF $@.d $< $(ASAN_OBJECTS) $(WRAP) $(LIBS) -o $@

# With the marked steps of csrc/step.h, at each of which it kills a process.
STEP_SOURCES := lock feed ring
build/steps/%.o: csrc/%.c
	@mkdir -p $(@D)
	@$(CC) $(SAN) -DPL_STEPS -MMD -MP -c $< -o $@

$(addprefix build/asan/,$(filter %_steps,$(C_TESTS))): build/asan/%: tests/c/%.c $(ASAN_OBJECTS) $(STEP_SOURCES:%=build/steps/%.o)
	@$(CC) $(SAN) -MMD -MP -MF $@.d $< $(STEP_SOURCES:%=build/steps/%.o) \
		$(filter-out $(STEP_SOURCES:%=build/asan/%.o),$(ASAN_OBJECTS)) $(WRAP) $(LIBS) -o $@

# libFuzzer where there is clang; else the program drives itself.
build/fuzz/fuzz_%: tests/c/fuzz_%.c $(C_SOURCES) $(wildcard csrc/*.h tests/c/*.h)
	@mkdir -p $(@D)
	@if [ -n "$(CLANG)" ]; then clang $(subst -fsanitize=,-fsanitize=fuzzer$(comma),$(SAN)) $< $(C_SOURCES) $(LIBS) -o $@; \
	else $(CC) $(SAN) -DFUZZ_STANDALONE $< $(C_SOURCES) $(LIBS) -o $@; fi

build/strict/%.o: csrc/%.c
	@mkdir -p $(@D)
	@$(CC) -std=c11 -D_GNU_SOURCE -O2 $(WARN) -Werror -Icsrc -MMD -MP -c $< -o $@

-include $(wildcard build/asan/*.d build/steps/*.d build/strict/*.d)

asan: $(C_TESTS:%=build/asan/%) ## unit tests of the C core under AddressSanitizer and UBSan
	@failed=; for t in $(C_TESTS); do echo "-- $$t"; build/asan/$$t || failed="$$failed $$t"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi; \
	echo "C unit tests: $(words $(C_TESTS)) programs passed"

# TSan may not get by with much randomized addresses. Counters are plain words that others read, on purpose: not them.
TSAN := $(subst address$(comma)undefined,thread,$(SAN))
TSAN_TESTS := $(filter-out test_counters,$(patsubst tests/c/%.c,%,$(shell grep -l pthread_create tests/c/test_*.c)))
TSAN_OBJECTS := $(C_SOURCES:csrc/%.c=build/tsan/%.o)

build/tsan/%.o: csrc/%.c
	@mkdir -p $(@D)
	@$(CC) $(TSAN) -MMD -MP -c $< -o $@

build/tsan/test_%: tests/c/test_%.c $(TSAN_OBJECTS)
	@mkdir -p $(@D)
	@$(CC) $(TSAN) -MMD -MP -MF $@.d $< $(TSAN_OBJECTS) $(WRAP) $(LIBS) -o $@

-include $(wildcard build/tsan/*.d)

tsan: $(TSAN_TESTS:%=build/tsan/%) ## the C tests with threads under ThreadSanitizer
	@failed=; run=; ! setarch -R true 2>/dev/null || run="setarch -R"; \
	for t in $(TSAN_TESTS); do echo "-- $$t"; $$run build/tsan/$$t || failed="$$failed $$t"; done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi; \
	echo "C tests with threads: $(words $(TSAN_TESTS)) programs passed"

# The modules that Python loads, in a copy of the checkout: all that is tested there is under ASan and UBSan.
COPY := build/sanitized
LIBASAN = $(shell $(CC) -print-file-name=libasan.so)
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
$(COPY)/.built: $(VENV)/.venv setup.py build_ffi.py $(CORE)
	@echo "building pyloop under sanitizers"; rm -rf $(COPY); mkdir -p $(COPY)/pyloop
	@cp -pR csrc setup.py build_ffi.py pyproject.toml README.md LICENSE $(COPY)
	@cd $(COPY) && PYLOOP_CFLAGS="$(SANITIZE)" PYLOOP_LDFLAGS="$(SANITIZE)" \
		$(abspath $(PY)) setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log >&2; exit 1; }
	@touch $@

# LeakSanitizer is off, since an interpreter never gives back all it has.
ASAN_TESTS ?= $(patsubst %,tests/test_%.py,connection fastpath_tls handler_faults reading references send_views stop timers turn \
	transports transports_faults transports_own transports_read transports_write)
asan-fastpath: $(VENV)/.test $(COPY)/.built ## tests in Python of the core and the fast path under ASan and UBSan: ASAN_TESTS=FILES
	@[ -e "$(LIBASAN)" ] || { echo "there is no shared libasan of $(CC)" >&2; exit 1; }
	@cp -pR *.md *.toml *.py Makefile docs tests examples benchmarks $(COPY) && \
		cp -p $(filter-out %.so,$(wildcard pyloop/*.*)) $(COPY)/pyloop
	@cd $(COPY) && LD_PRELOAD="$(LIBASAN)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
		PYTHONPATH="$$PWD" PYLOOP_FASTPATH=1 $(PYTEST) $(ASAN_TESTS) $(ARGS)

fuzz: $(C_FUZZ:%=build/fuzz/%) ## fuzz the C core, SECONDS=60 for each target
	@set -e; flags="$(SECONDS)"; [ -z "$(CLANG)" ] || flags="-max_total_time=$(SECONDS) -print_final_stats=1 ."; \
	for t in $(C_FUZZ); do echo "-- $$t, $(SECONDS) s"; mkdir -p build/fuzz/corpus/$$t; \
	(cd build/fuzz/corpus/$$t && ../../$$t $$flags); done

# ---- quality ------------------------------------------------------------------

C_FILES = $(wildcard csrc/*.[ch] csrc/fastpath/*.[ch] tests/c/*.[ch] benchmarks/*.[ch])

check: $(VENV)/.dev $(VENV)/.built $(C_SOURCES:csrc/%.c=build/strict/%.o) ## ruff, mypy, clang-format, layering, compiler warnings
	@failed=; say() { failed="$$failed, $$1"; }; \
	$(PY) -m ruff check . || say "ruff check"; \
	$(PY) -m ruff format --check . || say "ruff format"; \
	$(PY) -m mypy --strict pyloop || say mypy; \
	$(VENV)/bin/clang-format --dry-run --Werror $(C_FILES) || say clang-format; \
	$(PY) -m pytest -q --noconftest tests/test_layering.py tests/test_repository.py || say "repository rules"; \
	[ -z "$$failed" ] || { echo "make check failed in:$${failed#,}  (make format mends formatting)" >&2; exit 1; }

format: $(VENV)/.dev ## rewrite Python and C as ruff and clang-format want them
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format -q .
	@$(VENV)/bin/clang-format -i $(C_FILES)

soak: $(VENV)/.test $(VENV)/.built ## the long runs: leaks, fds, memory (SECONDS=60); all without the fast path; all under ASan
	@status=0; run() { "$$@" || status=$$?; }; \
	run $(MAKE) test-asyncio BACKEND=select ARGS=; \
	for backend in epoll select; do run env PYLOOP_FASTPATH=0 $(MAKE) test-asyncio BACKEND=$$backend ARGS=; done; \
	run env PYLOOP_FASTPATH=0 $(PYTEST); \
	run $(MAKE) asan-fastpath ASAN_TESTS= ARGS="--backend epoll"; \
	PYLOOP_SOAK_SECONDS=$(SECONDS) $(PY) -m pytest -s -o 'norecursedirs=.*' -o timeout=0 -o faulthandler_timeout=0 tests/soak $(ARGS) || status=$$?; exit $$status

bench: $(VENV)/.bench $(VENV)/.built ## the chief benchmark rows that have a target, timers, channels and the bus, in five minutes
	@status=0; \
	$(PY) benchmarks/run.py --seconds 0.4 --warmup 0.1 --patience 20 $(ARGS) || status=$$?; \
	$(PY) benchmarks/channels.py --rounds 7 || status=$$?; \
	$(PY) benchmarks/timers.py || status=$$?; \
	$(PY) benchmarks/bus.py || status=$$?; exit $$status

bench-all: $(VENV)/.bench $(VENV)/.built ## every row and peer; ROWS=REGEX chooses, ROUNDS=5
	@$(PY) benchmarks/run.py --all $(if $(ROWS),--rows "$(ROWS)") --rounds $(ROUNDS) $(ARGS)

bench-models: $(VENV)/.bench $(VENV)/.built ## loop, threads, forks and workers side by side; draws docs/models.svg
	@status=0; \
	$(PY) benchmarks/run.py --rows "^(models|scaling)-" --rounds $(ROUNDS) $(ARGS) || status=$$?; \
	$(PY) benchmarks/spread.py || status=$$?; \
	$(PY) benchmarks/plot.py || status=$$?; exit $$status

docs: ## where the documentation is
	@echo "Plain Markdown, nothing to build: start with README.md, then"; ls docs/*.md

wheel: $(VENV)/.wheel ## build sdist and wheel, and try the wheel in an empty environment elsewhere
	@rm -rf dist && mkdir -p build && PYLOOP_FASTPATH=1 $(PY) -m build --outdir dist . >build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PY) -m venv "$$away/env"; cp tests/smoke.py "$$away"; wheel=$$(ls "$$PWD"/dist/*.whl); cd "$$away"; \
	env/bin/python -m pip --disable-pip-version-check -qq install "$$wheel"; \
	env -u PYTHONPATH env/bin/python -I smoke.py
	@ls -1 dist

clean: ## remove everything that was built or installed
	rm -rf build dist $(VENV) *.egg-info pyloop/_core.*so pyloop/_fastpath.*so pyloop/_core.[co] csrc/*.o
	find . -name __pycache__ -prune -exec rm -rf {} +
