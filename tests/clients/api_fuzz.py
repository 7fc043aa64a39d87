#!/usr/bin/env python3
"""Schemathesis over /openapi.json of the real binary, administration included, with the admin key.

    pip install schemathesis; python3 tests/clients/api_fuzz.py [SECONDS [EXAMPLES [SEED]]]

SECONDS bounds the fuzzing (default 60). Without SEED every run makes other requests. `.ci/run` gives one, so that a
change is judged by the requests that the change before it passed. The long run, 50,000 requests and more:
`api_fuzz.py 3600 1000`.
Nothing may be a server error or contradict the document, nothing may panic, and the server must be alive and
idle at the end. Jobs are queued and not run: what a recipe does with its arguments is tested elsewhere.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import server as instructd

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def requests_seen(server):
    lines = server.get("/metrics").splitlines()
    return sum(float(l.rsplit(" ", 1)[1]) for l in lines if l.startswith("instructd_request_duration_seconds_count"))


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    examples = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    seed = ["--seed", sys.argv[3]] if len(sys.argv) > 3 else []
    with instructd.running(JOBS__ENABLED="false", RATES__LOGIN_PER_MINUTE=0) as server:
        before = server.memory_kib()
        began = time.monotonic()
        command = [
            str(pathlib.Path(sys.executable).with_name("st")), "run", server.url + "/openapi.json",
            "--header", f"Authorization: Bearer {instructd.ADMIN_KEY}",
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-time", str(seconds),
            # One worker: two parse Python source at once, which CPython 3.11 sometimes ends with a SystemError.
            "--max-examples", str(examples), "--workers", "1", "--request-timeout", "60",
            "--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure", "--no-color",
            # An event stream of a job that is not done has no end.
            "--exclude-path", "/admin/jobs/{id}/events",
            *seed,
        ]
        # It writes files of its own where it runs.
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(command, capture_output=True, text=True, cwd=place)
        print(done.stdout[-12000:], done.stderr[-4000:])
        assert server.alive(), server.log()[-4000:]
        assert "panicked" not in server.log(), server.log()[-4000:]
        for _ in range(200):
            busy = [server.metric(f"instructd_requests_{s}") for s in ("running", "waiting")]
            if not any(busy):
                break
            time.sleep(0.1)
        assert not any(busy), f"running and waiting at the end: {busy}"
        figures = {"requests": int(requests_seen(server)), "seconds": round(time.monotonic() - began),
                   "memory_before_mib": before // 1024, "memory_after_mib": server.memory_kib() // 1024}
        print(json.dumps(figures))
        if done.returncode != 0:
            print("\n".join(line for line in server.log().splitlines() if "ERROR" in line)[-4000:])
            sys.exit("schemathesis found something")


if __name__ == "__main__":
    main()
