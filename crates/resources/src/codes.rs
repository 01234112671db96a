//! Every diagnostic code, in one table: what it means and an example. `tulle explain TL0107` prints it.

use model::Code;

/// What a code means.
#[derive(Debug, Clone, Copy)]
pub struct Explanation {
    /// The code.
    pub code: Code,
    /// A few words.
    pub title: &'static str,
    /// Why it is a fault, and what to do.
    pub text: &'static str,
    /// An input that causes it.
    pub example: &'static str,
}

macro_rules! codes {
    ($($name:ident = $number:literal: $title:literal, $text:literal, $example:literal;)*) => {
        $(#[doc = $title] pub const $name: Code = Code($number);)*

        /// All codes, by number.
        pub const TABLE: &[Explanation] = &[
            $(Explanation { code: $name, title: $title, text: $text, example: $example },)*
        ];
    };
}

codes! {
    SYNTAX = 1: "the text is not YAML or JSON",
        "The parser cannot read this document: look at the marked place and a little before it. Only this document is lost; the others of the file (after the next `---`) take effect.",
        "spec: {hosts: [reviews}";
    DUPLICATE_KEY = 2: "a key stands twice in one mapping",
        "YAML forbids it, and readers disagree about which one counts. Keep one of the two.",
        "spec:\n  host: a\n  host: b";
    TOO_LARGE = 3: "the document nests too deep or its aliases multiply",
        "A few lines of nested aliases can stand for millions of values. Such a document is refused before it takes the memory.",
        "a: &a [*b, *b]";
    NOT_AN_OBJECT = 4: "the document is no object",
        "Every document is a mapping with `apiVersion`, `kind` and `metadata.name`.",
        "hosts: [reviews]";
    UNKNOWN_KIND = 5: "the kind is not known",
        "No API of this group that Tulle knows has this kind. Look for a spelling mistake in `kind` and `apiVersion`.",
        "apiVersion: networking.istio.io/v1\nkind: VirtualServce";
    UNSUPPORTED_KIND = 6: "the kind is known but not supported yet",
        "Tulle knows what this kind means and does not implement it. It is refused by name rather than ignored, because a rule that is silently ignored is a hole.",
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter";
    UNKNOWN_VERSION = 7: "the kind has no such version",
        "The kind exists, but not in this version of its API.",
        "apiVersion: networking.istio.io/v7\nkind: VirtualService";
    MISSING = 8: "a required field is missing",
        "The object cannot mean anything without this field. The message names its whole path.",
        "kind: VirtualService\nspec:\n  http: []";
    UNKNOWN_FIELD = 9: "the kind has no such field",
        "A misspelt field would otherwise do nothing, silently. Indentation mistakes show up here too: the field then belongs to another level.",
        "retries:\n  atempts: 3";
    WRONG_TYPE = 10: "the value has the wrong type",
        "The field wants another kind of value. Numbers that are names (ports in policies, label values) need quotes.",
        "weight: lots";
    ENUM = 11: "the value is none of the allowed words",
        "The field takes one of a few words, written exactly so, usually in capitals.",
        "mtls:\n  mode: strict";
    RANGE = 12: "the number is out of range",
        "The message says which range is allowed.",
        "port:\n  number: 99999";
    DURATION = 13: "the value is no duration",
        "A duration is a number with a unit: `300ms`, `2s`, `1m30s`, `1.5h`. A bare number has no unit.",
        "timeout: 5";
    UNSUPPORTED_FIELD = 14: "the field is known but not supported yet",
        "The field has a meaning that Tulle does not implement. The whole object is refused rather than taking effect without it: half of a policy is another policy.",
        "localityLbSetting: {}";
    NAME = 15: "the name is not allowed",
        "Names of objects are DNS names: a-z, 0-9, `-` and `.`, at most 253 characters.",
        "metadata:\n  name: My_Service";
    LABEL = 16: "the label is not allowed",
        "Label keys and values follow Kubernetes: at most 63 letters, digits, `-`, `_` and `.`; a key may have a DNS prefix and `/`.",
        "labels:\n  version: not valid!";
    DECLARED_TWICE = 17: "the object is declared twice",
        "Two documents have the same kind, namespace and name. The first one takes effect.",
        "metadata:\n  name: reviews\n---\nmetadata:\n  name: reviews";
    EMPTY = 18: "the value must not be empty",
        "An empty text or list here would match nothing or everything, depending on the reader.",
        "principals: [\"\"]";
    EXCLUSIVE = 19: "two fields exclude each other",
        "Only one of them can take effect. Keep the one you mean.",
        "uri:\n  exact: /a\n  prefix: /b";
    DEPRECATED = 20: "the field is deprecated",
        "It still works. The message names what replaces it.",
        "fault:\n  delay:\n    percent: 10";
    REGEX = 21: "the regular expression does not compile",
        "Expressions are RE2's: linear time, no look-around, no back-references. They must match the whole text.",
        "uri:\n  regex: (?!x)y";
    ADDRESS = 22: "the value is no address",
        "An IPv4 or IPv6 address, or a range in CIDR notation.",
        "ipBlocks: [host]";
    HOST = 23: "the value is no host name",
        "A short name (`reviews`), a full one (`reviews.shop.svc.cluster.local`) or, where allowed, one that begins with `*.`.",
        "host: http://reviews";
    EXPORT = 24: "`exportTo` is wrong",
        "`*` for everybody, `.` for the own namespace, or names of namespaces; `*` stands alone.",
        "exportTo: [\"*\", \".\"]";
    UNREADABLE = 25: "the file cannot be read",
        "The file or directory is missing, or the program may not read it, or it is not UTF-8.",
        "tulle analyze missing.yaml";
    HEADER = 26: "the header name or value is not allowed",
        "Header names are tokens of RFC 9110. Values may hold format operators between two `%`; a plain percent sign is written `%%`.",
        "headers:\n  request:\n    set:\n      bad header: x";
    NO_EFFECT = 27: "the field has no effect here",
        "It is accepted for the sake of files written for other installations, but changes nothing in this place.",
        "defaultConfig:\n  gatewayTopology: {}";
    WILDCARD_IN_MESH = 101: "host `*` with the mesh gateway",
        "For sidecars `*` would take over every host of the mesh. Name the hosts, or bind the routes to a gateway.",
        "hosts: [\"*\"]";
    HOST_TWICE = 102: "the same host twice",
        "A host may stand in a list only once.",
        "hosts: [reviews, reviews]";
    GATEWAY_NAME = 103: "wrong gateway name",
        "A gateway is `mesh`, a name, or `NAMESPACE/NAME`.",
        "gateways: [a/b/c]";
    DELEGATE = 104: "delegation is used wrongly",
        "A VirtualService without hosts is a delegate: it has HTTP routes only, and no delegates of its own. The route that delegates may have a match and nothing that answers or forwards.",
        "delegate:\n  name: x\nredirect:\n  uri: /y";
    ACTION = 105: "the rule has no action, or more than one",
        "A rule forwards (`route`), redirects (`redirect`), answers (`directResponse`) or delegates (`delegate`): exactly one of them.",
        "http:\n- match:\n  - uri: {prefix: /}";
    EMPTY_REDIRECT = 106: "the redirect changes nothing",
        "A redirect must change at least one of uri, authority, port, scheme.",
        "redirect: {}";
    WEIGHTS = 107: "the weights do not add up",
        "Weights are relative: each destination gets its weight divided by their sum. If all are 0 nothing can be forwarded, which is an error. A sum other than 100 works, but is usually a slip of the pen, because people read weights as percent.",
        "route:\n- destination: {host: a}\n  weight: 90\n- destination: {host: b}\n  weight: 20";
    MATCH = 108: "the match is wrong",
        "A match must say something, with a value that can match: no empty matches or prefixes of nothing, header names that exist.",
        "match:\n- uri: {}";
    RETRIES = 109: "the retries are wrong",
        "`attempts: 0` switches retries off: other settings beside it would have no effect. `retryOn` holds words that Envoy knows, or status codes.",
        "retries:\n  attempts: 0\n  retryOn: 5xx";
    FAULT = 110: "the fault is wrong",
        "A fault delays (`delay.fixedDelay`), aborts (`abort.httpStatus` or `abort.grpcStatus`), or both.",
        "fault: {}";
    MIRROR = 111: "the mirror is wrong",
        "Use either `mirror` or `mirrors`; each mirror has a destination.",
        "mirror: {host: m}\nmirrors:\n- destination: {host: n}";
    REWRITE = 112: "the rewrite is wrong",
        "A rewrite changes the path by `uri` or by `uriRegexRewrite`, not by both, and the authority.",
        "rewrite: {}";
    CORS = 113: "the CORS policy is wrong",
        "Methods are HTTP methods in capitals; origins are exact, prefix or regex matches.",
        "corsPolicy:\n  allowMethods: [FETCH]";
    SNI = 114: "the SNI host does not belong here",
        "TLS routes match names that the VirtualService has among its `hosts` (or a part of them by a wildcard).",
        "hosts: [a.test]\ntls:\n- match:\n  - sniHosts: [b.other]";
    NO_RULES = 115: "the object has no rules",
        "A VirtualService needs at least one of http, tcp and tls routes.",
        "hosts: [reviews]";
    EMPTY_POLICY = 201: "the traffic policy is empty",
        "An empty `trafficPolicy` says nothing. Remove it, or say something in it.",
        "trafficPolicy: {}";
    SUBSET_TWICE = 202: "the same subset twice",
        "Names of subsets are unique in a DestinationRule.",
        "subsets:\n- name: v1\n- name: v1";
    BALANCER = 203: "the load balancer is wrong",
        "Use `simple` or `consistentHash`, and in the latter exactly one thing to hash and one kind of table.",
        "loadBalancer:\n  simple: RANDOM\n  consistentHash: {useSourceIp: true}";
    OUTLIER = 204: "the outlier detection is wrong",
        "Local failures are counted apart only with `splitExternalLocalOriginErrors: true`.",
        "outlierDetection:\n  consecutiveLocalOriginFailures: 3";
    CLIENT_TLS = 205: "the TLS settings are wrong",
        "MUTUAL needs a certificate and a key; ISTIO_MUTUAL brings its own; a server that is not checked needs no CA.",
        "tls:\n  mode: MUTUAL";
    PORT_TWICE = 206: "the same port twice",
        "Each port may have one set of settings.",
        "portLevelSettings:\n- port: {number: 80}\n- port: {number: 80}";
    SERVICE_PORTS = 301: "the ports are wrong",
        "Ports of a service have a number, a unique name, and a protocol that the mesh knows.",
        "ports:\n- number: 80\n  protocol: SPDY";
    RESOLUTION = 302: "endpoints, addresses and resolution do not fit",
        "STATIC endpoints are IP addresses; DNS needs names that can be looked up; NONE takes no endpoints; ranges of addresses go with STATIC and NONE only.",
        "resolution: STATIC\nendpoints:\n- address: name.test";
    UNIX_ADDRESS = 303: "wrong Unix socket address",
        "`unix:///absolute/path` or `unix://@abstract`, without ports.",
        "address: unix://relative";
    PROBE = 304: "the probe is wrong",
        "A probe has exactly one of httpGet, tcpSocket, exec and grpc, with a port or a command.",
        "probe:\n  exec: {command: []}";
    LOCALITY = 305: "wrong locality",
        "A locality is REGION, REGION/ZONE or REGION/ZONE/SUBZONE. In `localityLbSetting` its last part may be `*`, two places of a list must not overlap, and failover speaks of regions alone.",
        "locality: a/b/c/d";
    PEER_PORTS = 401: "port-level mTLS is wrong",
        "`portLevelMtls` speaks of the ports of selected workloads: it needs a selector, and at least one port.",
        "portLevelMtls:\n  \"80\": {mode: STRICT}";
    RULE = 402: "the rule says nothing",
        "A source, an operation or a condition without fields would match everything or nothing, depending on the reader. Say what you mean: a rule `{}` matches every request.",
        "from:\n- source: {}";
    CONDITION_KEY = 403: "the condition's key is not known",
        "Keys are those of Istio's authorization conditions: request.headers[NAME], source.ip, remote.ip, source.namespace, source.principal, destination.ip, destination.port, connection.sni.",
        "when:\n- key: no.such.key";
    PATH_TEMPLATE = 404: "the path is wrong",
        "A path is a text with `*` at one end, or a template whose `{*}` stands for one segment and `{**}` for any number of them.",
        "paths: [\"/a/{id}\"]";
    SERVICE_ACCOUNT = 405: "the service account is wrong",
        "NAME or NAMESPACE/NAME, without wildcards, and not together with principals or namespaces.",
        "serviceAccounts: [\"a*\"]";
    PROVIDER = 406: "the provider is out of place",
        "Only the action CUSTOM has a provider.",
        "action: DENY\nprovider: {name: x}";
    MATCHES_NOTHING = 407: "an ALLOW policy without rules denies everything",
        "It is the documented way to say deny all; this note makes sure that it was meant.",
        "spec: {action: ALLOW}";
    SPLIT_BACKENDS = 408: "the traffic split is wrong",
        "A TrafficSplit has a service and at least one backend with a weight; not all weights are 0.",
        "backends: []";
    KEY_SET = 409: "the issuer's keys are wrong or missing",
        "Tokens are believed when one of their issuer's keys signed them: `jwks` holds the key set itself, `jwksUri` says where it is fetched. Without keys every token of the issuer is refused. Keys are never fetched from this machine itself or from link-local addresses.",
        "jwtRules:\n- issuer: https://issuer.test\n  jwksUri: http://169.254.169.254/keys";
    TOKEN_TOO_LATE = 410: "tokens are validated after the external authorizer was asked",
        "CUSTOM policies come before the validation of tokens (an authorizer may be what adds the token), so a rule of theirs that needs a token never matches. Move the condition into an ALLOW or DENY policy.",
        "action: CUSTOM\nrules:\n- from: [{source: {requestPrincipals: [\"*\"]}}]";
    UNKNOWN_HOST = 501: "the host is not known",
        "No service and no ServiceEntry has this host, seen from the object's namespace. Requests to it fail with 503. A short name means the own namespace.",
        "destination: {host: revews}";
    UNKNOWN_SUBSET = 502: "the subset is not defined",
        "No DestinationRule for this host that the object can see defines the subset. Requests to it fail with 503.",
        "destination: {host: reviews, subset: v9}";
    SHADOWED = 503: "the rule is never reached",
        "Every request that it matches is taken by an earlier rule. Put the more special rule first.",
        "http:\n- route: [...]\n- match: [{uri: {prefix: /x}}]";
    HOST_CONFLICT = 504: "two objects route one host",
        "For sidecars only one VirtualService per host takes effect: the oldest, then the first by name. Merge them, or delegate.",
        "hosts: [reviews]";
    OPEN_TO_ALL = 505: "the workload is encrypted but open to all",
        "Every caller of the mesh may call it: mTLS says who calls, and no AuthorizationPolicy uses it. Add an ALLOW policy that names the callers.",
        "kind: PeerAuthentication\nspec: {mtls: {mode: STRICT}}";
    SELECTS_NOTHING = 506: "the selector matches no workload",
        "No known workload of the namespace has all these labels, so the object does nothing.",
        "selector:\n  matchLabels: {app: paymnt}";
    UNKNOWN_GATEWAY = 507: "the gateway is not known",
        "The object is bound to a gateway that does not exist, so those routes do nothing.",
        "gateways: [shop/nowhere]";
    UNKNOWN_DELEGATE = 508: "the delegate is not known",
        "The rule delegates to a VirtualService that does not exist, or in a circle.",
        "delegate: {name: nowhere}";
    DESTINATION_CONFLICT = 509: "two DestinationRules for one host",
        "Their subsets are merged, but only the first one's traffic policy takes effect.",
        "host: reviews";
    PEER_CONFLICT = 510: "two PeerAuthentications for the same workloads",
        "The oldest one takes effect.",
        "kind: PeerAuthentication";
    OBJECT_CONFLICT = 511: "the object is declared in two files",
        "Two files declare the same kind, namespace and name. Only one of them takes effect: keep that one.",
        "metadata: {name: reviews}";
    UNKNOWN_PORT = 512: "the service has no such port",
        "Requests to it fail with 503.",
        "destination: {host: reviews, port: {number: 81}}";
    UNKNOWN_BACKEND = 513: "the traffic split names an unknown service",
        "Its share of the requests fails with 503.",
        "backends:\n- service: reviews-v9";
    HTTP_ON_TCP = 514: "an HTTP field where no HTTP is spoken",
        "On an opaque port a rule with HTTP fields never matches in ALLOW, and in DENY matches by its other fields alone.",
        "to:\n- operation: {methods: [GET]}";
    NO_ENDPOINTS = 515: "the service selects no workload",
        "No known workload has the labels of its selector; requests to it fail with 503.",
        "selector: {app: nobody}";
    SERVICE_CONFLICT = 516: "two services have one host",
        "The oldest one takes effect.",
        "hosts: [x.test]";
    UNKNOWN_PROVIDER = 517: "the external authorizer is not known",
        "A CUSTOM policy asks an authorizer that `extensionProviders` of the MeshConfig does not define, or whose service is not known: what its rules match is refused.",
        "action: CUSTOM\nprovider: {name: nobody}";
}

/// The explanation of a code.
pub fn explanation(code: Code) -> Option<&'static Explanation> {
    TABLE.iter().find(|entry| entry.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_texts_are_there() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} before {}", pair[0].code, pair[1].code);
        }
        for entry in TABLE {
            assert!(!entry.title.is_empty() && entry.text.len() > 20 && !entry.example.is_empty(), "{}", entry.code);
        }
    }
}
