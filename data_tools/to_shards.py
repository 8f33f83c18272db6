"""Convert any data set to WebDataset tar shards with an index, or back to JSONL with image files.

    python data_tools/to_shards.py data/train.json shards/            # 00000.tar, 00000.tar.index.npz, ...
    python data_tools/to_shards.py shards/ loose/ --back              # records.jsonl, images/

A shard contains a fixed range of the source's records, with the original bytes of the images. An interrupted run
resumes at the first missing shard (or record).
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import reporting
from mmchat.data.records import Record, Rejected, stored_form
from mmchat.data.shards import INDEX_SUFFIX, index_shard
from mmchat.data.sources import Source, open_source
from mmchat.errors import UserError
from mmchat.files import as_json_line, read_json, read_json_lines, write_json, write_json_lines
from mmchat.images import extension_of
from mmchat.progress import progress_bar

PLAN = "shards.plan"
"""Describes the source of the shards in a folder; written first, so that another run cannot mix its shards in."""
SKIPPED = "skipped"
"""Folder for lists of skipped records; separate, because files next to the shards would be read as data."""


def write_shards(source: Source, out: Path, per_shard: int) -> tuple[int, list[dict[str, str]]]:
    """Write all missing shards.

    Returns:
        Number of records in all shards, and the skipped records.

    Raises:
        UserError: `out` has shards of another source or with another number of records per shard.
    """
    plan = {"digest": source.digest(), "records": len(source), "records_per_shard": per_shard}
    if (out / PLAN).exists():
        if read_json(out / PLAN) != plan:
            raise UserError(f"{out} has shards of other data, or with other --records-per-shard; choose another folder")
    elif any(out.glob("*.tar")):
        raise UserError(f"{out} already has tar files; choose another folder")
    else:
        write_json(out / PLAN, plan)
    for unfinished in out.rglob(".*.tmp"):  # of a run that was killed
        unfinished.unlink()
    starts = range(0, len(source), per_shard)
    skipped_records: list[dict[str, str]] = []
    with progress_bar(f"shards in {out}", len(source)) as bar:
        for number, start in enumerate(starts):
            stop = min(start + per_shard, len(source))
            shard, skipped = out / f"{number:05}.tar", out / SKIPPED / f"{number:05}.jsonl"
            if not Path(f"{shard}{INDEX_SUFFIX}").exists():
                write_json_lines(skipped, write_shard(source, range(start, stop), shard))
                # The index is written last: if it exists, the shard is complete.
                index_shard(str(shard), shard.stat().st_size).save(Path(f"{shard}{INDEX_SUFFIX}"))
            skipped_records += read_json_lines(skipped)
            bar.advance(stop - start)
    return len(source) - len(skipped_records), skipped_records


def write_shard(source: Source, numbers: range, path: Path) -> list[dict[str, str]]:
    """Write one shard aside and rename it. Returns the skipped records."""
    skipped_records = []
    aside = path.with_name(f".{path.name}.tmp")
    with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in numbers:
            record = source[number]
            try:
                members = [] if isinstance(record, Rejected) else list(tar_members(record, f"{number:09}"))
            except UserError as error:
                record = Rejected(record.where, record.id, str(error))
            if isinstance(record, Rejected):
                skipped_records.append({"where": record.where, "id": record.id, "reason": record.reason})
                continue
            for name, data in members:
                header = tarfile.TarInfo(name)  # time and owner stay 0: the same data gives the same bytes
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    aside.replace(path)
    return skipped_records


def tar_members(record: Record, key: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a record. Raises UserError if an image cannot be read."""
    yield f"{key}.json", json.dumps(stored_form(record), ensure_ascii=False).encode()
    for number, image in enumerate(record.images):
        data = image.read()
        place = f"{number}." if len(record.images) > 1 else ""
        yield f"{key}.{place}{extension_of(data, image.name)}", data


def unpack(source: Source, out: Path) -> tuple[int, list[dict[str, str]]]:
    """Write `records.jsonl` and `images/`; resumes after the last complete line of `.part`.

    Returns:
        Number of records, and the skipped records.
    """
    part, final = out / "records.jsonl.part", out / "records.jsonl"
    if final.exists():
        raise UserError(f"{final} already exists; choose another folder")
    (out / "images").mkdir(parents=True, exist_ok=True)
    done = truncate_incomplete_line(part)
    with part.open("ab") as file, progress_bar(f"records of {out}", len(source), done) as bar:
        for number in range(done, len(source)):
            line = unpack_record(source[number], f"{number:09}", out / "images")
            file.write(as_json_line(line))
            bar.advance()
    skipped_records = []
    with part.open("rb") as lines, (out / ".records.jsonl.tmp").open("wb") as whole:
        for line in lines:
            if line.startswith(b"["):
                skipped_records.append(dict(zip(("where", "id", "reason"), json.loads(line), strict=True)))
            else:
                whole.write(line)
    write_json_lines(out / SKIPPED / "records.jsonl", skipped_records)
    (out / ".records.jsonl.tmp").replace(final)
    part.unlink()
    return len(source) - len(skipped_records), skipped_records


def unpack_record(record: Record | Rejected, key: str, folder: Path) -> dict | list:
    """Write the images of a record into `folder`. Returns its line, or [where, id, reason] if it is unusable."""
    try:
        if isinstance(record, Rejected):
            raise UserError(record.reason)
        names = []
        for number, image in enumerate(record.images):
            data = image.read()
            place = f"-{number}" if len(record.images) > 1 else ""
            name = f"{key}{place}.{extension_of(data, image.name)}"
            (folder / name).write_bytes(data)
            names.append(f"{folder.name}/{name}")
    except UserError as error:
        return [record.where, record.id, str(error)]
    return {**stored_form(record), **({"image": names[0] if len(names) == 1 else names} if names else {})}


def truncate_incomplete_line(part: Path) -> int:
    """Number of complete lines that an earlier run wrote; an incomplete last line is removed."""
    if not part.exists():
        return 0
    count, end = 0, 0
    with part.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def main(argv: list[str] | None = None) -> None:
    example = __doc__.partition("\n\n")[2].rstrip()
    parser = OneLineParser(description=__doc__.partition("\n")[0], epilog=example, formatter_class=HelpFormatter)
    parser.add_argument("source", help="data file, folder, pattern or URL")
    parser.add_argument("out", type=Path, help="folder for the shards, or with --back for records.jsonl and images/")
    parser.add_argument("--back", action="store_true", help="write JSONL and image files instead of shards")
    parser.add_argument("--image-root", help="folder of the images; default: that of the data")
    parser.add_argument("--records-per-shard", type=int, default=5_000, metavar="N", help="records per shard")
    arguments = parser.parse_args(argv)
    with reporting():
        if arguments.records_per_shard < 1:
            raise UserError("--records-per-shard must be at least 1")
        source = open_source(arguments.source, arguments.image_root)
        if arguments.back:
            written, skipped_records = unpack(source, arguments.out)
        else:
            written, skipped_records = write_shards(source, arguments.out, arguments.records_per_shard)
        print(f"{written:,} records written to {arguments.out}, {len(skipped_records):,} left out")
        for line in skipped_records[:5]:
            print(f"  {line['where']}: {line['reason']}")
        print(f"next: mmchat data check {arguments.out}")


if __name__ == "__main__":
    main()
