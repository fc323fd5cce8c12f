"""How much an archive may unpack to, and the count of how much it did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ke_metric.data.archive_members import Member
from ke_metric.errors import ExitCode, KeMetricError

# A few compressible bytes are no bomb: the ratio counts only above this.
RATIO_FREE_BYTES = 16 * 1024**2
HEADER_BYTES = 4 * 1024


@dataclass(frozen=True)
class ExtractionLimits:
    """What an archive may grow to. The defaults leave room above Stanford Online Products (3.1 GB, 120,000 files).

    Attributes:
        members: Most files and folders.
        file_bytes: Largest single file, in bytes.
        total_bytes: All files together, in bytes.
        ratio: Most unpacked bytes for one byte of archive, counted above 16 MiB; images hardly compress at all.
        depth: Most folders inside one another.
    """

    members: int = 400_000
    file_bytes: int = 2 * 10**9
    total_bytes: int = 20 * 10**9
    ratio: float = 100.0
    depth: int = 32


class ExtractionBudget:
    """What an archive may still use up of its limits.

    Attributes:
        archive: The archive; errors name it.
        stream_bytes: Most bytes of its unpacked stream, headers included.
    """

    def __init__(self, archive: Path, limits: ExtractionLimits) -> None:
        packed = archive.stat().st_size
        self.archive = archive
        self.limits = limits
        self.bytes_left = min(limits.total_bytes, max(RATIO_FREE_BYTES, int(limits.ratio * packed)))
        self.members_left = limits.members
        # Headers and padding of a tar come on top of the content: 1 KiB for a member, 2 more for a long name.
        self.stream_bytes = self.bytes_left + limits.members * HEADER_BYTES

    def charge(self, member: Member) -> None:
        """Count a member before anything of it is read or written.

        The declared size is enough: neither tarfile nor zipfile hands out more bytes than that.

        Raises:
            KeMetricError: DATA: one of the limits is exceeded.
        """
        self.members_left -= 1
        if self.members_left < 0:
            raise self._exceeded(member, f"more than {self.limits.members:,} files and folders")
        if member.name.count("/") + member.name.count("\\") > self.limits.depth:
            raise self._exceeded(member, f"more than {self.limits.depth} folders inside one another")
        if not 0 <= member.size <= self.limits.file_bytes:
            allowed = f"at most {self.limits.file_bytes:,} are allowed"
            raise self._exceeded(member, f"a file of {member.size:,} bytes, {allowed}")
        self.bytes_left -= member.size
        if self.bytes_left < 0:
            raise self._exceeded(
                member,
                f"unpacks to more than {self.limits.total_bytes:,} bytes, or to more than {self.limits.ratio:g} "
                "times its own size: a decompression bomb?",
            )

    def _exceeded(self, member: Member, what: str) -> KeMetricError:
        return KeMetricError(f"{self.archive}: {what} (at member {member.name[:200]!r})", ExitCode.DATA)
