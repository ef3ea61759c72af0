#!/usr/bin/env python3
"""An example of an external provider: it has the machines of machines.py.

It reads requests from its standard input and writes answers to its standard
output, one JSON document a line. docs/providers/external.md has the protocol.
"""

import http.client
import json
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

WRITING = threading.Lock()
# What `start` said.
GIVEN = {}


class Failed(Exception):
    def __init__(self, code, message, **more):
        super().__init__(message)
        self.document = {"code": code, "message": message, **more}


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(GIVEN["settings"]["socket"])


def ask(method, path, document=None):
    """Asks the service of machines; None if there is no such machine."""
    try:
        connection = Connection("machines", timeout=30)
        connection.request(method, path, json.dumps(document) if document else None)
        response = connection.getresponse()
        text = response.read()
    except OSError as error:
        raise Failed("transient", f"the service of machines does not answer: {error}") from error
    if response.status == 404:
        return None
    if response.status != 200:
        raise Failed("permanent", f"the service of machines answers with {response.status}: {text[:200]}")
    return json.loads(text)


def name(node, generation):
    """Machines are named after what they are made for: asked for twice, they are made once."""
    return f"{GIVEN['workspace']}.{GIVEN['cluster']}.{node}.{generation}"


def instance(machine):
    tags = machine["tags"]
    return {
        "id": f"{tags['node']}.{tags['generation']}",
        "node": tags["node"],
        "generation": tags["generation"],
        "address": machine["address"],
        "state": "running",
    }


def is_ours(machine):
    tags = machine["tags"]
    return (tags["workspace"], tags["cluster"]) == (GIVEN["workspace"], GIVEN["cluster"])


def start(request):
    if request["protocol"] != 1:
        raise Failed("permanent", "this provider speaks version 1 of the protocol")
    if "socket" not in request["settings"]:
        raise Failed("permanent", "provider.settings.socket is missing: where machines.py listens")
    GIVEN.update(request)
    able = {"restart_agent": True, "reboot_ms": 5000, "visibility_ms": 0, "batch": 8}
    return {"protocol": 1, "capabilities": able}


def list_page(request):
    after = request["page"] or ""
    found = ask("GET", f"/machines?after={quote(after)}")
    return {"instances": [instance(m) for m in found["machines"] if is_ours(m)], "next": found["next"]}


def create_one(item):
    tags = {key: item[key] for key in ("node", "generation", "node_type")}
    tags.update(workspace=GIVEN["workspace"], cluster=GIVEN["cluster"])
    document = {
        "tags": tags,
        "agent": GIVEN["agent"],
        "bootstrap": item["bootstrap"],
        "network": GIVEN["settings"].get("network", "127.210.1"),
    }
    return {"instance": instance(ask("PUT", f"/machines/{name(item['node'], item['generation'])}", document))}


def checked(item):
    """The path of the machine that an item is about, if it is that generation of that node."""
    if item["instance"] != f"{item['node']}.{item['generation']}":
        raise Failed("mismatch", f"{item['instance']} is not {item['node']}, generation {item['generation']}")
    return f"/machines/{name(item['node'], item['generation'])}"


def delete_one(item):
    ask("DELETE", checked(item))
    return {}


def describe(request):
    node, _, generation = request["instance"].rpartition(".")
    machine = ask("GET", f"/machines/{name(node, generation)}")
    if machine is None:
        raise Failed("not-found", request["instance"])
    return {"instance": instance(machine)}


def there(answer, request):
    if answer is None:
        raise Failed("not-found", request["instance"])
    return {}


def restart_agent(request):
    force = "?force=1" if request["force"] else ""
    return there(ask("POST", f"{checked(request)}/agent{force}"), request)


def reboot(request):
    return there(ask("POST", f"{checked(request)}/reboot"), request)


def each(work):
    """A call of several items: one that fails leaves the others alone."""

    def item(item):
        try:
            return work(item)
        except Failed as failed:
            return {"error": failed.document}

    return lambda request: {"items": [item(one) for one in request["nodes"]]}


CALLS = {
    "start": start,
    "list": list_page,
    "create": each(create_one),
    "delete": each(delete_one),
    "describe": describe,
    "restart-agent": restart_agent,
    "reboot": reboot,
    "workspace-status": lambda _: {"resources": []},
}


def answer(request):
    document = {"id": request["id"]}
    try:
        document["result"] = CALLS[request["call"]](request)
    except Failed as failed:
        document["error"] = failed.document
    except Exception as error:  # Whatever went wrong, whoever asked is to hear it.
        document["error"] = {"code": "transient", "message": f"{type(error).__name__}: {error}"}
    with WRITING:
        print(json.dumps(document), flush=True)


def main():
    with ThreadPoolExecutor(8) as workers:
        for line in sys.stdin:
            request = json.loads(line)
            if request["call"] == "start":
                answer(request)
            else:
                workers.submit(answer, request)


main()
