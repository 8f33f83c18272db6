"""What was left out and why: one JSON line per sample in `quarantine.jsonl`, each sample once."""

import json
from pathlib import Path

from mmchat.data.feature_store import NO_FEATURES
from mmchat.data.records import Rejected
from mmchat.errors import UserError
from mmchat.files import append_json_line, split_complete_lines


class Quarantine:
    """Answers every unusable sample as the user's policy says: an error, or a counted line in a file.

    writes: False on all ranks but one, which count only.
    """

    def __init__(self, path: Path, policy: str, writes: bool = True) -> None:
        self.path, self.policy, self.writes = path, policy, writes
        self._seen = set()
        if path.exists():
            lines, cut = split_complete_lines(path)
            if cut and writes:
                path.write_bytes(b"".join(line + b"\n" for line in lines))
            self._seen = {json.loads(line)["where"] for line in lines}

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, rejected: Rejected) -> None:
        """Raises UserError under the policy "stop", and always where the record is not to blame."""
        if rejected.kind == NO_FEATURES:
            raise UserError(f"{rejected.where}: {rejected.reason}")
        if self.policy == "stop":
            raise UserError(
                f"{rejected.where}: {rejected.reason}\n"
                "  mend the record, or set on_bad_sample to skip (bad samples are then left out, counted "
                f"and listed in {self.path})"
            )
        if rejected.where in self._seen:
            return
        self._seen.add(rejected.where)
        if not self.writes:
            return
        append_json_line(self.path, {"where": rejected.where, "id": rejected.id, "reason": rejected.reason})
