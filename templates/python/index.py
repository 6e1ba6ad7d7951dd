"""Serves function/handler.py to the watchdog: HTTP/1.1 on the loopback address, a thread a connection.

The start of this process is part of every cold start, so it imports next to nothing: the C modules
below the socket, signal and threading modules are enough. It runs with `python3 -S`.
"""

import _signal
import _socket
import _thread
import os
import sys
import time

HEADER_MAX = 64 * 1024
LINE_MAX = 16 * 1024
DRAIN_SECONDS = 25
REASONS = {200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 301: "Moved Permanently",
           302: "Found", 304: "Not Modified", 400: "Bad Request", 401: "Unauthorized",
           403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
           422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error",
           502: "Bad Gateway", 503: "Service Unavailable"}


def canonical(name):
    return "-".join(part.capitalize() for part in name.split("-"))


class Headers(dict):
    """Request headers: a dict whose keys may be written in any case."""

    def __getitem__(self, name):
        return dict.__getitem__(self, canonical(name))

    def __contains__(self, name):
        return isinstance(name, str) and dict.__contains__(self, canonical(name))

    def get(self, name, default=None):
        return dict.get(self, canonical(name), default)


class Query(dict):
    """Query parameters: a dict of first values; getlist(name) gives all values of one."""

    def __init__(self, text):
        super().__init__()
        self._all = {}
        for pair in text.split("&"):
            if pair:
                name, _, value = pair.partition("=")
                name, value = decode(name.replace("+", " ")), decode(value.replace("+", " "))
                self.setdefault(name, value)
                self._all.setdefault(name, []).append(value)

    def getlist(self, name):
        return list(self._all.get(name, ()))


def decode(text):
    """Percent decoding; what is not UTF-8 becomes the replacement character."""
    if "%" not in text:
        return text
    parts = text.encode("utf-8", "surrogateescape").split(b"%")
    out = [parts[0]]
    for part in parts[1:]:
        try:
            out.append(bytes((int(part[:2], 16),)) + part[2:] if len(part) > 1 else b"%" + part)
        except ValueError:
            out.append(b"%" + part)
    return b"".join(out).decode("utf-8", "replace")


class Event:
    """One request: body (bytes), headers, method, path (decoded), query."""

    def __init__(self, method, target, headers, body):
        path, _, query = target.partition("?")
        self.body = body
        self.headers = headers
        self.method = method
        self.path = decode(path)
        self.query_string = query
        self._query = None

    @property
    def query(self):
        if self._query is None:
            self._query = Query(self.query_string)
        return self._query


class Context:
    """Where the function runs."""

    def __init__(self):
        self.hostname = _socket.gethostname()


class BadRequest(Exception):
    """The bytes on the connection are no HTTP request."""


class Connection:
    """Reads requests from one connection and writes answers to it."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def fill(self):
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def until(self, mark, limit):
        """Bytes up to `mark`, which is consumed; None when the peer closed before the first byte."""
        start = 0
        while True:
            at = self.buffer.find(mark, start)
            if at >= 0:
                found, self.buffer = self.buffer[:at], self.buffer[at + len(mark):]
                return found
            if len(self.buffer) > limit:
                raise BadRequest("too long")
            start = max(0, len(self.buffer) - len(mark) + 1)
            if not self.fill():
                if self.buffer:
                    raise BadRequest("cut short")
                return None

    def exactly(self, count):
        parts, have = [self.buffer[:count]], min(count, len(self.buffer))
        self.buffer = self.buffer[count:]
        while have < count:
            data = self.sock.recv(min(count - have, 1 << 20))
            if not data:
                raise BadRequest("cut short")
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def body(self, headers):
        if "chunked" in headers.get("Transfer-Encoding", "").lower():
            parts = []
            while True:
                line = self.until(b"\r\n", LINE_MAX)
                size = int((line or b"").partition(b";")[0], 16)
                if size < 0:
                    raise BadRequest("negative chunk")
                if size == 0:
                    while self.until(b"\r\n", LINE_MAX):
                        pass
                    return b"".join(parts)
                parts.append(self.exactly(size))
                self.exactly(2)
        length = int(headers.get("Content-Length", "0") or "0")
        if length < 0:
            raise BadRequest("negative length")
        return self.exactly(length) if length else b""

    def request(self):
        """(event, keep alive), or None when the peer is done."""
        head = self.until(b"\r\n\r\n", HEADER_MAX)
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        headers = Headers()
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadRequest("header without a colon")
            name, value = canonical(name.strip()), value.strip()
            if dict.__contains__(headers, name):
                value = dict.__getitem__(headers, name) + ", " + value
            headers[name] = value
        if headers.get("Expect", "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        event = Event(method, target, headers, self.body(headers))
        wish = headers.get("Connection", "").lower()
        keep = "close" not in wish if version == "HTTP/1.1" else "keep-alive" in wish
        return event, keep

    def answer(self, method, status, headers, body, keep):
        """Writes one answer. `body` is bytes, or an iterable of parts that are sent as they come."""
        whole = isinstance(body, bytes)
        bare = status < 200 or status in (204, 304)
        names = {name.lower() for name, _ in headers}
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                lines.append(f"{name}: {value}")
        if "content-type" not in names and not bare:
            lines.append("Content-Type: text/plain; charset=utf-8")
        if not bare:
            lines.append(f"Content-Length: {len(body)}" if whole else "Transfer-Encoding: chunked")
        if not keep:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        silent = bare or method == "HEAD"
        if whole or silent:
            self.sock.sendall(head if silent else head + body)
            return
        self.sock.sendall(head)
        for part in body:
            part = part.encode() if isinstance(part, str) else bytes(part)
            if part:
                self.sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        self.sock.sendall(b"0\r\n\r\n")


def to_json(value):
    import json
    return json.dumps(value).encode()


def to_answer(result):
    """(status, headers, body) of whatever a handler returned."""
    status, headers, body = 200, [], result
    if isinstance(result, dict) and ("statusCode" in result or "body" in result):
        status, headers = result.get("statusCode", 200), result.get("headers") or []
        body = result.get("body")
    elif isinstance(result, tuple) and 2 <= len(result) <= 3:
        body, status = result[0], result[1]
        headers = result[2] if len(result) == 3 else []
    headers = [(str(name), str(value))
               for name, value in (headers.items() if hasattr(headers, "items") else headers)]
    for name, value in headers:
        if any(char in name or char in value for char in "\r\n\0"):
            raise ValueError(f"header {name!r} holds a line break")
    kind = None
    if body is None:
        body = b""
    elif isinstance(body, str):
        body = body.encode("utf-8", "surrogateescape")
    elif isinstance(body, (bytearray, memoryview)):
        body = bytes(body)
    elif isinstance(body, (dict, list, tuple, int, float, bool)):
        body, kind = to_json(body), "application/json"
    elif not isinstance(body, bytes) and not hasattr(body, "__iter__"):
        body = str(body).encode()
    if kind and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", kind))
    return int(status), headers, body


def load():
    """The handler as a function of (event, context)."""
    here = os.path.dirname(os.path.abspath(__file__))
    packages, function = os.path.join(here, "packages"), os.path.join(here, "function")
    debian = "/usr/lib/python3/dist-packages"
    sys.path[1:1] = [packages]
    sys.path += [function, debian]
    if os.path.isdir(packages) and any(name.endswith(".pth") for name in os.listdir(packages)):
        import site
        site.addsitedir(packages)
    import builtins
    for name in ("exit", "quit"):
        if not hasattr(builtins, name):
            setattr(builtins, name, sys.exit)
    from function import handler
    handle = getattr(handler, "handle", None)
    if not callable(handle):
        sys.exit("function/handler.py defines no `handle`: write `def handle(event, context):`")
    code = getattr(handle, "__code__", None)
    if code is not None:
        count, open_ended = code.co_argcount, bool(code.co_flags & 0x04)
        if hasattr(handle, "__self__"):
            count -= 1
    else:
        import inspect
        kinds = [parameter.kind for parameter in inspect.signature(handle).parameters.values()]
        count = sum(kind in (0, 1) for kind in kinds)
        open_ended = 2 in kinds
    context = Context()
    if count >= 2 or open_ended:
        def call(event):
            return handle(event, context)
    elif count == 1:
        # The form of the first OpenFaaS templates: the body as text, the answer as text.
        raw = os.environ.get("RAW_BODY", "").lower() in ("1", "true", "yes")

        def call(event):
            return handle(event.body if raw else event.body.decode("utf-8", "replace"))
    else:
        def call(event):
            return handle()
    if code is not None and code.co_flags & 0x80:
        def run(event):
            import asyncio
            return asyncio.run(call(event))
        return run
    return call


class Server:
    """Accepts connections until SIGTERM, then lets running requests finish."""

    def __init__(self, call, host, port):
        self.call = call
        self.stopping = False
        self.running = 0
        self.lock = _thread.allocate_lock()
        self.listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self.listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        self.listener.bind((host, port))
        self.listener.listen(1024)

    def stop(self, _signal_number, _frame):
        self.stopping = True
        raise KeyboardInterrupt

    def run(self):
        _signal.signal(_signal.SIGTERM, self.stop)
        _signal.signal(_signal.SIGINT, self.stop)
        try:
            while not self.stopping:
                try:
                    descriptor, _ = self.listener._accept()
                except (BlockingIOError, InterruptedError, ConnectionError):
                    continue
                except OSError:
                    # Out of descriptors: connections that end give some back.
                    time.sleep(0.05)
                    continue
                _thread.start_new_thread(self.serve, (_socket.socket(fileno=descriptor),))
        except KeyboardInterrupt:
            pass
        self.listener.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.running and time.monotonic() < deadline:
            time.sleep(0.01)

    def serve(self, sock):
        connection = Connection(sock)
        try:
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            while not self.stopping:
                try:
                    request = connection.request()
                except (BadRequest, ValueError):
                    connection.answer("GET", 400, [], b"this is no HTTP request\n", False)
                    return
                if request is None:
                    return
                event, keep = request
                with self.lock:
                    self.running += 1
                try:
                    keep = self.handle(connection, event, keep)
                finally:
                    with self.lock:
                        self.running -= 1
                if not keep:
                    return
        except OSError:
            pass  # The peer went away.
        finally:
            sock.close()

    def handle(self, connection, event, keep):
        """Answers one request; whether the connection can be used again."""
        try:
            status, headers, body = to_answer(self.call(event))
            if not 200 <= status <= 599:
                raise ValueError(f"statusCode {status} is not between 200 and 599")
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                status, headers, body = 200, [], b""
            else:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                status, headers, body = 500, [], b"the function failed, its log says why\n"
        keep = keep and not self.stopping
        try:
            connection.answer(event.method, status, headers, body, keep)
        except OSError:
            return False
        except Exception:
            # Part of the answer may be out already, so all that is left is to hang up.
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            return False
        finally:
            if hasattr(body, "close"):
                body.close()
        return keep


def main():
    upstream = os.environ.get("upstream_url") or "http://127.0.0.1:5000"
    port = upstream.rstrip("/").rpartition(":")[2]
    server = Server(load(), "127.0.0.1", int(port) if port.isdigit() else 5000)
    server.run()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
