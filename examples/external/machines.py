#!/usr/bin/env python3
"""A toy cloud: a service of machines, for provider.py beside it.

A machine is a directory with what it was made from, an address of loopback, and the
processes that were started on it. What a cloud would do with user data, this one
does with the bootstrap payload and the agent's program: it starts the agent.

    python3 machines.py SOCKET DIRECTORY

GET    /machines?after=NAME   a page of machines, in the order of their names
GET    /machines/NAME
PUT    /machines/NAME         makes it, or answers with the one that is there
DELETE /machines/NAME         ends everything on it, and removes it
POST   /machines/NAME/agent   starts its agent, if it does not run; ?force=1 ends it first
POST   /machines/NAME/reboot  ends everything on it, and starts its agent
"""

import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

PAGE = 5
LOCK = threading.Lock()
SOCKET, ROOT = sys.argv[1], Path(sys.argv[2])


def home(name):
    return ROOT / name


def processes(name):
    """Whatever runs on a machine: it inherits the machine's directory."""
    mark = f"CLOUDTIK_NODE_HOME={home(name)}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            pass


def kill(name):
    while left := list(processes(name)):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)


def start(name):
    machine = read(name)
    environment = {"PATH": os.environ["PATH"], "CLOUDTIK_NODE_HOME": str(home(name))}
    command = [machine["agent"], "run", "--detach", "--home", str(home(name))]
    subprocess.run(command, env=environment, cwd=home(name), stdin=subprocess.DEVNULL, check=True)


def agent_of(name):
    try:
        pid = int((home(name) / "agent.lock").read_text())
        return pid if pid in processes(name) else None
    except (OSError, ValueError):
        return None


def read(name):
    return json.loads((home(name) / "machine.json").read_text())


def names():
    return sorted(path.parent.name for path in ROOT.glob("*/machine.json"))


def make(name, wanted):
    if not (home(name) / "machine.json").exists():
        used = {read(other)["address"] for other in names()}
        network = wanted["network"]
        address = next(a for a in (f"{network}.{n}" for n in range(2, 255)) if a not in used)
        machine = {"name": name, "tags": wanted["tags"], "agent": wanted["agent"], "address": address}
        # Under another name first: a machine is there whole or not at all.
        draft = ROOT / f".{name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        bootstrap = dict(wanted["bootstrap"], address=address)
        with open(os.open(draft / "bootstrap.json", os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            json.dump(bootstrap, file)
        (draft / "machine.json").write_text(json.dumps(machine))
        draft.rename(home(name))
    start(name)
    return read(name)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def address_string(self):
        return "local"

    def answer(self, status, document):
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def serve(self):
        url = urlparse(self.path)
        query = parse_qs(url.query)
        name, *verb = [unquote(part) for part in url.path.split("/")[2:]] or [""]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with LOCK:
            if not name:
                after = query.get("after", [""])[0]
                left = [other for other in names() if other > after]
                page = [read(other) for other in left[:PAGE]]
                more = page[-1]["name"] if len(left) > PAGE else None
                return self.answer(200, {"machines": page, "next": more})
            if self.command == "PUT":
                return self.answer(200, make(name, json.loads(body)))
            if not (home(name) / "machine.json").exists():
                return self.answer(404, {"error": f"there is no machine {name}"})
            if self.command == "DELETE":
                kill(name)
                (home(name) / "machine.json").unlink()
                shutil.rmtree(home(name))
            elif verb == ["reboot"]:
                kill(name)
                start(name)
            elif verb == ["agent"]:
                if "force" in query and (pid := agent_of(name)):
                    os.kill(pid, signal.SIGKILL)
                    while agent_of(name):
                        time.sleep(0.01)
                if not agent_of(name):
                    start(name)
            else:
                return self.answer(200, read(name))
            return self.answer(200, {})

    do_GET = do_PUT = do_DELETE = do_POST = serve


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


ROOT.mkdir(parents=True, exist_ok=True)
Server(SOCKET, Handler).serve_forever()
