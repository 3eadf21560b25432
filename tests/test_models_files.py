from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from openai_local.models.files import packaged_smollm2, requantized


@pytest.mark.model
def test_two_processes_requantise_once(tmp_path: Path) -> None:
    source = packaged_smollm2()
    assert source is not None
    code = (
        "import sys; from pathlib import Path; from openai_local.models.files import requantized;"
        "sys.stdout.write(str(requantized(Path(sys.argv[1]), Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert paths == {str(requantized(source, tmp_path))}
    assert [path.suffix for path in tmp_path.glob("*.gguf")] == [".gguf"]
    assert not list(tmp_path.glob("*.partial"))
    assert Path(paths.pop()).read_bytes()[:4] == b"GGUF"
