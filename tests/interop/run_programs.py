"""`tulle run` puts unmodified programs into the mesh: a web server from Python's library and curl. Standard streams, exit
code and signals are the program's own; when it ends, its proxy and agent end; an identity outlives its token. Loopback
addresses here; `run_transparent.py` has the rest."""

import os
import signal
import socket
import subprocess
import sys

from _mesh import WORK, Control, Program, check, free_port, get, say, service_yaml, until, workload_yaml

CATALOG = "127.77.5.2"
app_port, in_port, out_port, dns_port = free_port(), free_port(CATALOG), free_port("127.79.5.2"), free_port()
OUT = f"127.79.5.2:{out_port}"
MESH = (
    service_yaml("catalog", 8080)
    + workload_yaml("catalog-1", "catalog", CATALOG,
                    ports=f'[{{name: http, number: 8080, app: "127.0.0.1:{app_port}", bind: "{CATALOG}:{in_port}"}}]')
    + workload_yaml("web-1", "web", "127.77.5.1",
                    outbound=f'[{{host: catalog.shop.svc.cluster.local, port: 8080, bind: "{OUT}"}}]')
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
"""
)


control = Control()
control.write("mesh.yaml", MESH)
control.start()
(WORK / "www").mkdir()
(WORK / "www" / "hello").write_text("hello from an unmodified program\n")
server = Program("server", *control.workload("catalog-1", sys.executable, "-m", "http.server", app_port, "--bind", "127.0.0.1",
                                               "--directory", WORK / "www", token=control.token("catalog-1", "catalog"), dns="off"))
until(lambda: socket.create_connection(("127.0.0.1", app_port), 1).close() is None, "the server runs")
check("spiffe://cluster.local/ns/shop/sa/catalog" in server.text(), "it says who it is")
check("Nothing forces this program through its proxy" in server.text(), "and what this kind of network is worth")

shell = 'curl -sS --fail "$CATALOG_URL/hello"; exit 7'
done = subprocess.run(control.workload("web-1", "sh", "-c", shell, token=control.token("web-1", "web"), dns="off"),
                      capture_output=True, text=True, timeout=60)
check(done.stdout == "hello from an unmodified program\n", f"curl got the page, and nothing else is on stdout {done.stdout!r}")
check(done.returncode == 7, "the exit code is the program's own")

(WORK / "web-1.token").unlink()
lookup = (
    "import socket,struct,sys\n"
    "name=b''.join(bytes([len(l)])+l.encode() for l in 'catalog.shop.svc.cluster.local'.split('.'))+b'\\0'\n"
    "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(3)\n"
    "s.sendto(struct.pack('>6H',7,0x100,1,0,0,0)+name+struct.pack('>2H',1,1),('127.0.0.1',int(sys.argv[1])))\n"
    "print(socket.inet_ntoa(s.recv(512)[-4:]))\n"
)
done = subprocess.run(control.workload("web-1", sys.executable, "-c", lookup, dns_port, dns=f"127.0.0.1:{dns_port}"),
                      capture_output=True, text=True, timeout=60)
check(done.returncode == 0 and done.stdout == "127.79.5.2\n", f"again without a token, and by DNS: {done.stdout!r} {done.stderr if done.returncode else str()}")

sleeper = subprocess.Popen(control.workload("web-1", "sh", "-c", "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done",
                                            dns="off"), stdout=subprocess.PIPE, text=True)
check(sleeper.stdout.readline() == "up\n", "a program with a signal handler runs")
admin = WORK / "web-1" / "admin.sock"
check(admin.exists(), "its proxy has an admin socket")
sleeper.send_signal(signal.SIGTERM)
check(sleeper.stdout.readline() == "caught\n" and sleeper.wait(10) == 9, "signals reach the program, and its answer comes back")


def alive(path):
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


check(not alive(admin) and not (WORK / "web-1" / "sds.sock").exists(), "proxy and agent ended with it")
killed = subprocess.Popen(control.workload("web-1", "sleep", "60", dns="off"), stderr=subprocess.PIPE, text=True)
until(lambda: alive(admin), "once more")
os.kill(killed.pid, signal.SIGKILL)
killed.wait()
until(lambda: not alive(admin), "the proxy also ends when `tulle run` is killed", 5)

undeclared = subprocess.run(control.workload("ghost-1", "true", token=control.token("ghost-1", "ghost"), dns="off", wait="3s"),
                            capture_output=True, text=True, timeout=60)
check(undeclared.returncode == 3 and "is workload ghost-1 declared" in undeclared.stderr, f"a workload nobody declared: {undeclared.stderr}")
missing = subprocess.run(control.workload("web-1", "/no/such/program", dns="off"), capture_output=True, text=True, timeout=60)
check(missing.returncode == 6 and "cannot start /no/such/program" in missing.stderr, "a program that is not there")
server.stop()
until(lambda: not alive(WORK / "catalog-1" / "admin.sock"), "the server's proxy ends with it", 5)

say("-- with a store the workloads declare themselves")
control.stop()
control.store = WORK / "mesh.redb"
control.start()
port = free_port()
cart = Program("cart", *control.workload("cart-1", sys.executable, "-m", "http.server", port, "--directory", WORK / "www",
                                         token=control.token("cart-1", "cart"), dns="off", service="cart", port=port, net="loopback"))
until(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, "the cart runs")
caller = control.workload("caller-1", "sh", "-c", 'curl -sS --fail --retry 5 --retry-all-errors --retry-delay 1 "$CART_URL/hello"',
                          token=control.token("caller-1", "caller"), dns="off", service="caller", port=free_port(), net="loopback")
done = subprocess.run(caller, capture_output=True, text=True, timeout=60)
check(done.returncode == 0 and done.stdout == "hello from an unmodified program\n", f"one calls the other: {done.stdout!r} {done.stderr}")
_, objects, _ = control.tulle("get", "workload", "-A", "-o", "name")
check("cart-1" in objects and "caller-1" not in objects, f"who has ended is not declared any more: {objects.split()}")
caller = control.workload("caller-2", "sh", "-c", f'curl -sS --fail --retry 5 --retry-all-errors --retry-delay 1 "http://cart:{port}/hello"',
                          token=control.token("caller-2", "caller"), service="caller", port=free_port(), net="userns")
done = subprocess.run(caller, capture_output=True, text=True, timeout=60)
check(done.returncode == 0 and done.stdout == "hello from an unmodified program\n", f"also from a namespace of its own: {done.stdout!r} {done.stderr}")
cart.stop()
until(lambda: "cart-1" not in control.tulle("get", "workload", "-A", "-o", "name")[1], "and neither is the cart", 10)
