"""Small files in the layouts in which benchmarks are published. Every maker returns the paths that a user names."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed, width=20, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed):
    with io.BytesIO() as file:
        picture(seed).save(file, "PNG")
        return file.getvalue()


def base64_png(seed):
    return base64.b64encode(png(seed)).decode()


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tsv(path, rows):
    """As pandas writes it: missing cells are empty, cells with quotes or tabs are quoted."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value):
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in '"\t\n') else text

    lines = ["\t".join(columns), *("\t".join(cell(row.get(name)) for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path, rows):
    """As `datasets` writes it: an image is a struct of bytes and path."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def stored(seed):
    return {"bytes": png(seed), "path": f"{seed}.png"}


# One maker per task and layout, in the layouts' order. All have the images 1 and 2 in this order.

TEN = ["net"] * 6 + ["fish net"] * 4


def people(answers):
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": number + 1} for number, text in enumerate(answers)
    ]


def vqav2_original(folder):
    for image in (1, 2):
        save(folder / f"COCO_val2014_{image:012d}.jpg".replace(".jpg", ".png"), image)
        (folder / f"COCO_val2014_{image:012d}.png").rename(folder / f"COCO_val2014_{image:012d}.jpg")
    asked = [{"image_id": n, "question": f"What is {n}?", "question_id": 10 * n} for n in (1, 2)]
    right = [
        {"question_id": 10 * n, "image_id": n, "answer_type": "other", "question_type": "what", "answers": people(TEN)}
        for n in (2, 1)
    ]
    head = {"info": {}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    return [
        write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", head | {"questions": asked}),
        write_json(folder / "v2_mscoco_val2014_annotations.json", head | {"annotations": right}),
    ]


def vqav2_lmms(folder):
    rows = [
        {
            "question_type": "what",
            "multiple_choice_answer": "net",
            "answers": people(TEN),
            "image_id": n,
            "answer_type": "other",
            "question_id": 10 * n,
            "question": f"What is {n}?",
            "image": stored(n),
        }
        for n in (1, 2)
    ]
    return [write_parquet(folder / "validation-00000-of-00001.parquet", rows)]


def vqa_tsv(folder, **columns):
    rows = [
        {"index": n, "image": base64_png(n), "question": f"What is {n}?", "answer": str(TEN)} | columns for n in (1, 2)
    ]
    return [write_tsv(folder / "data.tsv", rows)]


def gqa_original(folder):
    for n in (1, 2):
        save(folder / f"n{n}.png", n)
        (folder / f"n{n}.png").rename(folder / f"n{n}.jpg")
    return [
        write_json(
            folder / "testdev_balanced_questions.json",
            {
                f"20{n}": {
                    "question": f"What is {n}?",
                    "imageId": f"n{n}",
                    "answer": "net",
                    "isBalanced": True,
                    "types": {"structural": "query", "semantic": "obj"},
                    "fullAnswer": "It is a net.",
                }
                for n in (1, 2)
            },
        )
    ]


def gqa_lmms(folder):
    asked = [
        {
            "id": f"20{n}",
            "imageId": f"n{n}",
            "question": f"What is {n}?",
            "answer": "net",
            "types": {"structural": "query", "semantic": "obj"},
        }
        for n in (1, 2)
    ]
    images = [{"id": f"n{n}", "image": stored(n)} for n in (2, 1)]
    return [write_parquet(folder / "asked.parquet", asked), write_parquet(folder / "images.parquet", images)]


def one_answer_tsv(folder, **columns):
    rows = [
        {"index": n, "image": base64_png(n), "question": f"What is {n}?", "answer": "net"} | columns for n in (1, 2)
    ]
    return [write_tsv(folder / "data.tsv", rows)]


def textvqa_original(folder):
    for n in (1, 2):
        save(folder / f"n{n}.png", n)
        (folder / f"n{n}.png").rename(folder / f"n{n}.jpg")
    rows = [{"question": f"What is {n}?", "image_id": f"n{n}", "answers": TEN, "question_id": 340 + n} for n in (1, 2)]
    return [
        write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": rows})
    ]


def textvqa_lmms(folder):
    rows = [
        {"image_id": f"n{n}", "question_id": 340 + n, "question": f"What is {n}?", "image": stored(n), "answers": TEN}
        for n in (1, 2)
    ]
    return [write_parquet(folder / "validation.parquet", rows)]


def pope_original(folder):
    made = []
    for category in ("random", "popular"):
        rows = [
            {"question_id": n, "image": f"COCO_{n}.png", "text": f"Is there {n}?", "label": "yes" if n == 1 else "no"}
            for n in (1, 2)
        ]
        made.append(write_lines(folder / f"coco_pope_{category}.json", rows))
    for n in (1, 2):
        save(folder / f"COCO_{n}.png", n)
    return made


def pope_lmms(folder):
    rows = [
        {
            "id": str(n),
            "question_id": str(n),
            "question": f"Is there {n}?",
            "answer": "yes" if n == 1 else "no",
            "image_source": "COCO_1",
            "image": stored(n),
            "category": "random",
        }
        for n in (1, 2)
    ]
    return [write_parquet(folder / "test.parquet", rows)]


def pope_tsv(folder):
    rows = [
        {"index": n, "image": base64_png(n), "question": f"Is there {n}?", "answer": "Yes" if n == 1 else "No"}
        | {"category": "random"}
        for n in (1, 2)
    ]
    return [write_tsv(folder / "POPE.tsv", rows)]


CHOICES = ["cat", "dog", "hen"]


def scienceqa_original(folder):
    problems = {}
    for n in (1, 2):
        save(folder / "test" / str(n) / "image.png", n)
        problems[str(n)] = {
            "question": f"What is {n}?",
            "choices": CHOICES,
            "answer": 1,
            "hint": "A hint." if n == 1 else "",
            "image": "image.png",
            "subject": "natural science",
            "split": "test",
        }
    problems["3"] = problems["1"] | {"image": None}
    problems["4"] = problems["1"] | {"split": "train"}
    return [write_json(folder / "problems.json", problems)]


def scienceqa_lmms(folder):
    rows = [
        {"image": stored(n), "question": f"What is {n}?", "choices": CHOICES, "answer": 1, "subject": "natural science"}
        | {"hint": "A hint." if n == 1 else ""}
        for n in (1, 2)
    ]
    return [write_parquet(folder / "test.parquet", rows)]


def choice_tsv(folder, name="data.tsv", letters="ABC", **columns):
    rows = [
        {"index": n, "question": f"What is {n}?", **dict(zip(letters, CHOICES, strict=False)), "answer": "B"}
        | {"image": base64_png(n)}
        | columns
        for n in (1, 2)
    ]
    return [write_tsv(folder / name, rows)]


def scienceqa_tsv(folder):
    paths = choice_tsv(folder, category="natural science", hint="A hint.")
    text = paths[0].read_text().split("\n")
    paths[0].write_text("\n".join([text[0], text[1], text[2].replace("A hint.", ""), ""]))
    return paths


def mmbench_tsv(folder):
    """Each question in the three orders of its options; the image of the second and third is the first one's row."""
    rows = []
    for n in (1, 2):
        for turn in range(3):
            options = CHOICES[turn:] + CHOICES[:turn]
            rows.append(
                {"index": n + 1_000_000 * turn, "question": f"What is {n}?", "hint": "A hint." if n == 1 else None}
                | dict(zip("ABC", options, strict=True))
                | {"D": None, "answer": "ABC"[options.index("dog")], "category": "x", "l2-category": "coarse"}
                | {"image": base64_png(n) if turn == 0 else n}
            )
    return [write_tsv(folder / "MMBench_DEV_EN.tsv", rows)]


def mmbench_lmms(folder):
    """Cells without a value are the text "nan" there; this one has no orders, so they are made."""
    rows = [
        {
            "index": n,
            "question": f"What is {n}?",
            "hint": "A hint." if n == 1 else "nan",
            "answer": "B",
            **dict(zip("ABC", CHOICES, strict=True)),
            "D": "nan",
            "category": "x",
            "image": stored(n),
            "source": "s",
            "L2-category": "coarse",
            "split": "dev",
        }
        for n in (1, 2)
    ]
    return [write_parquet(folder / "dev.parquet", rows)]


def mmstar_parquet(folder):
    rows = [
        {
            "index": n,
            "question": f"What is {n}?\nOptions: A: cat, B: dog, C: hen, D: cow",
            "image": stored(n),
            "answer": "B",
            "category": "math",
            "l2_category": "geometry",
        }
        for n in (1, 2)
    ]
    return [write_parquet(folder / "mmstar.parquet", rows)]


def mme_folder(folder):
    """One category with everything in its folder, one with two folders."""
    root = folder / "MME_Benchmark_release_version"
    for n, category in ((1, "existence"), (2, "artwork")):
        texts = root / category if n == 1 else root / category / "questions_answers_YN"
        images = root / category if n == 1 else root / category / "images"
        save(images / f"{n}.png", n)
        texts.mkdir(parents=True, exist_ok=True)
        lines = [f"Is it {n}? Please answer yes or no.\tYes", f"Is it {n + 5}? Please answer yes or no.\tNo"]
        (texts / f"{n}.txt").write_text("\n".join(lines) + "\n")
    return [root]


def mme_rows(image_column):
    return [
        {
            "question_id": f"{category}/{n}.png",
            "image_path": f"{category}/{n}.png",
            "category": category,
            "question": f"Is it {other}? Please answer yes or no.",
            "answer": answer,
            **image_column(n),
        }
        for n, category in ((1, "existence"), (2, "artwork"))
        for other, answer in ((n, "Yes"), (n + 5, "No"))
    ]


def mme_lmms(folder):
    rows = mme_rows(lambda n: {"image": stored(n)})
    return [
        write_parquet(folder / "test.parquet", [{k: v for k, v in row.items() if k != "image_path"} for row in rows])
    ]


def mme_tsv(folder):
    rows = mme_rows(lambda n: {"image": base64_png(n)})
    rows = [{"index": n} | {k: v for k, v in row.items() if k != "question_id"} for n, row in enumerate(rows)]
    return [write_tsv(folder / "MME.tsv", rows)]


def seed_rows():
    choices = {f"choice_{letter}": text for letter, text in zip("abcd", [*CHOICES, "cow"], strict=True)}
    return [
        choices | {"answer": "B", "question": f"What is {n}?", "question_id": str(100 + n), "question_type_id": 1}
        for n in (1, 2)
    ]


def seed_original(folder):
    rows = [row | {"data_id": f"{n}_9", "data_type": "image"} for n, row in enumerate(seed_rows(), 1)]
    for n in (1, 2):
        save(folder / "SEED-Bench-image" / f"{n}_9.png", n)
        (folder / "SEED-Bench-image" / f"{n}_9.png").rename(folder / "SEED-Bench-image" / f"{n}_9")
    rows.append(rows[0] | {"question_id": "v1", "data_type": "video"})
    return [write_json(folder / "SEED-Bench.json", {"questions": rows, "question_type": {"Scene": 1}})]


def seed_lmms(folder):
    rows = [
        row | {"data_id": [f"{n}_9"], "data_type": "image", "image": [stored(n)]}
        for n, row in enumerate(seed_rows(), 1)
    ]
    rows.append(rows[0] | {"question_id": "v1", "data_type": "video"})
    return [write_parquet(folder / "test.parquet", rows)]


def ai2d_lmms(folder):
    rows = [{"question": f"What is {n}?", "options": CHOICES, "answer": "1", "image": stored(n)} for n in (1, 2)]
    return [write_parquet(folder / "test.parquet", rows)]


def chartqa_original(folder):
    made = []
    for n, split in ((1, "human"), (2, "augmented")):
        save(folder / "png" / f"{n}.png", n)
        rows = [{"imgname": f"{n}.png", "query": f"What is {n}?", "label": "net"}]
        made.append(write_json(folder / f"test_{split}.json", rows))
    return made


def chartqa_lmms(folder):
    rows = [
        {"type": split, "question": f"What is {n}?", "answer": "net", "image": stored(n)}
        for n, split in ((1, "human_test"), (2, "augmented_test"))
    ]
    return [write_parquet(folder / "test.parquet", rows)]


SEVERAL = ["net", "fish net"]


def documents_original(folder, image_column, folder_name, **more):
    rows = []
    for n in (1, 2):
        save(folder / folder_name / f"{n}.png", n)
        image = f"{folder_name}/{n}.png" if folder_name else f"{n}.png"
        rows.append(
            {"questionId": 337 + n, "question": f"What is {n}?", image_column: image, "answers": SEVERAL} | more
        )
    return [write_json(folder / "val.json", {"dataset_name": "d", "dataset_split": "val", "data": rows})]


def documents_lmms(folder):
    rows = [
        {"questionId": str(337 + n), "question": f"What is {n}?", "image": stored(n), "answers": SEVERAL}
        for n in (1, 2)
    ]
    return [write_parquet(folder / "validation.parquet", rows)]


def ocrbench_original(folder):
    rows = []
    for n, (name, kind) in enumerate((("IIIT5K", "Regular Text Recognition"), ("HME100k", "Handwritten")), 1):
        save(folder / "OCRBench_Images" / name / f"{n}.png", n)
        answers = "net" if n == 1 else ["net"]
        rows.append(
            {"dataset_name": name, "id": n - 1, "question": f"What is {n}?", "answers": answers, "type": kind}
            | {"image_path": f"OCRBench_Images/{name}/{n}.png"}
        )
    return [write_json(folder / "OCRBench.json", rows)]


def ocrbench_parquet(folder):
    rows = [
        {
            "dataset": name,
            "question": f"What is {n}?",
            "question_type": "Regular",
            "answer": ["net"],
            "image": stored(n),
        }
        for n, name in ((1, "IIIT5K"), (2, "HME100k"))
    ]
    return [write_parquet(folder / "test.parquet", rows)]


def coco_original(folder):
    for n in (1, 2):
        save(folder / f"COCO_val2014_{n}.png", n)
    images = [{"id": n, "file_name": f"COCO_val2014_{n}.png", "height": 16, "width": 20} for n in (1, 2)]
    right = [{"image_id": n, "id": 10 * n + k, "caption": text} for k, text in enumerate(SEVERAL) for n in (2, 1)]
    return [write_json(folder / "captions_val2014.json", {"info": {}, "images": images, "annotations": right})]


def coco_karpathy(folder):
    for n in (1, 2):
        save(folder / "val2014" / f"{n}.png", n)
    rows = [
        {
            "filepath": "val2014",
            "filename": f"{n}.png",
            "cocoid": n,
            "split": "test",
            "sentences": [{"raw": t} for t in SEVERAL],
        }
        for n in (1, 2)
    ]
    rows.append(rows[0] | {"cocoid": 3, "split": "train"})
    return [write_json(folder / "dataset_coco.json", {"images": rows, "dataset": "coco"})]


def coco_lmms(folder):
    rows = [
        {
            "question_id": f"COCO_val2014_{n}.jpg",
            "image": stored(n),
            "question": "Please caption",
            "answer": SEVERAL,
            "id": n,
        }
        for n in (1, 2)
    ]
    return [write_parquet(folder / "val.parquet", rows)]


def coco_tsv(folder):
    rows = [{"index": n, "image": base64_png(n), "answer": str(SEVERAL)} for n in (1, 2)]
    return [write_tsv(folder / "COCO_VAL.tsv", rows)]


def pages_llava(folder):
    rows = []
    for n in (1, 2):
        save(folder / f"{n}.png", n)
        turns = [{"from": "human", "value": "<image>\nOCR:"}, {"from": "gpt", "value": f"page {n}"}]
        rows.append({"image": f"{n}.png", "conversations": turns})
    return [write_json(folder / "pages.json", rows)]


def pages_rows(folder):
    for n in (1, 2):
        save(folder / f"{n}.png", n)
    return [write_lines(folder / "pages.jsonl", [{"image": f"{n}.png", "text": f"page {n}"} for n in (1, 2)])]


MAKERS = {
    "vqav2": [vqav2_original, vqav2_lmms, vqa_tsv],
    "gqa": [gqa_original, gqa_lmms, one_answer_tsv],
    "textvqa": [textvqa_original, textvqa_lmms, vqa_tsv],
    "pope": [pope_original, pope_lmms, pope_tsv],
    "scienceqa_img": [scienceqa_original, scienceqa_lmms, scienceqa_tsv],
    "mmbench": [mmbench_tsv, mmbench_lmms],
    "mmstar": [lambda folder: choice_tsv(folder, category="math"), mmstar_parquet],
    "mme": [mme_folder, mme_lmms, mme_tsv],
    "seed_img": [seed_original, seed_lmms, lambda folder: choice_tsv(folder, category="Scene")],
    "ai2d": [ai2d_lmms, choice_tsv],
    "chartqa": [chartqa_original, chartqa_lmms, lambda folder: one_answer_tsv(folder, split="test_human")],
    "docvqa": [
        lambda folder: documents_original(folder, "image", "documents", docId=1),
        documents_lmms,
        lambda folder: vqa_tsv(folder, answer=str(SEVERAL)),
    ],
    "infovqa": [
        lambda folder: documents_original(folder, "image_local_name", "", image_url="https://example.com/1.png"),
        documents_lmms,
        lambda folder: vqa_tsv(folder, answer=str(SEVERAL)),
    ],
    "ocrbench": [
        ocrbench_original,
        ocrbench_parquet,
        lambda folder: vqa_tsv(folder, answer="['net']", category="Regular"),
    ],
    "coco_captions": [coco_original, coco_karpathy, coco_lmms, coco_tsv],
    "pages": [pages_llava, pages_rows],
}
