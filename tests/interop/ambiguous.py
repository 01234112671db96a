"""Requests that two readers may understand differently, through our proxy to nginx, HAProxy and the real Envoy: a server never sees a request
that the proxy has not decided on, and nothing that it cannot read. nginx and HAProxy take part where they are installed. With `PAYLOADS` set
to a directory, every file in it is one more input."""

import collections
import json
import os
import pathlib
import shutil
import socket
import threading
import time

from _mesh import ENVOY, TULLE, WORK, Program, check, free_port, say, until

HEAD = b"POST /first HTTP/1.1\r\nhost: a\r\n"
SECOND = b"GET /second HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


# ---- What is said --------------------------------------------------------------------------------------------------------


def lengths():
    """One body that ends in two places: what stands behind the shorter one is a request of its own for somebody."""
    for value in (b"+5", b"-5", b"0x5", b"5 ", b" 5", b"\t5", b"05", b"5,5", b"5, 6", b"5;", b"5.0", b"", b"5 5", b"5\x00", b"\x0b5", b"5e0",
                  b"18446744073709551621", b"99999999999999999999999", b"\xd9\xa5", b"5_0"):
        yield "length " + repr(value), HEAD + b"content-length: " + value + b"\r\n\r\nhello" + SECOND
    yield "two lengths", HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello" + SECOND
    yield "one length twice", HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "a length on a GET", b"GET /first HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "no length", HEAD + b"\r\n" + SECOND
    yield "a length in another case", HEAD + b"cOnTeNt-LeNgTh: 5\r\n\r\nhello" + SECOND
    yield "a length with an underscore", HEAD + b"content_length: 5\r\n\r\n" + SECOND


def codings():
    """Whether a body comes in chunks at all."""
    rest = b"5\r\nhello\r\n0\r\n\r\n" + SECOND
    for value in (b"chunked", b"Chunked", b" chunked", b"chunked ", b"\tchunked", b"\x0bchunked", b"chunked\x0c", b"xchunked", b"chunkedx",
                  b"chunked, chunked", b"chunked, identity", b"identity, chunked", b"identity", b"gzip", b"gzip, chunked", b"chunked;q=1",
                  b'"chunked"', b",chunked", b"chunked,", b"chunked\x00", b"", b"ch\xc3\xbcnked", b"chunk", b"chunked\r\n ,identity"):
        for also, length in ((b"", "alone"), (b"content-length: 3\r\n", "with a length")):
            yield f"coding {value!r} {length}", HEAD + also + b"transfer-encoding: " + value + b"\r\n\r\n" + rest
            yield f"coding {value!r} {length} behind", HEAD + b"transfer-encoding: " + value + b"\r\n" + also + b"\r\n" + rest
    for name in (b"transfer-encoding ", b"transfer_encoding", b" transfer-encoding", b"transfer-encoding\x00", b"transfer-encoding\t",
                 b"x\ntransfer-encoding", b"x\rtransfer-encoding", b"transfer\xad-encoding", b"\x0btransfer-encoding"):
        yield f"a name like {name!r}", HEAD + b"content-length: 3\r\n" + name + b": chunked\r\n\r\n" + rest
    yield "a coding over two lines", HEAD + b"content-length: 3\r\ntransfer-encoding:\r\n chunked\r\n\r\n" + rest
    yield "two codings", HEAD + CHUNKED + b"transfer-encoding: identity\r\n\r\n" + rest
    yield "the same coding twice", HEAD + CHUNKED + CHUNKED + b"\r\n" + rest
    yield "a coding in HTTP/1.0", HEAD.replace(b"/1.1", b"/1.0") + CHUNKED + b"\r\n" + rest
    yield "a coding and a length in HTTP/1.0", HEAD.replace(b"/1.1", b"/1.0") + CHUNKED + b"content-length: 3\r\n\r\n" + rest
    for name in (b"transfer-encoding", b"content-length", b"host", b"connection"):
        yield f"{name!r} as a header of the connection", HEAD + b"connection: " + name + b"\r\n" + CHUNKED + b"\r\n" + rest


def chunks():
    """Where a chunk ends."""
    head = HEAD + CHUNKED + b"\r\n"
    end = b"\r\nhello\r\n0\r\n\r\n" + SECOND
    for size in (b"5", b"05", b"0000000000000000005", b"5 ", b" 5", b"\t5", b"+5", b"-5", b"0x5", b"5;", b"5;a=b", b'5;a="\r\n"', b"5;a=b\n", b"5\n",
                 b"5\r", b"5;\n", b"5\r\r", b"5 ;a", b"5_", b"5,", b"5h", b"", b";a", b"10000000000000005", b"fffffffffffffffffb", b"5\x00",
                 b"5" + b";a" * 3000):
        yield f"a chunk of {size[:30]!r}", head + size + end
    for between in (b"\n", b"\r", b"", b"xx", b"\r\r\n", b"\n\r\n", b" \r\n"):
        yield f"{between!r} behind a chunk", head + b"5\r\nhello" + between + b"0\r\n\r\n" + SECOND
    for last in (b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\r\n\r\n", b"00\r\n\r\n", b"-0\r\n\r\n", b"0;a\r\n\r\n", b"\r\n", b"0\r\n"):
        yield f"{last!r} as the last chunk", head + b"5\r\nhello\r\n" + last + SECOND
    for trailer in (b"a: b", b"content-length: 40", b"transfer-encoding: chunked", b"host: b", b"a", b"a : b", b" a: b", b"a: b\n", b"a\x00: b",
                    b"GET /second HTTP/1.1\r\nhost: a"):
        yield f"{trailer!r} as a trailer", head + b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n" + SECOND


def lines():
    """Where a line ends, and what it is."""
    for ending in (b"\n", b"\r", b"\r\r\n", b"\n\r"):
        yield f"lines that end in {ending!r}", (HEAD + b"content-length: 5\r\n\r\nhello" + SECOND).replace(b"\r\n", ending)
        yield f"a header that ends in {ending!r}", HEAD + b"x: y" + ending + b"content-length: 5\r\n\r\nhello" + SECOND
        yield f"a head that ends in {ending!r}", HEAD + b"content-length: 5\r\n" + ending + b"hello" + SECOND
    for odd in (b"x: a\r\n b", b"x: a\r\n\tcontent-length: 5", b" x: a", b"x : a", b"x", b": a", b"x\x00y: a", b"x: a\x00b", b"x: a\rb", b"x y: a",
                b"x\x7fy: a", b"x: \x7f", b"x: \xff", b"\xffx: a", b"x(y): a", b"x\t: a", b"x:\x0b a", b'"x": a', b"x=y: a"):
        yield f"the line {odd!r}", b"GET /first HTTP/1.1\r\n" + odd + b"\r\nhost: a\r\n\r\n" + SECOND
        yield f"the last line {odd!r}", b"GET /first HTTP/1.1\r\nhost: a\r\n" + odd + b"\r\n\r\n" + SECOND
    for before in (b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\x00", b"\r"):
        yield f"{before!r} before a request", before + SECOND + SECOND


def first_lines():
    """Who is asked for what, in which version."""
    for line in (b"GET /first", b"GET  /first HTTP/1.1", b"GET /first  HTTP/1.1", b"GET /first HTTP/1.1 ", b" GET /first HTTP/1.1", b"GET\t/first\tHTTP/1.1",
                 b"GET /fi rst HTTP/1.1", b"GET /first HTTP/1.2", b"GET /first HTTP/2.0", b"GET /first HTTP/0.9", b"GET /first HTTP/1.10", b"GET /first http/1.1",
                 b"GET /first HTTP/01.1", b"GET /first HTTP/1.1\x00", b"GET /first\x00 HTTP/1.1", b"GET /first#x HTTP/1.1", b"GET /first?a#b HTTP/1.1",
                 b"GET \\first HTTP/1.1", b"GET first HTTP/1.1", b"GET http://a/first HTTP/1.1", b"GET http://b/first HTTP/1.1", b"GET http:/first HTTP/1.1",
                 b"GET //b/first HTTP/1.1", b"GET http://a:80@b/first HTTP/1.1", b"GET /first/../second HTTP/1.1", b"GET /first%00 HTTP/1.1",
                 b"GET /first%0d%0a HTTP/1.1", b"GET /\xc3\xbc HTTP/1.1", b"GET * HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"G@T /first HTTP/1.1",
                 b"G\xffT /first HTTP/1.1", b"PRI * HTTP/2.0", b"GET /first\r HTTP/1.1", b"GET /first HTTP/1.1\r", b"get /first HTTP/1.1", b"HEAD /first HTTP/1.1"):
        yield f"the request {line!r}", line + b"\r\nhost: a\r\n\r\n" + SECOND
    for host in (b"", b"a\r\nhost: b", b"a\r\nhost: a", b"a b", b"a/b", b"a@b", b"a,b", b"a:1:2", b"a\x00", b"[::1", b"a:x", b"a#b", b"a?b", b" a", b"a."):
        yield f"the host {host!r}", b"GET /first HTTP/1.1\r\nhost: " + host + b"\r\n\r\n" + SECOND
    yield "no host", b"GET /first HTTP/1.1\r\n\r\n" + SECOND


def orders():
    """What is sent before it was asked for."""
    yield "bodies of all kinds in a row", HEAD + b"content-length: 5\r\n\r\nhello" + HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n" + SECOND * 3
    yield "a tunnel that nobody opened", b"GET /first HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" + SECOND
    yield "an upgrade to HTTP/2", b"GET /first HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n" + SECOND
    yield "an upgrade with a body", HEAD + b"connection: upgrade\r\nupgrade: x\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "a body that is not waited for", HEAD + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "an expectation of something else", HEAD + b"expect: 200-ok\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "an expectation without a body", b"GET /first HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\r\n" + SECOND
    yield "a request behind the last", SECOND.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + SECOND
    yield "a HEAD with a body", b"HEAD /first HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello" + SECOND
    yield "an end within a body", HEAD + b"content-length: 500\r\n\r\nhello"
    yield "an end within a chunk", HEAD + CHUNKED + b"\r\n50\r\nhello"
    yield "an end within a head", HEAD + b"x: "


def payloads():
    for family in (lengths, codings, chunks, lines, first_lines, orders):
        yield from family()
    if "PAYLOADS" in os.environ:
        for file in sorted(pathlib.Path(os.environ["PAYLOADS"]).iterdir()):
            yield file.name, file.read_bytes()


# ---- Who is asked --------------------------------------------------------------------------------------------------------


class Nginx:
    name = "nginx"

    def __init__(self, program):
        self.port, self.log = free_port(), WORK / "nginx-access.log"
        configuration = WORK / "nginx.conf"
        configuration.write_text(f"""
daemon off; master_process off; pid {WORK}/nginx.pid; error_log {WORK}/nginx-error.log;
events {{}}
http {{
  log_format one '$status $request_method $request_uri'; access_log {self.log} one;
  client_body_temp_path {WORK}/n1; proxy_temp_path {WORK}/n2; fastcgi_temp_path {WORK}/n3; uwsgi_temp_path {WORK}/n4; scgi_temp_path {WORK}/n5;
  server {{ listen 127.0.0.1:{self.port}; location / {{ return 200 ok; }} }}
}}
""")
        self.program = Program("nginx", program, "-c", configuration, "-p", WORK)

    def lines(self):
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


class Haproxy:
    name = "haproxy"

    def __init__(self, program):
        self.port, self.said = free_port(), []
        log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        log.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        log.bind(("127.0.0.1", 0))
        threading.Thread(target=self.listen, args=(log,), daemon=True).start()
        configuration = WORK / "haproxy.cfg"
        configuration.write_text(f"""
global
  log 127.0.0.1:{log.getsockname()[1]} format raw local0
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend in
  bind 127.0.0.1:{self.port}
  log global
  log-format "%ST %HM %HU"
  http-request return status 200 content-type text/plain string ok
""")
        self.program = Program("haproxy", program, "-db", "-f", configuration)

    def listen(self, log):
        while True:
            self.said.append(log.recv(65536).decode(errors="replace").strip())

    def lines(self):
        return list(self.said)


class Envoy:
    name = "envoy"

    def __init__(self, program):
        self.port, self.log = free_port(), WORK / "envoy-access.log"
        log = {"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": str(self.log),
            "log_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE% %REQ(:METHOD)% %REQ(:PATH)%\n"}}}}
        route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
        write(WORK / "envoy.json", bootstrap("in", self.port, route, log, []))
        self.program = Program("envoy", program, "-c", WORK / "envoy.json", "--disable-hot-restart", "--concurrency", "1", "--log-level", "error",
                               "--file-flush-interval-msec", "20")

    def lines(self):
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


def bootstrap(name, port, route, log, clusters):
    router = {"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name, "access_log": [log], "http_filters": [router],
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "a"},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}}
    return {"static_resources": {
        "listeners": [{"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                       "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
        "clusters": clusters}}


def write(path, value):
    path.write_text(json.dumps(value))


class Proxy:
    """Ours, in front of one server."""

    def __init__(self, server):
        self.port, self.log = free_port(), WORK / f"proxy-{server.name}.log"
        log = {"name": "f", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": str(self.log),
            "log_format": {"text_format_source": {"inline_string": "%UPSTREAM_HOST% %REQ(:METHOD)% %REQ(:PATH)%\n"}}}}
        endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server.port}}}}
        cluster = {"name": "server", "connect_timeout": "5s", "load_assignment": {"cluster_name": "server", "endpoints": [{"lb_endpoints": [endpoint]}]}}
        write(WORK / f"proxy-{server.name}.json", bootstrap("in", self.port, {"match": {"prefix": "/"}, "route": {"cluster": "server"}}, log, [cluster]))
        self.program = Program(f"proxy-{server.name}", TULLE, "proxy", "-c", WORK / f"proxy-{server.name}.json", "--concurrency", "1", "--log", "warn")

    def lines(self):
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


# ---- Asking and comparing ------------------------------------------------------------------------------------------------


def exchange(port, said, quiet=0.05):
    """Says it and reads what comes, until nothing comes any more."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        answer = b""
        try:
            client.sendall(said)
            client.settimeout(quiet)
            while piece := client.recv(65536):
                answer += piece
        except OSError:
            pass
        return answer


def probe(port, number):
    answer = exchange(port, b"GET /probe-%d HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % number, quiet=5)
    return answer.startswith(b"HTTP/1.1 200")


def parts(lines):
    """What was logged between one probe and the next."""
    found, part = {}, []
    for line in lines:
        if "/probe-" in line:
            found[int(line.rsplit("-", 1)[1])] = part
            part = []
        else:
            part.append(line)
    return found


def ask(port, inputs, logs, what):
    until(lambda: probe(port, 0), f"{what} answers")
    for number, (name, said) in enumerate(inputs, 1):
        exchange(port, said)
        if not probe(port, number):
            # What was said to the proxy before has harmed another client.
            say(f"{what}: the request behind {name} fails")
            probe(port, number)
    last = f"/probe-{len(inputs)}"
    for lines in logs:
        until(lambda lines=lines: any(last in line for line in lines()), f"{what} has logged everything")


def unsafe(inputs, decided, seen):
    """Inputs of which a server saw a request more than the proxy decided on, or something that it could not read."""
    for number, (name, _) in enumerate(inputs, 1):
        ours = collections.Counter(line.split(" ", 1)[1] for line in decided.get(number, []) if not line.startswith("- "))
        theirs = collections.Counter(line.split(" ", 1)[1] for line in seen.get(number, []))
        if more := theirs - ours:
            yield name, dict(more), dict(ours)


def compare(server, inputs, told):
    begun = time.monotonic()
    until(lambda: probe(server.port, 0), f"{server.name} is there")
    proxy = Proxy(server)
    ask(proxy.port, inputs, (proxy.lines, server.lines), f"the proxy before {server.name}")
    decided, seen = parts(proxy.lines()), parts(server.lines())
    for name, more, ours in (wrong := list(unsafe(inputs, decided, seen))):
        say(f"{server.name}, {name}: saw {more} beyond {ours}")
    forwarded = sum(1 for part in decided.values() for line in part if not line.startswith("- "))
    told.append((server.name, forwarded, wrong, time.monotonic() - begun))


def main():
    inputs = list(payloads())
    kinds = [(Envoy, ENVOY)] + [(kind, shutil.which(kind.name)) for kind in (Nginx, Haproxy)]
    servers = [kind(program) for kind, program in kinds if program]
    told = []
    threads = [threading.Thread(target=compare, args=(server, inputs, told)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(len(told) == len(servers), f"{len(servers)} servers were asked")
    for name, forwarded, wrong, took in told:
        check(forwarded > len(inputs) // 4, f"{len(inputs)} inputs, {forwarded} requests passed on to {name} ({took:.1f} s)")
        check(not wrong, f"{name} saw nothing that was not decided on")


main()
