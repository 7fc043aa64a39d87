#!/usr/bin/env python3
"""Checks the files of deploy/ that no test of the program reads: manifests against the schemas of Kubernetes, alarms and
dashboard as PromQL over the metrics that the program exports, and the names that the files share.

    pip install -r scripts/check_deploy.txt; python3 scripts/check_deploy.py
"""

import json
import pathlib
import re
import sys

import kubernetes_validate
import promql_parser
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
VERSION = "1.31"


def metrics():
    """Every name that the program exports: counters and gauges as they are, histograms by their series."""
    found = set()
    for kind, name in re.findall(r'describe_(\w+)!\("(instructd_\w+)"', (ROOT / "src/http/status.rs").read_text()):
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    assert found, "no metric is described in src/http/status.rs"
    return found


def check_query(where, text, known):
    plain = re.sub(r"\$__rate_interval|\$__interval", "5m", text)
    promql_parser.parse(plain)
    used = set(re.findall(r"\b(instructd_\w+)", plain))
    assert used <= known, f"{where}: no such metric: {used - known}"


def manifests():
    documents = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            kubernetes_validate.validate(document, VERSION, strict=True)
            documents.append((path.name, document))
    return documents


def check_names(documents):
    """Selectors find their pods, references their objects, and probes a port."""
    named = {(d["kind"], d["metadata"]["name"]): d for _, d in documents}
    pods = [d["spec"]["template"] for _, d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    labels = [pod["metadata"]["labels"] for pod in pods]
    for name, document in documents:
        if document["kind"] == "Service":
            wanted = document["spec"]["selector"].items()
            assert any(wanted <= found.items() for found in labels), f"{name}: a service without pods"
    for pod in pods:
        volumes = {v["name"] for v in pod["spec"].get("volumes", [])} | {"data"}
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in named, volume
        for container in pod["spec"]["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= volumes, container["name"]
            ports = {p["name"] for p in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                http = container.get(probe, {}).get("httpGet")
                assert http is None or http["port"] in ports, (container["name"], probe)
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    secret = named["Secret", reference["name"]]
                    assert reference["key"] in secret["stringData"], reference


def main():
    known = metrics()
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
    alarms = [rule for group in rules["groups"] for rule in group["rules"]]
    for rule in alarms:
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("warning", "critical"), rule
        check_query(rule["alert"], rule["expr"], known)
    board = json.loads((DEPLOY / "grafana/instructd.json").read_text())
    queries = [(p["title"], t["expr"]) for p in board["panels"] for t in p.get("targets", [])]
    for title, text in queries:
        check_query(title, text, known)
    ids = [p["id"] for p in board["panels"]]
    assert len(ids) == len(set(ids)), "two panels have one id"
    documents = manifests()
    check_names(documents)
    print(f"deploy: {len(documents)} manifests, {len(alarms)} alarms, {len(queries)} queries of the dashboard")


if __name__ == "__main__":
    sys.exit(main())
