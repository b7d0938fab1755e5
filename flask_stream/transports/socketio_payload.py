"""Checks of Engine.IO's requests, which its server reads as if all clients meant well."""

from __future__ import annotations

from engineio.packet import CLOSE, MESSAGE, PONG, Packet

from ..errors import BadRequest

#: Packets that one request may have.
MAX_PACKETS = 10_000
#: Stands between packets in a payload. JSON never contains it.
SEPARATOR = "\x1e"


def check_payload(body: bytes) -> None:
    """Raise BadRequest for a body that is not a payload of a client's packets."""
    try:
        packets = body.decode().split(SEPARATOR)
    except UnicodeDecodeError:
        packets = []
    if not 0 < len(packets) <= MAX_PACKETS or not all(map(_is_from_client, packets)):
        raise BadRequest("The body is not an Engine.IO payload.", field="body")


def _is_from_client(text: str) -> bool:
    packet = decode_packet(text)
    # Engine.IO would wait for ever for a client that sent a packet of another type.
    return packet is not None and packet.packet_type in (CLOSE, PONG, MESSAGE)


def decode_packet(packet: str | bytes) -> Packet | None:
    """Return the packet that a client has sent; None if it is not one."""
    try:
        return Packet(encoded_packet=packet)
    except (ValueError, RecursionError):
        return None
