#!/usr/bin/env python3
"""Breaks runs in every way that we could think of, and compares what they end in with runs that nobody touched.

    tests/torture.py [--build build] [--n 500] [--seed 1] [--threads 1] [--only kills,flips] [--record]

What is broken may end with a sentence and status 2, or be gone on with until it has the same model, log and samples to the last
bit. It is a fault if it is lost (it cannot be gone on with), silently wrong (status 0 and other bytes) or hung. stderr tells of
each fault; --record puts the table into tests/RESULTS.md.
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
arguments.add_argument("--n", type=int, default=500, help="kills; the other counts follow it")
arguments.add_argument("--seed", type=int, default=1)
arguments.add_argument("--threads", type=int, default=1, help="of each run, for ThreadSanitizer")
arguments.add_argument("--only", default="")
arguments.add_argument("--record", action="store_true")
args = arguments.parse_args()
WORK = pathlib.Path(tempfile.mkdtemp(prefix="r1_torture_"))
WORLD, BASE = ROOT / "data/world", ROOT / "data/world/base"
HANGS = 60  # seconds
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0:allocator_may_return_null=1",
                            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip
TRAIN, EVAL, SFT = WORK / "train.jsonl", WORK / "eval.jsonl", WORK / "sft.jsonl"
TRAIN.write_text("".join(open(WORLD / "countdown_train.jsonl").readlines()[:8]))
EVAL.write_text("".join(open(WORLD / "countdown_test.jsonl").readlines()[:4]))
SFT.write_text("".join(json.dumps({"prompt": f"1,2,{i}=6:", "completion": f"1+2+{i}"}) + "\n" for i in range(3, 9)))

COMMON = f"--model {BASE} --threads {args.threads} --device cpu"
TRAINING = f"{COMMON} --lr 1e-3 --steps 6 --save-every 2"
GRPO = f"train_grpo {TRAINING} --train {TRAIN} --prompts 2 --group 2 --max-new-tokens 8 --show-every 1"
CONFIGURATIONS = {
    "grpo": GRPO,
    "evaluations": f"{GRPO} --eval {EVAL} --eval-every 2 --eval-samples 2 --keep-best",
    "reference": f"{GRPO} --beta 0.05 --reference-refresh 3",
    "epochs": f"{GRPO} --inner-epochs 2 --mini-batches 2 --keep 1",
    "bfloat16": f"{GRPO} --state-dtype bfloat16 --save-dtype bfloat16",
    "program": f"{GRPO} --reward program=1 --reward-program 'while read x; do echo ${{#x}}; done'",
    "dapo": f"{GRPO} --preset dapo --dynamic-sampling 2",
    "sft": f"train_sft {TRAINING} --data {SFT} --batch-tokens 40",
    "constant": f"train_sft {TRAINING} --data {SFT} --batch-tokens 40 --schedule constant --state-dtype bfloat16",
    "samples": f"infer {COMMON} --sample {EVAL} --samples 6 --max-new-tokens 24 --slots 3",
}
faults = collections.defaultdict(collections.Counter)  # of each kind: lost, wrong, hung
references = {}  # of each configuration: the result, and how many seconds it takes
rng = random.Random(args.seed)


def fault(kind, what, text):
    faults[kind][what] += 1
    print(f"{kind}: {what}: {text}", file=sys.stderr, flush=True)


def command(line, out, resume=True):
    return f"exec {args.build}/{line} --out {out}" + " --resume" * resume


def start(line, **environment):
    return subprocess.Popen(line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=ENVIRONMENT | environment, start_new_session=True, text=True, errors="replace")  # fmt: skip


def finish(process, seconds=HANGS):
    """The exit status, None for a process that hangs, and what was printed."""
    try:
        printed = process.communicate(timeout=seconds)[0]
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def run(line, seconds=HANGS, **environment):
    return finish(start(line, **environment), seconds)


def remove(out):
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)


def each(body, jobs):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(body, jobs))
    return len(jobs)


def result(out):
    """All that a run leaves, but for when and where it ran."""
    if out.is_file():
        return {"samples": out.read_bytes()}
    recorded = r"run.toml|log.jsonl|checkpoint-\d+.safetensors"
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and not re.fullmatch(recorded, p.name)}
    files["log"] = []
    for line in map(json.loads, open(out / "log.jsonl")):
        if "run" not in line and "resumed" not in line:
            files["log"].append({k: v for k, v in line.items() if k not in ("seconds", "memory", "tokens_per_second")})
    return files


def check(kind, name, out, note):
    ours, theirs = result(out), references[name][0]
    if ours != theirs:
        fault(kind, "wrong", f"{name} {note}: {[n for n in ours | theirs if ours.get(n) != theirs.get(n)]} differ")


def go_on(kind, name, out, note):
    """Resumes what was broken, and compares."""
    status, printed = run(command(CONFIGURATIONS[name], out))
    if status is None:
        fault(kind, "hung", f"{name} {note}")
    elif status != 0 and "is finished and its checkpoint is gone" not in printed:
        fault(kind, "lost", f"{name} {note}: status {status}: {printed[-300:]}")
    else:
        check(kind, name, out, note)
    remove(out)


def refused(kind, line, note, seconds=HANGS, says=""):
    """Runs what must end with one sentence and status 2."""
    status, printed = run(line, seconds)
    if status is None:
        fault(kind, "hung", note)
    elif status != 2 or "internal error" in printed or says not in printed:
        fault(kind, "lost" if status else "wrong", f"{note}: status {status}: {printed[-300:]}")


def signalled(kind, count, at_a_time, choices):
    """Runs that get signals at random instants, one process after another until all were sent, and then go on."""

    def one(number):
        chance = random.Random(args.seed * 1000 + number)
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        out, left = WORK / f"signalled_{number}", chance.choices(choices, k=at_a_time)
        while left:
            process = start(command(CONFIGURATIONS[name], out))
            while left and process.poll() is None:
                time.sleep(chance.uniform(0, references[name][1] / (1 if left[0] == signal.SIGKILL else 4)))
                process.send_signal(left.pop())
            process.send_signal(signal.SIGCONT)  # it may be stopped
            status, printed = finish(process)
            if status is None:
                fault(kind, "hung", f"{name} number {number}")
            elif status not in (0, 130, -signal.SIGKILL, *(-s for s in choices)) and "is finished" not in printed:
                fault(kind, "lost", f"{name} number {number}: status {status}: {printed[-300:]}")
        go_on(kind, name, out, f"number {number}")

    return each(one, range(max(1, count // at_a_time))) * at_a_time


def kills(kind):
    return signalled(kind, args.n, 5, [signal.SIGKILL])


def signals(kind):
    harmless = [signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG]
    return signalled(kind, 2 * args.n, 10, [*harmless, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def stopped(name, steps, copies):
    """Copies of the folder of a run that was stopped after so many steps, with two checkpoints."""
    out = WORK / "stopped"
    status, printed = run(command(f"{CONFIGURATIONS[name]} --steps {steps} --keep 2", out, resume=False))
    assert status == 0, printed
    (out / "model.safetensors").unlink()
    folders = [shutil.copytree(out, WORK / f"copy_{i}") for i in range(copies)]
    remove(out)
    return folders


def truncations(kind):
    count = max(1, args.n // 20)
    for out in stopped("grpo", 4, count):  # the newest checkpoint: the one before it is there
        os.truncate(out / "checkpoint-4.safetensors", rng.randrange((out / "checkpoint-4.safetensors").stat().st_size))
        go_on(kind, "grpo", out, "a checkpoint")
    for _ in range(2 * count):  # a file of the model, or the data
        folder = shutil.copytree(BASE, WORK / "cut")
        file = folder / rng.choice(["model.safetensors", "config.json", "tokenizer.json", "train.jsonl"])
        shutil.copy(TRAIN, folder)
        whole = file.read_bytes().rstrip()
        within = [i for i in range(len(whole)) if file.suffix != ".jsonl" or (i and whole[i - 1 : i + 1].count(b"\n") == 0)]
        os.truncate(file, size := rng.choice(within))
        line = GRPO.replace(str(BASE), str(folder)).replace(str(TRAIN), str(folder / "train.jsonl"))
        refused(kind, command(line, WORK / "none", False), f"{file.name} of {size} bytes")
        remove(folder)
    return 3 * count


def flips(kind):
    (out,) = stopped("grpo", 2, 1)
    file = out / "checkpoint-2.safetensors"
    whole, before = file.read_bytes(), result(out)
    for number in range(args.n):
        at = rng.randrange(4096 if number % 2 else len(whole))  # half of them in the header
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        refused(kind, command(GRPO, out), f"byte {at}")
        if result(out) != before:
            fault(kind, "wrong", f"byte {at}: the folder has changed")
    file.write_bytes(whole)
    go_on(kind, "grpo", out, "mended")
    return args.n


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int calls;
/* Whether this call on a regular file fails: call number $AT, and of a full disk all after it; 2: half of it is done. */
static int fails(int fd) {
    struct stat s;
    const char *at = getenv("AT"), *how = getenv("HOW");
    if (!at || (fd >= 0 && (fstat(fd, &s) || !S_ISREG(s.st_mode)))) return 0;
    const int number = __sync_add_and_fetch(&calls, 1), full = !strcmp(how, "ENOSPC");
    if (number < atoi(at) || (number > atoi(at) && !full)) return 0;
    errno = full ? ENOSPC : strcmp(how, "EINTR") ? EIO : EINTR;
    return strcmp(how, "short") ? 1 : 2;
}
__attribute__((destructor)) static void count(void) { if (getenv("AT")) dprintf(2, "calls=%d\n", calls); }
#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))
ssize_t write(int fd, const void *p, size_t n) {
    const int f = fails(fd);
    return f == 1 ? -1 : REAL(write)(fd, p, f == 2 && n > 1 ? n / 2 : n);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return fails(fd) == 1 ? -1 : REAL(pwrite)(fd, p, n, at); }
int fsync(int fd) { return fails(fd) == 1 ? -1 : REAL(fsync)(fd); }
int ftruncate(int fd, off_t n) { return fails(fd) == 1 ? -1 : REAL(ftruncate)(fd, n); }
int rename(const char *from, const char *to) { return fails(-1) == 1 ? -1 : REAL(rename)(from, to); }
"""


def writes(kind):
    """A full disk, EIO, EINTR and half of a write, at each call that changes a file."""
    (WORK / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", WORK / "shim.so", WORK / "shim.c", "-ldl"], check=True)
    preload, jobs = {"LD_PRELOAD": str(WORK / "shim.so")}, []
    for name in ("evaluations", "sft", "samples"):
        calls = re.search(r"calls=(\d+)", run(command(CONFIGURATIONS[name], WORK / "counted"), AT="0", HOW="EIO", **preload)[1])
        remove(WORK / "counted")
        for how in ("ENOSPC", "EIO", "EINTR", "short"):
            every = range(1, int(calls[1]) + 1)
            jobs += [(name, how, at) for at in (every if args.n >= 500 else rng.sample(every, max(1, args.n // 40)))]

    def one(job):
        name, how, at = job
        out, note = WORK / f"failing_{name}_{how}_{at}", f"{how} at call {at}"
        status, printed = run(command(CONFIGURATIONS[name], out), AT=str(at), HOW=how, **preload)
        if status is None:
            fault(kind, "hung", f"{name} {note}")
        elif status not in (0, 2) or "internal error" in printed or (status == 2 and how == "short"):
            fault(kind, "lost", f"{name} {note}: status {status}: {printed[-300:]}")
        elif status == 0:
            check(kind, name, out, note)
        go_on(kind, name, out, note)

    for name in ("grpo", "sft"):
        refused(kind, command(CONFIGURATIONS[name], WORK / name, False) + " >/dev/full", "standard output is full")
        remove(WORK / name)
    return each(one, jobs) + 2


FLAGS = """--seed 2|--group 4|--prompts 4|--max-new-tokens 9|--temperature 0.9|--reward accuracy=1|--beta 0.1|--loss dapo
--clip-high 0.3|--clip-low 0.1|--ratio sequence|--mini-batches 2|--inner-epochs 2|--advantage-scale none|--overlong mask
--overlong-cache 3|--dynamic-sampling 2|--importance-cap 2|--reference-refresh 5|--schedule cosine|--script han
--state-dtype bfloat16|--dtype bfloat16|--exact|--stop-text x|--escape-special|--lr 2e-3|--warmup 1|--weight-decay 0.1
--clip-norm 2|--entropy-bonus 0.1|--min-entropy 0.1|--threads 2|--steps 7|--save-every 3|--token-budget 4096|--show-every 2"""


def flags(kind):
    changed = FLAGS.replace("\n", "|").split("|")
    for out, flag in zip(stopped("grpo", 2, len(changed)), changed):
        status, printed = run(command(f"{GRPO} {flag}", out))
        name = flag.split()[0]
        named = name in printed or (name == "--stop-text" and "stop texts" in printed)
        if not (status == 0 and f"note: {name} is" in printed) and not (status == 2 and named):
            fault(kind, "lost" if status else "wrong", f"{flag}: status {status}: {printed[-300:]}")
        remove(out)
    return len(changed)


# What reward programs do that misbehave: at once, and when they are asked for the second batch.
PROGRAMS = r"""exit 0|exit 3|kill -9 $$|kill -STOP $$|sleep 99|exec <&-; sleep 99|exec >&-; sleep 99|exec <&- >&-; sleep 99
trap "" TERM; sleep 99|trap "" TERM HUP INT; while :; do :; done|sleep 99 & exit 1|(trap "" TERM; sleep 99) & exit 0
echo|echo no|echo nan|echo inf|echo -1e400|echo 1e16|echo null|echo true|echo [1]|echo "{}"|echo '{"reward": null}'
echo '{"reward": "1"}'|echo '{"reward": 1'|echo 1 2|echo 0x10|printf '1\0\n'|printf '\377\n'|printf 1; sleep 99
echo 1; echo 1; echo 1; echo 1; echo 1|yes|yes 1|tr '\0' 7 </dev/zero|cat"""


def programs(kind):
    second = "for i in 1 2 3 4; do read x; echo 1; done; "
    jobs = list(enumerate(before + text for text in PROGRAMS.replace("\n", "|").split("|") for before in ("", second)))

    def one(job):
        out, script = WORK / f"program_{job[0]}", WORK / f"program_{job[0]}.sh"
        script.write_text(job[1] + "\n")
        line = f"{GRPO} --reward program=1 --reward-seconds 1 --reward-program 'exec sh {script}'"
        refused(kind, command(line, out, False), repr(job[1]), 20, "--reward-program")
        remove(out)

    return each(one, rng.sample(jobs, max(4, min(len(jobs), len(jobs) * args.n // 500))))


def ranks(kind):
    if not shutil.which("mpirun") or b"libmpi" not in subprocess.check_output(["ldd", args.build / "train_grpo"]):
        return 0
    count = max(1, args.n // 25)
    for number in range(count):
        out, size, pids = WORK / f"ranks_{number}", rng.choice([2, 4]), WORK / f"pids_{number}"
        pids.mkdir()
        line = f"{GRPO} --prompts 4 --steps 100000"
        process = start(f"exec mpirun --oversubscribe -n {size} sh -c 'echo $$ >{pids}/$OMPI_COMM_WORLD_RANK; {command(line, out, False)}'")
        while len(list(pids.iterdir())) < size:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.1, 2))
        os.kill(int((pids / str(rng.randrange(size))).read_text()), signal.SIGKILL)
        status, printed = finish(process, 20)
        if not status:
            fault(kind, "hung" if status is None else "wrong", f"{size} ranks, number {number}: {printed[-300:]}")
        status, printed = run(command(f"{GRPO} --prompts 4 --steps 1", out))
        if status != 0:
            fault(kind, "lost", f"{size} ranks, number {number}: status {status}: {printed[-300:]}")
        remove(out)
    return count


KINDS = {kills: "kills at random instants", signals: "signals", truncations: "truncated files", flips: "flipped bits of a checkpoint",
         writes: "failing writes", flags: "changed flags on resume", programs: "misbehaving reward programs", ranks: "killed ranks"}  # fmt: skip


def main():
    for name, line in CONFIGURATIONS.items():
        begin = time.time()
        status, printed = run(command(line, WORK / f"untouched_{name}", resume=False))
        assert status == 0, printed
        references[name] = (result(WORK / f"untouched_{name}"), time.time() - begin)
    table = "| what | how many | lost | silently wrong | hung | seconds |\n|---|---|---|---|---|---|\n"
    for body, kind in KINDS.items():
        if not args.only or body.__name__ in args.only.split(","):
            begin, count = time.time(), body(kind)
            found = [faults[kind][what] for what in ("lost", "wrong", "hung")]
            table += f"| {kind} | {count} | " + " | ".join(map(str, found)) + f" | {time.time() - begin:.0f} |\n"
            print(table.splitlines()[-1], flush=True)
    shutil.rmtree(WORK)
    if args.record:
        commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], text=True).strip()
        cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())[1]
        text = (ROOT / "tests/RESULTS.md").read_text().split("<!-- torture -->\n")
        text[1] = f"`make torture N={args.n}`, commit {commit}, {datetime.date.today()}, {os.cpu_count()} cores of an {cpu}:\n\n{table}"
        (ROOT / "tests/RESULTS.md").write_text("<!-- torture -->\n".join(text))
    return 1 if any(sum(found.values()) for found in faults.values()) else 0


sys.exit(main())
