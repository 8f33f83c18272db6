"""Caption many files: one line `{"path", "caption"}` or `{"path", "error"}` per image."""

from functools import partial
from pathlib import Path

from PIL import Image

from mmchat.images import load_image
from mmchat.inference.batch_job import Item, Job, JobSummary, Line, run_job
from mmchat.inference.generator import Generator


def caption_files(
    generator: Generator, files: list[Path], out: Path, prompt: str, batch_size: int, max_new_tokens: int
) -> JobSummary:
    """Append the captions that are missing in `out`.

    Args:
        generator: The model.
        files: The images.
        out: The JSON lines file.
        prompt: The question about each image.
        batch_size: Images per batch.
        max_new_tokens: Longest caption, in tokens.

    Returns:
        How many images were done, failed and skipped; see `run_job`.
    """

    def answer(images: list[Image.Image]) -> list[Line]:
        captions = generator.caption(images, prompt, max_new_tokens=max_new_tokens)
        return [{"caption": caption} for caption in captions]

    items = [Item({"path": str(file)}, partial(load_image, file)) for file in files]
    return run_job(Job("captioning", ("path",), ("caption",), answer), items, out, batch_size)
