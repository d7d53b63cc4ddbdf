"""The page of `examples/space` for tests: its files can be imported, and it runs for a browser to look at.

    python -m tests.support.space_page docs/images

draws the pictures of the README, with the environment of `make test-page`.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
GLM_SAMPLE = ROOT / "examples" / "sample-glm130b"
UIE_SAMPLE = ROOT / "examples" / "sample-ernie" / "uie"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 500  # two samples are converted: 15 seen, 160 on a machine with eight times the work it can do

if str(SPACE) not in sys.path:  # a Space runs its files from their own folder
    sys.path.insert(0, str(SPACE))


def browser_path() -> str | None:
    """The browser of this machine, if it has one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def lacking() -> str | None:
    """Why the page cannot be looked at here; None where it can."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        return "needs gradio (the extra `page`): `make test-page`"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "needs playwright, which drives the browser: `make test-page`"
    if browser_path() is None:
        return f"needs a browser, one of {', '.join(BROWSERS)}: apt-get install chromium"
    return None


@contextlib.contextmanager
def outside() -> Iterator[tuple[str, list[str]]]:
    """A proxy that leads nowhere: its address, and what was asked of it."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def note() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    asked.append(connection.recv(200).decode("latin-1").split("\r\n")[0])

        threading.Thread(target=note, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked


@contextlib.contextmanager
def running_page(work: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """The page, run by its own command; its address.

    Args:
        work: Folder for the converted samples and for what the command prints.
        *arguments: Of the command.
        environment: Variables beside those of this process.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(SPACE / "app.py"), f"--port={port}", f"--samples={work / 'samples'}", *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PAGE_", "GRADIO_"))}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
    log = work / "printed.txt"
    with log.open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=variables, cwd=work)
    address = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        while address not in log.read_text("utf-8"):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise RuntimeError(f"The page did not start:\n{log.read_text('utf-8')[-4000:]}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless browser that knows no name of any machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=browser_path(),
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"],
        )
        try:
            yield started
        finally:
            started.close()


def picture(opened: Any, address: str, tab: str, button: str, path: Path, locale: str) -> None:
    """Presses a button and draws the page once the answer is there."""
    context = opened.new_context(viewport={"width": 1180, "height": 700}, locale=locale, device_scale_factor=1.5)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_role("button", name=button, exact=True).click()
    page.locator(".page-text mark").first.wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # the progress of the answer fades
    page.screenshot(path=path, full_page=True)
    context.close()


def main(folder: Path) -> None:
    """Draws the pictures of the README, in 256 colours."""
    from PIL import Image  # Gradio brings it

    work = ROOT / "demo-output" / "page-pictures"
    work.mkdir(parents=True, exist_ok=True)
    with running_page(work) as address, browser() as opened:
        picture(opened, address, "Fill blanks", "Fill", folder / "page.png", "en-US")
        picture(opened, f"{address}/zh", "抽取", "抽取", folder / "page-zh.png", "zh-CN")
    for name in ("page.png", "page-zh.png"):
        with Image.open(folder / name) as drawn:
            drawn.convert("RGB").quantize(256).save(folder / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
