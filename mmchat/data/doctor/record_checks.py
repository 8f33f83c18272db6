"""Check one record by itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmchat.constants import IGNORE_INDEX
from mmchat.conversation import Turn, control_tokens, get_template
from mmchat.data.config import SourceConfig
from mmchat.data.doctor.findings import Finding, excludes
from mmchat.data.doctor.image_checks import ImageCheck, check_image, digest
from mmchat.data.doctor.text_checks import answer_findings, opening, order_problem, spelling_findings, token_pattern
from mmchat.data.records import Record, Rejected, prepared
from mmchat.errors import UserError
from mmchat.vision.layout import ImageLayout


@dataclass(frozen=True)
class CheckedRecord:
    """The result of checking one record.

    Attributes:
        findings: Errors and warnings.
        image_checks: One per image.
        digest: Of images and text; None if an image cannot be decoded or the record is malformed.
        tokens: Tokens before truncation; 0 without a model.
        supervised: Supervised tokens before truncation; 0 without a model.
        turns: Number of turns.
        unread_keys: The stored keys that have no meaning here (`Record.unread_keys`).
    """

    findings: list[Finding]
    image_checks: list[ImageCheck]
    digest: tuple[int, int] | None = None
    tokens: int = 0
    supervised: int = 0
    turns: int = 0
    unread_keys: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return not any(excludes(finding.kind) for finding in self.findings)


@dataclass(frozen=True)
class RecordChecker:
    """Checks records of one source.

    Attributes:
        config: The source.
        processor: The model's processor. Without it, lengths, its control tokens and its template are not checked.
        max_length: As in training; None does not cut.
    """

    config: SourceConfig
    processor: Any = None
    max_length: int | None = None

    def __call__(self, record: Record | Rejected) -> CheckedRecord:
        if isinstance(record, Rejected):
            return CheckedRecord([Finding(record.kind or "malformed_record", record.reason)], [])
        record = prepared(record, self.config.max_turns, self.config.image_place)
        turns = record.turns
        image_checks = [check_image(image, self.config.max_pixels) for image in record.images]
        findings = [Finding(kind, what, at) for at, check in enumerate(image_checks) for kind, what in check.problems]
        findings += spelling_findings(_with_all_captions(record), self._tokens)
        conversation_findings, tokens, supervised = self._conversation(record, turns, self._layouts(image_checks))
        findings += conversation_findings
        decoded = all(check.digest is not None for check in image_checks)
        return CheckedRecord(
            findings,
            image_checks,
            content_digest(_with_all_captions(record), image_checks) if decoded else None,
            tokens,
            supervised,
            len(turns),
            tuple(record.unread_keys),
        )

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        return token_pattern(control_tokens(self.processor.tokenizer) if self.processor else ())

    def _layouts(self, image_checks: list[ImageCheck]) -> list[ImageLayout]:
        """Views and slots of each image. An undecodable image, which has its own finding, counts as a pixel."""
        if self.processor is None:
            return []
        sizes = [(1, 1) if check.digest is None else (check.width, check.height) for check in image_checks]
        return self.processor.layouts(sizes)

    def _conversation(
        self, record: Record, turns: Sequence[Turn], layouts: list[ImageLayout]
    ) -> tuple[list[Finding], int, int]:
        """Findings, tokens and supervised tokens of the conversation as the template writes it."""
        first = opening(turns, self._alternates)
        problem = order_problem(turns, first)
        findings = answer_findings(turns[first:])
        if self.processor is None:
            return [*findings, *([Finding("role_order", problem)] if problem else [])], 0, 0
        try:
            rendered = self.processor.render(record.turns, layouts, template=self.config.template)
        except UserError as error:
            if problem:
                return [*findings, Finding("role_order", str(error))], 0, 0
            if any(finding.kind == "nothing_to_learn" for finding in findings):
                return findings, 0, 0
            return [*findings, Finding("template_refusal", str(error))], 0, 0
        tokens = len(rendered.input_ids)
        if self.max_length is not None and tokens > self.max_length:
            findings.append(self._over_length(record, layouts, tokens))
        # Nothing predicts the first position of a row, so it is no loss term.
        return findings, tokens, tokens - 1 - rendered.labels[1:].count(IGNORE_INDEX)

    def _over_length(self, record: Record, layouts: list[ImageLayout], tokens: int) -> Finding:
        try:
            cut = self.processor.render(record.turns, layouts, self.max_length, template=self.config.template).cut
        except UserError as error:
            return Finding("over_length", f"has {tokens:,} tokens: {error}")
        return Finding(
            "cut_text", f"has {tokens:,} tokens, max_length is {self.max_length:,}: the last {cut:,} are cut"
        )

    @property
    def _alternates(self) -> bool:
        if self.processor is None:
            return True
        template = get_template(self.config.template or self.processor.template)
        return template.alternating and not template.from_tokenizer


def _with_all_captions(record: Record) -> tuple[Turn, ...]:
    return (*record.turns, *(one.turns[-1] for one in record.variants[1:]))


def content_digest(turns: Sequence[Turn], image_checks: list[ImageCheck]) -> tuple[int, int]:
    """Equal for records with byte-identical images and the same text from the same roles."""
    content = repr(([check.digest for check in image_checks], [(turn.role, turn.parts, turn.train) for turn in turns]))
    return digest(content.encode("utf-8"))
