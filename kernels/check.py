"""Checks kernels without a GPU, in Triton's interpreter.

    python check.py            every case against its reference, then every mutant against the cases
    python check.py NAME…      cases of these names alone

Exit status 1 when a case fails, when a kernel has no case, or when a mutant passes.
"""

import importlib.util
import multiprocessing
import multiprocessing.pool
import sys
import tempfile
import time
from pathlib import Path

import harness  # noqa: F401  (before Triton: it switches the interpreter on)
import adapters
import backward
import cases
import cases_adapters  # noqa: F401
import cases_backward  # noqa: F401
import cases_encoders  # noqa: F401
import encoders
import forward
from mutants import MUTANTS
from table import variants

HERE = Path(__file__).resolve().parent
SECONDS = 120
# How a case says that a kernel is wrong; anything else would be a mutant that cannot even run.
NOTICED = ("Violation", "AssertionError", "the process died")


def in_child(work, *args):
    """Runs `work` in a process of its own: a wild pointer ends that process. Returns what it found wrong, if
    anything."""
    queue = multiprocessing.Queue()

    def body():
        try:
            work(*args)
        except BaseException as error:
            queue.put(f"{type(error).__name__}: {error}")
        else:
            queue.put(None)

    child = multiprocessing.Process(target=body)
    child.start()
    child.join(SECONDS)
    if child.is_alive():
        child.kill()
        return f"no end after {SECONDS} s"
    if child.exitcode:
        return f"the process died ({child.exitcode})"
    return queue.get()


def one(job):
    name, t, mutant = job
    fn = next(fn for case, _, fn in cases.CASES if case == name)
    modules = {"forward": forward, "backward": backward, "adapters": adapters, "encoders": encoders}

    def work():
        if mutant is not None:
            modules[MUTANTS[mutant][0]] = mutated(mutant)
        fn(modules, t)

    started = time.time()
    return job, in_child(work), time.time() - started


def mutated(i):
    """The module with the mistake in it, from a file, because Triton reads sources."""
    module, right, wrong, _ = MUTANTS[i]
    text = (HERE / f"{module}.py").read_text()
    path = Path(tempfile.mkdtemp()) / f"{module}_{i}.py"
    path.write_text(text.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def main():
    only = sys.argv[1:]
    names = [name for name, _, _ in cases.CASES if not only or name in only]
    wrong = []
    covered = {kernel for _, kernels, _ in cases.CASES for kernel in kernels}
    wrong += [f"{v.kernel}: no case runs it" for v in variants() if v.kernel not in covered]
    jobs = [(name, t, None) for name, _, t in cases.jobs(names)]
    if not only:
        for i, (module, right, _, case) in enumerate(MUTANTS):
            if right not in (HERE / f"{module}.py").read_text():
                wrong.append(f"mutant {i}: '{right}' is not in {module}.py")
            jobs.append((case, "f32", i))
    # Children of children: the pool's own workers may not be daemons.
    with multiprocessing.pool.ThreadPool(max(2, multiprocessing.cpu_count())) as pool:
        for (name, t, mutant), found, seconds in pool.imap(one, jobs):
            if mutant is None:
                print(f"{'ok' if found is None else 'WRONG':5} {seconds:5.1f} s  {name} {t}{': ' + found if found else ''}")
                if found:
                    wrong.append(f"{name} {t}: {found}")
            elif found is None or not found.startswith(NOTICED):
                wrong.append(f"mutant {mutant} is not caught by {name} ({found}): '{MUTANTS[mutant][2]}'")
            else:
                print(f"caught {seconds:4.1f} s  mutant {mutant} by {name}: {found[:90]}")
    print(f"{len(names)} cases, {0 if only else len(MUTANTS)} mutants")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
