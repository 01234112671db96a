"""A gRPC program without any proxy joins by mTLS and calls a service of the mesh through our ADS (`xds:///`): it obeys the mesh's routes
and subsets, sees changes, and goes on without the control plane."""

import json
import os
import sys
from concurrent import futures

from _mesh import WORK, Control, check, say, service_yaml, until, workload_yaml

V1, V2, WEB = "127.77.0.2", "127.77.0.3", "127.77.0.1"
METHOD = "/shop.Catalog/Name"
TARGET = "xds:///catalog.shop.svc.cluster.local:9090"

control = Control()
certs = WORK / "web-1.shop"
port = control.xds.rsplit(":", 1)[1]
os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps({
    "xds_servers": [{
        "server_uri": f"dns:///localhost:{port}",
        # With the workload's own key and certificate, which the agent keeps fresh in these files.
        "channel_creds": [{"type": "tls", "config": {
            "certificate_file": str(certs / "cert-chain.pem"),
            "private_key_file": str(certs / "key.pem"),
            "ca_certificate_file": str(certs / "root-cert.pem"),
        }}],
        "server_features": ["xds_v3"],
    }],
    "node": {"id": f"sidecar~{WEB}~web-1.shop~shop.svc.cluster.local", "metadata": {"GENERATOR": "grpc"}},
})
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Read when the library is loaded.
import grpc  # noqa: E402


def serve(name, address):
    """An unmodified gRPC server that answers its name."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode())
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shop.Catalog", {"Name": handler})])
    port = server.add_insecure_port(f"{address}:0")
    server.start()
    return server, port


servers = [serve("v1", V1), serve("v2", V2)]


def workload(name, address, port, version):
    ports = f"[{{name: grpc, number: 9090, bind: '{address}:{port}'}}]"
    return workload_yaml(name, "catalog", address, ports=ports, version=version)


def routes(first):
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec:
  host: catalog
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - match: [{{headers: {{x-user: {{exact: amy}}}}}}]
    route: [{{destination: {{host: catalog, subset: v2}}}}]
  - route:
    - {{destination: {{host: catalog, subset: v1}}, weight: {first}}}
    - {{destination: {{host: catalog, subset: v2}}, weight: {100 - first}}}
"""


control.write("mesh.yaml", service_yaml("catalog", 9090, "grpc") + workload("catalog-v1", V1, servers[0][1], "v1")
              + workload("catalog-v2", V2, servers[1][1], "v2") + workload_yaml("web-1", "web", WEB))
control.write("routes.yaml", routes(100))
control.start()
control.agent("web-1.shop", "web")

channel = grpc.insecure_channel(TARGET)
call = channel.unary_unary(METHOD)


def name(user=None):
    try:
        return call(b"", timeout=10, metadata=[("x-user", user)] if user else None).decode()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


first = name()
check(first == "v1", f"the first call is answered by v1: {first}")
check({name() for _ in range(50)} == {"v1"}, "50 calls go to v1")
check({name("amy") for _ in range(50)} == {"v2"}, "amy's 50 calls go to v2")
until(lambda: control.synced("web-1.shop"), "the control plane knows that it has everything")
agents = [proxy["agent"] for proxy in control.proxies()]
check(any("grpc" in agent.lower() for agent in agents), f"`proxy ls` shows it as {agents}")

control.write("routes.yaml", routes(0))
took = until(lambda: name() == "v2", "a changed weight takes effect", 5)
check(took < 2, f"a changed weight takes effect after {took * 1e3:.0f} ms")
control.write("routes.yaml", routes(50))
until(lambda: {name() for _ in range(20)} == {"v1", "v2"}, "both get calls", 5)
names = [name() for _ in range(2000)]
share = names.count("v1") / len(names)
check(0.45 < share < 0.55, f"of 2000 calls {share:.1%} went to v1")

control.stop()
failed = [answer for answer in (name() for _ in range(200)) if answer not in ("v1", "v2")]
check(not failed, f"200 calls without the control plane {failed[:1]}")
control.write("routes.yaml", routes(100))
control.start()
took = until(lambda: {name() for _ in range(10)} == {"v1"}, "it follows changes again after a restart", 60)
say(f"ok: changes arrive again {took:.1f} s after the restart")

short = grpc.insecure_channel("xds:///catalog:9090").unary_unary(METHOD)
check(short(b"", timeout=10) == b"v1", "the short name works too")
other = grpc.insecure_channel("xds:///nobody.shop.svc.cluster.local:9090").unary_unary(METHOD)
try:
    answer = other(b"", timeout=3)
    check(False, f"an unknown service is not answered: {answer}")
except grpc.RpcError as error:
    say(f"ok: an unknown service is an error: {error.code().name}")
channel.close()
for server, _ in servers:
    server.stop(None)
sys.exit(0)
