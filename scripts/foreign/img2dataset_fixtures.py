"""Run img2dataset on images that this program serves, and keep its shards and tables.

    python scripts/foreign/img2dataset_fixtures.py tests/fixtures/img2dataset

Twelve small drawings have a caption each; two more addresses lead nowhere, so that failed downloads are in the results.
"""

import http.server
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import img2dataset
import numpy as np

COLOURS = {"red": (0, 0, 255), "green": (0, 128, 0), "blue": (255, 0, 0), "orange": (0, 165, 255)}
"""Blue, green and red, in OpenCV's order."""
SHAPES = ("circle", "square", "triangle")
FORMATS = ("webdataset", "parquet")


def drawing(colour: str, shape: str) -> bytes:
    """A shape on white, 48 x 40 pixels, as PNG."""
    image = np.full((40, 48, 3), 255, np.uint8)
    if shape == "circle":
        cv2.circle(image, (24, 20), 12, COLOURS[colour], cv2.FILLED)
    elif shape == "square":
        cv2.rectangle(image, (12, 8), (36, 32), COLOURS[colour], cv2.FILLED)
    else:
        cv2.fillPoly(image, [np.array([(24, 8), (12, 32), (36, 32)])], COLOURS[colour])
    return cv2.imencode(".png", image)[1].tobytes()


PAGES = {f"/{colour}-{shape}.png": drawing(colour, shape) for colour in COLOURS for shape in SHAPES}


class Pages(http.server.BaseHTTPRequestHandler):
    """Serves `PAGES`; everything else is missing."""

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Length", str(len(page or b"")))
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


def main(out: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    lines = [{"url": host + path, "caption": f"a {path[1:-4].replace('-', ' ')}"} for path in PAGES]
    lines[5:5] = [{"url": f"{host}/gone.png", "caption": "a page that is gone"}]
    lines += [{"url": f"{host}/gone-too.png", "caption": "another one"}]
    with tempfile.TemporaryDirectory() as folder:
        addresses = Path(folder, "addresses.jsonl")
        addresses.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        for kind in FORMATS:
            img2dataset.download(
                url_list=str(addresses),
                input_format="jsonl",
                url_col="url",
                caption_col="caption",
                output_folder=f"{folder}/{kind}",
                output_format=kind,
                number_sample_per_shard=100,
                image_size=32,
                resize_mode="border",
                processes_count=1,
                thread_count=4,
                enable_wandb=False,
            )
            shutil.rmtree(out / kind, ignore_errors=True)
            shutil.copytree(f"{folder}/{kind}", out / kind, ignore=shutil.ignore_patterns("_tmp"))
    server.shutdown()
    print(f"{sum(file.stat().st_size for file in out.rglob('*') if file.is_file()):,} bytes in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
