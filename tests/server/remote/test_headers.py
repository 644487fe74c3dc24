from __future__ import annotations

from thriftree.server.remote.headers import forwarded, returned


def names(pairs: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [name for name, _ in pairs]


def test_unknown_headers_pass_in_order_and_repeated() -> None:
    given = [(b"x-one", b"1"), (b"x-two", b"\xc3\xa9"), (b"x-one", b"2")]
    assert list(forwarded(given, None).items()) == [("x-one", "1"), ("x-two", "é"), ("x-one", "2")]
    assert returned([(b"X-One", b"\xff"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]) == [
        (b"x-one", b"\xff"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]


def test_hop_by_hop_stays_here_both_ways() -> None:
    hop = [
        (b"connection", b"keep-alive, X-Mine"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"trailers"),
        (b"trailer", b"x"),
        (b"upgrade", b"h2c"),
        (b"proxy-authorization", b"Basic x"),
        (b"proxy-authenticate", b"Basic"),
        (b"x-mine", b"1"),
    ]
    assert not forwarded(hop, None)
    assert returned(hop) == []


def test_the_clients_keys_stay_here() -> None:
    secrets = [(b"authorization", b"Bearer tt-secret"), (b"x-api-key", b"tt-secret"), (b"api-key", b"tt-secret")]
    assert not forwarded(secrets, None)
    assert dict(forwarded(secrets, "own")) == {"authorization": "Bearer own"}


def test_what_cannot_be_sent_is_left_out() -> None:
    assert not forwarded([(b"x-control", b"a\x01b"), (b"x-latin", b"\xff"), (b"x-del", b"\x7f")], None)


def test_ids_and_traces_pass() -> None:
    given = [(b"x-request-id", b"r1"), (b"traceparent", b"00-1-2-01"), (b"content-type", b"application/json")]
    assert [name for name, _ in forwarded(given, None).items()] == ["x-request-id", "traceparent", "content-type"]


def test_length_is_kept_for_the_client_only() -> None:
    assert not forwarded([(b"content-length", b"3"), (b"host", b"gateway"), (b"expect", b"100-continue")], None)
    assert names(returned([(b"content-length", b"3"), (b"date", b"now"), (b"server", b"uvicorn")])) == [
        b"content-length"
    ]
