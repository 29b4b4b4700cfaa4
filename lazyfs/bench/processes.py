"""Programs that are measured beside us: they end with us, and what they have used."""

import os
from pathlib import Path

UNTIL_WE_END = ("setpriv", "--pdeathsig", "TERM")
"""Before a command: it ends when the thread that started it does, even by SIGKILL."""


def cpu_of(process_id: int) -> float:
    """CPU seconds that a running process has used."""
    # The name, which may hold blanks, stands in brackets before the fields (proc_pid_stat(5)).
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def largest_memory(process_id: int) -> int:
    """Bytes that were resident at most; 0 of one that has ended and of the kernel's own."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
