"""Other energy trackers, in an environment of their own beside this repository, with the torch of this interpreter."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".venv-peers"
PINS = ["codecarbon==3.3.2", "zeus==0.16.0", "carbontracker==2.4.7"]  # zeus is the later name of zeus-ml
INSTALL_SECONDS = 900


def peers_python(folder: Path = FOLDER) -> Path | None:
    """Return the interpreter of the environment, made or remade where needed; None, with a message, where it cannot be.

    What this interpreter has is seen behind what is installed there, so that torch is not installed again.
    """
    python, mark = folder / "bin" / "python", folder / "wattbench.json"
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    wanted = json.dumps({"python": sys.version, "seen": seen, "pins": PINS})
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"installing {', '.join(PINS)} into {folder.name} ...", flush=True)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "seen.pth").write_text("\n".join(seen) + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_SECONDS)
        mark.write_text(wanted)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        print(f"other trackers are left out, they cannot be installed: {type(error).__name__}")
        return None
    return python
