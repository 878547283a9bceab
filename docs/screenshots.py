"""The pictures of docs/explore.md, of the sample's dataset.  python docs/screenshots.py [OUTPUT]

Needs Chromium and its driver on the path (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from PIL import Image
from selenium import webdriver

FOLDER = Path(__file__).parent / "images"
SHOWN = {
    # name: path, width, height, dark
    "explore-entity": ("/entities/Q308", 1280, 900, False),
    "explore-why": ("/images/{mercury}#story", 1280, 1000, False),
    "explore-mark": ("/mark", 1280, 760, False),
    "explore-mistakes": ("/mistakes", 1280, 1100, True),
    "explore-phone": ("/images/{mercury}", 390, 844, True),
}


def main(output: str) -> None:
    command = [sys.executable, "-m", "i2e_pipeline.cli", "explore", output, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    base = server.stdout.readline().split()[0].rstrip("/")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        with urllib.request.urlopen(f"{base}/api/images?entity=308") as answer:
            mercury = json.load(answer)["rows"][0]["image_id"]
        FOLDER.mkdir(exist_ok=True)
        for name, (path, width, height, dark) in SHOWN.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            browser.get(base + path.format(mercury=mercury))
            time.sleep(2)
            Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB").save(
                FOLDER / f"{name}.webp", quality=78, method=6
            )
    finally:
        browser.quit()
        server.terminate()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out/sample")
