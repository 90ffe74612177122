"""What rank 0 tells the others, and the memory that it goes through."""

from __future__ import annotations

import threading
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_export.ranks import channel
from gptoss_export.ranks.channel import Receiver, Sender, shared_memory
from gptoss_export.ranks.messages import Kind, decode, encode

NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)


@given(st.sampled_from(Kind), st.lists(NUMBERS | st.binary(max_size=50), max_size=5))
def test_messages_come_back(kind: Kind, parts: list[list[int] | bytes]) -> None:
    message = decode(encode(kind, *parts))
    assert message.kind == kind
    assert [part.tolist() if isinstance(part, array) else part for part in message.parts] == parts


def nothing() -> None:
    """What a sender checks."""


def test_every_reader_gets_every_message_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of all sizes, also larger than the memory between the ends."""
    monkeypatch.setattr(channel, "_RING", 1 << 10)
    descriptor = shared_memory(3)
    sender = Sender(descriptor, 3)
    sent = [bytes([number % 251]) * (number * 37 % 2500) for number in range(200)]
    got: list[list[bytes]] = [[], [], []]

    def read(index: int) -> None:
        receiver = Receiver(descriptor, 3, index)
        got[index] = [receiver.receive() for _ in sent]

    readers = [threading.Thread(target=read, args=(index,)) for index in range(3)]
    for reader in readers:
        reader.start()
    for message in sent:
        sender.send(message, nothing)
    for reader in readers:
        reader.join(30)
    assert got == [sent, sent, sent]


def test_a_sender_stops_waiting_when_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_RING", 1 << 10)
    sender = Sender(shared_memory(1), 1)

    def gone() -> None:
        raise RuntimeError("the reader is gone")

    with pytest.raises(RuntimeError, match="gone"):
        sender.send(bytes(5000), gone)
