"""What a visitor waits for besides the model: the first load of the page, and a token's way from the server's hands to the screen.

    python -m tests.benchmarks.screen

First load: fresh browser contexts, nothing cached, over loopback; until the message box can be typed in and the page says that
the model is ready. Token to screen: 16 answers are streamed at the same time, one of them by the page, the others by sockets of
a program. The server's process writes into every event the moment when it got it; the page notes when the event's frame
arrives, when its text is in the document, and when a frame with it was painted. All on one machine, so all by one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright
from websockets.asyncio.client import connect

from tests.browser.conftest import CHROMIUM, FLAGS, ROOT, _ready_address

STREAMS, NEW = 16, 300
TEXT = "Once upon a time there was a king who had three sons, and the youngest of them"
# The server as it is, with the time of every event in it.
STAMPED = """
import sys, time
from app import runs
from app.__main__ import main
publish = runs.Run.publish
runs.Run.publish = lambda run, event: publish(run, event | {"at": time.time()})
sys.exit(main(sys.argv[1:]))
"""
# When the page can be used, in ms since the browser began to load it.
READY = """() => {
    const look = () => {
        const input = document.querySelector('#glm-chat-input');
        const ready = document.querySelector('#glm-status[data-state=ready]');
        if (input && !input.disabled && input.offsetParent && ready) window.readyAfter = performance.now();
        else requestAnimationFrame(look);
    };
    look();
}"""
# Answers of full length; and of every delta: [sent, arrived, in the document, painted], in ms since 1970.
NOTE = """(tokens) => {
    const now = () => performance.timeOrigin + performance.now();
    window.noted = [];
    let arrived = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (text) {
        const message = JSON.parse(text);
        if (message.type === 'chat') Object.assign(message.parameters, {min_new_tokens: tokens, max_new_tokens: tokens});
        if (!this.watched) {
            this.watched = true;
            const handle = this.onmessage;
            this.onmessage = (frame) => {
                const event = JSON.parse(frame.data);
                if (event.type === 'delta') arrived.push([event.at * 1000, now()]);
                handle(frame);
            };
        }
        send.call(this, JSON.stringify(message));
    };
    new MutationObserver(() => {
        // The pane draws all that has arrived, once a frame.
        const shown = arrived, seen = now();
        if (!shown.length || !document.querySelector('.glm-assistant[data-status=running]')) return;
        arrived = [];
        const channel = new MessageChannel();
        channel.port1.onmessage = () => noted.push(...shown.map((times) => [...times, seen, now()]));
        // Behind the drawing of the frame that is being made.
        channel.port2.postMessage(0);
    }).observe(document.querySelector('#glm-chat-log'), {childList: true, subtree: true, characterData: true});
}"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server with the embedded model and times in its events."""
    command = [sys.executable, "-c", STAMPED, "--port", "0", "--database", str(folder / "glm.db")]
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _ready_address(process, log)
        finally:
            process.terminate()
            process.wait(30)


async def first_load(browser: Browser, address: str) -> float:
    """Seconds until a new visitor can type and the model is ready."""
    context = await browser.new_context(locale="en-US", viewport={"width": 1280, "height": 800})
    page = await context.new_page()
    await page.add_init_script(f"({READY})()")
    await page.goto(address)
    await page.wait_for_function("window.readyAfter")
    seconds = await page.evaluate("window.readyAfter") / 1000
    await context.close()
    return seconds


async def other(address: str, number: int) -> None:
    """A stream of a program; it is read as fast as it comes."""
    parameters = {"min_new_tokens": NEW + 60, "max_new_tokens": NEW + 60, "seed": number}
    async with connect(address.replace("http", "ws") + "ws", max_size=None) as socket:
        await socket.send(json.dumps({"type": "generate", "text": TEXT, "parameters": parameters}))
        async for raw in socket:
            if '"type":"done"' in raw:
                return


async def token_to_screen(page: Page, address: str) -> list[list[float]]:
    """Of every delta of one answer beside 15 others: ms from the server's event to arrival, document, paint."""
    others = [asyncio.create_task(other(address, number)) for number in range(STREAMS - 1)]
    await page.evaluate("noted.length = 0")
    await page.fill("#glm-chat-input", "Tell me a long story")
    await page.press("#glm-chat-input", "Enter")
    await page.wait_for_selector(".glm-assistant:last-of-type[data-status=done]", timeout=120_000)
    noted = await page.evaluate("noted")
    await asyncio.gather(*others)
    await page.click("#glm-chat-new")
    return [[moment - sent for moment in moments] for sent, *moments in noted]


async def clocks(page: Page) -> float:
    """Ms by which the page's clock is ahead of this machine's, as well as can be told."""
    found = []
    for _ in range(20):
        before = time.time()
        shown = await page.evaluate("performance.timeOrigin + performance.now()")
        after = time.time()
        found.append((after - before, shown - 500 * (before + after)))
    return min(found)[1]


async def measure(loads: int, rounds: int) -> None:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as address:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
            seconds = [await first_load(browser, address) for _ in range(loads)]
            shown = ", ".join(f"{one:.2f}" for one in seconds)
            print(f"first load: median {statistics.median(seconds):.2f} s of {loads} ({shown})")
            page = await (await browser.new_context(locale="en-US")).new_page()
            await page.goto(address)
            await page.wait_for_selector("#glm-status[data-state=ready]")
            await page.wait_for_selector("#glm-chat-log")
            await page.evaluate(NOTE, NEW)
            ahead = await clocks(page)
            print(f"clocks: the page's is {ahead:+.2f} ms ahead, which is taken off below")
            for number in range(rounds):
                noted = await token_to_screen(page, address)
                ways = [sorted(moment - ahead for moment in moments) for moments in zip(*noted, strict=True)]
                told = ", ".join(
                    f"{what} {statistics.median(way):.1f} (95%: {way[len(way) * 95 // 100]:.1f})"
                    for what, way in zip(("arrived", "in the document", "painted"), ways, strict=True)
                )
                print(f"token to screen, {STREAMS} streams, round {number + 1}, {len(noted)} deltas, median ms: {told}")
            await browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=7, help="fresh visitors (default: 7)")
    parser.add_argument("--rounds", type=int, default=3, help="answers that are followed (default: 3)")
    options = parser.parse_args()
    asyncio.run(measure(options.loads, options.rounds))


if __name__ == "__main__":
    main()
