"""Sessions, reconnection, token, uploads and webcam of the live page."""

from pathlib import Path
from urllib.parse import urlsplit

from e3d_deploy.serve.run import Running
from tests.browser.conftest import Host, square_film
from tests.browser.page import FOREIGN_HOST, Page


def sessions(server: Running) -> int:
    """Return the number of open sessions, read from the metrics of the server."""
    text = server.service.metrics.text()
    line = next(line for line in text.decode().splitlines() if line.startswith("e3d_sessions "))
    return int(float(line.split()[1]))


def port_of(server: Running) -> int:
    port = urlsplit(server.address).port
    assert port
    return port


def test_two_viewers_can_watch_at_once_and_closing_a_page_ends_its_session(host: Host, page: Page, film: Path) -> None:
    server = host.start(film)
    page.open(server.address)
    page.wait_until_moving("now")
    second = page.new_window()
    second.open(server.address)
    second.wait_until_moving("now")
    assert sessions(server) == 2
    page.driver.close()  # in mid-stream
    page.driver.switch_to.window(page.driver.window_handles[0])
    page.wait(lambda: sessions(server) == 1)
    page.wait_until_moving("now")
    page.driver.get("about:blank")
    page.wait(lambda: sessions(server) == 0)


def test_page_reconnects_when_the_server_is_back_on_its_port(host: Host, page: Page, film: Path) -> None:
    server = host.start(film)
    page.open(server.address)
    page.wait_until_moving("now")
    server.stop()
    page.wait_for_state("Reconnecting in ")
    assert page.text("notice-text")
    again = host.start(film, port=port_of(server))
    page.wait_for_state("Live")
    page.wait_until_moving("now")
    assert sessions(again) == 1


def test_page_reports_a_full_server_and_retries(host: Host, page: Page, film: Path) -> None:
    server = host.start(film, max_sessions=1)
    page.open(server.address)
    page.wait_until_moving("now")
    second = page.new_window()
    second.open(server.address)
    second.wait_for_state("Reconnecting in ")
    assert "sessions of the server are in use" in second.text("notice-text")
    first = page.driver.window_handles[0]
    last = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.driver.get("about:blank")
    page.driver.switch_to.window(last)
    second.wait_for_state("Live")


def test_wrong_token_is_refused_and_the_right_token_accepted(host: Host, page: Page, film: Path) -> None:
    server = host.start(film, token="correct horse")
    address = server.address.partition("#")[0]
    page.open(f"{address}#token=wrong")
    page.wait_for_state("Token needed")
    assert "refused this token" in page.text("token-note")
    page.find("token").send_keys("correct horse\n")
    page.wait_for_state("Live")
    page.wait_until_moving("now")
    page.driver.refresh()
    page.wait_for_state("Live")  # the token is stored for this tab


def test_token_in_the_address_is_stored_and_removed(host: Host, page: Page, film: Path) -> None:
    server = host.start(film, token="correct horse")
    assert "#token=" in server.address
    page.open(server.address)
    page.wait_for_state("Live")
    assert page.driver.current_url == server.address.partition("#")[0]


def test_page_without_sources_asks_for_one(host: Host, page: Page) -> None:
    page.open(host.start().address)
    page.wait_for_state("Choose a source")
    assert not page.find("notice").is_displayed()


def test_source_that_cannot_be_read_is_reported_without_a_retry(host: Host, page: Page, tmp_path: Path) -> None:
    film = square_film(tmp_path / "torn.mp4", 20)
    server = host.start(film)
    film.write_bytes(film.read_bytes()[:600])
    page.open(server.address)
    page.wait_for_state("Refused")
    assert page.text("notice-text").startswith("torn.mp4: not a video that can be read")


def test_clip_is_uploaded_and_plays(host: Host, page: Page, film: Path) -> None:
    page.open(host.start().address)
    page.wait_for_state("Choose a source")
    page.find("clip").send_keys(str(film))
    page.wait_for_state("Live")
    page.wait_until_moving("now")
    chosen = page.driver.execute_script("return document.getElementById('source').selectedOptions[0].text")
    assert chosen == film.name


def test_refused_upload_is_explained_and_the_session_continues(live: Page, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_bytes(b"no film")
    live.find("clip").send_keys(str(bad))
    live.wait(lambda: "notes.mp4" in live.text("notice-text"))
    assert live.text("state-text") == "Live"
    live.click("again")
    assert not live.find("notice").is_displayed()
    live.wait_until_moving("now")


def test_too_large_upload_is_refused_before_it_is_sent(host: Host, page: Page, film: Path, tmp_path: Path) -> None:
    page.open(host.start(film, max_upload_bytes=50_000).address)
    page.wait_for_state("Live")
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(60_000))
    page.find("clip").send_keys(str(large))
    page.wait(lambda: "the server accepts at most 0.05 MB" in page.text("notice-text"))
    assert not any(address.endswith("/v1/clips") for address in page.requested())


def test_webcam_streams(host: Host, page: Page, film: Path) -> None:
    server = host.start(film)
    page.open(server.address)
    page.wait_for_state("Live")
    page.choose("")
    page.wait_for_state("Choose a source")
    assert not page.picture("now").any()
    page.choose("webcam")
    page.wait_for_state("Live")
    page.wait_until_moving("now")
    page.wait(lambda: page.number("error-now") is not None)
    page.choose("")
    page.wait_for_state("Choose a source")
    page.wait(lambda: sessions(server) == 0)


def test_missing_webcam_is_explained_on_plain_http_of_another_host(host: Host, page: Page, film: Path) -> None:
    server = host.start(film, origins=(f"http://{FOREIGN_HOST}",))
    page.open(f"http://{FOREIGN_HOST}:{port_of(server)}/")
    page.wait_for_state("Live")
    note = page.text("webcam-note")
    assert page.find("webcam-note").is_displayed()
    assert FOREIGN_HOST in note
    assert "plain http" in note
    assert "--tls-cert" in note
    assert not page.driver.find_element("css selector", "option[value=webcam]").is_enabled()
    assert page.complaints() == []


def test_refused_webcam_is_explained(host: Host, page: Page) -> None:
    page.open(host.start().address)
    page.wait_for_state("Choose a source")
    page.driver.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page.choose("webcam")
    page.wait_for_state("Refused")
    assert "not allowed to use the webcam" in page.text("notice-text")


def test_page_logs_no_errors_and_requests_no_other_host(live: Page, film: Path) -> None:
    live.press("s")
    live.press("d")
    live.press("?")
    live.driver.execute_script("document.getElementById('help').close()")
    live.find("clip").send_keys(str(film))
    live.wait(lambda: live.driver.execute_script("return document.getElementById('source').value").startswith("clip:"))
    live.wait_for_state("Live")
    assert live.complaints() == []
    requested = live.requested()
    assert any("/v1/live" in address for address in requested)
    own = urlsplit(live.driver.current_url).netloc
    foreign = {address for address in requested if urlsplit(address).netloc not in {own, ""}}
    assert foreign == set()
