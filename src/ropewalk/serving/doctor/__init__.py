"""Find faults in the rotary parameters of a configuration.

    report = examine(ExaminedConfig.from_model("path/to/model", target=131_072))
    for finding in report.findings:
        print(finding.severity, finding.kind, finding.field, finding.means, finding.fix)

`checks` has the checks, in files by topic.
"""

from __future__ import annotations

from ropewalk.serving.doctor.examination import Report, examine
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import FAULT_KINDS
from ropewalk.serving.doctor.findings import Finding

__all__ = ["FAULT_KINDS", "ExaminedConfig", "Finding", "Report", "examine"]
