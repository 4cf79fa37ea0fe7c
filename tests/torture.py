#!/usr/bin/env python3
"""Breaks runs in every way that we could think of and compares what comes of them with runs that nobody touched.

    tests/torture.py [--build build] [--n 500] [--seed 1] [--only kills,flips] [--record]

A run that is broken may end with a sentence and status 2, or be gone on with until it has the same model, log and samples to
the last bit. A fault is one that is lost (it cannot be gone on with), silently wrong (status 0 and other bytes) or hung. The
table that is printed goes into tests/RESULTS.md with --record. Each fault is described on stderr with the seed's number.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
arguments = argparse.ArgumentParser()
arguments.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
arguments.add_argument("--n", type=int, default=500, help="kills and flips; the other counts follow it")
arguments.add_argument("--seed", type=int, default=1)
arguments.add_argument("--only", default="")
arguments.add_argument("--record", action="store_true")
args = arguments.parse_args()
WORK = pathlib.Path(tempfile.mkdtemp(prefix="r1_torture_"))
BASE, WORLD = ROOT / "data/world/base", ROOT / "data/world"
LIMIT = 60  # seconds after which a run hangs
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip


def head(source, lines, name):
    (WORK / name).write_text("".join(open(source).readlines()[:lines]))
    return WORK / name


TRAIN, EVAL = head(WORLD / "countdown_train.jsonl", 8, "train.jsonl"), head(WORLD / "countdown_test.jsonl", 4, "eval.jsonl")
SFT = WORK / "sft.jsonl"
SFT.write_text("".join(json.dumps({"prompt": f"1,2,{i}=6:", "completion": f"<answer>1+2+{i}</answer>"}) + "\n" for i in range(3, 9)))
COMMON = f"--model {BASE} --threads 1 --device cpu --lr 1e-3 --steps 6 --save-every 2"
GRPO = f"train_grpo {COMMON} --train {TRAIN} --prompts 2 --group 2 --max-new-tokens 8 --show-every 1"
COUNTING = "while read x; do echo ${#x}; done"  # a reward program: the length of what it is asked
CONFIGURATIONS = {
    "GRPO": GRPO,
    "evaluations": f"{GRPO} --eval {EVAL} --eval-every 2 --eval-samples 2 --keep-best",
    "reference": f"{GRPO} --beta 0.05 --reference-refresh 3",
    "inner epochs": f"{GRPO} --inner-epochs 2 --mini-batches 2 --keep 1",
    "bfloat16": f"{GRPO} --state-dtype bfloat16 --save-dtype bfloat16",
    "program": f"{GRPO} --reward program=1,format=0.2 --reward-program '{COUNTING}'",
    "DAPO": f"{GRPO} --preset dapo --dynamic-sampling 2",
    "SFT": f"train_sft {COMMON} --data {SFT} --batch-tokens 40",
    "SFT, constant": f"train_sft {COMMON} --data {SFT} --batch-tokens 40 --schedule constant --state-dtype bfloat16",
    "samples": f"infer --model {BASE} --threads 1 --device cpu --sample {EVAL} --samples 6 --max-new-tokens 24 --slots 3",
}
faults = collections.defaultdict(collections.Counter)  # of each kind: lost, wrong, hung


def fault(kind, what, text):
    faults[kind][what] += 1
    print(f"{kind}: {what}: {text}", file=sys.stderr, flush=True)


def command(line, out, resume=True):
    return f"exec {args.build}/{line} --out {out}" + (" --resume" if resume else "")


def start(line, **environment):
    return subprocess.Popen(line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=ENVIRONMENT | environment, start_new_session=True, text=True, errors="replace")  # fmt: skip


def finish(process, limit=LIMIT):
    """Returns the exit status, None for a process that hangs, and what was printed."""
    try:
        printed = process.communicate(timeout=limit)[0]
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        kill_group(process)
        return None, process.communicate()[0]


def run(line, limit=LIMIT, **environment):
    return finish(start(line, **environment), limit)


def kill_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


WHEN_AND_WHERE = r"run.toml|log.jsonl|checkpoint-\d+.safetensors"


def result(out):
    """All that a run leaves, but for when and where it ran."""
    if out.is_file():
        return out.read_bytes()
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and not re.fullmatch(WHEN_AND_WHERE, p.name)}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in log:
        for key in ("seconds", "memory", "tokens_per_second"):
            line.pop(key, None)
    return files, [line for line in log if "run" not in line and "resumed" not in line]


def differences(a, b):
    if isinstance(a, bytes):
        return "its bytes differ"
    return [n for n in sorted(a[0] | b[0]) if a[0].get(n) != b[0].get(n)] + (["log.jsonl"] if a[1] != b[1] else [])


def go_on(kind, line, out, expected, note=""):
    """Resumes what was broken, and compares."""
    status, printed = run(command(line, out))
    finished = "is finished and its checkpoint is gone" in printed
    if status is None:
        fault(kind, "hung", f"{line} {note}")
    elif status != 0 and not finished:
        fault(kind, "lost", f"{line} {note}: status {status}: {printed[-300:]}")
    elif result(out) != expected:
        fault(kind, "wrong", f"{line} {note}: {differences(result(out), expected)}")
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)


def reference(name):
    """The result of a run that nobody touches, and how long it takes."""
    out = WORK / f"reference {name}".replace(" ", "_").replace(",", "")
    begin = time.time()
    status, printed = run(command(CONFIGURATIONS[name], out, resume=False))
    assert status == 0, printed
    return result(out), time.time() - begin


def broken(kind, name, number, signals, expected, length, rng):
    """A run that gets signals at random instants, one process after the other until they are used up, and then goes on."""
    line, out = CONFIGURATIONS[name], WORK / f"{kind}_{number}".replace(" ", "_")
    while signals:
        process = start(command(line, out))
        while signals and process.poll() is None:
            time.sleep(rng.uniform(0, length if signals[0] == signal.SIGKILL else length / 4))
            process.send_signal(signals.pop(0))
        process.send_signal(signal.SIGCONT)  # it may be stopped
        status, printed = finish(process, LIMIT)
        if status is None:
            fault(kind, "hung", f"{line} number {number}")
        elif status not in (0, 130, -9, -2, -15, -1) and "is finished and its checkpoint is gone" not in printed:
            fault(kind, "lost", f"{line} number {number}: status {status}: {printed[-300:]}")
    go_on(kind, line, out, expected, f"number {number}")


def signals_of(kind, count, each, draw, references):
    rng, jobs = random.Random(args.seed), []
    for number in range(max(1, count // each)):
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        jobs.append((kind, name, number, [draw(rng) for _ in range(each)], *references[name], random.Random(number)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: broken(*job), jobs))
    return len(jobs) * each


def kills(references):
    return signals_of("kills at random instants", args.n, 5, lambda rng: signal.SIGKILL, references)


def signals(references):
    harmless = [signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG]
    stops = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return signals_of("signals", 2 * args.n, 10, lambda rng: rng.choice(harmless + stops), references)


def stopped_run(name, steps, copies):
    """A run that was stopped after so many steps: its checkpoints, in as many folders."""
    out = WORK / "stopped"
    shutil.rmtree(out, ignore_errors=True)
    status, printed = run(command(CONFIGURATIONS[name] + f" --steps {steps} --keep 2", out, resume=False))
    assert status == 0, printed
    (out / "model.safetensors").unlink()
    for i in range(copies):
        shutil.copytree(out, WORK / f"copy_{i}")
    return [WORK / f"copy_{i}" for i in range(copies)]


def refused(kind, line, note, limit=LIMIT, says="", **environment):
    """A run that must end with one sentence and status 2."""
    status, printed = run(line, limit, **environment)
    if status is None:
        fault(kind, "hung", f"{line} {note}")
    elif status == 0:
        fault(kind, "wrong", f"{line} {note}: status 0")
    elif status != 2 or "internal error" in printed or says not in printed:
        fault(kind, "lost", f"{line} {note}: status {status}: {printed[-300:]}")
    return status, printed


def truncations(references):
    kind, rng, count = "truncated files", random.Random(args.seed), max(1, args.n // 20)
    expected = references["GRPO"][0]
    for out in stopped_run("GRPO", 4, count):  # the newest checkpoint, and sometimes the log: the one before is there
        for name in ["checkpoint-4.safetensors"] + ["log.jsonl"] * (rng.random() < 0.3):
            os.truncate(out / name, rng.randrange((out / name).stat().st_size))
        status, printed = run(command(CONFIGURATIONS["GRPO"], out))
        files = result(out)[0] if status == 0 else {}
        if status != 0 or "going on from step 2" not in printed:
            fault(kind, "lost", f"{out}: status {status}: {printed[-300:]}")
        elif files["model.safetensors"] != expected[0]["model.safetensors"]:
            fault(kind, "wrong", f"{out}: another model")
        shutil.rmtree(out)
    for number in range(2 * count):  # a file of the model, or the data
        folder = WORK / "cut"
        shutil.copytree(BASE, folder, dirs_exist_ok=True)
        shutil.copy(TRAIN, folder / "train.jsonl")
        file = folder / rng.choice(["model.safetensors", "config.json", "tokenizer.json", "train.jsonl"])
        lines = {i + 1 for i, c in enumerate(file.read_bytes()) if c == 10} if file.suffix == ".jsonl" else set()
        size = rng.choice([i for i in (rng.randrange(file.stat().st_size) for _ in range(99)) if i not in lines and i + 1 not in lines])
        os.truncate(file, size)
        line = CONFIGURATIONS["GRPO"].replace(str(BASE), str(folder)).replace(str(TRAIN), str(folder / "train.jsonl"))
        refused(kind, command(line, WORK / "none", False), f"{file.name} of {size} bytes")
    return 3 * count


def flips(references):
    kind, rng = "flipped bits of a checkpoint", random.Random(args.seed)
    (out,) = stopped_run("GRPO", 2, 1)
    file = out / "checkpoint-2.safetensors"
    whole, before = file.read_bytes(), result(out)
    for number in range(args.n):
        at = rng.randrange(min(len(whole), 4096) if number % 2 else len(whole))  # half of them in the header
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        refused(kind, command(CONFIGURATIONS["GRPO"], out), f"byte {at}")
        file.write_bytes(whole)
        if result(out) != before:
            fault(kind, "wrong", f"byte {at}: the folder has changed")
    go_on(kind, CONFIGURATIONS["GRPO"], out, references["GRPO"][0])
    return args.n


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int calls;
/* Whether this call on a regular file fails: call number $AT, and for a full disk all behind it. */
static int fails(int fd) {
    struct stat s;
    const char *at = getenv("AT"), *how = getenv("HOW");
    if (!at || (fd >= 0 && (fstat(fd, &s) || !S_ISREG(s.st_mode)))) return 0;
    const int number = __sync_add_and_fetch(&calls, 1), full = !strcmp(how, "ENOSPC");
    if (number < atoi(at) || (number > atoi(at) && !full)) return 0;
    errno = full ? ENOSPC : !strcmp(how, "EINTR") ? EINTR : EIO;
    return !strcmp(how, "short") ? 2 : 1;
}
static void __attribute__((destructor)) count(void) { if (getenv("AT")) dprintf(2, "calls=%d\n", calls); }
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    const int f = fails(fd);
    return f == 1 ? -1 : real(fd, data, f == 2 && n > 1 ? n / 2 : n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { REAL(pwrite); return fails(fd) == 1 ? -1 : real(fd, data, n, at); }
int fsync(int fd) { REAL(fsync); return fails(fd) == 1 ? -1 : real(fd); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); return fails(fd) == 1 ? -1 : real(fd, n); }
int rename(const char *from, const char *to) { REAL(rename); return fails(-1) == 1 ? -1 : real(from, to); }
"""


def writes(references):
    """ENOSPC, EIO, EINTR and half of a write, at every call that writes to a file, in turn."""
    kind, rng, jobs = "failing writes", random.Random(args.seed), []
    (WORK / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", WORK / "shim.so", WORK / "shim.c", "-ldl"], check=True)
    preload = {"LD_PRELOAD": str(WORK / "shim.so")}
    for name in ("evaluations", "SFT", "samples"):
        out = WORK / "counted"
        calls = int(re.search(r"calls=(\d+)", run(command(CONFIGURATIONS[name], out), AT="0", HOW="EIO", **preload)[1])[1])
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        for how in ("ENOSPC", "EIO", "short", "EINTR"):
            every = range(1, calls + 1)
            jobs += [(name, how, at) for at in (every if args.n >= 500 else rng.sample(every, max(1, args.n // 40)))]

    def one(job):
        (name, how, at), line = job, CONFIGURATIONS[job[0]]
        out = WORK / f"failing_{name}_{how}_{at}"
        status, printed = run(command(line, out), AT=str(at), HOW=how, **preload)
        if status is None:
            fault(kind, "hung", f"{line} {how} at {at}")
        elif status not in (0, 2) or "internal error" in printed or (status == 2 and how == "short"):
            fault(kind, "lost", f"{line} {how} at {at}: status {status}: {printed[-300:]}")
        elif status == 0 and result(out) != references[name][0]:
            fault(kind, "wrong", f"{line} {how} at {at}: {differences(result(out), references[name][0])}")
        go_on(kind, line, out, references[name][0], f"{how} at {at}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, jobs))
    for name in ("GRPO", "SFT"):
        refused(kind, command(CONFIGURATIONS[name], WORK / "full", False) + " >/dev/full", "standard output is full")
        shutil.rmtree(WORK / "full", ignore_errors=True)
    return len(jobs) + 2


FLAGS = """--seed 2|--group 4|--prompts 4|--max-new-tokens 9|--temperature 0.9|--reward accuracy=1|--beta 0.1|--loss dapo
--clip-high 0.3|--clip-low 0.1|--ratio sequence|--mini-batches 2|--inner-epochs 2|--advantage-scale none|--overlong mask
--overlong-cache 3|--dynamic-sampling 2|--importance-cap 2|--reference-refresh 5|--schedule cosine|--script han
--state-dtype bfloat16|--dtype bfloat16|--exact|--stop-text x|--escape-special|--lr 2e-3|--warmup 1|--weight-decay 0.1
--clip-norm 2|--entropy-bonus 0.1|--min-entropy 0.1|--threads 2|--steps 7|--save-every 3|--token-budget 4096|--show-every 2"""


def flags(references):
    kind, all_flags = "changed flags on resume", FLAGS.replace("\n", "|").split("|")
    for out, flag in zip(stopped_run("GRPO", 2, len(all_flags)), all_flags):
        status, printed = run(command(f"{CONFIGURATIONS['GRPO']} {flag}", out))
        name = flag.split()[0]
        noted, named = f"note: {name} is" in printed, name in printed or (name == "--stop-text" and "stop texts" in printed)
        if status is None:
            fault(kind, "hung", flag)
        elif not (status == 0 and noted) and not (status == 2 and named):
            fault(kind, "wrong" if status == 0 else "lost", f"{flag}: status {status}: {printed[-300:]}")
        shutil.rmtree(out)
    return len(all_flags)


# What reward programs do that misbehave, one a line: at once, and when they are asked for the second batch.
PROGRAMS = r"""
exit 0
exit 3
kill -9 $$
kill -STOP $$
sleep 99
exec <&-; sleep 99
exec >&-; sleep 99
exec <&- >&-; sleep 99
trap "" TERM; sleep 99
trap "" TERM HUP INT; while :; do :; done
sleep 99 & exit 1
(trap "" TERM; sleep 99) & exit 0
echo
echo no
echo nan
echo inf
echo -1e400
echo 1e16
echo null
echo true
echo [1]
echo "{}"
echo '{"reward": null}'
echo '{"reward": "1"}'
echo '{"reward": 1'
echo 1 2
echo 0x10
printf '1\0\n'
printf '\377\n'
printf 1; sleep 99
echo 1; echo 1; echo 1; echo 1; echo 1
yes
yes 1
tr '\0' 7 </dev/zero
cat
""".strip().splitlines()


def programs(references):
    kind = "misbehaving reward programs"
    first = "for i in 1 2 3 4; do read x; echo 1; done; "
    jobs = list(enumerate(before + program for program in PROGRAMS for before in ("", first)))
    jobs = random.Random(args.seed).sample(jobs, max(4, min(len(jobs), len(jobs) * args.n // 500)))

    def one(job):
        number, text = job
        out, script = WORK / f"program_{number}", WORK / f"program_{number}.sh"
        script.write_text(text + "\n")
        line = f"{GRPO} --reward program=1 --reward-seconds 1 --reward-program 'exec sh {script}'"
        refused(kind, command(line, out, False), repr(text), limit=20, says="--reward-program")
        shutil.rmtree(out, ignore_errors=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, jobs))
    return len(jobs)


def ranks(references):
    kind, rng, count = "killed ranks", random.Random(args.seed), max(1, args.n // 25)
    if not shutil.which("mpirun"):
        return 0
    for number in range(count):
        out, size = WORK / f"ranks_{number}", rng.choice([2, 4])
        numbers = WORK / f"rank_{number}"
        numbers.mkdir()
        mpirun = f"mpirun --oversubscribe -n {size} sh -c 'echo $$ >{numbers}/$OMPI_COMM_WORLD_RANK; "
        line = f"{GRPO} --prompts 4 --steps 100000"
        process = start(f"exec {mpirun}{command(line, out, False)}'")
        time.sleep(rng.uniform(0.3, 3))
        victims = list(numbers.iterdir())
        if victims and (pid := rng.choice(victims).read_text().strip()):
            os.kill(int(pid), signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
        status, printed = finish(process, 20)
        if status is None:
            fault(kind, "hung", f"{size} ranks, number {number}")
        elif status == 0:
            fault(kind, "wrong", f"{size} ranks, number {number}: status 0")
        status, printed = run(command(f"{GRPO} --prompts 4 --steps 1", out))
        if status != 0:
            fault(kind, "lost", f"{size} ranks, number {number}: status {status}: {printed[-300:]}")
        shutil.rmtree(out)
    return count


KINDS = {
    "kills": (kills, "kills at random instants"),
    "signals": (signals, "signals"),
    "truncations": (truncations, "truncated files"),
    "flips": (flips, "flipped bits of a checkpoint"),
    "writes": (writes, "failing writes"),
    "flags": (flags, "changed flags on resume"),
    "programs": (programs, "misbehaving reward programs"),
    "ranks": (ranks, "killed ranks"),
}


def main():
    references = {name: reference(name) for name in CONFIGURATIONS}
    rows = ["| what | how many | lost | silently wrong | hung | seconds |", "|---|---|---|---|---|---|"]
    for name, (body, kind) in KINDS.items():
        if args.only and name not in args.only.split(","):
            continue
        begin, count = time.time(), body(references)
        found = faults[kind]
        rows.append(f"| {kind} | {count} | {found['lost']} | {found['wrong']} | {found['hung']} | {time.time() - begin:.0f} |")
        print(rows[-1] if len(rows) > 3 else "\n".join(rows), flush=True)
    shutil.rmtree(WORK)
    if args.record:
        commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        cpu = re.search("model name\\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
        text = (ROOT / "tests/RESULTS.md").read_text().split("<!-- torture -->")
        text[1] = f"\n`make torture N={args.n}` at {commit}, {datetime.date.today()}, {os.cpu_count()} cores of {cpu}:\n\n" + "\n".join(rows) + "\n"
        (ROOT / "tests/RESULTS.md").write_text("<!-- torture -->".join(text))
    return 1 if any(sum(f.values()) for f in faults.values()) else 0


sys.exit(main())
