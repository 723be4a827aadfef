"""An event hub that speaks AMQP 1.0, on the implementation of the Apache project (qpid-proton), for the tests.

It takes what Azure documents and refuses everything else: TLS, SASL ANONYMOUS, a put-token to `$cbs` before a link may be
attached (signature and expiry of a shared access signature computed here with Python's own hmac, tokens of an authority of
its own for `jwt`), the address of the hub, and publications of several events in the format of Azure. With `--websocket`
the same over WebSockets (python3-websockets), with the path and the sub-protocol checked.

It is told over HTTP how to behave (`POST /behave` with a JSON object, see `Behaviour`) and asked what it has (`GET /state`).
The first line on standard output names its ports.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import secrets
import socket
import ssl
import sys
import threading
import time
import urllib.parse

from proton import Condition, Data, Delivery, Endpoint, Message, Terminus
from proton.handlers import MessagingHandler
from proton.reactor import Container

BATCHED = 0x80013700


class Behaviour:
    """What a test can tell the endpoint."""

    def __init__(self):
        self.lock = threading.Lock()
        self.refuse_tokens = None  # [status, description]
        self.outcomes = []  # for the next publications: see Hub.answer
        self.refuse_text = None  # publications that hold this text are rejected
        self.credit = 100
        self.attach_error = None  # [condition, description]
        # What was seen.
        self.events = []
        self.publications = 0
        self.tokens = []
        self.refusals = []
        self.connections = 0
        self.attached = 0
        self.transfers_without_credit = 0
        self.issued = {}


B = Behaviour()
ARGUMENTS = None


def note_refusal(text):
    with B.lock:
        B.refusals.append(text)


# --- Claims-based security ------------------------------------------------------------------------------------
def check_sas(token, audience):
    """Why a shared access signature is refused, as status and text, and when it ends."""
    if not token.startswith("SharedAccessSignature "):
        return 401, "InvalidSignature: no SharedAccessSignature", 0
    fields = dict(part.split("=", 1) for part in token[len("SharedAccessSignature ") :].split("&"))
    name, key = ARGUMENTS.rule.split("=", 1)
    if fields.get("skn") != name:
        return 401, "InvalidSignature: no such rule", 0
    text = (fields["sr"] + "\n" + fields["se"]).encode()
    wanted = base64.b64encode(hmac.new(key.encode(), text, hashlib.sha256).digest()).decode()
    if not hmac.compare_digest(urllib.parse.unquote(fields["sig"]), wanted):
        return 401, "InvalidSignature: The token has an invalid signature.", 0
    if int(fields["se"]) <= time.time():
        return 401, "ExpiredToken: The token is expired.", 0
    resource = urllib.parse.unquote(fields["sr"]).split("://", 1)[1]
    if not audience.split("://", 1)[1].startswith(resource):
        return 401, "InvalidAudience: the token is for something else", 0
    return 200, "OK", int(fields["se"])


def check_token(message):
    properties = message.properties or {}
    audience = properties.get("name") or ""
    if properties.get("operation") != "put-token":
        return 400, "BadRequest: operation is not put-token", 0
    if audience != f"amqps://{ARGUMENTS.namespace}/{ARGUMENTS.hub}":
        return 401, f"InvalidAudience: {audience}", 0
    with B.lock:
        if B.refuse_tokens:
            return B.refuse_tokens[0], B.refuse_tokens[1], 0
        issued = B.issued.get(message.body)
    kind = properties.get("type")
    if kind == "servicebus.windows.net:sastoken":
        return check_sas(message.body, audience)
    if kind == "jwt":
        if issued is None or issued <= time.time():
            return 401, "InvalidToken: unknown or expired", 0
        return 200, "OK", issued
    return 400, f"BadRequest: token type {kind}", 0


# --- The hub --------------------------------------------------------------------------------------------------
def sections(encoded):
    """Descriptor and value of each section of an encoded message (AMQP 1.0, 3.2)."""
    found = []
    while encoded:
        data = Data()
        length = data.decode(encoded)
        encoded = encoded[length:]
        data.rewind()
        data.next()
        described = data.get_py_described()
        found.append((int(described.descriptor), described.value))
    return found


def one_message(encoded):
    """An event of an encoded message."""
    event = {"body": b"", "properties": {}, "annotations": {}, "id": None, "durable": False}
    for descriptor, value in sections(encoded):
        if descriptor == 0x70:
            event["durable"] = bool(value[0]) if value else False
        elif descriptor == 0x72:
            event["annotations"] = {str(name): item for name, item in value.items()}
        elif descriptor == 0x73:
            event["id"] = value[0]
        elif descriptor == 0x74:
            event["properties"] = {str(name): item for name, item in value.items()}
        elif descriptor == 0x75:
            event["body"] += bytes(value)
    return event


def events_of(encoded):
    """The events of a publication: of one message, or of the messages in its data sections."""
    parts = sections(encoded)
    bodies = [bytes(value) for descriptor, value in parts if descriptor == 0x75]
    is_batch = not any(descriptor == 0x74 for descriptor, _ in parts)
    if not is_batch:
        return [one_message(encoded)]
    envelope = one_message(encoded)
    events = [one_message(body) for body in bodies]
    for event in events:
        if event["annotations"] != envelope["annotations"]:
            note_refusal("partition keys of envelope and event differ")
    return events


class Hub(MessagingHandler):
    def __init__(self):
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.replies = {}
        self.authorized = {}  # connection -> end of its token
        self.senders = []

    def on_start(self, event):
        container = event.container
        container.ssl.server.set_credentials(ARGUMENTS.certificate, ARGUMENTS.key, None)
        self.acceptor = container.listen(f"amqps://127.0.0.1:{ARGUMENTS.port}")
        if ARGUMENTS.plain_port:
            # For the WebSocket bridge in front, which has TLS of its own.
            self.plain = container.listen(f"amqp://127.0.0.1:{ARGUMENTS.plain_port}")
        container.schedule(0.2, self)
        self.container = container
        announce()

    def on_timer_task(self, event):
        # A link whose token is over is ended, as Azure does.
        for link in list(self.senders):
            if self.authorized.get(link.connection, 0) < time.time() and link.state & Endpoint.LOCAL_ACTIVE:
                self.senders.remove(link)
                note_refusal("a link was ended because its token was over")
                link.condition = Condition("amqp:unauthorized-access", "the token is over")
                link.close()
            else:
                with B.lock:
                    wanted = B.credit
                if link.credit < wanted:
                    link.flow(wanted - link.credit)
        self.container.schedule(0.2, self)

    def on_connection_opening(self, event):
        with B.lock:
            B.connections += 1
        if event.connection.remote_hostname != ARGUMENTS.namespace:
            note_refusal(f"hostname {event.connection.remote_hostname}")

    def on_link_opening(self, event):
        link = event.link
        if link.is_sender:
            # The reply link of `$cbs`.
            link.source.address = link.remote_source.address
            link.target.address = link.remote_target.address
            self.replies[link.connection] = link
            return
        address = link.remote_target.address
        link.target.address = address
        link.source.address = link.remote_source.address
        if address == "$cbs":
            link.flow(10)
            return
        error = None
        with B.lock:
            if B.attach_error:
                error = B.attach_error
        if address != ARGUMENTS.hub:
            error = ["amqp:not-found", f"The messaging entity '{address}' could not be found."]
        elif self.authorized.get(link.connection, 0) < time.time():
            error = ["amqp:unauthorized-access", "Unauthorized access. 'Send' claim(s) are required."]
        if error:
            # Attached without a target and ended at once: how a link is refused (AMQP 1.0, 2.6.3).
            note_refusal(error[0])
            link.target.type = Terminus.UNSPECIFIED
            link.open()
            link.condition = Condition(*error)
            link.close()
            return
        with B.lock:
            B.attached += 1
            credit = B.credit
        self.senders.append(link)
        if ARGUMENTS.max_message_size:
            link.max_message_size = ARGUMENTS.max_message_size
        if credit:
            link.flow(credit)

    def on_link_closed(self, event):
        if event.link in self.senders:
            self.senders.remove(event.link)

    def on_disconnected(self, event):
        self.senders = [link for link in self.senders if link.connection != event.connection]
        self.replies.pop(event.connection, None)
        self.authorized.pop(event.connection, None)

    def on_delivery(self, event):
        delivery, link = event.delivery, event.link
        if not link.is_receiver or not delivery.readable or delivery.partial:
            return
        encoded = link.recv(delivery.pending)
        link.advance()
        if link.target.address == "$cbs":
            self.put_token(event, delivery, encoded)
        else:
            self.publication(event, delivery, encoded)

    def put_token(self, event, delivery, encoded):
        message = Message()
        message.decode(encoded)
        delivery.update(Delivery.ACCEPTED)
        delivery.settle()
        event.link.flow(1)
        status, text, ends = check_token(message)
        with B.lock:
            B.tokens.append({"status": status, "type": (message.properties or {}).get("type"), "at": time.time()})
        if status == 200:
            self.authorized[event.connection] = ends
        else:
            note_refusal(text)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + ARGUMENTS.clock_offset))
            text += f" TrackingId:0f_B1, SystemTracker:test, Timestamp:{stamp}"
        answer = Message(
            correlation_id=message.id, properties={"status-code": status, "status-description": text}, body=None
        )
        self.replies[event.connection].send(answer)

    def publication(self, event, delivery, encoded):
        link = event.link
        with B.lock:
            wanted = B.credit
            outcome = B.outcomes.pop(0) if B.outcomes else ["accept"]
            refuse = B.refuse_text
        limit = ARGUMENTS.tier
        if len(encoded) > limit:
            outcome = ["reject", "amqp:link:message-size-exceeded", f"{len(encoded)} bytes, the tier takes {limit}"]
        elif refuse and refuse.encode() in encoded:
            outcome = ["reject", "com.microsoft:argument-error", "told to refuse an event"]
        kind = outcome[0]
        if kind in ("accept", "take-and-cut"):
            events = events_of(encoded)
            with B.lock:
                for one in events:
                    one["publication"] = B.publications
                B.publications += 1
                B.events.extend(events)
        if kind == "accept":
            delivery.update(Delivery.ACCEPTED)
        elif kind == "reject":
            delivery.local.condition = Condition(outcome[1], outcome[2])
            delivery.update(Delivery.REJECTED)
        elif kind == "release":
            delivery.update(Delivery.RELEASED)
        elif kind == "modify":
            delivery.local.failed = True
            delivery.local.undeliverable = bool(outcome[1])
            delivery.update(Delivery.MODIFIED)
        elif kind == "detach":
            self.senders.remove(link)
            link.condition = Condition(outcome[1], outcome[2])
            link.close()
            return
        elif kind in ("cut", "take-and-cut"):
            event.transport._selectable._delegate.shutdown(socket.SHUT_RDWR)
            return
        elif kind == "silence":
            return
        delivery.settle()
        if link.credit < wanted:
            link.flow(wanted - link.credit)


# --- WebSockets -----------------------------------------------------------------------------------------------
def serve_websocket():
    import websockets

    async def bridge(socket, path):
        if path != "/$servicebus/websocket" or socket.subprotocol != "amqp":
            note_refusal(f"WebSocket {path} {socket.subprotocol}")
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", ARGUMENTS.plain_port)

        async def up():
            async for piece in socket:
                if isinstance(piece, str):
                    note_refusal("a text frame")
                    break
                writer.write(piece)
                await writer.drain()
            writer.close()

        async def down():
            while piece := await reader.read(65536):
                await socket.send(piece)
            await socket.close()

        tasks = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def run():
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(ARGUMENTS.certificate, ARGUMENTS.key)
        async with websockets.serve(
            bridge, "127.0.0.1", ARGUMENTS.websocket, ssl=tls, subprotocols=["amqp"], max_size=None
        ):
            await asyncio.Future()

    asyncio.run(run())


# --- Control --------------------------------------------------------------------------------------------------
class Control(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with B.lock:
            state = {
                "events": [
                    {**event, "body": base64.b64encode(event["body"]).decode()} for event in B.events
                ],
                "publications": B.publications,
                "tokens": B.tokens,
                "refusals": B.refusals,
                "connections": B.connections,
                "attached": B.attached,
            }
        self.answer(state)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            # OAuth 2 client credentials.
            form = urllib.parse.parse_qs(body.decode())
            if form.get("client_secret") != ["client-secret"]:
                return self.answer({"error": "invalid_client"}, 401)
            token, life = secrets.token_hex(16), ARGUMENTS.token_life
            with B.lock:
                B.issued[token] = time.time() + life
            return self.answer({"access_token": token, "expires_in": life, "token_type": "Bearer"})
        with B.lock:
            for name, value in json.loads(body).items():
                assert hasattr(B, name), name
                setattr(B, name, value)
        self.answer({})

    def answer(self, value, status=200):
        text = json.dumps(value, default=str).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def announce():
    print("listening", flush=True)


def main():
    global ARGUMENTS
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--plain-port", type=int, default=0)
    parser.add_argument("--websocket", type=int, default=0)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--hub", required=True)
    parser.add_argument("--rule", required=True, help="NAME=KEY")
    parser.add_argument("--tier", type=int, default=1048576)
    parser.add_argument("--max-message-size", type=int, default=0)
    parser.add_argument("--token-life", type=int, default=3600)
    parser.add_argument("--clock-offset", type=int, default=0)
    ARGUMENTS = parser.parse_args()
    control = http.server.ThreadingHTTPServer(("127.0.0.1", ARGUMENTS.control), Control)
    threading.Thread(target=control.serve_forever, daemon=True).start()
    if ARGUMENTS.websocket:
        threading.Thread(target=serve_websocket, daemon=True).start()
    Container(Hub()).run()


if __name__ == "__main__":
    main()
