"""Both proxies of a mesh hop are replaced under load: they get their configuration by ADS, speak mTLS, and 2,000 HTTP requests per
second, gRPC calls, gRPC streams and raw TCP go through them. No request and no call fails; a long stream and a TCP connection live
on in the process that was replaced until its drain time is over; without a control plane it works as well."""

import json
import multiprocessing
import queue
import socket
import threading
import time
from concurrent import futures

import grpc

from _load import RATE, Load, Server, serve
from _mesh import STRICT, TULLE, WORK, Control, Program, check, envoy_bootstrap, free_port, get, say, service_yaml, until, workload_yaml

DRAIN = 9
WEB, CATALOG, OUT = "127.77.10.1", "127.77.10.2", "127.79.10.2"
PORTS = {"catalog": ("http", 8080), "stream": ("grpc", 7070), "bytes": ("tcp", 9000)}
OUTS = {name: free_port(OUT) for name in PORTS}


def host(name):
    return f"{name}.shop.svc.cluster.local:{PORTS[name][1]}"


class Echo(grpc.GenericRpcHandler):
    """`/echo/Call` answers once, `/echo/Stream` everything that comes."""

    def service(self, call):
        if call.method == "/echo/Call":
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
        return grpc.stream_stream_rpc_method_handler(lambda requests, _: (request for request in requests))


def echo_bytes(listening):
    def one(stream):
        while data := stream.recv(4096):
            stream.sendall(data)

    while True:
        threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()


class Calls(threading.Thread):
    """Unary gRPC calls, one after the other, on one channel for the whole time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.done, self.failed, self.go_on = 0, [], True
        self.start()

    def run(self):
        with channel() as mesh:
            call = mesh.unary_unary("/echo/Call")
            while self.go_on:
                try:
                    check_same(call(b"x" * 100, timeout=10), b"x" * 100)
                    self.done += 1
                except (grpc.RpcError, ValueError) as error:
                    self.failed.append(str(error)[:300])
                time.sleep(0.005)


def check_same(got, wanted):
    if got != wanted:
        raise ValueError(f"{got!r} came back")


def channel():
    return grpc.insecure_channel(f"{OUT}:{OUTS['stream']}", options=[
        ("grpc.default_authority", host("stream")), ("grpc.use_local_subchannel_pool", 1)])


class Stream:
    """A gRPC stream that stays open, with one message at a time."""

    def __init__(self):
        self.channel = channel()
        self.words = queue.Queue()
        self.answers = self.channel.stream_stream("/echo/Stream")(iter(self.words.get, None))

    def echoes(self, word):
        self.words.put(word)
        return next(self.answers) == word

    def is_alive(self):
        try:
            return self.echoes(b"still there?")
        except grpc.RpcError:
            return False


class Bytes:
    """A TCP connection that stays open."""

    def __init__(self):
        self.socket = socket.create_connection((OUT, OUTS["bytes"]), 5)

    def is_alive(self):
        try:
            self.socket.sendall(b"bytes")
            return self.socket.recv(99) == b"bytes"
        except OSError:
            return False


def proxy(workload, turn, *more):
    name = workload.split("-")[0]
    return Program(f"{name}-{turn}", TULLE, "proxy", "-c", WORK / f"{name}.json", "--concurrency", 1, "--run-dir", WORK / f"{name}-run",
                   "--state-dir", WORK / f"{name}-state", "--drain-time", DRAIN, "--take-over", *more)


def replace(workload, turn):
    program = proxy(workload, turn)
    until(lambda: "taken-over" in program.text(), f"{workload}'s next proxy serves", 60)
    return program


def ended(program):
    return program.process.poll() is not None


http, tcp = Server(), socket.create_server(("127.0.0.1", 0))
# Before gRPC has begun: its threads do not survive a fork.
multiprocessing.Process(target=serve, args=(http.socket,), daemon=True).start()
grpc_server = grpc.server(futures.ThreadPoolExecutor(8))
grpc_server.add_generic_rpc_handlers((Echo(),))
apps = {"catalog": http.port, "stream": grpc_server.add_insecure_port("127.0.0.1:0"), "bytes": tcp.getsockname()[1]}
grpc_server.start()
threading.Thread(target=echo_bytes, args=(tcp,), daemon=True).start()

control = Control()
ports = ", ".join(f'{{name: {kind}, number: {number}, app: "127.0.0.1:{apps[name]}", bind: "{CATALOG}:{free_port(CATALOG)}"}}'
                  for name, (kind, number) in PORTS.items())
outs = ", ".join(f'{{host: {name}.shop.svc.cluster.local, port: {number}, bind: "{OUT}:{OUTS[name]}"}}' for name, (_, number) in PORTS.items())
services = "".join(service_yaml(name, number, kind).replace(f"app: {name}", "app: catalog") for name, (kind, number) in PORTS.items())
control.write("mesh.yaml", services + workload_yaml("catalog-1", "catalog", CATALOG, ports=f"[{ports}]")
              + workload_yaml("web-1", "web", WEB, outbound=f"[{outs}]") + STRICT)
control.start()
admins = {}
for workload, account, address in (("catalog-1.shop", "catalog", CATALOG), ("web-1.shop", "web", WEB)):
    control.agent(workload, account)
    admins[account] = f"127.0.0.1:{free_port()}"
    made = envoy_bootstrap(control, workload, address, "unix", True, admins[account])
    (WORK / f"{account}.json").write_text(json.dumps(made))
first = {name: proxy(f"{name}-1", 1) for name in ("catalog", "web")}
until(lambda: get(f"{OUT}:{OUTS['catalog']}", host=host("catalog"))[0] == 200, "web calls catalog through both proxies", 30)
check(Bytes().is_alive(), "and its TCP port")
stream, connection = Stream(), Bytes()
check(stream.is_alive() and connection.is_alive(), "a stream and a connection are open")

say("-- both proxies are replaced under load")
load, calls = Load(OUTS["catalog"], 14, OUT, host("catalog")), Calls()
time.sleep(2)
replaced_at = time.monotonic()
second = {"web": replace("web-1", 2)}
check(stream.is_alive() and connection.is_alive(), "the stream and the connection live on")
time.sleep(1)
second["catalog"] = replace("catalog-1", 2)
check(stream.is_alive() and connection.is_alive(), "also when the other proxy is replaced")
check(not ended(first["web"]) and not ended(first["catalog"]), "in the proxies that were")
fresh = Stream()
check(fresh.is_alive() and Bytes().is_alive(), "new ones are served by the new proxies")
until(lambda: control.synced("web-1.shop", "catalog-1.shop"), "the control plane knows both", 30)
until(lambda: ended(first["web"]) and ended(first["catalog"]), "the first ones end when their drain time is over", DRAIN + 20)
lasted = time.monotonic() - replaced_at
check(lasted >= DRAIN - 1, f"and not before: after {lasted:.1f} s")
check(first["web"].process.returncode == 0 and first["catalog"].process.returncode == 0, "in order")
check(not stream.is_alive() and not connection.is_alive(), "the stream and the connection ended with them")
check(fresh.is_alive(), "the younger stream did not")
done, failed, worst, rate, why = load.end()
check(failed == 0, f"{done} requests at {rate:.0f}/s, {failed} failed, the slowest took {worst * 1000:.0f} ms {why}")
check(done >= 0.3 * RATE * 14, "which is a load")

say("-- without a control plane, from what is on disk")
control.stop()
third = replace("web-1", 3)
check(get(f"{OUT}:{OUTS['catalog']}", host=host("catalog"))[0] == 200, "the next proxy serves")
fresh.words.put(None)
until(lambda: ended(second["web"]), "and the one before ends as soon as nothing is left in it", DRAIN + 20)
calls.go_on = False
calls.join(20)
check(not calls.failed and calls.done > 100, f"{calls.done} gRPC calls, {len(calls.failed)} failed {calls.failed[:2]}")
