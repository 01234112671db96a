"""What the interop scripts share: a small mesh on loopback addresses, with programs that are started and always ended."""

import atexit
import http.client
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

TULLE = os.environ["TULLE"]
ENVOY = os.environ["ENVOY"]
WORK = pathlib.Path(os.environ["WORK"])


def say(text):
    print(f"  {text}", flush=True)


def check(holds, what):
    if not holds:
        print(f"  NOT: {what}", flush=True)
        sys.exit(1)
    say(f"ok: {what}")


def free_port(address="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def until(question, what, seconds=15.0):
    """Asks until the answer is true, at most so long; gives the seconds it took back."""
    begin = time.monotonic()
    while True:
        try:
            answer = question()
        except (OSError, http.client.HTTPException, ValueError):
            answer = None
        if answer:
            return time.monotonic() - begin
        if time.monotonic() - begin > seconds:
            print(f"  NOT in {seconds} s: {what}", flush=True)
            sys.exit(1)
        time.sleep(0.02)


class Program:
    """A child process with its log in a file; ended with the script."""

    running = []

    def __init__(self, name, *command, env=None):
        self.name = name
        self.log = WORK / f"{name}.log"
        self.file = open(self.log, "ab")
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=self.file,
            stderr=self.file,
            env={**os.environ, **(env or {})},
        )
        Program.running.append(self)

    def text(self):
        return self.log.read_text(errors="replace")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.file.close()
        if self in Program.running:
            Program.running.remove(self)


def stop_all():
    failed = sys.exc_info()[0] is not None
    for program in list(Program.running):
        program.stop()
    return failed


atexit.register(stop_all)


class Backend(http.server.ThreadingHTTPServer):
    """An unmodified HTTP/1.1 program that says its name and repeats the request's head."""

    daemon_threads = True

    def __init__(self, name):
        backend = self
        self.name = name

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = json.dumps({"name": backend.name, "path": self.path, "headers": dict(self.headers)}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


def get(address, path="/", host=None, headers=None, timeout=5):
    """One request on a connection of its own: status, headers, body."""
    ip, port = address.rsplit(":", 1)
    connection = http.client.HTTPConnection(ip, int(port), timeout=timeout)
    try:
        connection.request("GET", path, headers={**({"host": host} if host else {}), **(headers or {})})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode(errors="replace")
    finally:
        connection.close()


class Control:
    """A control plane with its directories."""

    def __init__(self, store=False):
        self.config = WORK / "config"
        self.run = WORK / "control"
        self.ca = WORK / "ca"
        self.store = WORK / "mesh.redb" if store else None
        self.xds = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.config.mkdir(exist_ok=True)
        self.program = None
        self.more = []

    def start(self):
        where = ["--store", f"redb:{self.store}"] if self.store else ["--config", self.config]
        self.program = Program(
            "control", TULLE, "control", *where, "--run-dir", self.run, "--ca-dir", self.ca,
            "--xds", self.xds, "--api", "off", "--metrics", self.metrics, *self.more,
        )
        until(lambda: "ready:" in self.program.text(), "the control plane is ready")
        return self

    def stop(self):
        self.program.stop()
        self.program.log.unlink()

    def write(self, name, text):
        fresh = self.config / f".{name}"
        fresh.write_text(text)
        fresh.rename(self.config / name)

    def tulle(self, *args, text=None):
        """Runs a verb against it: exit code, output, errors."""
        done = subprocess.run(
            [TULLE, *args, "--run-dir", str(self.run)], input=text, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    def proxies(self):
        code, out, _ = self.tulle("proxy", "ls", "-o", "json")
        return json.loads(out) if code == 0 else []

    def synced(self, *workloads):
        """Whether these workloads' proxies have everything and refused nothing."""
        have = {p["workload"] for p in self.proxies() if p["acknowledged"] >= max(p["wanted"], 1) and not p["refused"]}
        return set(workloads) <= have

    def token(self, workload, account, server=None):
        """The file of a new join token for a workload of `shop`."""
        file = WORK / f"{workload}.token"
        made = subprocess.run(
            [TULLE, "token", "create", "-q", "--workload", workload, "-n", "shop", "--service-account", account,
             "--ca-dir", self.ca, "--server", server or f"unix:{self.run / 'xds.sock'}", "--out", file],
            capture_output=True, text=True, timeout=30,
        )
        check(made.returncode == 0, f"a token for {workload} {made.stderr}")
        return file

    def workload(self, workload, *command, **flags):
        """The words of `tulle run` for a workload of `shop` that has joined, or joins now by its `token`."""
        more = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
        return [str(part) for part in (TULLE, "run", *more, "--workload", workload, "-n", "shop", "--control",
                f"unix:{self.run / 'xds.sock'}", "--run-dir", WORK / workload, "--", *command)]

    def agent(self, workload, account):
        """Joins `NAME.shop`: its run directory then has sds.sock and PEM files."""
        token = self.token(workload.removesuffix(".shop"), account, self.xds)
        run = WORK / workload
        program = Program(f"agent-{workload}", TULLE, "agent", "--token", token, "--run-dir", run)
        until(lambda: (run / "cert-chain.pem").exists() and (run / "sds.sock").exists(), f"{workload} has its certificate")
        return program


def workload_yaml(name, app, address, ports="[]", outbound="[]", version="v1", account=None):
    return f"""
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}, version: {version}}}}}
spec:
  serviceAccount: {account or app}
  addresses: [{address}]
  meshed: true
  ports: {ports}
  interception: {{explicit: {{outbound: {outbound}}}}}
---
"""


def service_yaml(name, port, protocol="http"):
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: {protocol}, port: {port}, targetPort: {port}}}]
---
"""


# Only mTLS is taken.
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
"""
# Only `web` may call `catalog`.
ONLY_WEB = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
---
"""


class Shop:
    """The mesh of most scripts: `web` calls `catalog`, before which a program stands; `intruder` tries to."""

    HOST = "catalog.shop.svc.cluster.local:8080"

    def __init__(self):
        self.web, self.catalog, self.intruder, self.legacy = (f"127.77.0.{number}" for number in (1, 2, 3, 9))
        self.backend = Backend("catalog")
        self.door = f"{self.catalog}:{free_port(self.catalog)}"
        self.out, self.bad = (f"{ip}:{free_port(ip)}" for ip in ("127.79.1.2", "127.79.3.2"))

    def yaml(self, *policies, intruder=False, version="v1"):
        """Service, workloads and policies; the intruder only where it is wanted."""

        def caller(name, address, bind):
            outbound = f'[{{host: catalog.shop.svc.cluster.local, port: 8080, bind: "{bind}"}}]'
            return workload_yaml(f"{name}-1", name, address, outbound=outbound)

        port = f'{{name: http, number: 8080, app: "127.0.0.1:{self.backend.port}", bind: "{self.door}"}}'
        return "".join([
            service_yaml("catalog", 8080),
            workload_yaml("catalog-1", "catalog", self.catalog, ports=f"[{port}]", version=version),
            caller("web", self.web, self.out),
            caller("intruder", self.intruder, self.bad) if intruder else "",
            *policies,
        ])

    def get(self, path="/"):
        """What `web` gets from `catalog`."""
        return get(self.out, path, host=self.HOST)

    def answered(self, number):
        """Whether the route of `step(number)` is in force."""
        status, headers, _ = self.get()
        return status == 200 and headers.get("x-step") == str(number)


def step(number, rules=""):
    """A route to the catalog that says its number in each answer."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:{rules}
  - headers: {{response: {{set: {{x-step: '{number}'}}}}}}
    route: [{{destination: {{host: catalog}}}}]
"""


def envoy_bootstrap(control, workload, address, transport, delta, admin):
    """What somebody writes who joins an Envoy of their own: xDS and SDS, and nothing about listeners or clusters."""
    name, namespace = workload.split(".")

    def grpc(cluster):
        return {"grpc_services": [{"envoy_grpc": {"cluster_name": cluster}}], "transport_api_version": "V3"}

    def secret(of):
        return {"name": of, "sds_config": {"resource_api_version": "V3",
                "api_config_source": {"api_type": "GRPC", **grpc("sds-grpc")}}}

    def cluster(name, at, tls=None):
        http2 = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}}
        endpoint = {"lb_endpoints": [{"endpoint": {"address": at}}]}
        made = {"name": name, "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": http2,
                "load_assignment": {"cluster_name": name, "endpoints": [endpoint]}}
        return {**made, "transport_socket": tls} if tls else made

    if transport == "unix":
        xds = cluster("xds-grpc", {"pipe": {"path": str(control.run / "xds.sock")}})
    else:
        ip, port = control.xds.rsplit(":", 1)
        san = "spiffe://cluster.local/ns/tulle-system/sa/tulle-control"
        tls = {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "localhost",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificate_sds_secret_configs": [secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": san}}]},
                    "validation_context_sds_secret_config": secret("ROOTCA")}}}}
        xds = cluster("xds-grpc", {"socket_address": {"address": ip, "port_value": int(port)}}, tls)
    sds = cluster("sds-grpc", {"pipe": {"path": str(WORK / workload / "sds.sock")}})
    ads = {"api_type": "DELTA_GRPC" if delta else "GRPC", "set_node_on_first_message_only": True, **grpc("xds-grpc")}
    over_ads = {"ads": {}, "resource_api_version": "V3"}
    ip, port = admin.rsplit(":", 1)
    return {
        "node": {"id": f"sidecar~{address}~{workload}~{namespace}.svc.cluster.local", "cluster": name,
                 "metadata": {"NAME": name, "NAMESPACE": namespace, "TULLE_ADMIN": admin}},
        "admin": {"address": {"socket_address": {"address": ip, "port_value": int(port)}}},
        "static_resources": {"clusters": [xds, sds]},
        "dynamic_resources": {"ads_config": ads, "lds_config": over_ads, "cds_config": over_ads},
    }


class Sidecar(Program):
    """A workload's proxy: a real Envoy, or ours, from the same bootstrap."""

    def __init__(self, control, workload, address, transport, delta, kind="envoy"):
        self.admin = f"127.0.0.1:{free_port()}"
        file = WORK / f"{kind}-{workload}.json"
        file.write_text(json.dumps(envoy_bootstrap(control, workload, address, transport, delta, self.admin)))
        if kind == "envoy":
            command = [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
        else:
            command = [TULLE, "proxy", "-c", file, "--concurrency", "1", "--state-dir", WORK / f"{workload}-state"]
        super().__init__(f"{kind}-{workload}", *command)
        until(lambda: get(self.admin, "/ready")[0] == 200, f"the {kind} of {workload} is live", 30)


class Envoy(Sidecar):
    """A real Envoy as somebody's sidecar."""
