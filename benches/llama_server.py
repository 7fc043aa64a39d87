#!/usr/bin/env python3
"""llama.cpp's HTTP server out of the Python package xllamacpp, with the flags that compare.py passes to llama-server.

    PYTHON benches/llama_server.py -m FILE.gguf --port 8081 -np 32 -c 20480 -t 2 -tb 2

PYTHON needs `pip install xllamacpp`. compare.py takes an executable: give it a two-line shell script that calls this.
"""

import argparse
import signal

import xllamacpp


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", dest="model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-np", dest="parallel", type=int, default=1)
    parser.add_argument("-c", dest="context", type=int, default=4096)
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("-tb", dest="batch_threads", type=int, default=2)
    parser.add_argument("--no-webui", action="store_true")
    known = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = known.model
    params.port = known.port
    params.n_parallel = known.parallel
    params.n_ctx = known.context
    params.cpuparams.n_threads = known.threads
    params.cpuparams_batch.n_threads = known.batch_threads
    params.ui = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: exit())
    signal.pause()


if __name__ == "__main__":
    main()
