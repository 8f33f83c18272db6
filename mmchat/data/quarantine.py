"""Unusable samples and why they are skipped: one JSON line per sample in `quarantine.jsonl`."""

import json
from pathlib import Path

from mmchat.data.feature_cache import NO_FEATURES
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.files import append_json_line, split_complete_lines


class Quarantine:
    """Handles unusable samples by the user's policy: an error, or a line in a file. Each sample is counted once.

    Args:
        path: The file.
        policy: `on_bad_sample`: "stop" or "skip".
        writes: Whether this rank writes the file; the others only count.
    """

    def __init__(self, path: Path, policy: str, writes: bool = True) -> None:
        self.path, self.policy, self.writes = path, policy, writes
        self._places = set()
        if path.exists():
            lines, cut = split_complete_lines(path)
            if cut and writes:
                path.write_bytes(b"".join(line + b"\n" for line in lines))
            self._places = {json.loads(line)["where"] for line in lines}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, rejected: Rejected) -> None:
        """Record a sample.

        Raises:
            UserError: The policy is "stop" and the sample is not `left_out`, or the feature cache is at fault.
        """
        if rejected.kind == NO_FEATURES:
            raise UserError(f"{rejected.where}: {rejected.reason}")
        if self.policy == "stop" and not rejected.left_out:
            raise UserError(
                f"{rejected.where}: {rejected.reason}\n"
                "  fix the record, or set on_bad_sample to skip (bad samples are then skipped, counted "
                f"and listed in {self.path})"
            )
        if rejected.where in self._places:
            return
        self._places.add(rejected.where)
        if not self.writes:
            return
        append_json_line(self.path, {"where": rejected.where, "id": rejected.id, "reason": rejected.reason})
