"""What is right, slow or broken with this machine and this installation. Each file looks at one
thing, and gives findings; none prints."""

from openai_local.cli.diagnosis.finding import Finding
from openai_local.cli.diagnosis.report import Report, examine

__all__ = ["Finding", "Report", "examine"]
