"""The same bootstrap in Envoy and in our proxy, the same requests to both: the access logs are equal line by line, the
counters that dashboards read are equal, and the administration answers in the same shape."""

import http.client
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading

from _mesh import ENVOY, TULLE, WORK, Program, check, free_port, say, until

ISTIO = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
JSON_FORMAT = {
    "start_time": "%START_TIME%",
    "epoch": "%START_TIME(%s.%3f)%",
    "code": "%RESPONSE_CODE%",
    "mixed": "code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS%",
    "number": 12.5,
    "yes": True,
    "nothing": None,
    "nested": {"method": "%REQ(:METHOD)%", "list": ["%PROTOCOL%", "x", "%BYTES_SENT%"]},
    "flags": "%RESPONSE_FLAGS_LONG%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "agent": "%REQ(USER-AGENT)%",
    "agent5": "%REQ(USER-AGENT):5%",
    "repeated": "%REQ(x-two)%",
    "missing": "%REQ(nope?neither)%",
    "answered": "%RESP(x-kind)%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "spoken": "%UPSTREAM_PROTOCOL%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "route": "%ROUTE_NAME%",
    "san": "%DOWNSTREAM_PEER_URI_SAN%",
    "percent": "100%%",
    "metadata": "%METADATA(ROUTE:tulle:origin)%",
    "grpc": "%GRPC_STATUS%",
}


class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"hello\n"
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(500 if "fail" in self.path else 200)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-kind", "demo")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_):
        pass


backend = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
threading.Thread(target=backend.serve_forever, daemon=True).start()
closed = free_port()


def logs(name):
    return {kind: WORK / f"{name}-{kind}.log" for kind in ("default", "istio", "json", "tcp")}


def file_log(path, log_format=None):
    config = {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": str(path)}
    if log_format:
        config["log_format"] = log_format
    return {"name": "file", "typed_config": config}


def endpoint(port):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"lb_endpoints": [{"endpoint": {"address": address}}]}


def cluster(name, port):
    assignment = {"cluster_name": name, "endpoints": [endpoint(port)]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}


def listener(name, port, chain_filter):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [{"filters": [chain_filter]}]}


def bootstrap(name, ports):
    paths = logs(name)
    routes = [
        {"match": {"prefix": "/direct"}, "name": "direct",
         "direct_response": {"status": 418, "body": {"inline_string": "tea\n"}}},
        {"match": {"prefix": "/closed"}, "route": {"cluster": "closed", "timeout": "5s"}},
        {"match": {"prefix": "/none"}, "route": {"cluster": "nosuch"}},
        {"match": {"prefix": "/retried"}, "name": "retried",
         "route": {"cluster": "backend", "prefix_rewrite": "/fail", "timeout": "5s",
                   "retry_policy": {"retry_on": "5xx", "num_retries": 2}}},
        {"match": {"prefix": "/rewritten/"}, "name": "rewritten", "metadata": {"filter_metadata": {"tulle": {"origin": "x"}}},
         "route": {"cluster": "backend", "prefix_rewrite": "/", "timeout": "5s"}},
    ]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": {"name": "table", "validate_clusters": False,
                         "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "access_log": [
            file_log(paths["default"]),
            file_log(paths["istio"], {"text_format_source": {"inline_string": ISTIO}}),
            file_log(paths["json"], {"json_format": JSON_FORMAT}),
        ],
    }
    tcp = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "raw", "cluster": "backend", "access_log": [file_log(paths["tcp"])],
    }
    return {
        "node": {"id": "sidecar~127.0.0.1~web-1.shop~shop.svc.cluster.local", "cluster": "web.shop"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports["admin"]}}},
        "static_resources": {
            "listeners": [listener("web", ports["http"], {"name": "http", "typed_config": manager}),
                          listener("raw", ports["tcp"], {"name": "tcp", "typed_config": tcp})],
            "clusters": [cluster("backend", backend.server_address[1]), cluster("closed", closed)],
        },
    }


def ask(port, path, method="GET", body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text


def start(name):
    ports = {kind: free_port() for kind in ("admin", "http", "tcp")}
    file = WORK / f"{name}.json"
    file.write_text(json.dumps(bootstrap(name, ports)))
    if name == "envoy":
        options = ("--base-id", str(ports["admin"]), "--file-flush-interval-msec", "100", "--log-level", "warn")
        Program(name, ENVOY, "-c", file, "--concurrency", "1", *options)
    else:
        Program(name, TULLE, "proxy", "-c", file, "--concurrency", "1")
    until(lambda: ask(ports["admin"], "/ready")[0] == 200, f"{name} is ready")
    return ports


def drive(ports):
    agent = {"user-agent": 'quoted "words" \\ and é'.encode().decode("latin-1"), "x-two": "a"}
    for path in ("/direct?a=1&b=2", "/closed", "/none", "/retried", "/rewritten/x?y=z", "/unknown"):
        ask(ports["http"], path, headers={**agent, "x-request-id": "0de6dc7e-5a7d-48e9-87db-fe74dc0ed24d"})
    ask(ports["http"], "/rewritten/x", "POST", b"abc", agent)
    ask(ports["http"], "/rewritten/x", "HEAD")
    with socket.create_connection(("127.0.0.1", ports["tcp"]), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nhost: raw\r\nconnection: close\r\n\r\n")
        while raw.recv(4096):
            pass


def plain(line, ports):
    """A line without what differs from run to run: times, durations, ephemeral ports, generated ids."""
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line)
    line = re.sub(r'"epoch":"\d+\.\d{3}"', '"epoch":"N"', line)
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "UUID", line)
    for kind, port in ports.items():
        line = line.replace(f":{port}", f":{kind}")
    line = line.replace(f":{backend.server_address[1]}", ":backend").replace(f":{closed}", ":closed")
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:N", line)
    # BYTES_RECEIVED BYTES_SENT stay; DURATION and the upstream's time do not.
    return re.sub(r'(" ?| )(\d+ \d+) \d+ (-|\d+) "', r"\1\2 N \3 ", re.sub(r'(\d+ \d+ \d+) \d+ "', r'\1 0 "', line))


def read(name, ports):
    return {kind: [plain(line, ports) for line in path.read_text().splitlines()] for kind, path in logs(name).items()}


def counters(ports):
    found = dict(line.split(": ", 1) for line in ask(ports["admin"], "/stats")[1].splitlines() if ": " in line)
    listener_name = f"listener.127.0.0.1_{ports['http']}"
    names = ["http.ingress.downstream_rq_total", "http.ingress.downstream_rq_completed", "http.ingress.downstream_rq_2xx",
             "http.ingress.downstream_rq_4xx", "http.ingress.downstream_rq_5xx", "http.ingress.no_route",
             "http.ingress.no_cluster", "http.ingress.rq_total", "http.ingress.rq_direct_response",
             "http.ingress.downstream_cx_total", "cluster.backend.upstream_rq_200", "cluster.backend.upstream_rq_2xx",
             "cluster.backend.upstream_rq_retry", "cluster.backend.membership_total",
             "cluster.backend.membership_healthy", "cluster.closed.upstream_rq_503", "tcp.raw.downstream_cx_total",
             f"{listener_name}.downstream_cx_total"]
    return {name.replace(str(ports["http"]), "http"): found.get(name) for name in names}


def pages(ports):
    """What the administration answers where the answer does not depend on who it is."""
    answers = {}
    for method, path in (("GET", "/logging"), ("GET", "/quitquitquit"), ("GET", "/healthcheck/fail"), ("POST", "/ready"),
                         ("POST", "/healthcheck/fail"), ("GET", "/ready"), ("POST", "/healthcheck/ok"), ("GET", "/ready"),
                         ("GET", "/config_dump?resource=nope"), ("GET", "/listeners")):
        status, text = ask(ports["admin"], path, method)
        text = text.replace(str(ports["http"]), "http").replace(str(ports["tcp"]), "tcp")
        answers[f"{method} {path} #{len(answers)}"] = (status, text.strip().splitlines() and sorted(text.split("\n")))
    return answers


def shape(value):
    """The keys of a JSON value; of a list those of its first member. Counters that are zero have no value."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items() if key != "value"}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


both = {name: start(name) for name in ("envoy", "tulle")}
for ports in both.values():
    drive(ports)
written = {}
for name, ports in both.items():
    until(lambda: len(read(name, ports)["json"]) >= 8 and read(name, ports)["tcp"], f"{name} wrote its logs")
    written[name] = read(name, ports)
for kind in ("default", "istio", "json", "tcp"):
    envoy, tulle = written["envoy"][kind], written["tulle"][kind]
    for theirs, ours in zip(envoy, tulle):
        if theirs != ours:
            say(f"envoy: {theirs}")
            say(f"tulle: {ours}")
    check(envoy == tulle, f"{len(envoy)} lines of the {kind} log are equal")

envoy, tulle = (counters(both[name]) for name in ("envoy", "tulle"))
differing = [(key, envoy[key], tulle[key]) for key in envoy if envoy[key] != tulle[key]]
check(not differing, f"{len(envoy)} counters are equal {differing or ''}")
envoy, tulle = (pages(both[name]) for name in ("envoy", "tulle"))
differing = [(key, envoy[key], tulle[key]) for key in envoy if envoy[key] != tulle[key]]
check(not differing, f"{len(envoy)} answers of the administration are equal {differing or ''}")
for page in ("/clusters?format=json", "/listeners?format=json", "/certs"):
    envoy, tulle = (shape(json.loads(ask(both[name]["admin"], page)[1])) for name in ("envoy", "tulle"))
    check(envoy == tulle, f"{page} has the same members {'' if envoy == tulle else (envoy, tulle)}")
dumps = {name: json.loads(ask(both[name]["admin"], "/config_dump")[1])["configs"] for name in both}
kinds = {name: [config["@type"] for config in dump] for name, dump in dumps.items()}
check(set(kinds["tulle"]) >= {kind for kind in kinds["envoy"] if "Scoped" not in kind}, "/config_dump has Envoy's sections")
ours = {config["@type"].rsplit(".", 1)[1]: config for config in dumps["tulle"]}
check([one["cluster"]["name"] for one in ours["ClustersConfigDump"]["static_clusters"]] == ["backend", "closed"],
      "/config_dump lists the static clusters")
check(ours["RoutesConfigDump"]["static_route_configs"][0]["route_config"]["name"] == "table",
      "/config_dump lists the routes that stand in listeners")
promtool = shutil.which("promtool")
check(promtool, "promtool is installed")
page = ask(both["tulle"]["admin"], "/stats/prometheus")[1]
lint = subprocess.run([promtool, "check", "metrics"], input=page.encode(), capture_output=True)
check(lint.returncode in (0, 3), f"promtool reads the metrics {lint.stderr.decode()[-300:] if lint.returncode == 1 else ''}")
check('istio_requests_total{reporter="destination"' in page, "Istio's metrics are there")
