"""Takes COUNT messages out of a queue over AMQP 1.0 with TLS, in order, and prints them as JSON: take.py PORT QUEUE COUNT"""

import base64
import json
import sys

from proton import SSLDomain
from proton.utils import BlockingConnection

port, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
domain = SSLDomain(SSLDomain.MODE_CLIENT)
domain.set_peer_authentication(SSLDomain.ANONYMOUS_PEER)
connection = BlockingConnection(
    f"amqps://127.0.0.1:{port}", ssl_domain=domain, allowed_mechs="ANONYMOUS", timeout=60
)
receiver = connection.create_receiver(f"/amq/queue/{queue}", credit=count)
events = []
while len(events) < count:
    message = receiver.receive(timeout=30)
    receiver.accept()
    events.append(
        {
            "body": base64.b64encode(bytes(message.body)).decode(),
            "properties": message.properties,
            "annotations": {str(name): value for name, value in (message.annotations or {}).items()},
            "id": message.id,
            "durable": message.durable,
        }
    )
connection.close()
print(json.dumps(events, default=str))
