"""Certificates that live five seconds: a real Envoy and our proxy as each other's peer, in both directions and with
themselves, under steady requests of which many open new connections. Not one may fail. Then the refusals: a used token
from another place, a certificate service without proof, and a stranger's proxy without certificate."""

import json
import subprocess
import threading
import time

from _mesh import (
    ENVOY, TULLE, WORK, Backend, Control, Program, check, envoy_bootstrap, free_port, get, say, service_yaml, until,
    workload_yaml,
)

WEB, CATALOG = "127.77.3.1", "127.77.3.2"
backend = Backend("catalog")
out_port, in_port = free_port("127.79.3.2"), free_port(CATALOG)
OUT = f"127.79.3.2:{out_port}"
HOST = "catalog.shop.svc.cluster.local:8080"
SECONDS, CLIENTS = 14, 8

MESH = (
    service_yaml("catalog", 8080)
    + workload_yaml("catalog-1", "catalog", CATALOG,
                    ports=f'[{{name: http, number: 8080, app: "127.0.0.1:{backend.port}", bind: "{CATALOG}:{in_port}"}}]')
    + workload_yaml("web-1", "web", WEB,
                    outbound=f'[{{host: catalog.shop.svc.cluster.local, port: 8080, bind: "{OUT}"}}]')
    + """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 3}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
"""
)


class Proxy(Program):
    """A sidecar of either kind from the same bootstrap: ADS over mTLS, keys from the agent."""

    def __init__(self, kind, control, workload, address):
        self.admin = f"127.0.0.1:{free_port()}"
        file = WORK / f"{kind}-{workload}.json"
        file.write_text(json.dumps(envoy_bootstrap(control, workload, address, "tls", True, self.admin)))
        run = WORK / f"proxy-{workload}"
        command = {
            "envoy": [ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"],
            "tulle": [TULLE, "proxy", "-c", file, "--concurrency", "1", "--run-dir", run],
        }[kind]
        super().__init__(f"{kind}-{workload}", *command)
        until(lambda: get(self.admin, "/ready")[0] == 200, f"the {kind} of {workload} is live", 30)


def serials(proxy):
    """The serial numbers of the leaf certificates that a proxy holds now."""
    pages = json.loads(get(proxy.admin, "/certs")[2])["certificates"]
    return {one["serial_number"] for page in pages for one in page.get("cert_chain", [])}


def steady(seconds):
    """Requests from several clients; gives how many succeeded and what went wrong."""
    good, bad = [0] * CLIENTS, []
    end = time.monotonic() + seconds

    def client(number):
        while time.monotonic() < end:
            try:
                status, _, body = get(OUT, host=HOST)
                peer = json.loads(body)["headers"] if status == 200 else {}
                certificate = next((v for k, v in peer.items() if k.lower() == "x-forwarded-client-cert"), "")
                if status == 200 and "spiffe://cluster.local/ns/shop/sa/web" in certificate:
                    good[number] += 1
                else:
                    bad.append(f"{status}: {body[:200]} {certificate}")
            except (OSError, ValueError) as error:
                bad.append(repr(error))
            time.sleep(0.02)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    seen = {"web": set(), "catalog": set()}
    while time.monotonic() < end:
        seen["web"] |= serials(web)
        seen["catalog"] |= serials(catalog)
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    return sum(good), bad, seen


control = Control()
control.write("mesh.yaml", MESH)
control.more = ["--cert-ttl", "5s"]
control.start()
web_agent = control.agent("web-1.shop", "web")
control.agent("catalog-1.shop", "catalog")

for kinds in (("envoy", "tulle"), ("tulle", "envoy"), ("tulle", "tulle")):
    say(f"-- {kinds[0]} calls {kinds[1]}")
    catalog = Proxy(kinds[1], control, "catalog-1.shop", CATALOG)
    web = Proxy(kinds[0], control, "web-1.shop", WEB)
    until(lambda: get(OUT, host=HOST)[0] == 200, "a request goes through", 20)
    good, bad, seen = steady(SECONDS)
    check(not bad, f"{good} requests and not one failed {bad[:3]}")
    check(good > 20 * SECONDS, f"there were enough of them: {good}")
    for name, all_seen in seen.items():
        check(len(all_seen) >= 4, f"the proxy of {name} had {len(all_seen)} certificates meanwhile")
    web.stop()
    catalog.stop()

say("-- refusals")
thief = subprocess.run(
    [TULLE, "agent", "-q", "--token", WORK / "web-1.shop.token", "--run-dir", WORK / "thief", "--once", "--wait", "2s"],
    capture_output=True, text=True, timeout=30,
)
check(thief.returncode == 4 and "already used by another key" in thief.stderr, f"a used token: {thief.stderr.strip()}")
until(lambda: "token_refused" in control.program.text(), "it is audited")
page = get(control.metrics, "/metrics")[2]
check('tulle_audit_total{event="token_refused"}' in page, "and counted")

catalog = Proxy("tulle", control, "catalog-1.shop", CATALOG)
until(lambda: f"{CATALOG}:{in_port}" in get(catalog.admin, "/listeners")[2], "our proxy listens for the catalog")
try:
    status, _, _ = get(f"{CATALOG}:{in_port}", host=HOST)
    check(False, f"plaintext was answered with {status}")
except OSError as error:
    say(f"ok: plaintext to a strict workload: {error!r}")
