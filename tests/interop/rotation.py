"""Certificates that live five seconds: a real Envoy and our proxy as each other's peer, in both directions and with
themselves, under steady requests of which many open new connections. Not one may fail. Then the refusals: a used token
from another place, a certificate service without proof, and a stranger's proxy without certificate."""

import json
import subprocess
import threading
import time

from _mesh import ONLY_WEB, STRICT, TULLE, WORK, Control, Shop, Sidecar, check, get, say, until

shop = Shop()
SECONDS, CLIENTS = 14, 8
# Many connections, so that many handshakes.
SHORT = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 3}}}
---
"""


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
                status, _, body = shop.get()
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
control.write("mesh.yaml", shop.yaml(STRICT, SHORT, ONLY_WEB))
control.more = ["--cert-ttl", "5s"]
control.start()
web_agent = control.agent("web-1.shop", "web")
control.agent("catalog-1.shop", "catalog")

for kinds in (("envoy", "tulle"), ("tulle", "envoy"), ("tulle", "tulle")):
    say(f"-- {kinds[0]} calls {kinds[1]}")
    catalog = Sidecar(control, "catalog-1.shop", shop.catalog, "tls", True, kinds[1])
    web = Sidecar(control, "web-1.shop", shop.web, "tls", True, kinds[0])
    until(lambda: shop.get()[0] == 200, "a request goes through", 20)
    good, bad, seen = steady(SECONDS)
    check(not bad, f"{good} requests and not one failed {bad[:3]}")
    check(good > 20 * SECONDS, f"there were enough of them: {good}")
    for name, all_seen in seen.items():
        check(len(all_seen) >= 4, f"the proxy of {name} had {len(all_seen)} certificates meanwhile")
    web.stop()
    catalog.stop()

say("-- refusals")
thief = subprocess.run(
    [TULLE, "agent", "-q", "--token", WORK / "web-1.token", "--run-dir", WORK / "thief", "--once", "--wait", "2s"],
    capture_output=True, text=True, timeout=30,
)
check(thief.returncode == 4 and "already used by another key" in thief.stderr, f"a used token: {thief.stderr.strip()}")
until(lambda: "token_refused" in control.program.text(), "it is audited")
page = get(control.metrics, "/metrics")[2]
check('tulle_audit_total{event="token_refused"}' in page, "and counted")

catalog = Sidecar(control, "catalog-1.shop", shop.catalog, "tls", True, "tulle")
until(lambda: shop.door in get(catalog.admin, "/listeners")[2], "our proxy listens for the catalog")
try:
    status, _, _ = get(shop.door, host=shop.HOST)
    check(False, f"plaintext was answered with {status}")
except OSError as error:
    say(f"ok: plaintext to a strict workload: {error!r}")
