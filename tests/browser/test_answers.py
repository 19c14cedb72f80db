"""The live page in front of servers that do not respond like `e3d serve`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from e3d_deploy.serve.page_files import PAGE_TYPES, page_files
from tests.browser.page import DEADLINE_S, Page


@contextmanager
def serving(model: bytes | None) -> Iterator[str]:
    """Serve the page, and yield its address.

    Args:
        model: response to the request for the model; None sends no response.
    """
    over = threading.Event()
    files = page_files()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, kind = model, "text/html"
            if self.path in files:
                content, kind = files[self.path].read_bytes(), PAGE_TYPES[files[self.path].suffix]
            if content is None:
                over.wait(2 * DEADLINE_S)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        over.set()
        server.shutdown()
        thread.join()


def test_page_retries_if_the_server_does_not_answer(page: Page) -> None:
    shorter = "const timeout = AbortSignal.timeout; AbortSignal.timeout = () => timeout.call(AbortSignal, 100);"
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": shorter})
    try:
        with serving(None) as address:
            page.open(address)
            page.wait_for_state("Reconnecting in ")
            assert page.text("notice-text") == "The server does not answer."
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_page_reports_a_response_of_a_proxy_and_retries(page: Page) -> None:
    with serving(b"<!doctype html><title>Sign in</title>") as address:
        page.open(address)
        page.wait_for_state("Reconnecting in ")
        assert "check the proxy" in page.text("notice-text")
