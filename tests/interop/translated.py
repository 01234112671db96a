"""Envoy takes what `tulle translate` prints, for every workload of a mesh with a bit of everything, redirected and
explicit; and so does our own proxy."""

import subprocess

from _mesh import ENVOY, TULLE, WORK, Control, check

PORTS = "[{name: http, number: 8080}, {name: grpc, number: 7070}, {name: tcp, number: 9000}, {name: odd, number: 9500}]"


def workload(name, app, address, version="v1", more=""):
    return f"""
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: {app}, version: {version}}}}}
spec: {{serviceAccount: {app}, addresses: [{address}], locality: "r/z{version}", ports: {PORTS}{more}}}
---"""


def service(name, ports, more=""):
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{selector: {{app: {name}}}, ports: [{ports}]{more}}}
---"""


def split(outbound):
    entries = ", ".join(f'{{host: {host}, port: {port}, bind: "127.79.9.{n + 1}:{port}"}}' for n, (host, port) in enumerate(outbound))
    return f", interception: {{explicit: {{outbound: [{entries}]}}}}"


ALL = "{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 7070}, {name: tcp, port: 9000}, {name: odd, port: 9500}"
MESH = (
    service("catalog", ALL, ", clusterIP: 10.96.0.10")
    + service("pricing", ALL)
    + service("web", "{name: https, port: 443}, {name: http, port: 9000}", ", clusterIP: 10.96.0.11")
    + workload("catalog-1", "catalog", "10.1.0.1")
    + workload("catalog-2", "catalog", "10.1.0.2", "v2")
    + workload("pricing-1", "pricing", "10.1.0.3")
    + workload("web-1", "web", "10.1.0.4")
    + workload("web-six", "web", '"2001:db8::4", 10.1.0.5')
    + workload("odd-1", "odd", "127.77.9.1", more=split([
        ("catalog.shop.svc.cluster.local", 80), ("catalog.shop.svc.cluster.local", 9000),
        ("pricing.shop.svc.cluster.local", 9500), ("web.shop.svc.cluster.local", 443), ("api.example.com", 443),
    ]))
    + """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec:
  hosts: [api.example.com, www.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wide, namespace: shop}
spec:
  hosts: ["*.wild.example"]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ranges, namespace: shop}
spec:
  hosts: [ranges.example]
  addresses: [192.0.2.0/24]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.7}]
  ports: [{number: 80, name: tcp, protocol: TCP}, {number: 9000, name: tcp-more, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ranges-again, namespace: shop}
spec:
  hosts: [again.example]
  addresses: [192.0.2.0/24]
  location: MESH_EXTERNAL
  resolution: STATIC
  endpoints: [{address: 192.0.2.8}]
  ports: [{number: 80, name: tcp, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
    - match: [{uri: {prefix: /a}, headers: {x-user: {exact: amy}}, withoutHeaders: {x-no: {}}, queryParams: {q: {regex: "[a-z]+"}}, method: {exact: GET}}]
      route:
        - {destination: {host: catalog, subset: v1}, weight: 90, headers: {response: {add: {x-share: "90"}}}}
        - {destination: {host: catalog, subset: v2}, weight: 10}
      timeout: 2s
      retries: {attempts: 3, perTryTimeout: 500ms, retryOn: "5xx,reset,429"}
      fault: {delay: {fixedDelay: 10ms, percentage: {value: 0.1}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 0.1}}}
      mirrors: [{destination: {host: pricing}, percentage: {value: 1}}]
      corsPolicy: {allowOrigins: [{prefix: "https://"}], allowMethods: [GET], allowCredentials: true, maxAge: 60s}
      headers: {request: {set: {x-b: "%REQ(x-a)%"}, remove: [x-c]}}
      rewrite: {uriRegexRewrite: {match: "^/a(.*)$", rewrite: "/b\\\\1"}}
    - match: [{uri: {exact: /old}}]
      redirect: {uri: /new, authority: elsewhere.example, redirectCode: 308}
    - match: [{uri: {prefix: /gone}}]
      directResponse: {status: 410, body: {string: gone}}
    - route: [{destination: {host: nobody, subset: never}}]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: pricing, port: {number: 9000}}, weight: 3}, {destination: {host: catalog, port: {number: 9000}}, weight: 1}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  tls: [{match: [{port: 443, sniHosts: [web.shop.svc.cluster.local]}], route: [{destination: {host: pricing, port: {number: 9000}}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy:
    loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 64}}}
    outlierDetection: {consecutive5xxErrors: 2, consecutiveGatewayErrors: 1, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50}
    connectionPool: {tcp: {maxConnections: 10, tcpKeepalive: {time: 60s, probes: 3}}, http: {h2UpgradePolicy: UPGRADE, http2MaxRequests: 50, maxRetries: 2}}
    portLevelSettings: [{port: {number: 9000}, tls: {mode: DISABLE}}]
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: outside, namespace: shop}
spec: {host: www.example.com, trafficPolicy: {tls: {mode: SIMPLE, sni: www.example.com}, loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 30s}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: catalog, namespace: shop}
spec: {selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}, portLevelMtls: {"9000": {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  rules:
    - from: [{source: {principals: ["*/sa/web", cluster.local/ns/shop/*], notNamespaces: [bank]}}, {source: {ipBlocks: [10.0.0.0/8], remoteIpBlocks: ["2001:db8::/32"]}}]
      to: [{operation: {hosts: ["*.shop", shop], methods: [GET], paths: ["/x/{*}/y/{**}", /z*], notPorts: ["9000"]}}]
      when: [{key: connection.sni, values: ["*.example"]}, {key: "request.headers[x]", values: [a*], notValues: ["*b"]}, {key: destination.ip, values: [10.1.0.0/16]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{from: [{source: {serviceAccounts: [bank/thief]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit, namespace: istio-system}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: mesh.istio.io/v1alpha1
kind: MeshConfig
trustDomainAliases: [old.example]
accessLogFile: /dev/stdout
accessLogEncoding: JSON
"""
)

control = Control().start()
control.agent("web-1.shop", "web")
certs = WORK / "web-1.shop"
mesh = WORK / "mesh"
mesh.mkdir()
(mesh / "mesh.yaml").write_text(MESH)
for name in ["catalog-1", "catalog-2", "pricing-1", "web-1", "web-six", "odd-1"]:
    made = subprocess.run(
        [TULLE, "translate", "-q", "-f", str(mesh), "--workload", f"{name}.shop", "--certs", str(certs)],
        capture_output=True, text=True, timeout=60,
    )
    check(made.returncode == 0, f"translate {name} {made.stderr[:2000]}")
    file = WORK / f"{name}.yaml"
    file.write_text(made.stdout)
    for judge, command in [
        ("Envoy", [ENVOY, "--mode", "validate", "-c", str(file)]),
        ("our proxy", [TULLE, "proxy", "--mode", "validate", "-c", str(file)]),
    ]:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        wrong = [line for line in (said.stdout + said.stderr).splitlines() if "rror" in line]
        reasons = " ".join(wrong)[:600] if said.returncode else ""
        check(said.returncode == 0, f"{judge} takes {name}'s configuration {reasons}")
