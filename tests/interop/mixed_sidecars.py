"""Our proxy and a real Envoy in one mesh, both joined by our ADS, with mTLS between them in both directions: the same
request gets the same answer whichever of them is on which side."""

import json
import time

from _mesh import ONLY_WEB, STRICT, Control, Shop, Sidecar, check, get, say, step, until

shop = Shop()
OLD = "\n  - match: [{uri: {prefix: /old}}]\n    redirect: {uri: /new}"


def round_of(control, client, server, transport, delta, number):
    kind = f"{client} calls {server}, {'delta' if delta else 'sotw'} over {transport}"
    say(f"-- {kind}")
    control.write("route.yaml", step(number, OLD))
    sidecars = [
        Sidecar(control, "catalog-1.shop", shop.catalog, transport, delta, server),
        Sidecar(control, "web-1.shop", shop.web, transport, delta, client),
        Sidecar(control, "intruder-1.shop", shop.intruder, transport, delta, client),
    ]
    until(lambda: shop.answered(number), f"a request goes through ({kind})", 20)
    seen = {name.lower(): value for name, value in json.loads(shop.get()[2])["headers"].items()}
    certificate = seen.get("x-forwarded-client-cert", "")
    check("URI=spiffe://cluster.local/ns/shop/sa/web" in certificate, "the program sees its caller's identity")
    status, headers, _ = shop.get("/old/x")
    check(status == 301 and headers.get("location", "").endswith("/new"), f"a redirect is one: {status}")
    until(lambda: get(shop.bad, host=shop.HOST)[0] == 403, "an unwanted identity is denied", 20)
    # Into the server's own door, around the mesh: STRICT closes it.
    try:
        status = get(shop.door, host=shop.HOST)[0]
    except OSError:
        status = "no answer"
    check(status == "no answer", f"plaintext gets no answer: {status}")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop", "intruder-1.shop"), "all acknowledged everything", 20)
    code, shown, errors = control.tulle("proxy", "config", "web-1.shop", "clusters")
    check(code == 0 and "outbound|8080||catalog" in shown, f"`proxy config` shows what it runs {errors}")
    code, shown, errors = control.tulle("proxy", "config", "web-1.shop", "endpoints")
    check(code == 0 and shop.door in shown, f"and its endpoints {errors}")
    took = []
    for change in range(number + 1, number + 4):
        control.write("route.yaml", step(change, OLD))
        took.append(until(lambda: shop.answered(change), "a change takes effect", 5))
    check(max(took) < 2, f"three changes took effect, the slowest after {max(took) * 1e3:.0f} ms")

    control.stop()
    failed = 0
    for _ in range(100):
        failed += shop.get()[0] != 200
        time.sleep(0.01)
    check(failed == 0, "100 requests without the control plane")
    control.write("route.yaml", step(number + 4, OLD))
    control.start()
    took = until(lambda: shop.answered(number + 4), "changes arrive after its restart", 40)
    say(f"ok: changes arrive again {took:.1f} s after its restart")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop", "intruder-1.shop"), "all are in step again", 40)
    for sidecar in sidecars:
        sidecar.stop()


control = Control()
control.write("mesh.yaml", shop.yaml(STRICT, ONLY_WEB, intruder=True))
control.write("route.yaml", step(0, OLD))
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
