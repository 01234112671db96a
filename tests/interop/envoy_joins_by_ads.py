"""Two real Envoys are sidecars of our control plane: by delta and by state-of-the-world, over the Unix socket and
over mTLS with keys from our agent. Requests go through both with mTLS between them, changes arrive, a bad object hurts
nobody, a dead control plane hurts nobody, and nobody gets another workload's configuration."""

import json
import time

from _mesh import ENVOY, ONLY_WEB, STRICT, WORK, Control, Envoy, Program, Shop, check, get, say, step, until

shop = Shop()


def one_way(control, transport, delta, number):
    kind = f"{'delta' if delta else 'state-of-the-world'} over {'the Unix socket' if transport == 'unix' else 'mTLS'}"
    say(f"-- {kind}")
    control.write("route.yaml", step(number))
    catalog = Envoy(control, "catalog-1.shop", shop.catalog, transport, delta)
    web = Envoy(control, "web-1.shop", shop.web, transport, delta)
    until(lambda: shop.answered(number), f"a request goes through both Envoys ({kind})")
    status, _, body = shop.get()
    peer = json.loads(body)["headers"]
    certificate = next((value for name, value in peer.items() if name.lower() == "x-forwarded-client-cert"), "")
    check(status == 200 and "spiffe://cluster.local/ns/shop/sa/web" in certificate, f"with the caller's identity ({kind})")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop"), "both proxies acknowledged everything")
    protocols = {proxy["protocol"] for proxy in control.proxies()}
    check(protocols == {"delta" if delta else "sotw"}, f"they speak {protocols}")

    took = []
    for change in range(number + 1, number + 6):
        control.write("route.yaml", step(change))
        took.append(until(lambda: shop.answered(change), "a change of a route takes effect", 5))
    check(max(took) < 2, f"five changes took effect, the slowest after {max(took) * 1e3:.0f} ms")

    control.write("bad.yaml", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: bad, namespace: shop}\nspec:\n  hosts: [catalog]\n  http: [{route: [{destination: {host: catalog}, weight: lots}]}]\n")
    control.write("route.yaml", step(number + 6))
    until(lambda: shop.answered(number + 6), "a good change beside a bad object takes effect", 5)
    _, out, _ = control.tulle("get", "vs", "-n", "shop")
    bad = next((line for line in out.splitlines() if " bad " in line), "")
    check("rejected" in bad and "bad.yaml:" in bad, f"`get` shows it: {bad.strip()}")
    until(lambda: "bad.yaml:6:" in control.program.text(), "the log names its file and line")
    (control.config / "bad.yaml").unlink()

    control.stop()
    for _ in range(50):
        status, _, _ = shop.get()
        check(status == 200, "the dead control plane hurts nobody") if status != 200 else None
        time.sleep(0.02)
    say("ok: 50 requests without the control plane")
    control.write("route.yaml", step(number + 7))
    control.start()
    took = until(lambda: shop.answered(number + 7), "both come back after its restart", 40)
    say(f"ok: changes arrive again {took:.1f} s after its restart")
    until(lambda: control.synced("web-1.shop", "catalog-1.shop"), "both proxies acknowledged everything again", 40)
    rejects = [text for text in (web.text(), catalog.text()) if "rejected" in text.lower()]
    check(not rejects, f"no Envoy refused anything {rejects[:1]}")
    web.stop()
    catalog.stop()


control = Control()
control.write("mesh.yaml", shop.yaml(STRICT, ONLY_WEB))
control.write("route.yaml", step(0))
control.start()
control.agent("web-1.shop", "web")
control.agent("catalog-1.shop", "catalog")
number = 1
for transport in ("unix", "tls"):
    for delta in (True, False):
        one_way(control, transport, delta, number)
        number += 10

say("-- somebody else's configuration")
intruder = json.loads((WORK / "envoy-web-1.shop.json").read_text())
intruder["node"]["id"] = intruder["node"]["id"].replace("web-1.shop", "catalog-1.shop")
file = WORK / "intruder.json"
file.write_text(json.dumps(intruder))
thief = Program("intruder", ENVOY, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
until(lambda: "other_identity_refused" in control.program.text(), "the attempt is audited")
admin = intruder["admin"]["address"]["socket_address"]
until(lambda: get(f"{admin['address']}:{admin['port_value']}", "/config_dump")[0] == 200, "the intruder's admin answers")
dump = get(f"{admin['address']}:{admin['port_value']}", "/config_dump")[2]
check("inbound|" not in dump and "dynamic_active_clusters" not in dump, "it got nothing")
check("catalog-1.shop" not in {proxy["workload"] for proxy in control.proxies()}, "it does not count as that proxy")
line = next(line for line in control.program.text().splitlines() if "other_identity_refused" in line)
check("sa/web" in line and "catalog-1.shop" in line, f"the audit names both: {line[:200]}")
status, _, page = get(control.metrics, "/metrics")
check("tulle_audit_total{event=\"other_identity_refused\"}" in page and "pilot_xds_pushes{type=\"cds\"}" in page, "metrics count it")
