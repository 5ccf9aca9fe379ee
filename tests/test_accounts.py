"""Accounts over HTTP on a real server with a real database: the first administrator, login, links, roles, keys, audit."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.admin import __main__ as command
from app.admin.access import hash_password, key_hash, password_fits
from app.admin.accounts import NAME_TRIES
from app.admin.administrator import first_administrator, password_file
from app.service import Service
from app.settings import Settings, WrongSetting
from engine.serving.pool import Pool
from storage import Database
from tests.server import PATIENCE, ROOT, Thread, rows

pytest_plugins = ("tests.server",)

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def desk(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thread]:
    """A server of this file's own: its members and its rate limits are nobody else's."""
    folder = tmp_path_factory.mktemp("desk")
    running = Thread(Settings.create(model=str(tiny_model_folder), database=str(folder / "glm.db")))
    try:
        running.wait_until_ready()
        running.folder = folder
        running.password = (folder / "glm-admin-password.txt").read_text().strip()
        yield running
    finally:
        running.stop()


class Browser(httpx.Client):
    """A browser of its own, from an address of its own, so that limits meet only who is meant."""

    count = 0

    def __init__(self, desk: Thread, **headers: str) -> None:
        Browser.count += 1
        own = {"X-Forwarded-For": f"192.0.2.{Browser.count % 250 + 1}"}
        super().__init__(base_url=desk.http, timeout=PATIENCE, headers=own | headers)

    def login(self, name: str, password: str) -> httpx.Response:
        return self.post("/api/admin/login", json={"name": name, "password": password})


def kind(answer: httpx.Response) -> str:
    return answer.json()["error"]["kind"]


@pytest.fixture
def admin(desk: Thread) -> Browser:
    """A session of the first administrator's, made without a login, which would count as a try."""
    return session(desk, "admin")


def session(desk: Thread, name: str) -> Browser:
    record = desk.service.record
    row = desk.call(record.find_staff(name))
    key = f"session of {name} {Browser.count}"
    desk.call(record.add_key(key_hash(key), row.id, "session", expires=record.clock() + timedelta(hours=1)))
    browser = Browser(desk)
    browser.cookies.set("glm_staff", key)
    return browser


def token_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return re.fullmatch(r"admin#welcome\?token=([\w-]{32})", answer.json()["path"])[1]


def joined(desk: Thread, admin: Browser, name: str, role: str = "reviewer") -> Browser:
    """A new member who came by an invitation."""
    token = token_of(admin.post("/api/admin/invitations", json={"role": role}))
    browser = Browser(desk)
    body = {"token": token, "name": name, "password": PASSWORD}
    answer = browser.post("/api/admin/invitations/accept", json=body)
    assert answer.status_code == 200, answer.text
    return browser


def member(admin: Browser, name: str) -> dict[str, Any]:
    return next(one for one in admin.get("/api/admin/people").json()["people"] if one["name"] == name)


# The first administrator


def test_the_first_start_writes_a_password_that_only_its_owner_can_read(desk: Thread) -> None:
    path = desk.folder / "glm-admin-password.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(desk.password) == 24
    assert desk.app.state.password_file == path
    stored = rows(desk.folder / "glm.db", "SELECT name, role, password FROM staff WHERE name = 'admin'")
    assert stored[0][:2] == ("admin", "admin") and desk.password not in stored[0][2]
    browser = Browser(desk)
    assert browser.login(" Admin", desk.password).json()["role"] == "admin"
    assert browser.get("/api/admin/me").json()["name"] == "admin"


def test_a_second_start_makes_nobody_and_says_nothing(tmp_path: Path) -> None:
    service = _service(tmp_path)

    async def twice() -> list[Path | None]:
        await service.prepare()
        return [await first_administrator(service), await first_administrator(service)]

    first, second = asyncio.run(_closing(service, twice()))
    assert first == tmp_path / "glm-admin-password.txt" and second is None


def test_a_file_that_is_there_is_used_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{PASSWORD}\n")
    service = _service(tmp_path, admin_password_file=str(path))

    async def start() -> bool:
        await service.prepare()
        with pytest.raises(WrongSetting, match="chmod 600"):
            path.chmod(0o644)
            await first_administrator(service)
        path.chmod(0o600)
        assert await first_administrator(service) == path
        row = await service.record.find_staff("admin")
        return await password_fits(PASSWORD, row.password)

    assert asyncio.run(_closing(service, start()))
    assert path.read_text() == f"{PASSWORD}\n"


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_file_without_a_password_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(0o600)
    service = _service(tmp_path, admin_password_file=str(path))

    async def start() -> None:
        await service.prepare()
        with pytest.raises(WrongSetting, match="10 to 200 characters"):
            await first_administrator(service)
        assert await service.record.list_staff() == []

    asyncio.run(_closing(service, start()))


def test_two_processes_that_start_at_once_make_one_administrator(tmp_path: Path) -> None:
    """Each with a file of its own, as two machines with one database have; only the file with the right password stays."""
    services = [_service(tmp_path, admin_password_file=str(tmp_path / name)) for name in ("one", "two")]

    async def start() -> list[Path | None]:
        await services[0].prepare()
        made = await asyncio.gather(*(first_administrator(service) for service in services))
        row = await services[0].record.find_staff("admin")
        (left,) = [path for path in made if path]
        assert await password_fits(left.read_text().strip(), row.password)
        assert [path.name for path in tmp_path.iterdir() if path.name in ("one", "two")] == [left.name]
        await services[1].database.close()
        return made

    assert len(asyncio.run(_closing(services[0], start()))) == 2


def test_where_the_password_is_on_a_server_database(tmp_path: Path) -> None:
    assert password_file(Settings.create(), None).name == "admin-password.txt"
    assert password_file(Settings.create(admin_password_file="~/x"), None) == Path.home() / "x"


def _service(folder: Path, **given: str) -> Service:
    settings = Settings.create(database=str(folder / "glm.db"), **given)
    return Service(settings, Pool(settings.model), Database(settings.database))


async def _closing(service: Service, work: Any) -> Any:
    try:
        return await work
    finally:
        await service.database.close()


# Login


def test_without_a_session_there_is_nothing_but_the_login(desk: Thread) -> None:
    stranger = Browser(desk)
    page = stranger.get("/admin", headers={"Accept": "text/html"})
    assert page.status_code == 200 and '"staff":null' in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["Cache-Control"] == "no-store"
    assert stranger.get("/admin/").headers["location"] == "../admin"
    for method, path in [
        ("GET", "me"),
        ("POST", "logout"),
        ("POST", "password"),
        ("GET", "people"),
        ("POST", "people"),
        ("PATCH", "people/x"),
        ("POST", "people/x/reset"),
        ("POST", "people/x/keys"),
        ("DELETE", "people/x/keys/y"),
        ("POST", "invitations"),
        ("DELETE", "invitations/x"),
        ("GET", "audit"),
    ]:
        answer = stranger.request(method, f"/api/admin/{path}", json={} if method != "GET" else None)
        assert (answer.status_code, kind(answer)) == (401, "login_needed"), (method, path)


def test_a_wrong_name_and_a_wrong_password_look_the_same(desk: Thread) -> None:
    answers = [Browser(desk).login(name, "wrong wrong wrong") for name in ("admin", "nobody", "", "x" * 1000)]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert "set-cookie" not in answers[0].headers or "glm_staff" not in answers[0].headers["set-cookie"]


def test_the_cookie_is_kept_from_scripts_and_from_other_sites(desk: Thread, admin: Browser) -> None:
    browser = joined(desk, admin, "cookie")
    answer = browser.login("cookie", PASSWORD)
    given = next(value for value in answer.headers.get_list("set-cookie") if value.startswith("glm_staff="))
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(given.split("; ")) and "Secure" not in given
    for path in ("login", "logout", "invitations/look", "invitations/accept"):
        answer = browser.post(f"/api/admin/{path}", json={}, headers={"Origin": "https://evil.example"})
        assert (answer.status_code, kind(answer)) == (403, "forbidden"), path
    behind = browser.post(
        "/api/admin/login",
        json={"name": "cookie", "password": PASSWORD},
        headers={"X-Forwarded-Proto": "https"},
    )
    assert any("Secure" in value for value in behind.headers.get_list("set-cookie") if "glm_staff" in value)


def test_passwords_are_tried_slowly_for_one_name_from_wherever(desk: Thread, admin: Browser) -> None:
    joined(desk, admin, "target")
    answers: list[httpx.Response] = []
    while not answers or answers[-1].status_code != 429:  # on a slow machine a minute's worth grows meanwhile
        answers.append(Browser(desk).login("Target", f"guess number {len(answers)}"))
    tried = len(answers) - 1
    assert {answer.status_code for answer in answers[:-1]} == {401} and NAME_TRIES <= tried <= 2 * NAME_TRIES
    assert kind(answers[-1]) == "rate_limited" and int(answers[-1].headers["Retry-After"]) >= 1
    assert Browser(desk).login("target", PASSWORD).status_code == 429, "the right one waits, too"
    assert admin.get("/api/admin/me").status_code == 200, "who is in stays in"
    refused = admin.get("/api/admin/audit", params={"action": "login refused", "actor": "target"}).json()["entries"]
    assert len(refused) == tried


def test_one_address_can_not_try_many_names(desk: Thread) -> None:
    browser = Browser(desk)
    statuses = []
    while 429 not in statuses:
        answer = browser.post("/api/admin/invitations/look", json={"token": f"guess {len(statuses)}"})
        statuses.append(answer.status_code)
    assert set(statuses[:-1]) == {404} and 20 <= len(statuses) <= 60
    assert browser.login("nobody", "wrong wrong wrong").status_code == 429


def test_logout_ends_a_session_and_everywhere_ends_all(desk: Thread, admin: Browser) -> None:
    joined(desk, admin, "leaver")
    one, two, three = (session(desk, "leaver") for _ in range(3))
    assert one.post("/api/admin/logout", json={}).status_code == 204
    assert one.get("/api/admin/me").status_code == 401 and two.get("/api/admin/me").status_code == 200
    assert two.post("/api/admin/logout", json={"everywhere": True}).status_code == 204
    assert three.get("/api/admin/me").status_code == 401


def test_a_session_ends_by_itself(desk: Thread, admin: Browser) -> None:
    record = desk.service.record
    id = member(admin, "admin")["id"]
    desk.call(record.add_key(key_hash("old"), id, "session", expires=record.clock() - timedelta(seconds=1)))
    browser = Browser(desk)
    browser.cookies.set("glm_staff", "old")
    assert browser.get("/api/admin/me").status_code == 401
    joined(desk, admin, "later")  # makes a session
    left = rows(desk.folder / "glm.db", "SELECT count(*) FROM staff_key WHERE hash = ?", key_hash("old"))
    assert left == [(0,)]


# Passwords


def test_a_password_is_changed_with_the_old_one_and_ends_other_sessions(desk: Thread, admin: Browser) -> None:
    browser = joined(desk, admin, "changer")
    other = session(desk, "changer")

    def change(old: str, new: str) -> httpx.Response:
        return browser.post("/api/admin/password", json={"old": old, "new": new})

    wrong = change("not it at all", "another good one")
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "old")
    for new, limit in (("short", 10), ("x" * 201, 200)):
        refused = change(PASSWORD, new)
        assert refused.status_code == 422
        assert refused.json()["error"] | {"message": ""} == refused.json()["error"] | {
            "message": "",
            "field": "new",
            "limit": limit,
        }
    assert change(PASSWORD, "一个很好的新密码就是这样").status_code == 200
    assert browser.get("/api/admin/me").status_code == 200 and other.get("/api/admin/me").status_code == 401
    assert Browser(desk).login("changer", PASSWORD).status_code == 401
    assert Browser(desk).login("changer", "一个很好的新密码就是这样").status_code == 200


def test_hashes_are_salted_and_a_missing_one_fits_nothing() -> None:
    async def look() -> None:
        one, two = await hash_password("secret"), await hash_password("secret")
        assert one != two and await password_fits("secret", one) and not await password_fits("Secret", one)
        assert not await password_fits("", None)

    asyncio.run(look())


# Invitations


def test_an_invitation_makes_one_member_once(desk: Thread, admin: Browser) -> None:
    token = token_of(admin.post("/api/admin/invitations", json={"role": "reviewer"}))
    guest = Browser(desk)
    assert guest.post("/api/admin/invitations/look", json={"token": token}).json() == {"role": "reviewer", "name": None}
    taken = guest.post("/api/admin/invitations/accept", json={"token": token, "name": " ADMIN ", "password": PASSWORD})
    assert (taken.status_code, kind(taken)) == (409, "conflict"), "a name that is taken uses nothing up"
    short = guest.post("/api/admin/invitations/accept", json={"token": token, "name": "guest", "password": "short"})
    assert short.json()["error"]["field"] == "password"
    body = {"token": token, "name": " Gu  Est ", "password": PASSWORD}
    assert guest.post("/api/admin/invitations/accept", json=body).json()["name"] == "gu est"
    assert guest.get("/api/admin/me").json()["role"] == "reviewer"
    for path in ("look", "accept"):
        again = Browser(desk).post(
            f"/api/admin/invitations/{path}", json=body if path == "accept" else {"token": token}
        )
        assert (again.status_code, kind(again)) == (404, "not_found")
    stored = rows(desk.folder / "glm.db", "SELECT hash FROM invitation")
    assert token not in {hash for (hash,) in stored}


def test_an_invitation_can_be_taken_back_and_expires(desk: Thread, admin: Browser) -> None:
    token = token_of(admin.post("/api/admin/invitations", json={"role": "admin"}))
    (listed,) = [one for one in admin.get("/api/admin/people").json()["invitations"] if one["role"] == "admin"]
    assert listed["by"] == "admin" and listed["for"] is None and token not in str(listed)
    assert admin.delete(f"/api/admin/invitations/{listed['id']}").status_code == 204
    assert Browser(desk).post("/api/admin/invitations/look", json={"token": token}).status_code == 404
    record = desk.service.record
    desk.call(record.invite(key_hash("late"), "admin", record.clock() - timedelta(seconds=1), by=None))
    assert Browser(desk).post("/api/admin/invitations/look", json={"token": "late"}).status_code == 404


def test_an_administrator_resets_a_password_by_a_link(desk: Thread, admin: Browser) -> None:
    browser = joined(desk, admin, "forgetful")
    id = member(admin, "forgetful")["id"]
    unused, token = (token_of(admin.post(f"/api/admin/people/{id}/reset")) for _ in range(2))
    guest = Browser(desk)
    assert guest.post("/api/admin/invitations/look", json={"token": token}).json()["name"] == "forgetful"
    body = {"token": token, "name": "somebody else", "password": "a wholly new one"}
    assert guest.post("/api/admin/invitations/accept", json=body).json()["name"] == "forgetful"
    assert browser.get("/api/admin/me").status_code == 401, "the old sessions are over"
    assert Browser(desk).login("forgetful", "a wholly new one").status_code == 200
    assert Browser(desk).post("/api/admin/invitations/look", json={"token": unused}).status_code == 404


# Roles


def test_a_reviewer_may_not_do_what_administrators_do(desk: Thread, admin: Browser) -> None:
    reviewer = joined(desk, admin, "reviewer")
    id = member(admin, "admin")["id"]
    for method, path, body in [
        ("GET", "people", None),
        ("GET", "audit", None),
        ("POST", "people", {"name": "x", "role": "admin"}),
        ("PATCH", f"people/{id}", {"disabled": True}),
        ("POST", f"people/{id}/reset", {}),
        ("POST", f"people/{id}/keys", {"label": "x"}),
        ("POST", "invitations", {"role": "admin"}),
        ("DELETE", "invitations/x", None),
    ]:
        answer = reviewer.request(method, f"/api/admin/{path}", json=body)
        assert (answer.status_code, kind(answer)) == (403, "role_needed"), (method, path)
    names = re.findall(r'"name":"(\w+)","role":"admin"', reviewer.get("/admin").text)
    assert "people" in names, "the page knows which tabs are not for everybody"


def test_the_last_administrator_stays_one(desk: Thread, admin: Browser) -> None:
    id = member(admin, "admin")["id"]
    for body in ({"role": "reviewer"}, {"disabled": True}):
        answer = admin.patch(f"/api/admin/people/{id}", json=body)
        assert (answer.status_code, kind(answer)) == (409, "conflict")
    assert admin.get("/api/admin/people").status_code == 200


def test_a_disabled_member_and_their_links_are_out_at_once(desk: Thread, admin: Browser) -> None:
    second = joined(desk, admin, "second", "admin")
    id = member(admin, "second")["id"]
    left_behind = token_of(second.post("/api/admin/invitations", json={"role": "admin"}))
    for_self = token_of(second.post(f"/api/admin/people/{id}/reset"))
    key = second.post(f"/api/admin/people/{id}/keys", json={"label": "script"}).json()["key"]
    assert admin.patch(f"/api/admin/people/{id}", json={"disabled": True}).json()["keys"] == []
    assert second.get("/api/admin/me").status_code == 401
    assert Browser(desk, Authorization=f"Bearer {key}").get("/api/admin/me").status_code == 401
    assert Browser(desk).login("second", PASSWORD).status_code == 401
    for token in (left_behind, for_self):
        assert Browser(desk).post("/api/admin/invitations/look", json={"token": token}).status_code == 404
    for path, body in (("reset", {}), ("keys", {"label": "x"})):
        assert kind(admin.post(f"/api/admin/people/{id}/{path}", json=body)) == "conflict"
    assert admin.patch(f"/api/admin/people/{id}", json={"disabled": False, "role": "reviewer"}).status_code == 200
    assert Browser(desk).login("second", PASSWORD).json()["role"] == "reviewer"


# Keys


def test_a_key_lets_a_program_in_but_changes_no_accounts(desk: Thread, admin: Browser) -> None:
    added = admin.post("/api/admin/people", json={"name": "Exporter", "role": "reviewer"}).json()
    assert (added["name"], added["has_password"]) == ("exporter", False)
    assert Browser(desk).login("exporter", "").status_code == 401
    path = f"/api/admin/people/{added['id']}/keys"
    made = admin.post(path, json={"label": " nightly ", "days": 30}).json()
    assert made["label"] == "nightly" and made["key"].startswith("glm_") and made["expires"]
    (stored,) = rows(desk.folder / "glm.db", "SELECT hash FROM staff_key WHERE label = 'nightly'")
    assert stored == (key_hash(made["key"]),) and made["key"] not in str(admin.get("/api/admin/people").json())
    program = Browser(desk, Authorization=f"Bearer {made['key']}")
    assert program.get("/api/admin/me").json() == {"id": added["id"], "name": "exporter", "role": "reviewer"}
    assert kind(program.post("/api/admin/password", json={"old": "", "new": PASSWORD})) == "role_needed"
    own = admin.post(f"/api/admin/people/{member(admin, 'admin')['id']}/keys", json={"label": "mine"}).json()["key"]
    powerful = Browser(desk, Authorization=f"Bearer {own}")
    assert powerful.get("/api/admin/audit").status_code == 200
    for call, body in (("invitations", {"role": "admin"}), (f"people/{added['id']}/keys", {"label": "more"})):
        assert kind(powerful.post(f"/api/admin/{call}", json=body)) == "role_needed"
    (listed,) = member(admin, "exporter")["keys"]
    assert admin.delete(f"{path}/{listed['id']}").status_code == 204
    assert program.get("/api/admin/me").status_code == 401
    assert kind(admin.delete(f"{path}/{listed['id']}")) == "not_found"


def test_wrong_bodies_name_the_field(admin: Browser) -> None:
    id = member(admin, "admin")["id"]
    for path, body, field in [
        ("invitations", {"role": "owner"}, "role"),
        ("invitations", {"role": "admin", "more": 1}, "more"),
        ("people", {"name": " ", "role": "reviewer"}, "name"),
        ("people", {"name": "x" * 41, "role": "reviewer"}, "name"),
        (f"people/{id}/keys", {"label": "x", "days": 0}, "days"),
        ("people/none/reset", {}, None),
    ]:
        answer = admin.post(f"/api/admin/{path}", json=body)
        assert answer.json()["error"].get("field") == field, (path, answer.text)
    assert kind(admin.patch(f"/api/admin/people/{id}", json={})) == "bad_request"


# Audit


def test_the_audit_says_who_did_what_page_by_page(desk: Thread, admin: Browser) -> None:
    joined(desk, admin, "watched")
    id = member(admin, "watched")["id"]
    admin.patch(f"/api/admin/people/{id}", json={"disabled": True})
    admin.patch(f"/api/admin/people/{id}", json={"disabled": False})
    first = admin.get("/api/admin/audit", params={"subject": "staff", "subject_id": id, "limit": 2}).json()
    second = admin.get(
        "/api/admin/audit", params={"subject": "staff", "subject_id": id, "limit": 2, "after": first["next"]}
    ).json()
    told = [(one["actor"], one["action"], one["details"]) for one in first["entries"] + second["entries"]]
    assert told == [
        ("admin", "change member", {"name": "watched", "disabled": False}),
        ("admin", "change member", {"name": "watched", "disabled": True}),
        ("watched", "join", None),
    ]
    assert second["next"] is None
    assert kind(admin.get("/api/admin/audit", params={"after": "x"})) == "not_found"
    everything = str(admin.get("/api/admin/audit", params={"limit": 500}).json())
    assert PASSWORD not in everything and desk.password not in everything


# The way back in


def test_a_lost_password_is_set_anew_by_a_command(desk: Thread, admin: Browser, capsys: pytest.CaptureFixture) -> None:
    joined(desk, admin, "lost")
    database = str(desk.folder / "glm.db")
    arguments = ["reset-password", "--database", database, "--address", f"{desk.http}/"]
    assert command.main([*arguments, "--name", "Lost"]) == 0
    told = capsys.readouterr().out
    token = re.fullmatch(rf"{re.escape(desk.http)}/admin#welcome\?token=([\w-]+)\n", told)[1]
    body = {"token": token, "name": "x", "password": "found it again"}
    assert Browser(desk).post("/api/admin/invitations/accept", json=body).json()["name"] == "lost"
    assert command.main([*arguments, "--name", "nobody"]) == 1
    assert "admin" in capsys.readouterr().err
    assert command.main(arguments) == 0
    token = capsys.readouterr().out.strip().rpartition("=")[2]
    assert Browser(desk).post("/api/admin/invitations/look", json={"token": token}).json()["name"] == "admin"


def test_the_command_explains_itself_and_needs_no_torch() -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from app.admin.__main__ import parser; parser(); print('torch' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
        check=True,
    )
    assert shown.stdout == "False\n"
    assert "reset-password" in command.parser().format_help()
