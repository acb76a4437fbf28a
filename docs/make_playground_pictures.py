"""Photographs the playground over the default model: docs/playground-desktop.png, docs/playground-phone.png.

Needs playwright, and a Chromium that UNMASK_CHROMIUM names.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

import unmask
from unmask.engine.engine import Engine
from unmask.serving.app import create_app
from unmask.serving.server import Server, bind
from unmask.serving.settings import Settings

DOCS = Path(__file__).parent
MODEL = "smollm2-135m"
WAIT_MS = 400_000


def main() -> None:
    """Serve the model, and take both pictures."""
    model = unmask.load(MODEL)
    engine = Engine(model.denoiser, model.tokenizer, num_pages=512)
    listener = bind("127.0.0.1", 0)
    server = Server(create_app(model, engine, Settings(MODEL)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.1)
    try:
        with sync_playwright() as driver:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            browser = driver.chromium.launch(executable_path=os.environ["UNMASK_CHROMIUM"], args=flags)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            photograph(browser, url, "desktop", width=1280, height=860, scheme="light")
            photograph(browser, url, "phone", width=390, height=844, scheme="dark")
            browser.close()
    finally:
        server.should_exit = True
        thread.join()


def photograph(browser: Any, url: str, name: str, *, width: int, height: int, scheme: str) -> None:
    """Take a picture when the first mode has finished and the second is in the middle of its canvas."""
    viewport = {"width": width, "height": height}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=1.5)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(".mode option", state="attached")
    page.select_option(".lane >> nth=0 >> .mode", "speculative" if name == "desktop" else "diffusion")
    page.select_option(".lane >> nth=1 >> .mode", "diffusion" if name == "desktop" else "speculative")
    page.fill("#max_tokens", "48")
    page.fill("#block_length", "8")
    page.click("#run")
    busy = 1 if name == "desktop" else 0
    page.wait_for_function(
        """busy => {
          const lane = document.querySelectorAll(".lane")[busy];
          return lane.querySelectorAll(".decided .t").length > 20 && lane.querySelectorAll(".box").length > 2;
        }""",
        arg=busy,
        polling="raf",
    )
    page.screenshot(path=DOCS / f"playground-{name}.png")
    context.close()


if __name__ == "__main__":
    main()
