"""Three of our proxies in one mesh: the labels of Istio's metrics name both ends of every hop, `tulle stat` and
`tulle tap` show who was served, who was refused and who came without mTLS, and programs never see what proxies tell
each other."""

import http.client
import json
import subprocess

from _mesh import ONLY_WEB, TULLE, WORK, Control, Shop, Sidecar, check, get, until, workload_yaml

shop = Shop()
LEGACY = workload_yaml("legacy", "legacy", shop.legacy).replace("meshed: true", "meshed: false")

control = Control()
control.write("mesh.yaml", shop.yaml(LEGACY, ONLY_WEB, intruder=True, version="v7"))
control.start()
proxies = {}
for workload, account, address in (("catalog-1.shop", "catalog", shop.catalog),
                                   ("web-1.shop", "web", shop.web),
                                   ("intruder-1.shop", "intruder", shop.intruder)):
    control.agent(workload, account)
    proxies[workload] = Sidecar(control, workload, address, "unix", True, kind="tulle")
until(lambda: control.synced(*proxies), "all proxies have their configuration")
until(lambda: shop.get()[0] == 200, "web reaches catalog")


def plaintext():
    """The caller without a proxy, from its own address."""
    connection = http.client.HTTPConnection(shop.door, timeout=5, source_address=(shop.legacy, 0))
    connection.request("GET", "/plain", headers={"host": shop.HOST})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


tapping = subprocess.Popen([TULLE, "tap", "catalog.shop", "--only", "denied", "--max", "2", "-o", "json", "--run-dir",
                            str(control.run)], stdout=subprocess.PIPE, text=True)
until(lambda: plaintext() == 403 and get(shop.bad, "/secret", host=shop.HOST)[0] == 403 and tapping.poll() is not None,
      "tap showed two refused requests")
events = [json.loads(line) for line in tapping.stdout]
check(tapping.returncode == 0 and all(event["denied"] and event["status"] == 403 for event in events),
      "tap shows refused requests only")
for _ in range(20):
    check_status, _, body = shop.get("/items")
told = {name.lower() for name in json.loads(body)["headers"]}
check(check_status == 200 and not any("peer-metadata" in name for name in told), "the program sees no metadata of peers")

page = get(proxies["catalog-1.shop"].admin, "/stats/prometheus")[2]


def series(page, **labels):
    """The values of `istio_requests_total` that have these labels."""
    lines = [line for line in page.splitlines() if line.startswith("istio_requests_total{")]
    return [float(line.rsplit(" ", 1)[1]) for line in lines if all(f'{k}="{v}"' in line for k, v in labels.items())]


both = {
    "destination_principal": "spiffe://cluster.local/ns/shop/sa/catalog", "destination_service_name": "catalog",
    "destination_service_namespace": "shop", "destination_service": "catalog.shop.svc.cluster.local",
    "source_principal": "spiffe://cluster.local/ns/shop/sa/web", "source_workload_namespace": "shop",
}
served = series(page, reporter="destination", response_code="200", connection_security_policy="mutual_tls", **both)
check(sum(served) >= 21, f"the called side names both ends {served}")
sent = series(get(proxies["web-1.shop"].admin, "/stats/prometheus")[2], reporter="source", response_code="200", **both)
check(sum(sent) == sum(served), f"the calling side counts the same {sent} {served}")
refused = series(page, response_code="403", source_principal="unknown", connection_security_policy="none")
check(sum(refused) >= 1, f"a caller without mTLS is unknown {refused}")
check('tulle_authz_decisions_total{policy="' in page and 'action="deny"' in page, "decisions are counted by policy")

code, out, err = control.tulle("stat", "-n", "shop", "-o", "json")
stat = json.loads(out)
rows = {row["name"]: row for row in stat["rows"]}
catalog = rows["catalog-1"] if "catalog-1" in rows else rows["catalog"]
check(code == 0 and stat["proxies"] == 3 and stat["memory_bytes"] > 0, f"stat asked three proxies {err}")
check(catalog["denied"] >= 2 and catalog["requests_per_second"] > 0 and catalog["effective"] == 1.0,
      f"stat shows catalog's requests and denials {catalog}")
check(catalog["config"].endswith("✓"), "stat shows that the configuration is the wanted one")
check([(edge["source"], edge["destination"]) for edge in stat["plaintext"]] == [("legacy", catalog["name"])],
      f"stat names the caller without mTLS {stat['plaintext']}")
code, out, _ = control.tulle("stat")
check(code == 0 and out.startswith("NAME") and "plaintext (no mTLS):\n  legacy → " in out, "stat prints a table")

control.stop()
done = subprocess.run([TULLE, "stat", "--admin", proxies["catalog-1.shop"].admin], capture_output=True, text=True, timeout=30)
check(done.returncode == 0 and "1 proxy, " in done.stdout, "stat works with the control plane gone")
gone = subprocess.run([TULLE, "stat", "--run-dir", str(WORK / "nowhere")], capture_output=True, text=True, timeout=30)
check(gone.returncode == 3 and "next:" in gone.stderr, "stat without anybody to ask ends with 3")
