"""The emulated kernels under the sanitizers, and the emulation itself."""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(900)  # most of it compiles
def test_kernels_under_the_sanitizers(build_emulation):
    """Arrays of the exact size, shared memory included; all orders of threads; missing barriers are noticed."""
    # What is left out doubles the time to compile and finds nothing that the address sanitizer does not.
    undefined = ["-fsanitize=undefined", "-fno-sanitize=null,object-size,vptr"]
    flags = ["-O1", "-g1", "-fsanitize=address", *undefined, "-fno-sanitize-recover=all"]
    program = build_emulation("emulate.cpp", *flags, beside=[HERE / "emulate_orthogonality.cpp"])
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout
