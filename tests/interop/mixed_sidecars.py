"""Our proxy and a real Envoy in one mesh, both joined by our ADS, with mTLS between them in both directions: the same
request gets the same answer whichever of them is on which side."""

import json
import time

from _mesh import WORK, Backend, Control, Sidecar, check, free_port, get, say, service_yaml, until, workload_yaml

WEB, CATALOG, INTRUDER = "127.77.0.1", "127.77.0.2", "127.77.0.3"
backend = Backend("catalog")
in_port = free_port(CATALOG)
OUT, BAD = f"127.79.1.2:{free_port('127.79.1.2')}", f"127.79.3.2:{free_port('127.79.3.2')}"
HOST = "catalog.shop.svc.cluster.local:8080"

MESH = (
    service_yaml("catalog", 8080)
    + workload_yaml("catalog-1", "catalog", CATALOG,
                    ports=f'[{{name: http, number: 8080, app: "127.0.0.1:{backend.port}", bind: "{CATALOG}:{in_port}"}}]')
    + workload_yaml("web-1", "web", WEB,
                    outbound=f'[{{host: catalog.shop.svc.cluster.local, port: 8080, bind: "{OUT}"}}]')
    + workload_yaml("intruder-1", "intruder", INTRUDER,
                    outbound=f'[{{host: catalog.shop.svc.cluster.local, port: 8080, bind: "{BAD}"}}]')
    + """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
---
"""
)


def step(number):
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - match: [{{uri: {{prefix: /old}}}}]
    redirect: {{uri: /new}}
  - headers: {{response: {{set: {{x-step: '{number}'}}}}}}
    route: [{{destination: {{host: catalog}}}}]
"""


def answered(number):
    status, headers, _ = get(OUT, host=HOST)
    return status == 200 and headers.get("x-step") == str(number)


def round_of(control, client, server, transport, delta, number):
    kind = f"{client} calls {server}, {'delta' if delta else 'sotw'} over {transport}"
    say(f"-- {kind}")
    control.write("route.yaml", step(number))
    sidecars = [
        Sidecar(control, "catalog-1.shop", CATALOG, transport, delta, server),
        Sidecar(control, "web-1.shop", WEB, transport, delta, client),
        Sidecar(control, "intruder-1.shop", INTRUDER, transport, delta, client),
    ]
    until(lambda: answered(number), f"a request goes through ({kind})", 20)
    seen = {name.lower(): value for name, value in json.loads(get(OUT, host=HOST)[2])["headers"].items()}
    certificate = seen.get("x-forwarded-client-cert", "")
    check("URI=spiffe://cluster.local/ns/shop/sa/web" in certificate, "the program sees its caller's identity")
    status, headers, _ = get(OUT, "/old/x", host=HOST)
    check(status == 301 and headers.get("location", "").endswith("/new"), f"a redirect is one: {status}")
    until(lambda: get(BAD, host=HOST)[0] == 403, "an unwanted identity is denied", 20)
    # Into the server's own door, around the mesh: STRICT closes it.
    try:
        status = get(f"{CATALOG}:{in_port}", host=HOST)[0]
    except OSError:
        status = "no answer"
    check(status == "no answer", f"plaintext gets no answer: {status}")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop", "intruder-1.shop"), "all acknowledged everything", 20)
    code, shown, errors = control.tulle("proxy", "config", "web-1.shop", "clusters")
    check(code == 0 and "outbound|8080||catalog" in shown, f"`proxy config` shows what it runs {errors}")
    code, shown, errors = control.tulle("proxy", "config", "web-1.shop", "endpoints")
    check(code == 0 and f"{CATALOG}:{in_port}" in shown, f"and its endpoints {errors}")
    took = []
    for change in range(number + 1, number + 4):
        control.write("route.yaml", step(change))
        took.append(until(lambda: answered(change), "a change takes effect", 5))
    check(max(took) < 2, f"three changes took effect, the slowest after {max(took) * 1e3:.0f} ms")

    control.stop()
    failed = 0
    for _ in range(100):
        failed += get(OUT, host=HOST)[0] != 200
        time.sleep(0.01)
    check(failed == 0, "100 requests without the control plane")
    control.write("route.yaml", step(number + 4))
    control.start()
    took = until(lambda: answered(number + 4), "changes arrive after its restart", 40)
    say(f"ok: changes arrive again {took:.1f} s after its restart")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop", "intruder-1.shop"), "all are in step again", 40)
    for sidecar in sidecars:
        sidecar.stop()


control = Control()
control.write("mesh.yaml", MESH)
control.write("route.yaml", step(0))
control.start()
for workload, account in [("web-1.shop", "web"), ("catalog-1.shop", "catalog"), ("intruder-1.shop", "intruder")]:
    control.agent(workload, account)
number = 1
for client, server, transport, delta in [
    ("tulle", "tulle", "unix", True),
    ("tulle", "envoy", "unix", True),
    ("envoy", "tulle", "unix", False),
    ("tulle", "tulle", "tls", False),
    ("envoy", "tulle", "tls", True),
]:
    round_of(control, client, server, transport, delta, number)
    number += 10
