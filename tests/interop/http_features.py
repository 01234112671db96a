"""What HTTP has besides requests and answers - upgrades, CONNECT, trailers, interim answers, HTTP/1.0, streams, gRPC in its four shapes with
deadlines and cancellation - through our proxy and through the real Envoy, with the same bootstrap and the same answers."""

import base64
import hashlib
import os
import socket
import threading
import time
from concurrent import futures

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings

from _mesh import ENVOY, TULLE, WORK, Program, check, free_port, until

BIG = 24 * 1024 * 1024
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


# ---- Backends ----------------------------------------------------------------------------------------------------------


class Server:
    """Threads behind a listening socket."""

    def __init__(self, serve):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.serve = serve
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.run, args=(connection,), daemon=True).start()

    def run(self, connection):
        try:
            self.serve(connection)
        except OSError:
            pass
        finally:
            connection.close()


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


class Stream:
    """A connection that is read by line and by count."""

    def __init__(self, connection):
        self.socket = connection
        self.buffer = b""

    def more(self):
        data = self.socket.recv(262144)
        self.buffer += data
        return bool(data)

    def head(self):
        """Start line and headers (a list of pairs, names in lower case), or None at the end."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                return None
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        return first, [(n.lower(), v.strip()) for n, v in (line.split(":", 1) for line in lines)]

    def line(self):
        while b"\r\n" not in self.buffer:
            if not self.more():
                raise OSError("closed in a line")
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode("latin-1")

    def take(self, count):
        while len(self.buffer) < count:
            if not self.more():
                raise OSError("closed in a body")
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def rest(self):
        while self.more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def chunks(self):
        """Yields chunks, then the trailers as a list of pairs."""
        while size := int(self.line().split(";")[0], 16):
            yield self.take(size)
            self.take(2)
        trailers = []
        while line := self.line():
            name, value = line.split(":", 1)
            trailers.append((name.lower(), value.strip()))
        yield trailers


def one(pairs, name):
    return next((value for known, value in pairs if known == name), None)


seen = []


def http1(connection):
    stream = Stream(connection)
    while head := stream.head():
        first, headers = head
        method, path, _ = first.split(" ")
        body, trailers = hashlib.sha256(), []
        if path == "/leave":
            hint = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" if one(headers, "expect") else hint)
        if one(headers, "transfer-encoding") == "chunked":
            for piece in stream.chunks():
                if isinstance(piece, list):
                    trailers = piece
                    break
                body.update(piece)
                if path == "/upload":
                    seen.append((time.monotonic(), piece))
        elif length := one(headers, "content-length"):
            left = int(length)
            while left:
                piece = stream.take(min(left, 262144))
                body.update(piece)
                left -= len(piece)
        seen.append((first, headers, trailers))
        send = connection.sendall
        if method == "CONNECT":
            send(b"HTTP/1.1 200 OK\r\n\r\n" + stream.buffer)
            return echo(connection)
        if path == "/ws":
            accept = base64.b64encode(hashlib.sha1(one(headers, "sec-websocket-key").encode() + MAGIC).digest())
            send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: " + accept + b"\r\n\r\n")
            send(stream.buffer)
            return echo(connection)
        if path == "/trailers":
            send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n")
        elif path == "/leave":
            send(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ngot abc")
        elif path == "/early":
            send(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        elif path == "/big":
            send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG)
            for _ in range(BIG // 65536):
                send(b"x" * 65536)
        elif path == "/drip":
            send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(4):
                send(b"2\r\n%d\n\r\n" % number)
                time.sleep(0.2)
            send(b"0\r\n\r\n")
        elif path.startswith("/slow"):
            time.sleep(1.5)
            send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        elif path == "/until-close":
            send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall of it")
            return
        else:
            digest = body.hexdigest().encode()
            send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(digest), digest))


def http2(connection):
    """Hints first; leave to send where it is asked for; then what came."""
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    state.initiate_connection()
    connection.sendall(state.data_to_send())
    bodies = {}
    while data := connection.recv(65536):
        for event in state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                bodies[event.stream_id] = b""
                expects = one(event.headers, "expect")
                state.send_headers(event.stream_id, [(":status", "100")] if expects else [(":status", "103"), ("link", "</a.css>")])
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] += event.data
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                state.send_headers(event.stream_id, [(":status", "200")])
                state.send_data(event.stream_id, b"got " + bodies.pop(event.stream_id), end_stream=True)
        connection.sendall(state.data_to_send())


class Grpc:
    """A server with a method of each shape; it notes how its calls ended."""

    def __init__(self):
        self.ended = []
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Shapes", handlers)])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def unary(self, request, context):
        if request == b"fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 %")
        context.set_trailing_metadata([("x-trailing", "yes")])
        return b"one " + request

    def down(self, request, context):
        for number in range(3):
            yield b"%d" % number

    def up(self, requests, context):
        return b"+".join(requests)

    def both(self, requests, context):
        for request in requests:
            yield b"re " + request

    def hang(self, request, context):
        done = threading.Event()
        context.add_callback(done.set)
        self.ended.append((request, done.wait(8)))
        return b"late"


http_server, http2_server, tcp_server, grpc_server = Server(http1), Server(http2), Server(echo), Grpc()


# ---- The proxy's configuration -----------------------------------------------------------------------------------------


def cluster(name, port, more=""):
    address = f"{{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"
    return f"{{name: {name}, connect_timeout: 2s, {more} load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {address}}}]}}]}}}}"


OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def options(inner):
    return f"typed_extension_protocol_options: {{{OPTIONS}: {{'@type': type.googleapis.com/{OPTIONS}, explicit_http_config: {{{inner}}}}}}},"


def bootstrap(port, bare, relay):
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"

    def listener(name, at, more, routes):
        return f"""
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {at}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': {manager}
          stat_prefix: {name}
          {more}
          http_filters: [{router}]
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:{routes}"""

    tunnel = "headers: [{name: ':authority', string_match: {prefix: tunnel.test}}]"
    onward = "headers: [{name: ':authority', string_match: {prefix: onward.test}}]"
    return f"""
static_resources:
  listeners:{listener("full", port, "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: CONNECT}]"
        ", http_protocol_options: {accept_http_10: true, enable_trailers: true}, http2_protocol_options: {allow_connect: true}"
        .replace(", http", chr(10) + "          http"), f'''
              - {{match: {{connect_matcher: {{}}, {tunnel}}}, route: {{cluster: tcp, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}
              - {{match: {{connect_matcher: {{}}, {onward}}}, route: {{cluster: http1}}}}
              - {{match: {{path: /slow}}, route: {{cluster: http1, timeout: 0.5s}}}}
              - {{match: {{path: /slow/call}}, route: {{cluster: http1, timeout: 0s, max_stream_duration: {{grpc_timeout_header_max: 0s}}}}}}
              - {{match: {{path: /slow/life}}, route: {{cluster: http1, timeout: 0s, max_stream_duration: {{max_stream_duration: 0.4s}}}}}}
              - {{match: {{prefix: /no-ws}}, route: {{cluster: http1, upgrade_configs: [{{upgrade_type: websocket, enabled: false}}]}}}}
              - {{match: {{prefix: /test.Shapes/}}, route: {{cluster: grpc, timeout: 0s, max_stream_duration: {{grpc_timeout_header_max: 0s}}}}}}
              - {{match: {{prefix: /}}, route: {{cluster: http1, timeout: 20s}}}}''')}{listener("bare", bare, "stream_idle_timeout: 60s", '''
              - {match: {path: /ws}, route: {cluster: http1, upgrade_configs: [{upgrade_type: websocket}]}}
              - {match: {prefix: /}, route: {cluster: http1}}''')}{listener("relay", relay, "proxy_100_continue: true", '''
              - {match: {path: /leave, headers: [{name: over, string_match: {exact: http2}}]}, route: {cluster: http2}}
              - {match: {prefix: /}, route: {cluster: http1}}''')}
  clusters:
  - {cluster("http1", http_server.port, options("http_protocol_options: {enable_trailers: true}"))}
  - {cluster("tcp", tcp_server.port)}
  - {cluster("http2", http2_server.port, options("http2_protocol_options: {}"))}
  - {cluster("grpc", grpc_server.port, options("http2_protocol_options: {}"))}
"""


# ---- What must hold ----------------------------------------------------------------------------------------------------


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def ask(port, text):
    """Sends bytes; gives the stream back."""
    connection = connect(port)
    connection.sendall(text.encode())
    return Stream(connection)


def status(stream):
    first, headers = stream.head()
    return int(first.split(" ")[1]), headers


def upgrades(who, full, bare):
    key = base64.b64encode(os.urandom(16)).decode()
    request = f"GET %s HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
    for port in (full, bare):
        stream = ask(port, request % "/ws")
        code, headers = status(stream)
        accept = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
        check(code == 101 and one(headers, "sec-websocket-accept") == accept, f"{who}: a WebSocket opens")
        frame = b"\x82\xfe\x10\x00" + os.urandom(4) + os.urandom(4096)
        stream.socket.sendall(frame)
        check(stream.take(len(frame)) == frame, f"{who}: and carries frames both ways")
        stream.socket.close()
    check(status(ask(full, request % "/no-ws"))[0] == 403, f"{who}: a route may forbid it")
    check(status(ask(bare, request % "/"))[0] == 403, f"{who}: nobody allowed it elsewhere")


def connects(who, full, bare):
    stream = ask(full, "CONNECT tunnel.test:443 HTTP/1.1\r\nhost: tunnel.test:443\r\n\r\n")
    code, headers = status(stream)
    check(code == 200 and not one(headers, "transfer-encoding"), f"{who}: CONNECT ends at the proxy")
    stream.socket.sendall(b"\x00\xffraw")
    check(stream.take(5) == b"\x00\xffraw", f"{who}: and bytes go to the endpoint and back")
    stream.socket.close()
    seen.clear()
    stream = ask(full, "CONNECT onward.test:443 HTTP/1.1\r\nhost: onward.test:443\r\n\r\n")
    check(status(stream)[0] == 200, f"{who}: CONNECT goes on to the next proxy")
    stream.socket.sendall(b"more")
    check(stream.take(4) == b"more", f"{who}: which carries the bytes")
    check(seen[0][0] == "CONNECT onward.test:443 HTTP/1.1", f"{who}: and got the same target")
    stream.socket.close()
    check(status(ask(full, "CONNECT other.test:1 HTTP/1.1\r\nhost: other.test:1\r\n\r\n"))[0] == 404, f"{who}: no route, no tunnel")


class H2:
    """One HTTP/2 connection with one stream."""

    def __init__(self, port, headers, end):
        self.socket = connect(port)
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.state.initiate_connection()
        self.flush()
        self.events = []
        self.wait(h2.events.RemoteSettingsChanged)
        self.state.send_headers(1, headers, end_stream=end)
        self.flush()

    def flush(self):
        self.socket.sendall(self.state.data_to_send())

    def send(self, data, end=False):
        self.state.send_data(1, data, end_stream=end)
        self.flush()

    def wait(self, *kinds):
        """The next event of one of these kinds, or None when the connection ends."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if isinstance(event, kinds):
                    self.flush()
                    return event
            data = self.socket.recv(65536)
            if not data:
                return None
            self.events += self.state.receive_data(data)
            self.flush()


def head(method, path, authority="a", **more):
    named = [(name.replace("_", "-"), value) for name, value in more.items()]
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority), *named]


def extended(who, full, bare):
    key = base64.b64encode(os.urandom(16)).decode()
    fields = head("CONNECT", "/ws", sec_websocket_version="13", sec_websocket_key=key)
    stream = H2(full, [*fields[:1], (":protocol", "websocket"), *fields[1:]], False)
    answer = stream.wait(h2.events.ResponseReceived, h2.events.StreamReset)
    check(dict(answer.headers).get(":status") == "200", f"{who}: a WebSocket opens over HTTP/2")
    stream.send(b"hello")
    check(stream.wait(h2.events.DataReceived, h2.events.StreamReset).data == b"hello", f"{who}: and carries bytes to an HTTP/1 server and back")
    stream.socket.close()


def trailers(who, full, bare):
    stream = ask(full, "GET /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n")
    status(stream)
    *data, end = stream.chunks()
    check(b"".join(data) == b"abc" and ("x-sum", "6") in end, f"{who}: trailers of an answer pass")
    seen.clear()
    body = "3\r\nabc\r\n0\r\nx-check: 7\r\n\r\n"
    status(ask(full, f"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n{body}"))
    check(("x-check", "7") in seen[0][2], f"{who}: trailers of a request pass")
    stream = H2(full, head("GET", "/trailers", te="trailers"), True)
    end = stream.wait(h2.events.TrailersReceived, h2.events.StreamEnded)
    check(isinstance(end, h2.events.TrailersReceived) and ("x-sum", "6") in end.headers, f"{who}: trailers pass to HTTP/2")
    stream.socket.close()


def interim(who, full, bare):
    stream = ask(full, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
    check(status(stream)[0] == 100, f"{who}: 100 Continue is answered")
    seen.clear()
    stream.socket.sendall(b"abc")
    code, _ = status(stream)
    check(code == 200 and one(seen[0][1], "expect") is None, f"{who}: and the expectation goes no further")
    stream = ask(full, "GET /early HTTP/1.1\r\nhost: a\r\n\r\n")
    code, _ = status(stream)
    if code == 103:
        code, _ = status(stream)
    check(code == 200 and stream.take(2) == b"ok", f"{who}: an interim answer is not the answer")


def relayed(who, relay):
    """The program's own interim answers reach the client, over whichever version of HTTP on either side."""
    for over, expect in [(over, expect) for over in ("http1", "http2") for expect in (True, False)]:
        wanted = (100, None) if expect else (103, "</a.css>")
        asked = "expect: 100-continue\r\n" if expect else ""
        stream = ask(relay, f"POST /leave HTTP/1.1\r\nhost: a\r\nover: {over}\r\n{asked}content-length: 3\r\n\r\n")
        code, headers = status(stream)
        check((code, one(headers, "link")) == wanted, f"{who}: {code} passes, HTTP/1 to {over}")
        stream.socket.sendall(b"abc")
        check(status(stream)[0] == 200, f"{who}: and the answer follows")
        stream.socket.close()
        stream = H2(relay, head("POST", "/leave", over=over, **({"expect": "100-continue"} if expect else {})), False)
        kinds = (h2.events.InformationalResponseReceived, h2.events.ResponseReceived, h2.events.StreamReset)
        headers = stream.wait(*kinds).headers
        check((int(one(headers, ":status")), one(headers, "link")) == wanted, f"{who}: {code} passes, HTTP/2 to {over}")
        stream.send(b"abc", end=True)
        check(one(stream.wait(*kinds).headers, ":status") == "200", f"{who}: and the answer follows")
        check(stream.wait(h2.events.DataReceived, h2.events.StreamReset).data == b"got abc", f"{who}: with its body")
        stream.socket.close()


def old(who, full, bare):
    stream = ask(full, "GET / HTTP/1.0\r\nhost: a\r\n\r\n")
    code, headers = status(stream)
    body = stream.rest()
    check(code == 200 and len(body) == 64 and not one(headers, "transfer-encoding"), f"{who}: HTTP/1.0 is answered, and closed")
    stream = ask(full, "GET /drip HTTP/1.0\r\nhost: a\r\n\r\n")
    code, headers = status(stream)
    check(stream.rest() == b"0\n1\n2\n3\n" and not one(headers, "transfer-encoding"), f"{who}: without chunks")
    check(status(ask(bare, "GET / HTTP/1.0\r\nhost: a\r\n\r\n"))[0] == 426, f"{who}: where it is not allowed it is refused")


def bodies(who, full, bare):
    stream = ask(full, "GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
    _, headers = status(stream)
    check(len(stream.take(BIG)) == BIG and one(headers, "content-length") == str(BIG), f"{who}: a large answer passes")
    digest = hashlib.sha256(b"y" * BIG).hexdigest().encode()
    stream = ask(full, f"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BIG}\r\n\r\n")
    stream.socket.sendall(b"y" * BIG)
    status(stream)
    check(stream.take(64) == digest, f"{who}: a large request passes")
    stream = ask(full, "GET /until-close HTTP/1.1\r\nhost: a\r\n\r\n")
    status(stream)
    *data, _ = stream.chunks()
    check(b"".join(data) == b"all of it", f"{who}: an answer that ends with its connection is whole")
    begin = time.monotonic()
    stream = ask(full, "GET /drip HTTP/1.1\r\nhost: a\r\n\r\n")
    status(stream)
    first = next(stream.chunks())
    check(first == b"0\n" and time.monotonic() - begin < 0.5, f"{who}: an answer streams as it comes")
    seen.clear()
    stream = ask(full, "POST /upload HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
    until(lambda: any(item[1] == b"a" for item in seen), f"{who}: a request streams as it comes", 3)
    stream.socket.sendall(b"0\r\n\r\n")
    check(status(stream)[0] == 200, f"{who}: a request streams as it comes")
    check(status(ask(full, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"))[0] == 504, f"{who}: a route's limit holds")


def shapes(who, full, bare):
    with grpc.insecure_channel(f"127.0.0.1:{full}") as channel:
        call = channel.unary_unary("/test.Shapes/Unary")
        answer, done = call.with_call(b"way", timeout=10)
        check(answer == b"one way" and ("x-trailing", "yes") in done.trailing_metadata(), f"{who}: gRPC, one to one, with metadata")
        try:
            call(b"fail", timeout=10)
            check(False, f"{who}: an error arrives")
        except grpc.RpcError as error:
            right = (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 %")
            check(right, f"{who}: gRPC, an error with its text")
        check(list(channel.unary_stream("/test.Shapes/Down")(b"", timeout=10)) == [b"0", b"1", b"2"], f"{who}: gRPC, one to many")
        check(channel.stream_unary("/test.Shapes/Up")(iter([b"a", b"b"]), timeout=10) == b"a+b", f"{who}: gRPC, many to one")
        ball = threading.Event()

        def requests():
            yield b"ping"
            ball.wait(10)
            yield b"pong"

        answers = channel.stream_stream("/test.Shapes/Both")(requests(), timeout=10)
        check(next(answers) == b"re ping", f"{who}: gRPC, both ways: the first answer comes before the second request")
        ball.set()
        check(list(answers) == [b"re pong"], f"{who}: gRPC, many to many")
        grpc_server.ended.clear()
        hanging = channel.unary_unary("/test.Shapes/Hang").future(b"cancel", timeout=10)
        time.sleep(0.3)
        hanging.cancel()
        until(lambda: (b"cancel", True) in grpc_server.ended, f"{who}: a cancelled call ends at the server", 5)
        check(True, f"{who}: gRPC, a cancelled call ends at the server")


def deadline(who, full, bare):
    """Clients and servers that do not keep a deadline: the proxy does."""
    fields = head("POST", "/slow/call", content_type="application/grpc", te="trailers", grpc_timeout="400m")
    begin = time.monotonic()
    stream = H2(full, fields, False)
    stream.send(b"\x00\x00\x00\x00\x04late", end=True)
    answer = stream.wait(h2.events.ResponseReceived, h2.events.StreamReset)
    took = time.monotonic() - begin
    got = dict(answer.headers) if isinstance(answer, h2.events.ResponseReceived) else {}
    check(got.get(":status") == "200" and got.get("grpc-status") == "4", f"{who}: gRPC, a deadline is kept for those who do not")
    check(0.35 < took < 1.4, f"{who}: at its time")
    stream.socket.close()
    stream = H2(full, head("POST", "/test.Shapes/Hang", content_type="application/grpc", te="trailers", grpc_timeout="400m"), False)
    stream.send(b"\x00\x00\x00\x00\x04late", end=True)
    answer = stream.wait(h2.events.ResponseReceived, h2.events.StreamReset)
    check(dict(answer.headers).get("grpc-status") == "4", f"{who}: gRPC, a deadline passes on")
    until(lambda: (b"late", True) in grpc_server.ended, f"{who}: the server's call has ended", 5)
    code, _ = status(ask(full, "GET /slow/life HTTP/1.1\r\nhost: a\r\n\r\n"))
    check(code == 504, f"{who}: a stream lives no longer than it may")


def run(who, command):
    full, bare, relay = free_port(), free_port(), free_port()
    file = WORK / f"{who}.yaml"
    file.write_text(bootstrap(full, bare, relay))
    program = Program(who, *command, "-c", file, "--concurrency", "1")
    until(lambda: connect(bare).close() or True, f"{who} listens: {program.text()}", 30)
    for part in (upgrades, connects, extended, trailers, interim, old, bodies, shapes, deadline):
        part(who, full, bare)
    relayed(who, relay)
    program.stop()


run("envoy", [ENVOY, "--use-dynamic-base-id", "--log-level", "error"])
run("tulle", [TULLE, "proxy"])
