"""`tulle run` as an ordinary user: unmodified programs (Python's web server, curl) in network namespaces of their own. Names of
the mesh resolve at port 53, every TCP connection goes through the proxies and mTLS, what is not mesh goes through as it is, other
UDP is refused; identity, exit code, signals and streams are the program's own, and nothing is left. Without user namespaces it
says why and goes on with loopback addresses."""

import ctypes
import os
import pathlib
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading

# Everything below runs as nobody, who cannot read root's directories: import first, then step down.
WORK = pathlib.Path(os.environ["WORK"])
USER = 65534
tulle = WORK / "tulle"
shutil.copy(os.environ["TULLE"], tulle)
tulle.chmod(0o755)
os.environ["TULLE"] = str(tulle)

from _mesh import Control, Program, check, free_port, get, say, service_yaml, until, workload_yaml  # noqa: E402

socket.getaddrinfo("localhost", 80)
if os.getuid() == 0:
    for path in (WORK, tulle):
        os.chown(path, USER, USER)
    WORK.chmod(0o755)
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
os.environ["HOME"] = str(WORK)
os.environ.pop("XDG_RUNTIME_DIR", None)
PYTHON = "/usr/bin/python3"
ME = os.getuid()
WEB = {"service": "web", "port": 9090}
PORT = free_port()


def once(workload, *command, seconds=60, **flags):
    return subprocess.run(control.workload(workload, *command, **flags), capture_output=True, text=True, timeout=seconds)


def families():
    """Our processes: id and arguments."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == ME:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if any(str(WORK).encode() in word for word in command):
                    found[int(entry.name)] = command
        except OSError:
            pass
    return found


def below(ancestor):
    """The processes that descend from one."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def words(pid):
    """What a process runs; nothing when it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def metric(workload, name, **labels):
    """Sum of a metric of a workload's proxy over the series that carry these labels."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(WORK / workload / "admin.sock"))
        admin.sendall(b"GET /stats/prometheus HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        text = b""
        while part := admin.recv(65536):
            text += part
    lines = [line for line in text.decode(errors="replace").splitlines() if line.startswith(name + "{")]
    fits = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rsplit(" ", 1)[1]) for line in fits)


control = Control(store=True)
control.start()
control.write("unused.yaml", "")
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
"""
code, _, error = control.tulle("apply", "-f", "-", text=STRICT)
check(code == 0, f"mTLS is strict, and only web may call cart {error}")
before = families()

say("-- a server and a caller, each in a namespace of its own")
(WORK / "www").mkdir()
(WORK / "www" / "hello").write_text("hello from an unmodified program\n")
cart = Program("cart", *control.workload("cart-1", PYTHON, "-m", "http.server", PORT, "--bind", "127.0.0.1", "--directory", WORK / "www",
                                         token=control.token("cart-1", "cart"), service="cart", port=PORT, net="userns"))
until(lambda: "runs as" in cart.text(), "the cart runs")
check("spiffe://cluster.local/ns/shop/sa/cart" in cart.text(), "it says who it is")
line = next(line for line in cart.text().splitlines() if line.startswith("network: "))
check("transparent" in line and "UDP but DNS is refused" in line, f"and what its network is: {line}")
with socket.socket() as probe:
    refused = probe.connect_ex(("127.0.0.1", PORT))
check(refused != 0, "its own port is not to be reached past its proxy")
door = line.rsplit(" ", 1)[1]

web = control.token("web-1", "web")
names = ("cart", "cart.shop", "cart.shop.svc.cluster.local")
script = "id -u; " + "; ".join(f"curl -sS --fail --retry 9 --retry-all-errors --retry-delay 1 http://{name}:{PORT}/hello" for name in names)
done = once("web-1", "sh", "-c", script + '; curl -sS --fail "$CART_URL/hello"; exit 7', token=web, **WEB)
hello = "hello from an unmodified program\n"
check(done.stdout == f"{ME}\n" + hello * 4, f"curl gets the page by every name, as the user it was: {done.stdout!r} {done.stderr}")
check(done.returncode == 7, "the exit code is the program's own")
check("(transparent)" in done.stderr, "without --net the best that works is taken")
seen = metric("cart-1", "istio_requests_total", reporter="destination", connection_security_policy="mutual_tls",
              source_principal="spiffe://cluster.local/ns/shop/sa/web")
check(seen >= 4, f"the cart's proxy has seen {seen:.0f} requests by mTLS from web")

done = once("thief-1", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--retry", "9", "--retry-connrefused", f"http://cart:{PORT}/hello",
            token=control.token("thief-1", "thief"), service="thief", port=9091)
check(done.stdout == "403", f"who may not call gets 403 {done.stdout!r} {done.stderr}")
try:
    plain = get(door, "/hello")
except OSError as error:
    plain = error
check(isinstance(plain, OSError), f"plaintext from outside of the mesh is not taken: {plain}")

say("-- what else the program may and may not do")
host = socket.gethostbyname(socket.gethostname())
if host.startswith("127."):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        host = probe.getsockname()[0]
listener = socket.create_server((host, 0))
heard = []


def greet():
    while True:
        stream, peer = listener.accept()
        heard.append(peer)
        with stream:
            stream.sendall(b"not mesh\n")


threading.Thread(target=greet, daemon=True).start()
probe = f"""
import errno, os, socket
with socket.create_connection(("{host}", {listener.getsockname()[1]}), 5) as outside:
    print(outside.recv(99).decode().strip())
def refused(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(refused(lambda: udp.sendto(b"x", ("{host}", 9))))
marked = socket.socket()
print(refused(lambda: marked.setsockopt(socket.SOL_SOCKET, 36, 1337)))
print(refused(lambda: socket.create_connection(("127.0.0.1", {free_port()}), 2)))
own = socket.create_server(("0.0.0.0", 0))
print(refused(lambda: socket.create_connection((socket.gethostbyname("localhost"), own.getsockname()[1]), 2)),
      refused(lambda: socket.create_connection(("192.0.0.2", own.getsockname()[1]), 2)))
try:
    print(socket.gethostbyname("nobody.shop.svc.cluster.local"))
except socket.gaierror as error:
    print("no such name")
"""
done = once("web-1", PYTHON, "-c", probe, **WEB)
got = done.stdout.splitlines()
check(got[:1] == ["not mesh"], f"what is not mesh goes through as it is: {done.stdout!r} {done.stderr}")
check(got[1] == "EPERM", f"UDP is refused at once: {got[1]}")
check(got[2] == "EPERM", f"the mark that lets proxies pass cannot be set: {got[2]}")
check(got[3] == "ECONNREFUSED", f"127.0.0.1 is the program's own: {got[3]}")
check(got[4] == "done done", f"and so is its address: {got[4]}")
check(got[5] == "no such name", f"names that the mesh does not have are not there: {got[5]}")

say("-- TCP that is not HTTP, and services that come later")
late = subprocess.Popen(control.workload("web-1", "sh", "-c", "until getent hosts queue >/dev/null; do sleep 0.1; done; "
                            f"{PYTHON} -c 'import socket; s = socket.create_connection((\"queue\", 7000), 5); print(s.recv(99).decode())'", **WEB),
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
serve = "import socket; s = socket.create_server(('0.0.0.0', 7000))\nwhile True:\n    c, _ = s.accept(); c.sendall(b'first word is the server\\'s'); c.close()"
queue = Program("queue", *control.workload("queue-1", PYTHON, "-c", serve, token=control.token("queue-1", "queue"), service="queue", port=7000, protocol="tcp"))
out, error = late.communicate(timeout=60)
check(out == "first word is the server's\n", f"a running program finds a service that was declared later, by TCP: {out!r} {error}")

say("-- signals, and what is left")
sleeper = subprocess.Popen(control.workload("web-1", "sh", "-c", "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done", **WEB),
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
check(sleeper.stdout.readline() == "up\n", "a program with a signal handler runs")
sleeper.send_signal(signal.SIGTERM)
check(sleeper.stdout.readline() == "caught\n" and sleeper.wait(10) == 9, "signals reach the program, and its answer comes back")
killed = once("web-1", "sh", "-c", "kill -USR1 $$", **WEB)
check(killed.returncode == 128 + signal.SIGUSR1, f"a program that a signal ends gives {killed.returncode}")
missing = once("web-1", "/no/such/program", **WEB)
check(missing.returncode == 6 and "cannot start /no/such/program" in missing.stderr, f"a program that is not there: {missing.stderr}")
cut = subprocess.Popen(control.workload("web-1", "sleep", "600", **WEB), stderr=subprocess.PIPE, text=True)
until(lambda: any(words(pid) == [b"sleep", b"600"] for pid in below(cut.pid)), "once more")
family = below(cut.pid)
cut.kill()
cut.wait()
queue.stop()
cart.stop()
until(lambda: set(families()) <= set(before) and not any(map(words, family)), "no process is left, not even when `tulle run` is killed", 10)
mounts = pathlib.Path("/proc/self/mounts").read_text()
check("netns" not in mounts and str(WORK) not in mounts, "no mount is left")
left = sorted(path.name for name in ("cart-1", "queue-1") for path in (WORK / name).iterdir())
check("netns" not in left and "resolv.conf" not in left and "sds.sock" not in left, f"no namespace is left: {left}")

say("-- declared in other ways")
app, bind = free_port(), free_port("127.77.8.2")
explicit = workload_yaml("plain-1", "plain", "127.77.8.2", ports=f'[{{name: http, number: 80, app: "127.0.0.1:{app}", bind: "127.77.8.2:{bind}"}}]')
file = WORK / "own" / "netns"
own = explicit.replace("plain", "own").replace("127.77.8.2", "127.77.8.3").replace(
    "interception: {explicit: {outbound: []}}", f"interception: {{namespace: {file}}}")
whole = explicit.replace("plain", "whole").replace("127.77.8.2", "127.77.8.4").replace("interception: {explicit: {outbound: []}}", "")
code, _, error = control.tulle("apply", "-f", "-", text=explicit + own + whole)
check(code == 0, f"three more workloads {error}")
done = once("plain-1", "sh", "-c", "cat /proc/net/dev", token=control.token("plain-1", "plain"), dns="off")
check(done.returncode == 0 and "(as declared). Nothing forces this program" in done.stderr, f"one with explicit addresses gets them: {done.stderr}")
done = once("plain-1", "true", net="userns")
check(done.returncode == 6 and "is declared with explicit addresses" in done.stderr, f"and nothing else: {done.stderr}")
done = subprocess.run([*control.workload("own-1", "sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", token=control.token("own-1", "own"))],
                      capture_output=True, text=True, timeout=60)
check(sorted(done.stdout.split()) == ["eth0", "lo", "tulle0"], f"one with a namespace gets that: {done.stdout!r} {done.stderr}")
done = once("own-1", "true", net="loopback")
check(done.returncode == 6 and "is declared with a network namespace" in done.stderr, f"and nothing else: {done.stderr}")
done = once("whole-1", "true", token=control.token("whole-1", "whole"))
check(done.returncode == 6 and "whole machine or container is redirected" in done.stderr, f"one that is redirected as a whole is refused: {done.stderr}")

say("-- where user namespaces are not to be had")
UNSHARE = {"x86_64": 272, "aarch64": 97}[platform.machine()]


def as_in_a_container():
    """As containers do: the call that makes namespaces is refused to this process and its children."""
    def step(code, yes, no, value):
        return struct.pack("HBBI", code, yes, no, value)

    # Load the call's number; if it is unshare, answer EPERM, else allow.
    filters = step(0x20, 0, 0, 0) + step(0x15, 0, 1, UNSHARE) + step(0x06, 0, 0, 0x00050001) + step(0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program, len(program)), 0, 0) == 0


def contained(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=60, preexec_fn=as_in_a_container)


done = contained(*control.workload("web-1", "true", dns="off", net="userns", **WEB))
check(done.returncode == 4 and "cannot make a user namespace" in done.stderr, f"--net userns says why: {done.stderr}")
done = contained(*control.workload("web-1", "true", dns="off", **WEB))
check(done.returncode == 0 and "explicit loopback addresses (cannot make a user namespace" in done.stderr,
      f"else one line says why it is loopback: {done.stderr}")
