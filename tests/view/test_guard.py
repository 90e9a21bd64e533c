"""Who may ask the workbench: foreign names, foreign pages, missing tokens, addresses that lead outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from veritune.errors import InputError
from veritune.view.app import rules_for

Desk = Callable[..., TestClient]


def place(client: TestClient) -> str:
    return client.get("/").text.split('href="/p/')[1].split('"')[0]


@pytest.mark.parametrize("host", ["evil.example:7878", "localhost.evil:7878", "127.0.0.1", "127.0.0.1:7879", ""])
def test_a_name_that_is_not_ours_is_refused(desk: Desk, study: Path, host: str) -> None:
    answer = desk(study).get("/", headers={"host": host})
    assert (answer.status_code, answer.text) == (403, "This server does not have that host name.\n")


@pytest.mark.parametrize("host", ["localhost:7878", "127.0.0.1:7878", "[::1]:7878"])
def test_the_names_of_this_machine_are_served(desk: Desk, study: Path, host: str) -> None:
    assert desk(study).get("/", headers={"host": host}).status_code == 200


def test_every_answer_forbids_scripts_of_others_and_frames(desk: Desk, study: Path) -> None:
    client = desk(study)
    for path in ("/", "/nowhere", f"/p/{place(client)}", "/static/view.js"):
        heads = client.get(path).headers
        assert "default-src 'none'" in heads["content-security-policy"]
        assert "frame-ancestors 'none'" in heads["content-security-policy"]
        assert heads["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in heads


def test_a_server_without_edit_writes_nothing(desk: Desk, study: Path) -> None:
    client = desk(study)
    answer = client.post(f"/p/{place(client)}/review", content="form=x", headers={"sec-fetch-site": "same-origin"})
    assert (answer.status_code, answer.text[:24]) == (403, "This server is read-only")


@pytest.mark.parametrize(
    "heads",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:7878"},
        {"origin": "http://evil.example"},
        {},
    ],
)
def test_a_write_from_another_page_is_refused(desk: Desk, study: Path, heads: dict[str, str]) -> None:
    client = desk(study, edit=True)
    answer = client.post(f"/p/{place(client)}/review", content="form=x", headers=heads)
    assert (answer.status_code, answer.text) == (403, "A write must come from this server's own page.\n")


def test_a_form_of_another_server_is_refused(desk: Desk, study: Path) -> None:
    client = desk(study, edit=True)
    answer = client.post(f"/p/{place(client)}/review", content="form=x", headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 403
    assert "This form was loaded before the server was restarted." in answer.text


def test_a_token_is_taken_from_the_address_once(desk: Desk, study: Path) -> None:
    client = desk(study, token="a-token-of-16-chars")
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    entered = client.get("/?text=boat&token=a-token-of-16-chars")
    assert (entered.status_code, entered.headers["location"]) == (303, "/?text=boat")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert "SameSite=Strict" in entered.headers["set-cookie"]
    assert client.get("/").status_code == 200


def test_an_address_beyond_this_machine_needs_a_token() -> None:
    with pytest.raises(InputError, match="other machines could read these folders, so a token is needed"):
        rules_for("0.0.0.0", 7878, None, False)
    with pytest.raises(InputError, match="16 characters or more"):
        rules_for("127.0.0.1", 7878, "short", False)
    assert len(rules_for("0.0.0.0", 7878, "new", False).token or "") >= 24


@pytest.mark.parametrize(
    "name",
    ["../secret", "..%2fsecret", "%2e%2e/secret", "runs/../../secret", "/etc/passwd", "link", "", "runs", "a\\b"],
)
def test_no_address_leads_outside_a_place(desk: Desk, study: Path, name: str) -> None:
    (study.parent / "secret").write_text("secret", encoding="utf-8")
    (study / "link").symlink_to(study.parent / "secret")
    client = desk(study)
    for kind in ("files", "raw"):
        answer = client.get(f"/p/{place(client)}/{kind}/{name}")
        assert answer.status_code == 404
        assert "secret</pre>" not in answer.text


def test_files_are_text_and_the_report_is_boxed_in(desk: Desk, study: Path) -> None:
    (study / "report.html").write_text("<script>1</script>", encoding="utf-8")
    client = desk(study)
    assert client.get(f"/p/{place(client)}/raw/report.html").headers["content-type"].startswith("text/plain")
    (study / "report.outputs").mkdir(exist_ok=True)
    (study / "report.outputs" / "style-0001.html").write_text("<p>one</p><script>1</script>", encoding="utf-8")
    beside = client.get(f"/p/{place(client)}/files/report.outputs/style-0001.html")
    assert beside.text == "<p>one</p><script>1</script>"
    assert "sandbox" in beside.headers["content-security-policy"]
    boxed = client.get(f"/p/{place(client)}/files/report.html").headers["content-security-policy"]
    assert boxed.startswith("sandbox;")


def test_every_interface_means_the_names_of_this_machine_and_no_others() -> None:
    import socket

    hosts = rules_for("0.0.0.0", 7878, "new", False).hosts
    assert {"localhost:7878", "127.0.0.1:7878", f"{socket.gethostname().lower()}:7878"} <= hosts
    assert "evil.example:7878" not in hosts
    assert all(name.endswith(":7878") for name in hosts)
