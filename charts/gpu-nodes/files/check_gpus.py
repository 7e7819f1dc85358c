"""Look at the GPUs of this node again and again; cordon the node when they are bad several times in a row.

Only the standard library and the driver's own nvidia-smi are used. A cordoned node keeps its running pods; nothing
here ever uncordons one: a person does, after looking. A fault of the whole cluster, such as a driver upgrade gone
wrong, looks like bad GPUs everywhere: no more than MAX_CORDONED nodes are ever cordoned.
"""

import json
import os
import pathlib
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

FIELDS = ("index", "uuid", "ecc.errors.uncorrected.volatile.total", "remapped_rows.failure", "temperature.gpu")
ANNOTATION = "kinoflow.io/gpu-health"
ACCOUNT = pathlib.Path(os.environ.get("ACCOUNT_FOLDER", "/var/run/secrets/kubernetes.io/serviceaccount"))
NVIDIA_SMI_TIMEOUT_S = 60


def find_faults(max_errors, max_temperature_c, expected):
    """What is wrong with this node's GPUs, one sentence each; `expected` is how many the node has, or None."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT_S} s: the driver hangs"]
    if answer.returncode:
        return [f"nvidia-smi failed with {answer.returncode}: {(answer.stderr or answer.stdout).strip()[:200]}"]
    faults = []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    for row in rows:
        if len(row) != len(FIELDS):
            faults.append(f"nvidia-smi said something else: {','.join(row)[:200]}")
            continue
        index, uuid, errors, remap, temperature = row
        name = f"GPU {index} ({uuid})"
        if number(errors) is not None and number(errors) > max_errors:
            faults.append(f"{name} has {errors} uncorrected memory errors")
        if remap.lower() in ("yes", "1"):
            faults.append(f"{name} could not remap a row of its memory")
        if number(temperature) is not None and number(temperature) > max_temperature_c:
            faults.append(f"{name} is at {temperature} C")
    if expected is not None and len(rows) < expected:
        faults.append(f"{len(rows)} of {expected} GPUs answer")
    return faults


def number(cell):
    """A cell's number, or None where the GPU does not measure that ("[N/A]")."""
    try:
        return float(cell)
    except ValueError:
        return None


def request(method, path, body=None):
    """One call to the API server as this pod's account."""
    server = os.environ.get("API_SERVER") or (
        f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    )
    authority = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=authority) if authority.exists() else None
    call = urllib.request.Request(
        server + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/strategic-merge-patch+json",
        },
    )
    with urllib.request.urlopen(call, timeout=30, context=context) as answer:
        return json.load(answer)


def gpus_of(node):
    """GPUs the node should have by its discovery label; None when nobody said or the label counts something else."""
    if os.environ.get("COUNT_GPUS", "true") != "true":
        return None
    count = node["metadata"].get("labels", {}).get("nvidia.com/gpu.count")
    return int(count) if count and count.isdigit() else None


def cordoned_nodes():
    """Names of the GPU nodes that this check has cordoned and nobody has uncordoned."""
    selector = urllib.parse.quote(os.environ["NODE_SELECTOR"])
    nodes = request("GET", f"/api/v1/nodes?labelSelector={selector}")["items"]
    return [
        node["metadata"]["name"]
        for node in nodes
        if node["spec"].get("unschedulable") and ANNOTATION in node["metadata"].get("annotations", {})
    ]


def cordon(node_name, faults):
    """Mark the node unschedulable and say why, unless it is already or too many others are."""
    node = request("GET", f"/api/v1/nodes/{node_name}")
    if node["spec"].get("unschedulable"):
        print(f"{node_name} is already cordoned")
        return
    others = cordoned_nodes()
    if len(others) >= int(os.environ["MAX_CORDONED"]):
        print(f"{node_name} stays in use, because {len(others)} nodes are cordoned already: {', '.join(others)}")
        return
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    reason = {"cordoned": now, "faults": faults}
    request(
        "PATCH",
        f"/api/v1/nodes/{node_name}",
        {"metadata": {"annotations": {ANNOTATION: json.dumps(reason)}}, "spec": {"unschedulable": True}},
    )
    print(f"cordoned {node_name}: {'; '.join(faults)}")


def main():
    """Look for ever; END_AFTER ends it after so many looks."""
    node_name = os.environ["NODE_NAME"]
    may_cordon = os.environ["CORDON"] == "true"
    needed = int(os.environ["FAILURES"])
    looks = int(os.environ.get("END_AFTER", "0"))
    expected, bad, look = None, 0, 0
    while not looks or look < looks:
        look += 1
        try:
            if may_cordon:
                expected = gpus_of(request("GET", f"/api/v1/nodes/{node_name}")) or expected
            limits = int(os.environ["MAX_UNCORRECTED_ERRORS"]), int(os.environ["MAX_TEMPERATURE_C"])
            faults = find_faults(*limits, expected)
            bad = bad + 1 if faults else 0
            if faults:
                print(f"{node_name}, {bad} of {needed} bad looks: {'; '.join(faults)}")
            if bad >= needed and may_cordon:
                cordon(node_name, faults)
            elif bad == needed:
                print(f"{node_name} would be cordoned, but CORDON is false")
        except FileNotFoundError as error:
            print(f"Nothing can be said about the GPUs: {error}. Is NVIDIA's runtime set up here?", file=sys.stderr)
        except (urllib.error.URLError, OSError, KeyError, ValueError) as error:
            print(f"The API server could not be asked: {error}", file=sys.stderr)
        pathlib.Path(os.environ["HEARTBEAT"]).write_text(str(time.time()))
        time.sleep(float(os.environ["PERIOD_S"]))


def alive():
    """Whether the last look is recent enough."""
    beat = pathlib.Path(os.environ["HEARTBEAT"])
    limit_s = 3 * (float(os.environ["PERIOD_S"]) + NVIDIA_SMI_TIMEOUT_S)
    sys.exit(0 if beat.exists() and time.time() - float(beat.read_text()) < limit_s else 1)


if __name__ == "__main__":
    alive() if sys.argv[1:] == ["alive"] else main()
