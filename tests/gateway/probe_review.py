import asyncio, json
from uuid import uuid4
import httpx, pytest
from tests.kit.people import registered
from tests.gateway.test_workspaces import Room, room
from infra.embedded import Process

async def test_hostile(door: httpx.AsyncClient, room: Room, guarded: Process):
    ann = room.ann
    ben = await registered(door)
    await room.let_in(ben, "viewer")
    out = []
    async def say(name, *a, **k):
        try:
            r = await door.request(*a, **k)
            out.append((name, r.status_code, r.text[:150]))
            return r
        except Exception as e:
            out.append((name, "EXC", repr(e)[:200]))
    H = ann.headers
    await say("lastid", "GET", "/v2/events", headers=[(b"accept", b"text/event-stream"), (b"last-event-id", b"\xb2"), (b"authorization", H["Authorization"].encode())])
    await say("xws-bytes", "GET", "/projects", headers=[(b"x-workspace", b"\xff\xb2*>.."), (b"authorization", ben.headers["Authorization"].encode())])
    await say("bus nul", "POST", "/v2/bus-credentials", json={"name": "a\0b"}, headers=H)
    await say("bus surrogate", "POST", "/v2/bus-credentials", content=b'{"name":"\\ud800"}', headers={**H, "content-type": "application/json"})
    await say("bus wild", "POST", "/v2/bus-credentials", json={"workspace": "*"}, headers=H)
    await say("bus other", "POST", "/v2/bus-credentials", json={"workspace": str(uuid4())}, headers=H)
    await say("member nul", "POST", room.path + "/members", json={"username": "a\0b", "role": "viewer"}, headers=H)
    await say("member emoji", "POST", room.path + "/members", json={"username": "😀" * 150, "role": "viewer"}, headers=H)
    await say("big body", "POST", "/v2/bus-credentials", content=b'{"name":"' + b"x" * 3_000_000 + b'"}', headers={**H, "content-type": "application/json"})
    async def gen():
        yield b'{"name":"'
        for _ in range(50):
            yield b"x" * 100_000
        yield b'"}'
    await say("big chunked", "POST", "/v2/bus-credentials", content=gen(), headers={**H, "content-type": "application/json"})
    await say("deep", "POST", "/v2/bus-credentials", content=b'{"nom":' + b"[" * 200_000 + b"]" * 200_000 + b"}", headers={**H, "content-type": "application/json"})
    await say("events far", "GET", f"/v2/events?after={2**62}", headers=ben.headers)
    await say("events far one", "GET", f"/v2/events?after={2**62}", headers=H)
    await say("projects far", "GET", "/projects?offset=10000000&limit=1000", headers=ben.headers)
    await say("hooks viewer", "GET", "/webhooks", headers={**ben.headers, "X-Workspace": ann.id})
    await say("viewer patch", "PATCH", f"/projects/{room.project}", json={"name": "x"}, headers=ben.headers)
    await say("viewer chunks", "POST", f"/projects/{room.project}/chunks/generate", json={}, headers=ben.headers)
    await say("viewer create there", "POST", "/projects", json={"name": "x"}, headers={**ben.headers, "X-Workspace": ann.id})
    files = {"files": ("a.txt", b"A long text that is prose. It goes on and on for a while.\n" * 20)}
    await say("doc", "POST", f"/projects/{room.project}/files/upload", files=files, data={"kind": "raw_doc"}, headers=H)
    key = {**H, "Idempotency-Key": "k1"}
    for body in ({}, {}, {"chunk_size_tokens": 64}):
        await say(f"chunks {body}", "POST", f"/projects/{room.project}/chunks/generate", json=body, headers=key)
    for body in ({}, {}, {"num_examples_target": 5}):
        await say(f"generate {body}", "POST", f"/projects/{room.project}/dataset/generate", json=body, headers=key)
    for body in ({}, {}, {"num_examples": 5}):
        await say(f"preview {body}", "POST", f"/projects/{room.project}/dataset/preview", json=body, headers=key)
    await say("preview nul", "POST", f"/projects/{room.project}/dataset/preview", json={"ollama_model": "a\0b"}, headers=H)
    await say("preview-null-body", "POST", f"/projects/{room.project}/dataset/preview", content=b"null", headers={**H, "content-type": "application/json"})
    await say("chunks list viewer", "GET", f"/projects/{room.project}/chunks", headers=ben.headers)
    carl = await registered(door)
    for path in ("chunks", "dataset/examples", "jobs", "files", "train/status", "export/files"):
        await say(f"stranger {path}", "GET", f"/projects/{room.project}/{path}", headers={**carl.headers})
        await say(f"stranger xws {path}", "GET", f"/projects/{room.project}/{path}", headers={**carl.headers, "X-Workspace": ann.id})
    for x in out: print(x)
    print("LOG", [l for l in guarded.log.read_text().splitlines() if "Traceback" in l or "ValueError" in l][:10])
