"""Ask the running demo about an image and save a screenshot. Below a width of 500 px it emulates a phone.

python demo/app.py &
python tests/demo/screenshot.py --out docs/images/demo.png
"""

import argparse
import tempfile
import time
from pathlib import Path

from browser import answered, ask, browsing, unfold, until
from selenium.webdriver.common.by import By

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--url", default="http://127.0.0.1:7860/")
parser.add_argument("--out", type=Path, required=True, help="PNG file")
parser.add_argument("--size", default="1280x800", help="WIDTHxHEIGHT")
parser.add_argument("--image", type=Path, default=Path("data/quickstart/heldout/000000.png"))
parser.add_argument("--ask", nargs="*", default=["Describe the image.", "How many digits are there?"])
parser.add_argument("--look", metavar="WORD", help="open the panel and show where the model looked for this word")
parser.add_argument("--dark", action="store_true")
arguments = parser.parse_args()

width, height = map(int, arguments.size.split("x"))
profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
with profile as folder, browsing(arguments.url, Path(folder), width, height, arguments.dark) as page:
    images = [arguments.image]
    for question in arguments.ask:
        ask(page, question, *images)
        answered(page)
        images = []
    if arguments.look:
        unfold(page, "What the model saw")
        page.find_element(By.ID, "look").click()
        words = until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#views .word"))
        next(word for word in words if word.text == arguments.look).click()
        time.sleep(1)
    until(page, lambda: page.execute_script("return [...document.images].every(image => image.complete)"))
    page.save_screenshot(str(arguments.out))
