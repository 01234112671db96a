"""A server and clients that cost next to nothing, for tests under load."""

import json
import selectors
import socket
import subprocess
import sys
import time

RATE = 2000
CLIENTS, CONNECTIONS = 4, 8
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """As cheap as an HTTP server can be: every request on a connection gets the same answer."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.socket.getsockname()[1]


def serve(listening):
    selector = selectors.DefaultSelector()
    listening.setblocking(False)
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                try:
                    stream, _ = listening.accept()
                except BlockingIOError:
                    continue
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(stream, selectors.EVENT_READ)
                continue
            try:
                data = key.fileobj.recv(65536)
            except OSError:
                data = b""
            if data:
                key.fileobj.sendall(OK * data.count(b"\r\n\r\n"))
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def client(to, host, rate, seconds):
    """Requests at an even pace on kept connections. A connection that the proxy asked to close, or closed between two
    requests, is opened anew; everything else that is not a whole 200 is a failure."""
    done = failed = 0
    worst = 0.0
    why = []
    pool = [None] * CONNECTIONS
    begin = time.monotonic()
    at = 0
    while (due := begin + at / rate) < begin + seconds:
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        slot = at % CONNECTIONS
        at += 1
        sent = time.monotonic()
        try:
            stream = pool[slot]
            if stream is not None:
                stream.setblocking(False)
                try:
                    if stream.recv(1, socket.MSG_PEEK) == b"":
                        stream.close()
                        stream = None
                except BlockingIOError:
                    pass
                if stream is not None:
                    stream.settimeout(5)
            if stream is None:
                stream = socket.create_connection(to, 5)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pool[slot] = stream
            stream.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer or not answer.endswith(b"ok"):
                part = stream.recv(4096)
                if not part:
                    raise OSError(f"closed after {answer!r}")
                answer += part
            if not answer.startswith(b"HTTP/1.1 200"):
                raise OSError(answer.split(b"\r\n")[0].decode())
            done += 1
            if b"connection: close" in answer.lower():
                stream.close()
                pool[slot] = None
        except OSError as error:
            failed += 1
            why.append(f"{time.monotonic() - begin:.3f} s: {error!r}")
            pool[slot] = None
        worst = max(worst, time.monotonic() - sent)
    return done, failed, worst, time.monotonic() - begin, why[:3]


class Load:
    """`RATE` requests per second for a time, from processes of their own, to a port of 127.0.0.1 or another address."""

    def __init__(self, port, seconds, address="127.0.0.1", host="a"):
        command = [sys.executable, __file__, address, port, host, RATE / CLIENTS, seconds]
        words = [str(word) for word in command]
        self.clients = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)]

    def end(self):
        parts = [json.loads(one.communicate(timeout=90)[0]) for one in self.clients]
        took = max(part[3] for part in parts)
        done, failed = sum(part[0] for part in parts), sum(part[1] for part in parts)
        return done, failed, max(part[2] for part in parts), done / took, [why for part in parts for why in part[4]]


if __name__ == "__main__":
    address, port, host, rate, seconds = sys.argv[1:]
    print(json.dumps(client((address, int(port)), host, float(rate), float(seconds))))
