"""Time and memory of `mmchat data index` on a data set of LLaVA's size.

Generates records like those of llava_v1_5_mix665k.json (one to five exchanges, most with an image) as a JSON array and
as JSONL. Runs the command on both, then again on the first, whose index is then in the cache. RESULTS.md has figures.

    python bench/length_index.py
    python bench/length_index.py --records 20000
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer

from mmchat.conversation import DEFAULT_SLOTS
from mmchat.files import write_json
from mmchat.model.image_processor import MMChatImageProcessor
from mmchat.model.processor import MMChatProcessor
from mmchat.vision import TowerSpec

REPOSITORY = Path(__file__).parents[1]
TOKENIZER = REPOSITORY / "tests/fixtures/tokenizers/llama_like_legacy_false"
IMAGES = 1_000
SHARE_WITH_IMAGE = 0.8
WATCH_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=700_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="directory or Hub name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_data(root, arguments.records)
        write_model(root / "model", arguments.tokenizer)
        for path in (*files, files[0]):
            command = ["data", "index", str(path), "--model", str(root / "model"), "--workers", str(arguments.workers)]
            seconds, cpu, peak = run_watched([sys.executable, "-m", "mmchat.cli.main", *command], root / "cache")
            print(
                f"{path.name:12} {path.stat().st_size / 1e6:7.0f} MB  {seconds:6.1f} s ({cpu:6.1f} s of CPU)  "
                f"{arguments.records / seconds:9,.0f} records/s  peak {peak / 2**30:.2f} GiB",
                flush=True,
            )
        sizes = [index.stat().st_size for index in (root / "cache/lengths").iterdir()]
        print(f"indexes: {', '.join(f'{size:,} bytes' for size in sizes)}")


def write_data(root: Path, count: int) -> list[Path]:
    """The same records as `records.json` and `records.jsonl`; all records share a few images."""
    folder = root / "coco/train2017"
    folder.mkdir(parents=True)
    image = Image.new("RGB", (16, 16), "teal")
    for number in range(IMAGES):
        image.save(folder / f"{number:012}.jpg")
    array, lines = root / "records.json", root / "records.jsonl"
    with array.open("w", encoding="utf-8") as array_file, lines.open("w", encoding="utf-8") as lines_file:
        for number, record in enumerate(records(count)):
            text = json.dumps(record, ensure_ascii=False)
            array_file.write((",\n" if number else "[\n") + text)
            lines_file.write(text + "\n")
        array_file.write("\n]\n")
    return [array, lines]


def records(count: int) -> Iterator[dict]:
    """Questions of about twelve words, answers of one to six sentences, as in LLaVA's mixture."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, range(len(letters), 0, -1), k=rng.randint(1, 10))) for _ in range(8_000)]
    words += ["café", "naïve", "中文", "😀", "21st", "3.5", "(e.g.", 'so-called "art"']
    sentences = [" ".join(rng.choices(words, k=rng.randint(5, 22))).capitalize() + "." for _ in range(20_000)]
    for number in range(count):
        turns = []
        for _ in range(rng.randint(1, 5)):
            turns.append({"from": "human", "value": rng.choice(sentences)})
            turns.append({"from": "gpt", "value": " ".join(rng.choices(sentences, k=rng.randint(1, 6)))})
        record = {"id": f"{number:012}", "conversations": turns}
        if rng.random() < SHARE_WITH_IMAGE:
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            record["image"] = f"coco/train2017/{rng.randrange(IMAGES):012}.jpg"
        yield record


def write_model(directory: Path, source: str) -> None:
    """A model directory without a model: measuring needs only the processor."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(DEFAULT_SLOTS.tokens, special_tokens=True)
    spec = TowerSpec(image_size=224, patch_size=14, tokens=256, dim=1024)
    MMChatProcessor(MMChatImageProcessor([spec.to_dict()]), tokenizer).save_pretrained(directory)
    write_json(directory / "config.json", {"model_type": "mmchat"})


def run_watched(command: list[str], cache: Path) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and bytes at the peak.

    The bytes are the sum of what each process of the tree held at its own peak; shared pages count in each.
    """
    begun, cpu_before = time.perf_counter(), children_cpu()
    process = subprocess.Popen(command, env={**os.environ, "MMCHAT_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    while process.poll() is None:
        peaks |= {pid: max(peaks.get(pid, 0), high_water(pid)) for pid in tree(process.pid)}
        time.sleep(WATCH_SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - begun, children_cpu() - cpu_before, sum(peaks.values())


def children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tree(pid: int) -> list[int]:
    """A process and all its descendants, from /proc."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(found for child in children for found in tree(int(child)))]


def high_water(pid: int) -> int:
    """Peak resident set (VmHWM) in bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
