"""`python -m qa_hooks.integrations.sr FRAMEWORK -opt CONFIG`: the framework's training, with our parts registered."""

from __future__ import annotations

import argparse

from qa_hooks.integrations.sr.conventions import FRAMEWORKS
from qa_hooks.integrations.sr.registration import launch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m qa_hooks.integrations.sr", description=__doc__)
    parser.add_argument("framework", choices=list(FRAMEWORKS), help="whose train.py is started, in this folder")
    framework, options = parser.parse_known_args()
    launch(framework.framework, options)
