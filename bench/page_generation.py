"""Speed of synthetic pages of 1024 x 1024: pages per second on two processes, and time by stage.

First with the densest pages (smallest font size only), then with the default range of font sizes. README.md explains
the output.

    python bench/page_generation.py
    python bench/page_generation.py --pages 40 --text books --fonts shipped system
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data_tools"))  # scripts, not an installed package

from synthetic import english_corpus  # noqa: E402
from synthetic.degradation import LEVELS, degrade, encode_image  # noqa: E402
from synthetic.fonts import FONTS_HELP, SHIPPED, find_faces  # noqa: E402
from synthetic.generate import generate_dataset  # noqa: E402
from synthetic.pages import PageMaker, draw  # noqa: E402
from synthetic.text_folder import open_texts  # noqa: E402

from mmchat.constants import OCR_PROMPT  # noqa: E402
from mmchat.files import write_json  # noqa: E402

SIDE, WORKERS = 1024, 2
DENSE, USUAL = (12, 12), (12, 26)
STAGES = ("layout", "check", "draw", "degrade", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=400, help="pages of each kind")
    parser.add_argument("--text", type=Path, help="folder of .txt and .md; default: Python's documentation")
    parser.add_argument("--fonts", nargs="+", default=[SHIPPED], metavar="PLACE", help=FONTS_HELP)
    parser.add_argument("--degrade", choices=LEVELS, default="light")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/page_generation.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not arguments.text:
            (folder / "english.txt").write_text("\n\n".join(english_corpus.paragraphs()))
        maker = PageMaker(
            seed=0,
            texts=open_texts(arguments.text or folder),
            faces=find_faces(arguments.fonts),
            side=SIDE,
            ems=USUAL,
            level=arguments.degrade,
            prompt=OCR_PROMPT,
        )
        results = {
            kind: measure(replace(maker, ems=ems), arguments.pages, folder / kind)
            for kind, ems in (("dense", DENSE), ("usual", USUAL))
        }
    settings = {"pages": arguments.pages, "degrade": arguments.degrade, "fonts": arguments.fonts}
    write_json(arguments.out, {"date": time.strftime("%Y-%m-%d"), **settings, "results": results})
    print("\n".join(summary(kind, result) for kind, result in results.items()))


def measure(maker: PageMaker, pages: int, out: Path) -> dict[str, Any]:
    """Pages per second of wall time and of CPU time, CPU milliseconds by stage, and characters per page."""
    start, cpu_before = time.perf_counter(), children_seconds()
    generate_dataset(maker, pages, out, {}, WORKERS, chunk_size=max(1, pages // 16))
    seconds, cpu_seconds = time.perf_counter() - start, children_seconds() - cpu_before
    stages, characters = time_stages(maker, min(pages, 50))
    return {
        "pages_per_second": pages / seconds,
        "pages_per_cpu_second": pages / cpu_seconds,
        "milliseconds": stages,
        "characters": characters,
    }


def children_seconds() -> float:
    """CPU time of child processes that have ended."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def time_stages(maker: PageMaker, pages: int) -> tuple[dict[str, float], float]:
    """CPU milliseconds per page by stage of `PageMaker`, measured in this process, and characters per page."""
    seconds, characters = dict.fromkeys(STAGES, 0.0), 0

    def timed(stage: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = work(*arguments)
        seconds[stage] += time.process_time() - start
        return result

    for number in range(pages):
        page, degradation = timed("layout", maker.compose, number)
        timed("check", maker.check, number, page, degradation)
        image = timed("draw", draw, page)
        image = timed("degrade", degrade, image, degradation, [maker.seed, number])
        timed("encode", encode_image, image, degradation.quality)
        characters += len(page.text)
    return {stage: 1000 * spent / pages for stage, spent in seconds.items()}, characters / pages


def summary(kind: str, result: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {spent:.0f}" for stage, spent in result["milliseconds"].items())
    return (
        f"{kind}: {result['pages_per_second']:.1f} pages/s on {WORKERS} processes, "
        f"{result['pages_per_cpu_second']:.1f} per second of CPU time; "
        f"{result['characters']:.0f} characters per page; CPU milliseconds per page: {stages}"
    )


if __name__ == "__main__":
    main()
